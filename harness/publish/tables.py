"""Flat rows for ``--json`` and for terminals: pure functions of a board, cells or documents.

Metric keys are those of METRICS. VerbMem, KnowMem and utility are shown times
100 and PrivLeak in percent, as on the pages; remaining shares, recoveries and
``utility_share`` are fractions. Interval ends are ``<metric>_low`` and
``<metric>_high``. Every row of a kind has the same keys; what is missing is
None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from harness.publish import statistics
from harness.publish.board import Board, LeaderboardRow, MetricResult, QuantizerResult, Verdict, WidthResult
from harness.publish.page_text import number, visible
from harness.publish.rules import FORGET_METRICS
from harness.publish.statistics import Estimate
from harness.records import CellResult, DocumentRecord
from harness.score.metrics import METRICS, PRIMARY

Row = dict[str, Any]

RANKED_COLUMNS = ("rank", "tier", "submission", "verdict", "rho", "recovery", "utility_share", "quantizer")
"""Columns of the ranked table that fit a terminal; why an entry has no rank stands below it."""

_PROOF = ("bits_per_weight", "max_abs_error", "mean_abs_error", "relative_error", "symmetric", "native_max_difference",
          "native_mean_difference", "native_rounding_difference")  # fmt: skip

CELL_COLUMNS = ("submission", "quantizer", "task", "status", "score", "limit", "origin", "reason")
DOCUMENT_COLUMNS = ("document", "split", *PRIMARY, "min_k_40", "response", "reference", "invalid_reason")

_WITH_INTERVAL = ("rho", "score")
_NAMES = ("submission", "quantizer", "task")


def _scale(metric: str) -> float:
    return METRICS[metric].display_scale if metric in METRICS else 1.0


def _estimate(name: str, found: Estimate | None, scale: float = 1.0) -> Row:
    ends = (None, None, None) if found is None else (found.value, found.low, found.high)
    values = [None if value is None else value * scale for value in ends]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def ranked_rows(board: Board, bits: int | None) -> list[Row]:
    """Returns one row per entry and bit width: ranked ones first, best first, then those without a rank.

    Scores, ``rho_<metric>`` and ``recovery_<metric>`` are those under
    ``quantizer``, the worst backend at the width; ``rho`` and ``recovery``
    are those of ``worst_metric`` there. ``worst_rho_<metric>`` is a metric's
    own worst case, under ``worst_quantizer_<metric>``. ``privleak`` and ``utility_share``
    have worst backends of their own.

    Args:
        board: The ranked board.
        bits: One bit width; None for all that were measured.
    """
    widths = board.widths if bits is None else (bits,)
    return [
        _ranked(board, row, width)
        for width in widths
        for row in (*board.ranked(width), *board.unranked(width))
    ]  # fmt: skip


def _ranked(board: Board, row: LeaderboardRow, bits: int) -> Row:
    at = row.by_bits.get(bits) or WidthResult(
        bits=bits, quantizers=(), unranked_reason=f"not measured at {bits} bit", verdict=Verdict(word="not measured"),
    )  # fmt: skip
    worst = row.by_quantizer.get(at.quantizer) if at.quantizer else None
    if worst is None and at.quantizers:
        worst = row.by_quantizer[at.quantizers[0]]
    return {
        "rank": at.rank,
        "tier": at.tier,
        "submission": row.submission.name,
        "title": row.submission.title,
        "method": row.submission.method,
        "kind": row.submission.kind,
        "corpus": board.corpus,
        "target": row.submission.target,
        "bits": bits,
        "quantizer": at.quantizer,
        "quantizers": list(at.quantizers),
        "verdict": at.verdict.word,
        "verdict_basis": at.verdict.basis or None,
        "verdict_reason": at.verdict.reason or None,
        "worst_metric": at.metric,
        **_estimate("rho", at.remaining),
        **_estimate("recovery", at.recovery),
        **_shares(worst),
        **_worst_cases(at),
        **_estimate("utility_share", at.utility_share),
        "utility_quantizer": at.utility_quantizer,
        **_scores(worst),
        **_estimate("privleak", at.privleak, _scale("privleak")),
        "privleak_quantizer": at.privleak_quantizer,
        "unranked_reason": at.unranked_reason,
    }


def _result(worst: QuantizerResult | None, metric: str) -> MetricResult | None:
    return worst.metrics.get(metric) if worst else None


def _shares(worst: QuantizerResult | None) -> Row:
    row: Row = {}
    for metric in FORGET_METRICS:
        found = _result(worst, metric)
        row |= _estimate(f"rho_{metric}", found.rho if found else None)
        row |= _estimate(f"recovery_{metric}", found.recovery if found else None)
    return row


def _worst_cases(at: WidthResult) -> Row:
    row: Row = {}
    for metric in FORGET_METRICS:
        worst = at.by_metric.get(metric)
        row |= _estimate(f"worst_rho_{metric}", worst.result.rho if worst else None)
        row |= _estimate(f"worst_recovery_{metric}", worst.result.recovery if worst else None)
        row[f"worst_quantizer_{metric}"] = worst.quantizer if worst else None
    return row


def _scores(worst: QuantizerResult | None) -> Row:
    row: Row = {}
    for metric in PRIMARY:
        found = _result(worst, metric)
        row |= _estimate(metric, found.score if found else None, _scale(metric))
    return row


def cell_rows(cells: Sequence[CellResult]) -> list[Row]:
    """Returns one row per cell, in the given order.

    The primary metric has interval ends where the cell's documents are at
    hand. ``scores`` of other metrics stand under their own keys, None where
    a cell of another task has none.

    Args:
        cells: Stored cells, with or without documents.
    """
    secondary = [
        metric for metric in dict.fromkeys(score.metric for cell in cells for score in cell.scores)
        if metric not in PRIMARY
    ]  # fmt: skip
    return [_cell(cell, secondary) for cell in cells]


def _cell(cell: CellResult, secondary: Sequence[str]) -> Row:
    row: Row = {
        "submission": cell.cell.submission,
        "quantizer": cell.cell.quantizer,
        "task": cell.cell.task,
        "status": cell.status,
        "origin": cell.origin,
        "corpus": cell.corpus,
        "bits": cell.spec.bits,
    }
    for metric in PRIMARY:
        row |= _estimate(metric, statistics.estimate(cell, metric), _scale(metric))
    values = {score.metric: score.value for score in cell.scores}
    row |= {
        metric: None if (value := values.get(metric)) is None else value * _scale(metric) for metric in secondary
    }  # fmt: skip
    return row | {
        "num_docs": next((score.num_docs for score in cell.scores if score.metric in PRIMARY), None),
        "reason": cell.reason or next((score.missing_reason for score in cell.scores if score.metric in PRIMARY), None),
        "stage": cell.stage,
        "error_type": cell.error_type,
        "limit": cell.cell.limit,
        **{name: getattr(cell.proof, name) if cell.proof else None for name in _PROOF},
        "seconds": sum(cell.timings.values()) if cell.timings else None,
        "peak_memory_bytes": cell.peak_memory_bytes,
        "remarks": list(cell.remarks),
        "created_at": cell.provenance.created_at,
        "git_commit": cell.provenance.git_commit,
        "dirty": cell.provenance.dirty,
        "device": cell.provenance.device,
        "seed": cell.provenance.seed,
        "scoring_version": cell.provenance.scoring_version,
        "key": cell.cell.key,
    }


def document_rows(documents: Sequence[DocumentRecord]) -> list[Row]:
    """Returns one row per document, in the given order, with every per-document score under its key."""
    metrics = list(dict.fromkeys(metric for document in documents for metric in document.scores))
    return [
        {
            "document": document.index,
            "split": document.split,
            **{
                metric: None if (value := document.scores.get(metric)) is None else value * _scale(metric)
                for metric in metrics
            },
            "response": document.response,
            "reference": document.reference_excerpt,
            "prompt": document.prompt_excerpt,
            "invalid_reason": document.invalid_reason,
            "prompt_sha256": document.prompt_sha256,
            "reference_sha256": document.reference_sha256,
        }
        for document in documents
    ]


def terminal_table(rows: Sequence[Mapping[str, Any]], *, title: str, columns: Sequence[str] | None = None) -> Table:
    """Returns rows as a table for a terminal; control characters in texts are shown as escapes.

    Args:
        rows: Flat rows, all with the same keys.
        title: Stands above.
        columns: Keys to show, in this order; None for the ones that suit the
            kind of row, leaving out what is empty everywhere.
    """
    rows = [_compact(row) for row in rows]
    known = list(dict.fromkeys(key for row in rows for key in row))
    wanted = columns if columns is not None else _suiting(known)
    shown = [
        key for key in wanted
        if key in known and (columns is not None or any(row.get(key) not in (None, [], "") for row in rows))
    ]  # fmt: skip
    table = Table(
        title=Text(visible(title)), title_justify="left", caption=_reasons(rows), caption_justify="left",
        header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for key in shown:
        cells = [_text(row, key) for row in rows]
        table.add_column(
            "utility" if key == "utility_share" else key.replace("_", " "),
            justify="right" if any(_is_number(row.get(key)) for row in rows) else "left",
            # A name that is cut off can't be typed again.
            min_width=max(map(len, cells), default=0) if key in _NAMES else None,
            overflow="fold",
        )
    if not shown:
        table.add_column("")
        table.add_row("nothing to show")
        return table
    for row in rows:
        table.add_row(*(Text(_text(row, key)) for key in shown))
    return table


def _suiting(known: Sequence[str]) -> Sequence[str]:
    if "prompt_sha256" in known:
        return DOCUMENT_COLUMNS
    if "scoring_version" in known:
        return CELL_COLUMNS
    return known


def _compact(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a cell's row with its one primary metric as ``score``; other rows as they are.

    That a cell was scored here is the rule, and goes without saying.
    """
    if "scoring_version" not in row:
        return row
    row = {**row, "origin": None if row.get("origin") == "scored" else row.get("origin")}
    metric = next((metric for metric in PRIMARY if row.get(metric) is not None), None)
    if metric is None:
        return row
    return {**row, **{f"score{end}": row[f"{metric}{end}"] for end in ("", "_low", "_high")}}


def _reasons(rows: Sequence[Mapping[str, Any]]) -> Text | None:
    lines = [f"{row['submission']} has no rank: {row['unranked_reason']}" for row in rows if row.get("unranked_reason")]
    return Text("\n".join(map(visible, lines))) if lines else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = 1 if key in PRIMARY or key == "score" else 2
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        if key not in _WITH_INTERVAL or low is None or high is None:
            return number(value, digits)
        return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"
    if isinstance(value, list | tuple):
        return visible("; ".join(str(item) for item in value))
    return visible(value)
