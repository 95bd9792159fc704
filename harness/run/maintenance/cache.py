"""The cache folder: its kinds, their size, and how to empty them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import lru_folder
from harness.errors import InputError
from harness.quantize import model_cache

KINDS = {
    "hub": "models downloaded from a hub",
    "merged": "adapters merged into their base",
    "rounded": "float32 models rounded to bfloat16",
    model_cache.FOLDER: "quantized models, read back instead of made again",
    "drawings": "charts of the pages",
    "kernels": "what GPU kernels were compiled to",
    "environments": "interpreters of unmaintained backends",
    "left over": "what a killed run was writing",
}
"""Folders of the cache and what they hold."""

_LEFT_OVER = "left over"
_SCRATCH = "quantizing-"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One kind of thing in the cache.

    Attributes:
        kind: Key of ``KINDS``.
        entries: How many there are.
        size_bytes: What they take.
        folders: Where each lies.
    """

    kind: str
    entries: int
    size_bytes: int
    folders: tuple[Path, ...]


def rooms(cache: Path) -> tuple[Room, ...]:
    """Returns what each kind takes, in the order of ``KINDS``."""
    found = []
    for kind in KINDS:
        folders = _left_over(cache) if kind == _LEFT_OVER else _entries(cache / kind)
        size = sum(lru_folder.size_of(folder) for folder in folders)
        found.append(Room(kind=kind, entries=len(folders), size_bytes=size, folders=tuple(folders)))
    return tuple(found)


def clear(cache: Path, kinds: Sequence[str]) -> int:
    """Removes everything of some kinds and returns the bytes freed.

    Raises:
        InputError: A kind is none of ``KINDS``.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is nothing that the cache keeps: name {', '.join(map(repr, KINDS))}.")
    freed = 0
    for room in rooms(cache):
        if room.kind in kinds:
            for folder in room.folders:
                freed += lru_folder.drop(folder)
    return freed


def parse_size(text: str) -> int:
    """Returns the bytes that ``20GB``, ``512 MiB`` or ``1000`` stand for; multiples are of 1024.

    Raises:
        InputError: It is no size.
    """
    told = _SIZE.fullmatch(text.strip())
    if told is None:
        raise InputError(f"{text!r} is no size: write a number with a unit, such as 20GB or 512MB.")
    return int(float(told[1]) * 1024 ** _POWERS[told[2].upper()])


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir() and not _is_scratch(path))


def _left_over(cache: Path) -> list[Path]:
    """Returns scratch folders that nobody has touched for a day: those of today may be in use."""
    scratch = [path for pattern in ("*", "*/*") for path in cache.glob(pattern) if path.is_dir() and _is_scratch(path)]
    return sorted(path for path in scratch if _age(path) > lru_folder.STALE_SECONDS)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        # Its writer has removed it meanwhile.
        return 0.0


def _is_scratch(path: Path) -> bool:
    return path.name.startswith(_SCRATCH) or lru_folder.is_scratch(path)
