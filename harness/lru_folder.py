"""A folder of files or folders that many processes write, read and trim at once: the least recently used go first.

An entry is there as a whole or not at all: it is written under a scratch name
and renamed, and renamed away before it is removed. Whatever another process
takes away meanwhile counts as gone, and is no error.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

SCRATCH = ".writing-"
"""What the names of entries begin with while they are written or removed."""

STALE_SECONDS = 86_400
"""Age from which on a scratch entry is what a killed process left."""


@contextmanager
def writing(place: Path) -> Iterator[Path]:
    """Yields a path for a new file or folder, which is put at ``place`` where the block ends well.

    Where another process was faster with a folder, its folder stays.

    Raises:
        OSError: The entry can't be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=SCRATCH))
    try:
        yield scratch / place.name
        try:
            (scratch / place.name).replace(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def drop(place: Path) -> int:
    """Removes an entry, at once for all who look for it; returns the bytes freed, 0 where another process was first."""
    # A new folder to move it to could not be made on a full disk.
    aside = place.with_name(f"{SCRATCH}{uuid4().hex}")
    try:
        place.rename(aside)
    except OSError:
        return 0
    freed = size_of(aside)
    with suppress(OSError):
        aside.unlink() if aside.is_symlink() or not aside.is_dir() else shutil.rmtree(aside, ignore_errors=True)
    return freed


def trim(folder: Path, limit: int) -> int:
    """Drops the least recently used entries until the rest takes at most ``limit`` bytes; returns the bytes freed.

    An entry's time of change is its last use: readers renew it with ``os.utime``.
    """
    entries, freed = [], 0
    for place in _inside(folder):
        with suppress(OSError):
            used = place.stat().st_mtime
            if not is_scratch(place):
                entries.append((used, size_of(place), place))
            # What is being written is nobody's to drop, unless its writer was killed a day ago.
            elif time.time() - used > STALE_SECONDS:
                freed += drop(place)
    total = sum(size for _, size, _ in entries)
    for _, size, place in sorted(entries):
        if total <= limit:
            break
        # What another process has dropped is gone as well.
        freed += drop(place)
        total -= size
    return freed


def is_scratch(place: Path) -> bool:
    """Returns whether an entry is being written or removed, or was when its process was killed."""
    return place.name.startswith(SCRATCH)


def size_of(place: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder."""
    size = 0
    with suppress(OSError):
        size = place.lstat().st_size if not place.is_dir() else 0
    for current, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(current, name)).st_size
    return size


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
