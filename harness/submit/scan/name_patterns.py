"""Regular expressions of strangers, as peft takes them for names of layers, run so that none can hang.

Python's own engine can't be stopped. The library ``regex`` reads the same syntax and stops after a time; where the
two would read a pattern in different ways, it is refused.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Any

LONGEST = 2000
"""Characters of a pattern: what trainers write for a model with a vision tower has 500."""

SECONDS = 5.0
"""Time for all matches of one adapter; an honest pattern takes a thousandth of it."""

# Fuzzy counts, named characters, character classes and set operations are read in two ways.
_TWO_READINGS = re.compile(r"\{(?!\d+(?:,\d*)?\}|,\d+\})|\\[Np]|\[\[|\[:|--|&&|\|\||~~|\(\?[aiLmsux]")


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Returns a pattern, compiled.

    Raises:
        ValueError: It is too long, no regular expression, or read by the two
            engines in different ways.
    """
    import regex

    if len(pattern) > LONGEST or _TWO_READINGS.search(pattern):
        raise ValueError("no pattern that can be run safely")
    try:
        re.compile(pattern)
        return regex.compile(pattern, regex.V0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError("no regular expression") from error


class Matcher:
    """Runs patterns until ``SECONDS`` are over, all calls together."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS

    def match(self, pattern: str, name: str, *, full: bool = False) -> Any:
        """Returns what ``re.match`` or ``re.fullmatch`` would return.

        Raises:
            TimeoutError: The time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        run = compiled(pattern).fullmatch if full else compiled(pattern).match
        return run(name, timeout=left)
