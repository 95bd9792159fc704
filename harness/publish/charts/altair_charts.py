"""The charts of the pages, described in altair; ``svg`` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.charts.svg import BAND, COLOURS, FAINT, GOOD, INK, MUTED, Drawing, spread
from harness.publish.thresholds import PHI, TAU, UTILITY, UTILITY_GATE
from harness.score.metrics.formulas import METRICS

STRONG = 8
_FEW = 12
_LONGEST = 26
_TOP, _BOTTOM = 1.3, -0.25
_MOST, _LEAST, _USEFUL = 1.15, -0.15, 1.3


def colours(board: Board) -> dict[str, str]:
    """Returns the CSS variable of each strongly drawn entry: at most eight, the best and the worst ranked ones.

    Where fewer are ranked, unranked ones fill up, collapsed ones last.
    """
    bits = board.headline_bits
    names = [row.submission.name for row in board.ranked(bits)]
    if len(names) > STRONG:
        names = names[: STRONG // 2] + names[-STRONG // 2 :]
    rest = [row for row in board.unranked(bits) if bits in row.by_bits and row.by_bits[bits].by_metric]
    rest.sort(key=lambda row: row.by_bits[bits].verdict.word == "collapsed")
    names += [row.submission.name for row in rest]
    return dict(zip(sorted(names[:STRONG]), COLOURS, strict=False))


def _hex(board: Board) -> dict[str, str]:
    return {name: COLOURS[variable] for name, variable in colours(board).items()}


def remaining_curves(board: Board, *, narrow: bool = False) -> str | None:
    """Returns the curves of remaining share over bit widths, one panel per metric; None where no entry has one.

    One line per entry through the metric's worst backend at each width, its
    interval as ribbon, every single backend as a small ring, and the
    controls' own intervals as bands around 0 and 1.
    """
    draw = Drawing()
    panels = [
        panel
        for metric in board.forget_metrics
        if (panel := _panel(draw, board, metric, narrow=narrow, named=narrow or metric == board.forget_metrics[-1]))
    ]
    if not panels:
        return None
    chart = {"vconcat": panels, "spacing": 14} if narrow else {"hconcat": panels, "spacing": 18}
    # The drawer measures labels in its own font; the reader's may be wider.
    longest = max((len(_short(board, name)) for name in colours(board)), default=0)
    title = f"Remaining share of the forgotten knowledge over bit widths, {board.corpus}, worst backend at each width"
    return draw.svg(chart, "curves" + "-n" * narrow, title, right=4 + 1.3 * longest)


def _panel(draw: Drawing, board: Board, metric: str, *, narrow: bool, named: bool) -> dict[str, Any] | None:
    known = [
        point for row in board.rows for bits in board.widths if (point := _point(row, bits, metric)) is not None
    ]  # fmt: skip
    if not known:
        return None
    strong = _hex(board)
    labels = [f"{bits} bit" for bits in board.widths]
    x = alt.X("width:O", sort=labels, scale=alt.Scale(domain=labels), title=None, axis=alt.Axis(labelAngle=0))
    alone = len(board.forget_metrics) == 1
    ticks = alt.Axis(values=[0, 0.5, 1], format=".2~f", labels=narrow or alone or not named)
    y = alt.Y("value:Q", scale=alt.Scale(domain=[_BOTTOM, _TOP]), title=None, axis=ticks)
    colour = alt.Color("entry:N", scale=alt.Scale(domain=list(strong), range=list(strong.values())), legend=None)
    mine = [point for point in known if point["entry"] in strong]
    faint = [point for point in known if point["entry"] not in strong]
    ribbons = [point for point in mine if point["low"] is not None and point["high"] - point["low"] <= 1]
    layers: list[Any] = [*_bands(draw, board, metric, x)]
    if faint:
        lines = draw.rows(faint).mark_line(color=FAINT, strokeWidth=1, clip=True)
        layers.append(lines.encode(x=x, y=y, detail=alt.Detail("entry:N")))
    layers += [
        draw.rows(ribbons).mark_area(opacity=0.13, clip=True)
        .encode(x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), color=colour),
        draw.rows(_backends(board, strong, metric)).mark_point(size=16, opacity=0.55, strokeWidth=1, clip=True)
        .encode(x=x, y=y, color=colour),
        *(
            draw.rows([point for point in mine if point["kind"] == kind])
            .mark_line(strokeWidth=2, strokeDash=dash, clip=True)
            .encode(x=x, y=y, color=colour, detail=alt.Detail("entry:N"))
            for kind, dash in (("LoRA", [1, 0]), ("full", [6, 3]))
        ),
        draw.rows(mine).mark_point(size=34, filled=True, opacity=1, clip=True).encode(x=x, y=y, color=colour),
    ]  # fmt: skip
    if named:
        layers += _end_labels(draw, board, mine, x, colour, 9.5 if narrow else 10.5, 19 if narrow else 15)
    layers += _band_names(draw, labels, x, narrow)
    size = (185, 190) if narrow else (490 if alone else 236, 300)
    heading = {"text": METRICS[metric].label, "anchor": "start", "fontSize": 12, "fontWeight": 600, "color": INK}
    return draw.layers(layers, width=size[0], height=size[1], title=heading)


def _point(row: LeaderboardRow, bits: int, metric: str) -> dict[str, Any] | None:
    worst = row.by_bits[bits].by_metric.get(metric) if bits in row.by_bits else None
    share = worst.result.rho if worst else None
    if share is None:
        return None
    return {
        "entry": row.submission.name, "width": f"{bits} bit", "value": share.value, "low": share.low,
        "high": share.high, "kind": "LoRA" if row.submission.kind == "lora_adapter" else "full",
    }  # fmt: skip


def _backends(board: Board, strong: Mapping[str, str], metric: str) -> list[dict[str, Any]]:
    return [
        {"entry": row.submission.name, "width": f"{result.spec.bits} bit", "value": share.value}
        for row in board.rows if row.submission.name in strong
        for result in row.by_quantizer.values()
        if metric in result.metrics and (share := result.metrics[metric].rho) is not None
    ]  # fmt: skip


def _bands(draw: Drawing, board: Board, metric: str, x: Any) -> list[Any]:
    rows = [
        {"width": f"{band.bits} bit", "low": max(low, _BOTTOM), "high": min(high, _TOP), "control": control}
        for band in board.bands if band.metric == metric
        for control, low, high in (
            ("retrain", band.retrain_low, band.retrain_high), ("target", band.target_low, band.target_high)
        )
    ]  # fmt: skip
    area = draw.rows(rows).mark_area(color=BAND, opacity=0.2, clip=True)
    rules = draw.rows([{"value": 0}, {"value": 1}]).mark_rule(color=BAND, strokeWidth=1, strokeDash=[2, 3])
    return [
        area.encode(x=x, y=alt.Y("low:Q", title=None), y2=alt.Y2("high:Q"), detail=alt.Detail("control:N")),
        rules.encode(y=alt.Y("value:Q", title=None)),
    ]


def _band_names(draw: Drawing, labels: Sequence[str], x: Any, narrow: bool) -> list[Any]:
    rows = [
        {"width": labels[0], "value": 1.13, "text": "target" if narrow else "target, quantized alike"},
        {"width": labels[0], "value": -0.14, "text": "retrained" if narrow else "retrained, quantized alike"},
    ]
    text = draw.rows(rows).mark_text(align="left", dx=-14, fontSize=10, fontStyle="italic", color=MUTED)
    return [text.encode(x=x, y=alt.Y("value:Q"), text=alt.Text("text:N"))]


def _end_labels(
    draw: Drawing, board: Board, points: Sequence[Mapping[str, Any]], x: Any, colour: Any, size: float, gap: int
) -> list[Any]:
    last: dict[str, Mapping[str, Any]] = {}
    for bits in board.widths:
        last |= {point["entry"]: point for point in points if point["width"] == f"{bits} bit"}
    step = gap * (_TOP - _BOTTOM) / 300
    placed = spread({name: min(max(p["value"], _BOTTOM), _TOP) for name, p in last.items()}, step, (_BOTTOM, _TOP))
    rows = [
        {"entry": name, "width": f"{board.widths[-1]} bit", "value": height, "text": _short(board, name)}
        for name, height in placed.items()
    ]
    text = draw.rows(rows).mark_text(align="left", dx=9, fontSize=size, fontWeight=600)
    return [text.encode(x=x, y=alt.Y("value:Q"), text=alt.Text("text:N"), color=colour)]


def trade_off(board: Board, bits: int, *, narrow: bool = False) -> str | None:
    """Returns forgetting against utility at one width, worst backend; None where nothing is measured there."""
    draw, strong = Drawing(), _hex(board)
    rows = [
        _mark(board, row, result, row.submission.name in strong)
        for row in board.rows
        if (result := row.by_bits.get(bits)) and result.remaining is not None and result.utility_share is not None
    ]
    if not rows:
        return None
    colour = alt.Color(
        "entry:N", legend=None,
        scale=alt.Scale(domain=[*strong, "other", "named"], range=[*strong.values(), BAND, MUTED]),
    )  # fmt: skip
    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    named = "utility, share of the quantized target's"
    x = alt.X("utility:Q", title=named, scale=alt.Scale(domain=[0, _USEFUL]), axis=axis)
    y = alt.Y("forgotten:Q", title="forgotten share", scale=alt.Scale(domain=[_LEAST, _MOST]), axis=axis)
    zone = draw.rows([{"utility": UTILITY_GATE, "right": _USEFUL, "forgotten": 1 - PHI - TAU, "top": _MOST}])
    controls = _control_marks(board, bits)
    labelled = [*controls, *(row for row in rows if row["entry"] != "other" or len(rows) <= _FEW)]
    layers = [
        zone.mark_rect(color=GOOD, opacity=0.4).encode(x=x, y=y, x2=alt.X2("right:Q"), y2=alt.Y2("top:Q")),
        *_mark_labels(draw, labelled, x, y, colour, 0.075 if narrow else 0.062),
        *(
            draw.rows([row for row in rows if row["filled"] == filled])
            .mark_point(size=72, filled=filled, opacity=1, strokeWidth=2, clip=True)
            .encode(x=x, y=y, color=colour)
            for filled in (True, False)
        ),
        draw.rows(controls).mark_point(shape="diamond", size=60, color=MUTED, filled=True).encode(x=x, y=y),
    ]  # fmt: skip
    size = (160, 230) if narrow else (262, 290)
    title = f"Forgotten share against utility at {bits} bit, {board.corpus}, worst backend"
    longest = max(len(str(row["text"])) for row in labelled)
    name = f"tradeoff-{bits}" + "-n" * narrow
    chart = draw.layers(layers, width=size[0], height=size[1])
    return draw.svg(chart, name, title, right=4 + 1.3 * longest)


def _mark(board: Board, row: LeaderboardRow, result: WidthResult, strong: bool) -> dict[str, Any]:
    assert result.remaining is not None
    assert result.utility_share is not None
    return {
        "entry": row.submission.name if strong else "other", "text": _short(board, row.submission.name),
        "utility": min(max(result.utility_share.value, 0.0), _USEFUL),
        "forgotten": min(max(1 - result.remaining.value, _LEAST), _MOST),
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
            marks.append({"entry": "other", "text": "retrained", "utility": min(share, _USEFUL), "forgotten": 1.0})
            break
    return marks


def _mark_labels(
    draw: Drawing, rows: Sequence[Mapping[str, Any]], x: Any, y: Any, colour: Any, step: float
) -> list[Any]:  # fmt: skip
    """Returns names in a column beside the plot, each led to its mark by a line: marks often lie on each other."""
    keys = {str(number): row for number, row in enumerate(rows)}
    placed = spread({number: row["forgotten"] for number, row in keys.items()}, step, (_LEAST, _MOST))
    named = [
        {**row, "entry": "named" if row["entry"] == "other" else row["entry"], "at": placed[number], "right": _USEFUL}
        for number, row in keys.items()
    ]
    leads = draw.rows(named).mark_rule(strokeWidth=0.8, opacity=0.55)
    text = draw.rows([{**row, "forgotten": row["at"], "utility": _USEFUL} for row in named])
    return [
        leads.encode(x=x, y=y, x2=alt.X2("right:Q"), y2=alt.Y2("at:Q"), color=colour),
        text.mark_text(align="left", dx=5, fontSize=10, fontWeight=500).encode(
            x=x, y=y, text=alt.Text("text:N"), color=colour
        ),
    ]


def _short(board: Board, name: str) -> str:
    """Returns a name for a label: without the corpus where every entry's name begins with it, and not too long."""
    prefix = f"{board.corpus}-"
    if all(row.submission.name.startswith(prefix) for row in board.rows):
        name = name.removeprefix(prefix)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
