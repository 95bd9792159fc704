"""Keeps what libraries say of themselves off the user's screen: bars, warnings, banners.

Workers write all of it to their logs. What Quench itself logs, and errors, are shown.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Read when the library is imported, here and in workers, whose logs bars would fill.
_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


class _LibraryLogger(logging.Logger):
    """A logger that shows errors alone, whatever level and handlers its library gives it."""

    def isEnabledFor(self, level: int) -> bool:
        return _is_shown(self.name, level) and super().isEnabledFor(level)


def _is_shown(logger: str, level: int) -> bool:
    return level >= logging.ERROR or logger.partition(".")[0] == "harness"


def hush() -> None:
    """Silences libraries that this process imports from now on; for the command line alone, which shows the rest."""
    for name in _NO_BARS:
        os.environ[name] = "1"
    # What workers are forked from is started with these; a worker shows warnings again once it writes to its log.
    sys.warnoptions[:] = ["ignore"]
    logging.setLoggerClass(_LibraryLogger)
    logging.root.addFilter(lambda record: _is_shown(record.name, record.levelno))
    # Not a filter of warnings: libraries set their own.
    warnings.showwarning = lambda *arguments, **settings: None


@contextmanager
def off_stdout() -> Iterator[None]:
    """Drops what libraries print to standard output, which is for the result alone."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
