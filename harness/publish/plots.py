"""The charts of the pages: what is drawn. How it becomes SVG stands in ``drawing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.drawing import BAND, COLOURS, FAINT, GOOD, INK, MUTED, Drawing, spread
from harness.publish.rules import PHI, TAU, UTILITY, UTILITY_GATE
from harness.score.metrics import METRICS, PRIMARY

STRONG = 8
_FEW = 14
_TOP, _BOTTOM = 1.3, -0.25


def colours(board: Board) -> dict[str, str]:
    """Returns the CSS variable of each strongly drawn entry: at most eight, the best and the worst ranked ones."""
    ranked = [row.submission.name for row in board.ranked(board.headline_bits)]
    if len(ranked) > STRONG:
        ranked = ranked[: STRONG // 2] + ranked[-STRONG // 2 :]
    return dict(zip(sorted(ranked), COLOURS, strict=False))


def _hex(board: Board) -> dict[str, str]:
    return {name: COLOURS[variable] for name, variable in colours(board).items()}


def remaining_curves(board: Board, *, narrow: bool = False) -> str | None:
    """Returns the curves of remaining share over bit widths; None where no entry has one.

    One line per entry through its worst backend at each width, its interval
    as ribbon, every single backend as a small mark, and the controls' own
    intervals as bands around 0 and 1.
    """
    points = [_point(row, bits) for row in board.rows for bits in board.widths]
    known = [point for point in points if point is not None]
    if not known:
        return None
    draw, strong = Drawing(), _hex(board)
    labels = [f"{bits} bit" for bits in board.widths]
    x = alt.X("width:O", sort=labels, scale=alt.Scale(domain=labels), title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "value:Q", scale=alt.Scale(domain=[_BOTTOM, _TOP]), title=None, axis=alt.Axis(values=[0, 0.5, 1], format=".2~f")
    )
    colour = alt.Color("entry:N", scale=alt.Scale(domain=list(strong), range=list(strong.values())), legend=None)
    mine = [point for point in known if point["entry"] in strong]
    faint = [point for point in known if point["entry"] not in strong]
    layers: list[Any] = [*_bands(draw, board, x)]
    if faint:
        layers.append(
            draw.rows(faint).mark_line(color=FAINT, strokeWidth=1, clip=True).encode(x=x, y=y, detail="entry:N")
        )
    layers += [
        draw.rows([point for point in mine if point["low"] is not None and point["high"] - point["low"] <= 1])
        .mark_area(opacity=0.13, clip=True).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        draw.rows(_backends(board, strong)).mark_point(size=16, opacity=0.55, strokeWidth=1, clip=True)
        .encode(x=x, y=y, color=colour),
        *(
            draw.rows([point for point in mine if point["kind"] == kind])
            .mark_line(strokeWidth=2, strokeDash=dash, clip=True)
            .encode(x=x, y=y, color=colour, detail="entry:N")
            for kind, dash in (("LoRA", [1, 0]), ("full", [6, 3]))
        ),
        draw.rows(mine).mark_point(size=34, filled=True, opacity=1, clip=True).encode(x=x, y=y, color=colour),
    ]  # fmt: skip
    layers += _end_labels(draw, mine, x, colour, board.widths, 9.5 if narrow else 11, 14 if narrow else 15)
    layers += _band_names(draw, labels, x, narrow)
    size = (178, 250) if narrow else (470, 300)
    title = f"Remaining share of the forgotten knowledge over bit widths, {board.corpus}, worst backend at each width"
    chart = alt.layer(*layers).properties(width=size[0], height=size[1])
    # The drawer measures labels in its own font; the reader's may be wider.
    room = max((len(_short(point["entry"])) for point in mine), default=0) * (5.6 if narrow else 6.6)
    return draw.svg(chart, "curves" + "-n" * narrow, title, right=max(4.0, room - size[0] / len(labels) / 2))


def _point(row: LeaderboardRow, bits: int) -> dict[str, Any] | None:
    result = row.by_bits.get(bits)
    share = result.remaining if result else None
    if share is None:
        return None
    return {
        "entry": row.submission.name, "width": f"{bits} bit", "value": share.value, "low": share.low,
        "high": share.high, "kind": "LoRA" if row.submission.kind == "lora_adapter" else "full",
    }  # fmt: skip


def _backends(board: Board, strong: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"entry": row.submission.name, "width": f"{result.spec.bits} bit", "value": worst.rho.value}
        for row in board.rows if row.submission.name in strong
        for result in row.by_quantizer.values()
        if (worst := result.worst_metric) is not None and worst.rho is not None
    ]  # fmt: skip


def _bands(draw: Drawing, board: Board, x: Any) -> list[Any]:
    rows = [
        {"width": f"{band.bits} bit", "low": max(low, _BOTTOM), "high": min(high, _TOP), "control": control}
        for band in board.bands
        for control, low, high in (
            ("retrain", band.retrain_low, band.retrain_high), ("target", band.target_low, band.target_high)
        )
    ]  # fmt: skip
    area = draw.rows(rows).mark_area(color=BAND, opacity=0.2, clip=True)
    rules = draw.rows([{"value": 0}, {"value": 1}]).mark_rule(color=BAND, strokeWidth=1, strokeDash=[2, 3])
    return [
        area.encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q", detail="control:N"),
        rules.encode(y=alt.Y("value:Q", title=None)),
    ]


def _band_names(draw: Drawing, labels: Sequence[str], x: Any, narrow: bool) -> list[Any]:
    rows = [
        {"width": labels[0], "value": 1.1, "text": "target" if narrow else "target, quantized the same way"},
        {"width": labels[0], "value": -0.13, "text": "retrained" if narrow else "retrained without the forget set"},
    ]
    text = draw.rows(rows).mark_text(align="left", dx=-14, fontSize=10.5, fontStyle="italic", color=MUTED)
    return [text.encode(x=x, y=alt.Y("value:Q"), text="text:N")]


def _end_labels(
    draw: Drawing,
    points: Sequence[Mapping[str, Any]],
    x: Any,
    colour: Any,
    widths: Sequence[int],
    size: float,
    gap: int,
) -> list[Any]:
    last: dict[str, Mapping[str, Any]] = {}
    for bits in widths:
        last |= {point["entry"]: point for point in points if point["width"] == f"{bits} bit"}
    step = gap * (_TOP - _BOTTOM) / 300
    placed = spread({name: min(max(p["value"], _BOTTOM), _TOP) for name, p in last.items()}, step, (_BOTTOM, _TOP))
    rows = [
        {"entry": name, "width": f"{widths[-1]} bit", "value": height, "text": _short(name)}
        for name, height in placed.items()
    ]
    text = draw.rows(rows).mark_text(align="left", dx=9, fontSize=size, fontWeight=600)
    return [text.encode(x=x, y=alt.Y("value:Q"), text="text:N", color=colour)]


def trade_off(board: Board, bits: int, *, narrow: bool = False) -> str | None:
    """Returns forgetting against utility at one width, worst backend; None where nothing is measured there."""
    draw, strong = Drawing(), _hex(board)
    rows = [
        _mark(row, result, row.submission.name in strong)
        for row in board.rows
        if (result := row.by_bits.get(bits)) and result.remaining is not None and result.utility_share is not None
    ]
    if not rows:
        return None
    colour = alt.Color(
        "entry:N", legend=None,
        scale=alt.Scale(domain=[*strong, "other"], range=[*strong.values(), BAND]),
    )  # fmt: skip
    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    named = "utility, share of the quantized target's"
    x = alt.X("utility:Q", title=named, scale=alt.Scale(domain=[0, 1.3]), axis=axis)
    y = alt.Y("forgotten:Q", title="forgotten share", scale=alt.Scale(domain=[-0.15, 1.15]), axis=axis)
    zone = draw.rows([{"utility": UTILITY_GATE, "right": 1.3, "forgotten": 1 - PHI - TAU, "top": 1.15}])
    layers = [
        zone.mark_rect(color=GOOD, opacity=0.4).encode(x=x, y=y, x2="right:Q", y2="top:Q"),
        *(
            draw.rows([row for row in rows if row["filled"] == filled])
            .mark_point(size=72, filled=filled, opacity=1, strokeWidth=2, clip=True)
            .encode(x=x, y=y, color=colour)
            for filled in (True, False)
        ),
        draw.rows(_control_marks(board, bits)).mark_point(shape="diamond", size=60, color=MUTED, filled=True)
        .encode(x=x, y=y),
        draw.rows(_control_marks(board, bits))
        .mark_text(align="left", dx=8, fontSize=10, fontStyle="italic", color=MUTED)
        .encode(x=x, y=y, text="text:N"),
        *_mark_labels(draw, [row for row in rows if row["entry"] != "other" or len(rows) <= _FEW], x, y, colour),
    ]  # fmt: skip
    size = (250, 230) if narrow else (300, 272)
    title = f"Forgotten share against utility at {bits} bit, {board.corpus}, worst backend"
    name = f"tradeoff-{bits}" + "-n" * narrow
    return draw.svg(alt.layer(*layers).properties(width=size[0], height=size[1]), name, title)


def _mark(row: LeaderboardRow, result: WidthResult, strong: bool) -> dict[str, Any]:
    assert result.remaining is not None
    assert result.utility_share is not None
    return {
        "entry": row.submission.name if strong else "other", "text": _short(row.submission.name),
        "utility": min(max(result.utility_share.value, 0.0), 1.3),
        "forgotten": min(max(1 - result.remaining.value, -0.15), 1.15),
        "filled": row.submission.kind == "lora_adapter",
    }  # fmt: skip


def _control_marks(board: Board, bits: int) -> list[dict[str, Any]]:
    marks = [{"entry": "other", "text": "target", "utility": 1.0, "forgotten": 0.0}]
    for name in board.quantizers_at(bits):
        utility = {
            row.submission.role: row.by_quantizer[name].metrics[UTILITY].score.value
            for row in board.controls if UTILITY in row.by_quantizer[name].metrics
        }  # fmt: skip
        if utility.get("target") and "retrain" in utility:
            share = utility["retrain"] / utility["target"]
            marks.append({"entry": "other", "text": "retrained", "utility": min(share, 1.3), "forgotten": 1.0})
            break
    return marks


def _mark_labels(draw: Drawing, rows: Sequence[Mapping[str, Any]], x: Any, y: Any, colour: Any) -> list[Any]:
    left = [row for row in rows if row["utility"] > 0.55]
    right = [row for row in rows if row["utility"] <= 0.55]
    layers = []
    for side, align, offset in ((left, "right", -9), (right, "left", 9)):
        placed = spread({str(row["text"]): row["forgotten"] for row in side}, 0.062, (-0.15, 1.15))
        moved = [{**row, "forgotten": placed[str(row["text"])]} for row in side]
        text = draw.rows(moved).mark_text(align=align, dx=offset, fontSize=10, fontWeight=500)
        layers.append(text.encode(x=x, y=y, text="text:N", color=colour))
    return layers


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
    drawn = {}
    for metric in PRIMARY:
        if any(metric in result.metrics for result in row.by_quantizer.values()):
            draw = Drawing()
            title = f"{METRICS[metric].label} of {row.submission.name} under every quantizer"
            drawn[metric] = draw.svg(_metric_chart(draw, metric, names, known), f"metric-{metric}", title)
    return drawn


def _metric_chart(draw: Drawing, metric: str, names: Sequence[str], lines: Mapping[str, LeaderboardRow]) -> Any:
    info = METRICS[metric]
    rows = [
        {
            "quantizer": name, "who": who, "value": found.value * info.display_scale,
            "low": (found.value if found.low is None else found.low) * info.display_scale,
            "high": (found.value if found.high is None else found.high) * info.display_scale,
        }
        for who, row in lines.items()
        for name in names
        if name in row.by_quantizer and metric in row.by_quantizer[name].metrics
        for found in (row.by_quantizer[name].metrics[metric].score,)
    ]  # fmt: skip
    x = alt.X("quantizer:O", sort=list(names), scale=alt.Scale(domain=list(names)), title=None,
              axis=alt.Axis(labelAngle=-40, labelFontSize=9.5))  # fmt: skip
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[-105, 45] if metric == "privleak" else [0, 105]))
    shades = {"entry": COLOURS["--c2"], "this control": COLOURS["--c2"], "target": INK, "retrained": MUTED}
    colour = alt.Color("who:N", legend=None, scale=alt.Scale(domain=list(shades), range=list(shades.values())))
    way = {"lower": "lower is better", "higher": "higher is better", "toward_zero": "0 is ideal"}[info.direction]
    base = draw.rows(rows)
    last = {str(row["who"]): float(str(row["value"])) for row in rows}
    step, limits = (12, (-104, 44)) if metric == "privleak" else (9, (0, 104))
    placed = spread(last, step, limits)
    named = [{"who": who, "quantizer": names[-1], "value": height} for who, height in placed.items()]
    return alt.layer(
        base.mark_area(opacity=0.12, clip=True).encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=1.6, clip=True).encode(x=x, y=y, color=colour),
        base.mark_point(size=22, filled=True, opacity=1, clip=True).encode(x=x, y=y, color=colour),
        draw.rows(named).mark_text(align="left", dx=8, fontSize=10, fontWeight=600)
        .encode(x=x, y=y, text="who:N", color=colour),
    ).properties(
        width=300, height=150,
        title=alt.Title(f"{info.label} ({way})", anchor="start", fontSize=12, fontWeight=600, color=INK),
    )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
