"""Draws the README's picture: the board's curves of remaining knowledge, once in each theme, from its own store."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import boards
from harness.paths import content_dir
from harness.publish.board import Board
from harness.publish.charts import altair_charts
from harness.publish.charts import svg as svg_charts

THEMES = ("light", "dark")
LIGHT_PAPER = "#ffffff"


def main() -> None:
    """Draws both pictures anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results.duckdb"))
    parser.add_argument("--corpus", default="mini")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    for theme, svg in pictures(boards.ranked(given.store, given.corpus)).items():
        (given.out / f"board-{theme}.svg").write_text(svg, encoding="utf-8")


def pictures(board: Board) -> dict[str, str]:
    """Returns the drawing of each theme as SVG that stands alone: a README has no style sheet to ask for colours.

    Raises:
        ValueError: No entry of the board has a remaining share.
    """
    svg = altair_charts.remaining_curves(board)
    if svg is None:
        raise ValueError(f"No entry on {board.corpus} has a remaining share: there is nothing to draw.")
    return in_both_themes(svg)


def in_both_themes(svg: str) -> dict[str, str]:
    """Returns a drawing of the pages as a file for each theme."""
    return {"light": f"{svg_charts.standalone(svg)}\n", "dark": f"{_dark(svg)}\n"}


def _dark(svg: str) -> str:
    colours = theme("dark")
    dark = re.sub(r"var\(--([a-z0-9-]+), #[0-9a-f]{6}\)", lambda found: colours[found[1]], svg)
    return svg_charts.standalone(dark).replace(f'fill="{LIGHT_PAPER}"', f'fill="{colours["paper"]}"', 1)


def theme(name: str) -> Mapping[str, str]:
    """Returns the colours that the pages' style sheet gives to a theme, by variable."""
    css = (content_dir("leaderboard") / "static" / "quench.css").read_text(encoding="utf-8")
    found = re.search(rf':root\[data-theme="{name}"\] \{{([^}}]*--[^}}]*)\}}', css)
    if found is None:
        raise ValueError(f"quench.css has no theme {name!r} with colours.")
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", found[1]))


if __name__ == "__main__":
    main()
