"""Builds a site beside its place and moves it there as a whole; only an earlier site is ever replaced.

Files that are as they were keep their time of change, so that rsync sends and browsers load again only what differs.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import InputError

_MARKER = ".quench-site"


def check_replaceable(out: Path) -> None:
    """Refuses a place that holds anything but an earlier site.

    Raises:
        InputError: ``out`` is a file, or holds other files.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / _MARKER).is_file()):
        raise InputError(
            f"{out} holds files that are no Quench site, and a build replaces the whole folder: "
            "name an empty folder or one that is not there yet."
        )


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Yields a folder to build in; it takes the place of ``out`` at the end, unless the build fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        building.chmod(0o755)
        (building / _MARKER).write_text("Built by quench render; replaced as a whole.\n", encoding="utf-8")
        yield building
        _swap(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _keep_times(building: Path, earlier: Path) -> None:
    for path in building.rglob("*"):
        before = earlier / path.relative_to(building)
        if path.is_file() and before.is_file() and filecmp.cmp(path, before, shallow=False):
            facts = before.stat()
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _swap(building: Path, out: Path) -> None:
    _keep_times(building, out)
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    if out.exists():
        out.replace(old / "site")
    building.replace(out)
    shutil.rmtree(old, ignore_errors=True)
