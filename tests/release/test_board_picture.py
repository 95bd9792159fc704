"""The README's picture: one drawing in two themes, small, harmless, and of the board that is committed."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import board_picture
from harness.publish.board import Board
from harness.publish.charts import altair_charts
from harness.publish.charts import svg as svg_charts
from harness.publish.ranking import rank as ranking
from harness.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = {name: ROOT / "docs" / f"board-{name}.svg" for name in board_picture.THEMES}
every_theme = pytest.mark.parametrize("name", board_picture.THEMES)


@pytest.fixture(scope="module")
def board() -> Board:
    with Store.open(ROOT / "results.duckdb", read_only=True) as store:
        return ranking.rank(store.cells(with_documents=True), "mini")


@every_theme
def test_a_picture_is_small_and_asks_for_nothing_from_elsewhere(name: str) -> None:
    text = COMMITTED[name].read_text(encoding="utf-8")
    assert len(text) < 150_000
    root = ElementTree.fromstring(text)
    assert root.get("aria-label", "").startswith("Remaining share")
    assert not re.search(r"<script|<image|href|var\(|@import|\bon\w+=", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


@every_theme
def test_a_picture_stands_on_its_theme_s_paper_and_draws_in_its_colours(name: str) -> None:
    text, colours = COMMITTED[name].read_text(encoding="utf-8"), board_picture.theme(name) if name == "dark" else {}
    paper = re.search(r'<rect [^>]*fill="(#[0-9a-f]{6})"/>', text)
    assert paper is not None
    assert paper[1] == colours.get("paper", board_picture.LIGHT_PAPER)
    for variable, light in svg_charts.COLOURS.items():
        assert colours.get(variable.removeprefix("--"), light) in text, variable


def test_both_pictures_are_one_drawing() -> None:
    plain = [re.sub(r"#[0-9a-f]{6}", "#", path.read_text(encoding="utf-8")) for path in COMMITTED.values()]
    assert plain[0] == plain[1]


def test_the_dark_theme_has_every_colour_that_drawings_ask_for() -> None:
    asked = {variable.removeprefix("--") for variable in svg_charts.COLOURS}
    dark = board_picture.theme("dark")
    assert asked | {"ink", "muted", "grid", "band", "faint", "paper"} <= set(dark)
    with pytest.raises(ValueError, match="no theme 'sepia'"):
        board_picture.theme("sepia")


def test_the_readme_shows_the_picture_of_the_reader_s_theme_and_says_what_it_shows() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert '(prefers-color-scheme: dark)" srcset="docs/board-dark.svg"' in readme
    (alternative,) = re.findall(r'<img src="docs/board-light\.svg" alt="([^"]+)"', readme)
    assert len(alternative) > 100


def test_a_board_without_remaining_shares_has_no_picture() -> None:
    with pytest.raises(ValueError, match="No entry on mini"):
        board_picture.pictures(ranking.rank([], "mini"))


@pytest.mark.slow
def test_the_picture_names_the_entries_that_the_board_draws_strongly(board: Board) -> None:
    text = COMMITTED["light"].read_text(encoding="utf-8")
    for entry in altair_charts.colours(board):
        assert f">{entry.removeprefix('mini-')}</text>" in text, "the picture is old: run `make picture`"


@pytest.mark.slow
@every_theme
def test_the_picture_is_that_of_the_committed_store(name: str, board: Board) -> None:
    drawn = board_picture.pictures(board)[name]
    assert drawn == COMMITTED[name].read_text(encoding="utf-8"), "the picture is old: run `make picture`"
