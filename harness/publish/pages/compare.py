"""The page that compares up to four entries: its table of pairs, and a file of figures for each entry.

A page that is open as a file may not fetch, but it may add a script of its
own folder: each entry's figures are one call with one argument of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.comparison import all_pairs
from harness.publish.comparison.all_pairs import REMAINING, Gap
from harness.publish.comparison.two_entries import MOST
from harness.publish.ranking.headline import KINDS
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import FORGET_METRICS, SYMBOLS, UTILITY
from harness.score.metrics.formulas import METRICS

LISTED = 12
"""Entries whose pairs stand in the page itself."""

LABELS: Mapping[str, str] = {
    REMAINING: "Remaining, worst metric",
    **{metric: f"{METRICS[metric].label} remaining" for metric in FORGET_METRICS},
    UTILITY: "Utility, of the target's",
}
"""What each quantity is called."""

_MORE = {UTILITY: ("keeps more utility", "keeps less utility")}


def quantities(board: Board) -> tuple[str, ...]:
    """Returns those of ``all_pairs.QUANTITIES`` that a corpus has; a single forget metric is the worst metric too."""
    several = len(board.forget_metrics) > 1
    return (*((REMAINING,) if several else ()), *board.forget_metrics, UTILITY)


def address(home: str) -> str:
    """Returns the page that compares the entries of a first page: ``compare.html`` beside ``index.html``."""
    return home.replace("index", "compare", 1)


def context(
    board: Board | None, gaps: Mapping[tuple[str, str], Sequence[Gap]], links: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the template's variables.

    Args:
        board: The board; None where the store is empty.
        gaps: What ``all_pairs.gaps`` gives for it.
        links: Page by name.
    """
    rows = all_pairs.compared(board) if board is not None else []
    listed = [row.submission.name for row in rows[:LISTED]]
    shown = quantities(board) if board is not None else ()
    return {
        "entries": rows,
        "choices": [(key(links[row.submission.name]), formatting.visible(row.submission.name)) for row in rows],
        "left_out": len(board.rows) - len(rows) if board is not None else 0,
        "most": MOST,
        "labels": {quantity: LABELS[quantity] for quantity in shown},
        "curves": [place for place, quantity in enumerate(shown) if quantity in FORGET_METRICS],
        "listed": len(listed),
        "paired_widths": all_pairs.widths(board) if board is not None else (),
        "lines": [
            {"first": one, "second": two, "gaps": {gap.quantity: gap for gap in at}}
            for one, two in combinations(listed, 2)
            if board is not None and (at := _at(gaps.get((one, two), ()), board.headline_bits))
        ],
    }  # fmt: skip


def key(link: str) -> str:
    """Returns what stands for an entry in addresses and file names: the name of its page."""
    return PurePosixPath(link).stem


def files(
    board: Board, gaps: Mapping[tuple[str, str], Sequence[Gap]], links: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yields a script's path within the site and its text for each entry: its curves, and its pairs.

    A pair stands in the file of the entry that comes first on the board.

    Args:
        board: The board.
        gaps: What ``all_pairs.gaps`` gives for it.
        links: Page by name.
    """
    shown = quantities(board)
    rows = {row.submission.name: row for row in all_pairs.compared(board)}
    others: dict[str, dict[str, Any]] = {name: {} for name in rows}
    for (one, two), between in gaps.items():
        others[one][key(links[two])] = {
            "gaps": [_numbers(gap, shown) for gap in between if gap.quantity in shown],
            "says": sentence(rows[one], rows[two], board.headline_bits, between),
        }
    for name, row in rows.items():
        entry = {
            "key": key(links[name]), "name": formatting.visible(name), "href": links[name],
            "about": formatting.visible(f"{row.submission.method} · {KINDS[row.submission.kind]}"),
            "widths": [_width(row.by_bits[bits], shown) for bits in board.widths if bits in row.by_bits],
            "pairs": others[name],
        }  # fmt: skip
        yield f"compare/{key(links[name])}.js", f"quenchEntry({script_json(entry)});\n"


def script_json(value: Any) -> str:
    """Returns JSON that means the same in a script and can end no element: ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def sentence(one: LeaderboardRow, two: LeaderboardRow, bits: int, between: Sequence[Gap]) -> str:
    """Returns what may be said of two entries at one width; empty where they can't be compared there.

    Args:
        one: The first.
        two: The second.
        bits: The width.
        between: Their gaps.
    """
    known = {gap.quantity: gap for gap in _at(between, bits)}
    said = [_clause(known[quantity]) for quantity in (*FORGET_METRICS, UTILITY) if quantity in known]
    if not said:
        return ""
    names = [row.submission.name for row in (one, two)]
    text = f"At {bits} bit, worst backend, {names[0]} against {names[1]}: {'; '.join(said)}."
    destroyed = [row.submission.name for row in (one, two) if row.by_bits[bits].verdict.word == "collapsed"]
    if destroyed:
        text += f" But collapsed there: {' and '.join(destroyed)}; a destroyed model forgets everything."
    return formatting.visible(text)


def _clause(gap: Gap) -> str:
    subject = "utility" if gap.quantity == UTILITY else METRICS[gap.quantity].label
    span = formatting.ends(gap.difference) + ("*" if gap.difference.few else "")
    if not gap.claimed:
        corrected = " after correction" if gap.difference.excludes_zero else ""
        return f"{subject} cannot be told apart{corrected} {span}"
    more, less = _MORE.get(gap.quantity, (f"more of {subject} remains", f"less of {subject} remains"))
    return f"{more if gap.difference.value > 0 else less}, by {formatting.number(abs(gap.difference.value))} {span}"


def _at(between: Sequence[Gap], bits: int) -> list[Gap]:
    return [gap for gap in between if gap.bits == bits]


def _numbers(gap: Gap, shown: Sequence[str]) -> list[Any]:
    """Returns bits, place in ``shown``, value, ends, and whether it may be claimed and few documents carry it."""
    return [
        gap.bits, shown.index(gap.quantity), *_rounded(gap.difference), int(gap.claimed), int(gap.difference.few),
    ]  # fmt: skip


def _width(at: WidthResult, shown: Sequence[str]) -> dict[str, Any]:
    shares = {metric: worst.result.rho for metric, worst in at.by_metric.items()}
    found = {REMAINING: at.remaining, **shares, UTILITY: at.utility_share}
    return {
        "bits": at.bits, "verdict": at.verdict.word, "symbol": SYMBOLS[at.verdict.word],
        "backend": formatting.visible(at.quantizer or ""), "backends": len(at.quantizers),
        "values": [_rounded(found.get(quantity)) for quantity in shown],
    }  # fmt: skip


def _rounded(found: Estimate | None) -> list[float | None]:
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return [None if value is None else round(value, 4) for value in values]
