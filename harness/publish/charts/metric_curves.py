"""The small charts of a submission's page, one per metric, written as SVG without a drawing library.

Every page has four of them: through altair and vl-convert they took most of a build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from harness.publish.board import Board, LeaderboardRow
from harness.publish.charts.svg import COLOURS, GRID, INK, MUTED, spread, themed
from harness.publish.formatting import visible
from harness.score.metrics.formulas import METRICS, PRIMARY

_LEFT, _TOP, _WIDTH, _HEIGHT = 34, 28, 300, 150
_SIZE = (424, 262)
_WAYS = {"lower": "lower is better", "higher": "higher is better", "toward_zero": "0 is ideal"}
_SHADES = {"entry": COLOURS["--c2"], "this control": COLOURS["--c2"], "target": INK, "retrained": MUTED}
_Point = tuple[float, float, float, float]


def metric_curves(board: Board, row: LeaderboardRow) -> dict[str, str]:
    """Returns one chart per primary metric: an entry over quantizers, with its target's and the retrained model's line.

    Metrics without a value have no chart.
    """
    names = [spec.name for spec in board.quantizers]
    lines = {
        "entry" if row.submission.role == "entry" else "this control": row,
        "target": next((c for c in board.controls if c.submission.name == row.submission.target), None),
        "retrained": next(
            (c for c in board.controls if c.submission.role == "retrain" and row.submission.role == "entry"
             and row.submission.retrain in (None, c.submission.name)), None,
        ),
    }  # fmt: skip
    known = {who: found for who, found in lines.items() if found is not None}
    return {
        metric: _chart(metric, row.submission.name, names, known)
        for metric in PRIMARY
        if any(metric in result.metrics for result in row.by_quantizer.values())
    }


def _chart(metric: str, submission: str, names: Sequence[str], lines: Mapping[str, LeaderboardRow]) -> str:
    info = METRICS[metric]
    ends = (-105.0, 45.0) if metric == "privleak" else (0.0, 105.0)
    points = {who: found for who, row in lines.items() if (found := _points(row, metric, names, ends))}
    clip = f"metric-{metric}-clip"
    title = escape(visible(f"{info.label} of {submission} under every quantizer"))
    heading = escape(f"{info.label} ({_WAYS[info.direction]})")
    parts = [
        f'<svg role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE[0]} {_SIZE[1]}"'
        f' width="{_SIZE[0]}" height="{_SIZE[1]}" font-family="system-ui, sans-serif">',
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}"/></clipPath>',
        _text(4, 14, heading, 12, INK, ' font-weight="600"'),
        *_axes(names, ends),
        f'<g clip-path="url(#{clip})">',
        *(part for who, found in points.items() for part in _line(found, themed(_SHADES[who]))),
        "</g>",
        *_labels(points),
        "</svg>",
    ]
    return "".join(parts)


def _points(
    row: LeaderboardRow, metric: str, names: Sequence[str], ends: tuple[float, float]
) -> list[_Point]:  # fmt: skip
    """Returns x and the heights of value, low and high under every quantizer that has the metric."""
    scale = METRICS[metric].display_scale
    found = []
    for place, name in enumerate(names):
        if name in row.by_quantizer and metric in row.by_quantizer[name].metrics:
            score = row.by_quantizer[name].metrics[metric].score
            low, high = (score.value if end is None else end for end in (score.low, score.high))
            value, bottom, top = (_height(number * scale, ends) for number in (score.value, low, high))
            found.append((_place(place, len(names)), value, bottom, top))
    return found


def _place(number: int, count: int) -> float:
    return _LEFT + (number + 0.5) * _WIDTH / count


def _height(value: float, ends: tuple[float, float]) -> float:
    return _TOP + _HEIGHT * (ends[1] - value) / (ends[1] - ends[0])


def _text(x: float, y: float, text: str, size: float, colour: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{themed(colour)}"{more}>{text}</text>'


def _axes(names: Sequence[str], ends: tuple[float, float]) -> list[str]:
    parts = []
    for value in range(-100, 101, 20):
        if ends[0] <= value <= ends[1]:
            y = _height(value, ends)
            parts += [
                f'<path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{themed(GRID)}"/>',
                _text(_LEFT - 5, y + 3.5, str(value), 10, MUTED, ' text-anchor="end"'),
            ]
    for number, name in enumerate(names):
        x, y = _place(number, len(names)), _TOP + _HEIGHT + 10
        turned = f' text-anchor="end" transform="rotate(-40 {x:.1f} {y})"'
        parts.append(_text(x, y, escape(visible(name)), 9.5, MUTED, turned))
    return parts


def _line(points: Sequence[_Point], colour: str) -> list[str]:
    """Returns the interval as ribbon, the line and its dots."""
    upper = "L".join(f"{x:.1f} {top:.1f}" for x, _, _, top in points)
    lower = "L".join(f"{x:.1f} {bottom:.1f}" for x, _, bottom, _ in reversed(points))
    through = "L".join(f"{x:.1f} {value:.1f}" for x, value, _, _ in points)
    return [
        f'<path d="M{upper}L{lower}Z" fill="{colour}" fill-opacity=".12"/>',
        f'<path d="M{through}" fill="none" stroke="{colour}" stroke-width="1.6"/>',
        *(f'<circle cx="{x:.1f}" cy="{value:.1f}" r="2.6" fill="{colour}"/>' for x, value, _, _ in points),
    ]


def _labels(points: Mapping[str, Sequence[_Point]]) -> list[str]:
    """Returns each line's name beside its end, none upon another."""
    placed = spread({who: found[-1][1] for who, found in points.items()}, 12.0, (_TOP + 2.0, _TOP + _HEIGHT + 2.0))
    return [
        _text(_LEFT + _WIDTH + 3, y + 3.5, who, 10, _SHADES[who], ' font-weight="600"') for who, y in placed.items()
    ]
