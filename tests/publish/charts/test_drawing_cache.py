"""Drawings are kept: what was drawn once is read back, as long as it fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.publish.board import Board
from harness.publish.charts import altair_charts
from harness.publish.charts import svg as svg_charts
from harness.run.maintenance import cache as cache_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / svg_charts.FOLDER


def never(_: object) -> str:
    raise AssertionError("drawn again")


def test_the_same_chart_is_drawn_once_and_is_the_same_from_the_cache(
    board: Board, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = altair_charts.trade_off(board, 4)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(svg_charts.vl_convert, "vegalite_to_svg", never)
    assert altair_charts.trade_off(board, 4) == first
    with pytest.raises(AssertionError, match="drawn again"):
        altair_charts.trade_off(board, 8)


def test_another_version_of_the_drawer_draws_anew(
    board: Board, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    altair_charts.trade_off(board, 4)
    monkeypatch.setattr(svg_charts, "_DRAWER", "0")
    altair_charts.trade_off(board, 4)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_can_not_be_written_costs_time_and_nothing_else(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = altair_charts.trade_off(board, 4)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "file"))
    assert altair_charts.trade_off(board, 4) == expected
    assert svg_charts.trim() == 0


def test_what_was_used_longest_ago_goes_first(cache: Path) -> None:
    cache.mkdir(parents=True)
    for age, name in enumerate(("newest", "middle", "oldest")):
        (cache / name).write_bytes(b"x" * 100)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    assert svg_charts.trim(300) == 0
    assert svg_charts.trim(250) == 100
    assert sorted(path.name for path in cache.iterdir()) == ["middle", "newest"]
    assert svg_charts.trim(0) == 200
    assert list(cache.iterdir()) == []


def test_the_cache_command_knows_and_clears_the_drawings(board: Board, cache: Path) -> None:
    altair_charts.trade_off(board, 4)
    size = next(cache.iterdir()).stat().st_size
    room = next(room for room in cache_folder.rooms(cache.parent.parent) if room.kind == "drawings")
    assert room.size_bytes == size
    assert cache_folder.clear(cache.parent.parent, ["drawings"]) == size
    assert not cache.exists()
