"""The first page of a corpus: figures with their findings, one table per bit-width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.charts import altair_charts
from harness.publish.comparison import all_pairs
from harness.publish.pages import compare as compare_page
from harness.publish.ranking.headline import KINDS, certainty, question
from harness.publish.thresholds import PRIVACY, TAU
from harness.score.metrics.formulas import METRICS

MOST = 200
"""Entries on the first page of a board; of more, all stand on a page of their own."""


def context(board: Board, links: Mapping[str, str], *, most: int) -> dict[str, Any]:
    """Returns the template's variables for one board.

    Args:
        board: The board.
        links: Page by name.
        most: Entries in its tables: the first ones of the board, the same at every width. Sentences, curves and
            marks are of all entries.
    """
    bits = board.headline_bits
    shown = replace(board, rows=board.rows[:most])
    figures = [figure for figure in (_curves(board, shown), _trade_off(board, shown, bits)) if figure is not None]
    colours = {name: variable.removeprefix("--c") for name, variable in altair_charts.colours(board).items()}
    return {
        "figures": figures,
        "rows": shown.rows,
        "columns": _columns(board),
        "hidden_columns": [f"b{bits}" for bits in board.widths],
        "alike": _alike,
        "keys": {row.submission.name: compare_page.key(links[row.submission.name]) for row in shown.rows},
        "comparable": {row.submission.name for row in all_pairs.compared(board)},
        "colours": {row.submission.name: colours.get(row.submission.name) for row in shown.rows},
        "widths": [_width(board, shown, width) for width in _headline_first(board)] if board.rows else [],
        "question": question(board),
        "certainty": certainty(board),
        "methods": sorted({formatting.visible(row.submission.method) for row in shown.rows}),
        "kinds": sorted({KINDS[row.submission.kind] for row in shown.rows}),
        "documents": ", ".join(
            f"{number} documents for {METRICS[metric].label}" for metric, number in board.documents.items()
        ) or "no documents at 16 bit",
        "backends_title": _backends_title(board),
    }  # fmt: skip


def _columns(board: Board) -> list[tuple[str, str]]:
    """Returns the columns that a reader may show and hide, with their labels."""
    return [
        *((metric, METRICS[metric].label) for metric in (*board.forget_metrics, PRIVACY)), ("worst", "Worst backend"),
        *((f"b{bits}", f"{bits} bit: remaining, utility") for bits in board.widths),
    ]  # fmt: skip


def _alike(row: LeaderboardRow, at: WidthResult) -> int:
    """Returns under how many backends of a width the entry has the verdict of the width."""
    return sum(row.by_quantizer[name].verdict.word == at.verdict.word for name in at.quantizers)


def _headline_first(board: Board) -> list[int]:
    return [board.headline_bits, *(bits for bits in board.widths if bits != board.headline_bits)]


def _width(board: Board, shown: Board, bits: int) -> dict[str, Any]:
    backends = board.quantizers_at(bits)
    return {
        "bits": bits,
        "backends": f"worst of {len(backends)}: {', '.join(backends)}" if len(backends) > 1 else ", ".join(backends),
        "ranked": shown.ranked(bits),
        "unranked": shown.unranked(bits),
        "figure": _trade_off(board, shown, bits) if bits != board.headline_bits else None,
    }


def _figure(
    name: str, title: str, note: str, wide: str, narrow: str | None, columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "title": title, "note": note, "wide": Markup(wide), "narrow": Markup(narrow) if narrow else None,
        "file": f"charts/{name}.svg", "columns": columns, "rows": rows,
    }  # fmt: skip


def _curves(board: Board, shown: Board) -> dict[str, Any] | None:
    wide = altair_charts.remaining_curves(board)
    if wide is None:
        return None
    rows = [
        [row.submission.name, METRICS[metric].label, *(_cell(row.by_bits.get(bits), metric) for bits in board.widths)]
        for row in shown.rows
        for metric in board.forget_metrics
    ]
    note = (
        "Remaining share of the forgotten knowledge: 0 = retrained model, 1 = target, both quantized the same way. "
        "Solid: LoRA. Dashed: full. Lines go through the worst backend, small rings are single backends; "
        "intervals wider than 1 have no ribbon."
    )
    return _figure(
        f"{formatting.slug(board.corpus)}-remaining", finding(board), note, wide,
        altair_charts.remaining_curves(board, narrow=True),
        ["Entry", "Metric", *(f"{bits} bit" for bits in board.widths)], rows,
    )  # fmt: skip


def _cell(result: WidthResult | None, metric: str) -> str:
    worst = result.by_metric.get(metric) if result else None
    if worst is None or worst.result.rho is None:
        return formatting.number(None)
    return f"{formatting.number(worst.result.rho.value)} {formatting.ends(worst.result.rho)}"


def _measured(board: Board, bits: int) -> list[LeaderboardRow]:
    """Returns the entries that sentences may speak of: ranked ones, all measured ones where none is ranked."""
    return board.ranked(bits) or [row for row in board.rows if bits in row.by_bits and row.by_bits[bits].by_metric]


def finding(board: Board) -> str:
    """Returns what the curves show, in one computed sentence without a full stop."""
    bits = board.headline_bits
    rises = [
        (worst.result.recovery.value, row.submission.name, metric, worst)
        for row in _measured(board, bits)
        for metric, worst in row.by_bits[bits].by_metric.items()
        if worst.result.recovery is not None
    ]
    if not rises or bits == 16:
        return "How much of the forgotten knowledge remains"
    rise, name, metric, worst = max(rises, key=lambda found: found[:3])
    if rise <= TAU or worst.result.rho is None:
        return f"At {bits} bit no entry's remaining share rises by more than {TAU:.2f}"
    before, after = worst.result.rho.value - rise, worst.result.rho.value
    return (
        f"{formatting.visible(name)}: {formatting.number(before)} of {METRICS[metric].label} remains at 16 bit, "
        f"{formatting.number(after)} under {worst.quantizer}"
    )


def _trade_off(board: Board, shown: Board, bits: int) -> dict[str, Any] | None:
    wide = altair_charts.trade_off(board, bits)
    if wide is None:
        return None
    rows = [
        [
            row.submission.name, formatting.number(1 - result.remaining.value),
            formatting.percent(result.utility_share.value),
        ]
        for row in shown.rows
        if (result := row.by_bits.get(bits)) and result.remaining is not None and result.utility_share is not None
    ]  # fmt: skip
    note = "Upper right is better; the shaded corner forgets and stays useful. Filled: LoRA. Open: full. Worst backend."
    return _figure(
        f"{formatting.slug(board.corpus)}-utility-{bits}", _price(board, bits), note, wide,
        altair_charts.trade_off(board, bits, narrow=True), ["Entry", "Forgotten share", "Utility"], rows,
    )  # fmt: skip


def _price(board: Board, bits: int) -> str:
    """Returns what the trade-off plot shows: the utility that entries which hold have kept."""
    holding = [row for row in board.ranked(bits) if row.by_bits[bits].verdict.word == "holds"]
    kept = [share.value for row in holding if (share := row.by_bits[bits].utility_share) is not None]
    if not kept:
        return f"At {bits} bit no useful entry provably holds"
    low, high = formatting.percent(min(kept)), formatting.percent(max(kept))
    who = "the entry that holds keeps" if len(kept) == 1 else "entries that hold keep"
    return f"At {bits} bit {who} {low if low == high else f'{low} to {high}'} of the target's utility"


def _backends_title(board: Board) -> str:
    """Returns how far the backends of one width lie apart, where some do."""
    bits = board.headline_bits
    spreads = []
    for row in _measured(board, bits):
        for metric in board.forget_metrics:
            shares = [
                (share.value, name)
                for name in row.by_bits[bits].quantizers
                if (share := row.by_quantizer[name].metrics[metric].rho) is not None
            ]
            if len(shares) > 1:
                spreads.append((max(shares)[0] - min(shares)[0], row.submission.name, metric, min(shares), max(shares)))
    if not spreads or max(spreads)[0] <= TAU:
        return "Every backend"
    _, name, metric, (low, best), (high, worst) = max(spreads)
    return (
        f"{bits} bit is not one condition: of {METRICS[metric].label}, {formatting.visible(name)} has "
        f"{formatting.number(low)} left under {best}, {formatting.number(high)} under {worst}"
    )
