"""A new build takes the place of the last one; what is as it was keeps its time of change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.publish.pages.atomic_swap import replaced

LONG_AGO = 10**18


def built(out: Path, texts: dict[str, str]) -> None:
    with replaced(out) as folder:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def aged(out: Path) -> None:
    for path in out.rglob("*"):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))


def test_files_that_are_as_they_were_keep_their_time_and_others_do_not(tmp_path: Path) -> None:
    out = tmp_path / "site"
    built(out, {"index.html": "old", "submission/a.html": "same", "submission/b.html": "four"})
    aged(out)
    built(out, {"index.html": "new", "submission/a.html": "same", "submission/b.html": "five", "c.html": "more"})
    kept = {path.relative_to(out).as_posix() for path in out.rglob("*.html") if path.stat().st_mtime_ns == LONG_AGO}
    assert kept == {"submission/a.html"}
    assert (out / "submission" / "b.html").read_text(encoding="utf-8") == "five"


def test_a_page_that_was_a_folder_before_is_written(tmp_path: Path) -> None:
    out = tmp_path / "site"
    built(out, {"a/b.html": "1"})
    built(out, {"a": "2"})
    assert (out / "a").read_text(encoding="utf-8") == "2"


def test_a_build_that_fails_leaves_the_last_site_with_its_times(tmp_path: Path) -> None:
    out = tmp_path / "site"
    built(out, {"index.html": "old"})
    aged(out)
    with pytest.raises(FileNotFoundError):
        built(out, {"index.html": "new", "a/b/c.html": "its folder is not there"})
    assert (out / "index.html").read_text(encoding="utf-8") == "old"
    assert (out / "index.html").stat().st_mtime_ns == LONG_AGO
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
