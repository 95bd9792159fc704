"""What the first page of a corpus shows: figures with their findings, tables per width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from harness.publish import page_text, plots
from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.headline import KINDS
from harness.publish.rules import TAU
from harness.score.metrics import METRICS


def context(board: Board) -> dict[str, Any]:
    """Returns the template's variables for one board."""
    bits = board.headline_bits
    figures = [figure for figure in (_curves(board), _trade_off(board, bits)) if figure is not None]
    colours = {name: variable.removeprefix("--c") for name, variable in plots.colours(board).items()}
    return {
        "figures": figures,
        "colours": {row.submission.name: colours.get(row.submission.name) for row in board.rows},
        "widths": [_width(board, width) for width in _headline_first(board)] if board.rows else [],
        "kinds": sorted({KINDS[row.submission.kind] for row in board.rows}),
        "documents": ", ".join(
            f"{number} documents for {METRICS[metric].label}" for metric, number in board.documents.items()
        ) or "no documents at 16 bit",
        "backends_title": _backends_title(board),
    }  # fmt: skip


def _headline_first(board: Board) -> list[int]:
    return [board.headline_bits, *(bits for bits in board.widths if bits != board.headline_bits)]


def _width(board: Board, bits: int) -> dict[str, Any]:
    backends = board.quantizers_at(bits)
    return {
        "bits": bits,
        "backends": f"worst of {len(backends)}: {', '.join(backends)}" if len(backends) > 1 else ", ".join(backends),
        "ranked": board.ranked(bits),
        "unranked": board.unranked(bits),
        "figure": _trade_off(board, bits) if bits != board.headline_bits else None,
    }


def _figure(
    name: str, title: str, note: str, wide: str, narrow: str | None, columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "title": title, "note": note, "wide": Markup(wide), "narrow": Markup(narrow) if narrow else None,
        "file": f"charts/{name}.svg", "columns": columns, "rows": rows,
    }  # fmt: skip


def _curves(board: Board) -> dict[str, Any] | None:
    wide = plots.remaining_curves(board)
    if wide is None:
        return None
    rows = [
        [row.submission.name, *(_cell(row.by_bits.get(bits)) for bits in board.widths)]
        for row in board.rows
    ]  # fmt: skip
    note = (
        "Remaining share of the forgotten knowledge: 0 = retrained model, 1 = target, both quantized the same way. "
        "Solid: LoRA. Dashed: full. Lines go through the worst backend, small rings are single backends; intervals wider than 1 have no ribbon."
    )
    return _figure(
        f"{page_text.slug(board.corpus)}-remaining", finding(board), note, wide,
        plots.remaining_curves(board, narrow=True), ["Entry", *(f"{bits} bit" for bits in board.widths)], rows,
    )  # fmt: skip


def _cell(result: WidthResult | None) -> str:
    if result is None or result.remaining is None:
        return page_text.number(None)
    return f"{page_text.number(result.remaining.value)} {page_text.ends(result.remaining)}"


def finding(board: Board) -> str:
    """Returns what the curves show, in one computed sentence without a full stop."""
    bits = board.headline_bits
    changes = [
        (after.value - before.value, row.submission.name, before.value, after.value, result.quantizer)
        for row in board.ranked(bits)
        if (result := row.by_bits[bits]).remaining is not None and (first := row.by_bits.get(16)) is not None
        and (after := result.remaining) is not None and (before := first.remaining) is not None
    ]  # fmt: skip
    if not changes or bits == 16:
        return "How much of the forgotten knowledge remains"
    rise, name, before_value, after_value, quantizer = max(changes)
    if rise <= TAU:
        return f"At {bits} bit no ranked entry's remaining share rises by more than {TAU:.2f}"
    return (
        f"{page_text.visible(name)}: {page_text.number(before_value)} of the knowledge remains at 16 bit, "
        f"{page_text.number(after_value)} under {quantizer}"
    )


def _trade_off(board: Board, bits: int) -> dict[str, Any] | None:
    wide = plots.trade_off(board, bits)
    if wide is None:
        return None
    rows = [
        [
            row.submission.name, page_text.number(1 - result.remaining.value),
            page_text.percent(result.utility_share.value),
        ]
        for row in board.rows
        if (result := row.by_bits.get(bits)) and result.remaining is not None and result.utility_share is not None
    ]  # fmt: skip
    note = "Upper right is better; the shaded corner forgets and stays useful. Filled: LoRA. Open: full. Worst backend."
    return _figure(
        f"{page_text.slug(board.corpus)}-utility-{bits}", _price(board, bits), note, wide,
        plots.trade_off(board, bits, narrow=True), ["Entry", "Forgotten share", "Utility"], rows,
    )  # fmt: skip


def _price(board: Board, bits: int) -> str:
    """Returns what the trade-off plot shows: the utility that entries which hold have kept."""
    holding = [row for row in board.ranked(bits) if row.by_bits[bits].verdict.word == "holds"]
    kept = [share.value for row in holding if (share := row.by_bits[bits].utility_share) is not None]
    if not kept:
        return f"At {bits} bit no useful entry provably holds"
    low, high = page_text.percent(min(kept)), page_text.percent(max(kept))
    who = "the entry that holds keeps" if len(kept) == 1 else "entries that hold keep"
    return f"At {bits} bit {who} {low if low == high else f'{low} to {high}'} of the target's utility"


def _spread(board: Board, row: LeaderboardRow, bits: int) -> tuple[float, str, str, float, float] | None:
    shares = [
        (worst.rho.value, name)
        for name in board.quantizers_at(bits)
        if row.by_quantizer[name].missing is None
        and (worst := row.by_quantizer[name].worst_metric) is not None and worst.rho is not None
    ]  # fmt: skip
    if len(shares) < 2:
        return None
    (low, best), (high, worst_name) = min(shares), max(shares)
    return high - low, best, worst_name, low, high


def _backends_title(board: Board) -> str:
    """Returns how far the backends of one width lie apart, where some do."""
    bits = board.headline_bits
    spreads = [
        (*found, row.submission.name) for row in board.ranked(bits) if (found := _spread(board, row, bits)) is not None
    ]  # fmt: skip
    if not spreads or max(spreads)[0] <= TAU:
        return "Every backend"
    _, best, worst, low, high, name = max(spreads)
    return (
        f"{bits} bit is not one condition: {page_text.visible(name)} has {page_text.number(low)} left "
        f"under {best}, {page_text.number(high)} under {worst}"
    )
