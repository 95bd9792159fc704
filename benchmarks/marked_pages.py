"""Pages of docs/ that hold a part made by a program, between two marks of their own."""

from __future__ import annotations

from pathlib import Path


def rewrite(page: Path, start: str, end: str, made: str) -> None:
    """Replaces what stands between the first ``start`` and the ``end`` after it; both marks stay.

    Raises:
        ValueError: The page lacks one of the marks.
    """
    before, opened, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{page} has no part between {start} and {end}.")
    page.write_text(f"{before}{start}\n{made}\n{end}{after}", encoding="utf-8")
