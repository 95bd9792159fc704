"""Paths of shipped content and of working files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_downloads = ContextVar("downloads", default=True)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Has what is not on this machine be missing and not fetched, for commands that only look."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


def may_download() -> bool:
    """Returns whether what is not on this machine may be fetched."""
    return _downloads.get()


def content_dir(name: str) -> Path:
    """Returns the folder of shipped content: ``tasks``, ``submissions`` or ``leaderboard``.

    In a checkout it stands beside the package; in an installed wheel it lies
    inside it.

    Raises:
        FileNotFoundError: The installation is damaged.
    """
    for candidate in (_PACKAGE.parent / name, _PACKAGE / "_content" / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"The folder {name!r} that ships with Quench is missing: reinstall quench-bench.")


def checkout_dir() -> Path | None:
    """Returns the checkout's root, or None where Quench runs from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / ".git").exists() else None


def cache_dir() -> Path:
    """Returns the folder for merged checkpoints and downloads, created on first use.

    ``QUENCH_CACHE`` names another place; the default follows the XDG rule.
    """
    chosen = os.environ.get("QUENCH_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quench"
    base.mkdir(parents=True, exist_ok=True)
    return base
