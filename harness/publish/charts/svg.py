"""A chart as SVG text: Vega-Lite through altair, drawn by vl-convert without a browser.

Colours are CSS variables with the light theme's values as fallback, so one
drawing serves both themes; ``standalone`` bakes the values in for download.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from typing import Any

import altair as alt
import vl_convert

from harness import lru_folder, paths
from harness.publish.formatting import visible

COLOURS: Mapping[str, str] = {
    "--c1": "#0072b2", "--c2": "#d55e00", "--c3": "#009e73", "--c4": "#c4588f", "--c5": "#b87a00",
    "--c6": "#2a93cf", "--c7": "#7a6f00", "--c8": "#5b4a9e",
}  # fmt: skip
"""Okabe-Ito's hues, darkened where they would be too pale for text on white."""

INK, MUTED, GRID, BAND, FAINT, PAPER, GOOD = (
    "#16191d", "#59616b", "#e3e6ea", "#8d959f", "#b9bfc7", "#fffffe", "#bfe3d5",
)  # fmt: skip
_VARIABLES = {
    **{colour: name for name, colour in COLOURS.items()},
    INK: "--ink", MUTED: "--muted", GRID: "--grid", BAND: "--band", FAINT: "--faint", PAPER: "--paper",
    GOOD: "--good-zone",
}  # fmt: skip
_FONT = "system-ui, sans-serif"
FOLDER = "drawings/svg"
"""Folder of the cache with what vl-convert has drawn."""
_DRAWER = version("vl-convert-python")
ROOM = 32_000_000
"""Bytes that it may take."""


class Drawing:
    """One chart in the making.

    Rows are known to it by name: altair copies and checks rows that stand in
    the chart itself many times over.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Returns an altair chart over these rows."""
        name = f"rows-{len(self._rows)}"
        self._rows[name] = [dict(row) for row in rows]
        return alt.Chart(alt.NamedData(name=name))

    def layers(self, charts: Sequence[Any], **properties: Any) -> dict[str, Any]:
        """Returns altair charts laid over each other, as Vega-Lite; altair's own ``layer`` would copy each of them."""
        return {
            "layer": [chart.to_dict(validate=False, context={"top_level": False}) for chart in charts],
            **properties,
        }

    def svg(self, chart: Mapping[str, Any], name: str, title: str, *, right: float = 4.0) -> str:
        """Returns the chart as SVG to stand in a page.

        Args:
            chart: Vega-Lite over rows of this drawing.
            name: Prefix of its ids, unique within a page.
            title: Text alternative.
            right: Room for labels beside it, in pixels.
        """
        spec = {
            "$schema": alt.SCHEMA_URL,
            **chart,
            "config": _look(),
            "background": None,
            "datasets": self._rows,
            "padding": {"left": 4, "right": right, "top": 4, "bottom": 4},
        }
        # An unprintable character in a name would end the whole process inside vl-convert.
        return _themed(_drawn(_printable(spec)), name, visible(title))


def themed(colour: str) -> str:
    """Returns one of this module's colours as a CSS variable with the colour itself as fallback."""
    return f"var({_VARIABLES[colour]}, {colour})"


def _drawn(spec: dict[str, Any]) -> str:
    """Returns vl-convert's drawing, from the cache where the same was drawn before."""
    text = json.dumps([_DRAWER, spec], sort_keys=True)
    kept = None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept = paths.cache_dir() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()}.svg"
        svg = kept.read_text(encoding="utf-8")
        os.utime(kept)
        return svg
    svg = str(vl_convert.vegalite_to_svg(spec))
    # What can't be kept is drawn again next time.
    if kept is not None:
        with contextlib.suppress(OSError), lru_folder.writing(kept) as scratch:
            scratch.write_text(svg, encoding="utf-8")
    return svg


def trim(room: int = ROOM) -> int:
    """Removes the drawings that were used longest ago until the rest takes ``room`` bytes; returns the bytes freed."""
    with contextlib.suppress(OSError):
        return lru_folder.trim(paths.cache_dir() / FOLDER, room)
    return 0


def _printable(value: Any) -> Any:
    """Returns a chart's specification with every string, data included, as pages show it."""
    if isinstance(value, str):
        return visible(value, keep="\n")
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _look() -> dict[str, Any]:
    return {
        "font": _FONT,
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "domainColor": GRID, "tickColor": GRID,
            "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 400, "labelFont": _FONT, "titleFont": _FONT,
        },
        "axisX": {"grid": False},
    }  # fmt: skip


def spread(heights: Mapping[str, float], step: float, ends: tuple[float, float]) -> dict[str, float]:
    """Returns label heights at least ``step`` apart, in order, near where they want to be, inside ``ends``."""
    placed: dict[str, float] = {}
    floor = -math.inf
    for name, height in sorted(heights.items(), key=lambda item: (item[1], item[0])):
        placed[name] = floor = max(height, floor + step)
    ceiling = ends[1] + step
    for name in reversed(placed):
        placed[name] = ceiling = min(placed[name], ceiling - step)
    return placed


def _themed(svg: str, name: str, title: str) -> str:
    """Returns the drawing with CSS variables for colours, ids of its own and a text alternative."""
    # The drawer numbers its ids through the whole process; ours start anew in each drawing.
    for number, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))):
        svg = svg.replace(f'id="{old}"', f'id="{name}-{number}"').replace(f"url(#{old})", f"url(#{name}-{number})")
    svg = re.sub(r'\s(?:style|class|aria-[a-z]+|role|version|xmlns:xlink)="[^"]*"', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(rf'"{colour}"', f'"var({variable}, {colour})"', svg, flags=re.IGNORECASE)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def standalone(svg: str) -> str:
    """Returns a drawing with the light theme's colours baked in, for download."""
    plain = re.sub(r"var\(--[a-z0-9-]+, (#[0-9a-f]{6})\)", r"\1", svg)
    opening = re.match(r"<svg [^>]*>", plain)
    assert opening is not None  # vl-convert always opens with it
    size = re.search(r'viewBox="([^"]+)"', opening.group())
    box = size.group(1).split() if size else ["0", "0", "0", "0"]
    paper = f'<rect x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" fill="#ffffff"/>'
    return plain.replace(opening.group(), opening.group() + paper, 1)
