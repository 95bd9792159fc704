"""Draws what ``make real-experiment`` found: how much worse than its target each model continues the forgotten texts.

Usage: ``python -m benchmarks.loss_picture --store results.duckdb``; it writes docs/forgotten-light.svg and -dark.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from benchmarks import board_picture, boards, real_tables
from benchmarks.real_experiment import ENTRIES, QUANTIZERS, TARGET
from harness.publish.board import Board
from harness.publish.charts.svg import COLOURS, FAINT, INK, Drawing

TITLE = "How many nats worse than its target under the same quantizer each model continues the forgotten texts"


def points(board: Board, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns one row for each model and quantizer: the loss above the target's, in nats."""
    found = real_tables.results(board)
    rows = []
    for entry in ENTRIES:
        for seed in seeds:
            for quantizer, result in found.get(f"{entry.name}-s{seed}", {}).items():
                above = real_tables.loss_above(result, found[TARGET].get(quantizer))
                if above is not None:
                    way = entry.name.removeprefix("smol-")
                    rows.append({"way": way, "seed": seed, "quantizer": quantizer, "above": above})
    return rows


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the drawing as SVG: a line for each quantizer, and on it a stroke from seed to seed for each way."""
    drawing = Drawing()
    ways = [entry.name.removeprefix("smol-") for entry in ENTRIES]
    known = {row["quantizer"] for row in rows}
    order = [name for name in QUANTIZERS.split(",") if name in known]
    y = alt.Y("quantizer:N", sort=order, title=None, axis=alt.Axis(grid=True, ticks=False, domain=False, minExtent=124))
    x = alt.X(
        "above:Q", title="nats above the target; 0: it is the quantized target again", axis=alt.Axis(format=".1~f")
    )
    place = alt.YOffset("way:N", sort=ways)
    colour = alt.Color(
        "way:N", sort=ways, scale=alt.Scale(domain=ways, range=list(COLOURS.values())[: len(ways)]),
        legend=alt.Legend(title=None, orient="top", direction="horizontal", symbolType="circle", labelColor=INK),
    )  # fmt: skip
    zero = drawing.rows([{"above": 0.0}]).mark_rule(color=FAINT, strokeWidth=1.5).encode(x=x)
    spans = drawing.rows(rows).mark_line(strokeWidth=1.5, opacity=0.6).encode(
        x=x, y=y, yOffset=place, color=colour, detail=["way:N", "quantizer:N"]
    )  # fmt: skip
    dots = drawing.rows(rows).mark_point(size=36, filled=True, opacity=1).encode(x=x, y=y, yOffset=place, color=colour)
    heading = {"text": "What is left of forgetting", "anchor": "start", "fontSize": 12, "fontWeight": 600, "color": INK}
    chart = drawing.layers([zero, spans, dots], width=560, height={"step": 11}, title=heading)
    return drawing.svg(chart, "left", TITLE)


def main() -> None:
    """Draws both pictures anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results.duckdb"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    board = boards.ranked(given.store, "smol")
    for theme, svg in board_picture.in_both_themes(draw(points(board, given.seeds))).items():
        (given.out / f"forgotten-{theme}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
