"""Processes that write, read, trim and clear one folder at once never see half an entry, and never fail."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness import lru_folder

LIMIT, NAMES = 60_000, 12


def write(place: Path, size: int) -> None:
    """Writes a file, or a folder of two, that says what it must hold."""
    text = os.urandom(size).hex()
    whole = f"{hashlib.sha256(text.encode()).hexdigest()} {text}"
    with lru_folder.writing(place) as scratch:
        if place.suffix:
            scratch.write_text(whole)
        else:
            scratch.mkdir()
            (scratch / "first").write_text(whole)
            (scratch / "second").write_text(whole)


def check(text: str) -> None:
    digest, _, body = text.partition(" ")
    assert hashlib.sha256(body.encode()).hexdigest() == digest, "half an entry was seen"


def read(place: Path) -> None:
    """Reads what there is of an entry: another process may drop it at any time."""
    for path in [place] if place.suffix else [place / "second", place / "first"]:
        with suppress(FileNotFoundError):
            check(path.read_text())
    with suppress(FileNotFoundError):
        os.utime(place)


def live(folder: Path, seconds: float, seed: int) -> None:
    """Does at random what workers and commands do to a cache."""
    luck, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        number = luck.randrange(NAMES)
        place = folder / (f"{number}.svg" if number % 2 else str(number))
        what = luck.random()
        if what < 0.45:
            read(place)
        elif what < 0.9:
            if place.suffix or not place.exists():
                write(place, luck.randrange(100, 8_000))
            lru_folder.trim(folder, LIMIT)
        elif what < 0.97:
            lru_folder.drop(place)
        else:
            assert lru_folder.size_of(folder) >= 0


def live_together(folder: Path, seconds: float) -> None:
    root = Path(__file__).parents[1]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(seconds), str(seed)],
            env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(4)
    ]  # fmt: skip
    assert [worker.communicate()[1] for worker in workers] == [""] * 4
    lru_folder.trim(folder, LIMIT)
    assert 0 < lru_folder.size_of(folder) <= LIMIT
    assert not [path for path in folder.iterdir() if lru_folder.is_scratch(path)]


def test_four_processes_live_in_one_folder_for_two_seconds(tmp_path: Path) -> None:
    live_together(tmp_path / "cache", 2)


@pytest.mark.slow
def test_four_processes_live_in_one_folder_for_a_minute(tmp_path: Path) -> None:
    live_together(tmp_path / "cache", 60)


def test_the_least_recently_used_entries_go_first_and_no_more_than_must(tmp_path: Path) -> None:
    for used, name in enumerate(("oldest", "older.svg", "newer", "newest.svg")):
        write(tmp_path / name, 100)
        os.utime(tmp_path / name, (used, used))
    sizes = {path.name: lru_folder.size_of(path) for path in tmp_path.iterdir()}
    assert lru_folder.trim(tmp_path, sum(sizes.values())) == 0
    assert lru_folder.trim(tmp_path, sizes["newer"] + sizes["newest.svg"]) == sizes["oldest"] + sizes["older.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {"newer", "newest.svg"}


def test_what_is_not_written_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with lru_folder.writing(tmp_path / "entry") as scratch:
            scratch.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_of_a_folder_the_first_wins_and_neither_fails(tmp_path: Path) -> None:
    with lru_folder.writing(tmp_path / "entry") as scratch:
        scratch.mkdir()
        (scratch / "late").write_text("late")
        write(tmp_path / "entry", 10)
    assert {path.name for path in (tmp_path / "entry").iterdir()} == {"first", "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert lru_folder.trim(tmp_path / "none", 0) == lru_folder.size_of(tmp_path / "none") == 0
    assert lru_folder.drop(tmp_path / "none" / "entry") == 0


if __name__ == "__main__":
    live(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
