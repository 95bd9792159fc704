"""Rows of a board, of cells or of documents for ``--json``, terminals and papers. Pure.

Metric keys are those of METRICS. VerbMem, KnowMem and utility are shown times
100 and PrivLeak in percent, as on the pages; remaining shares, recoveries and
``utility_share`` are fractions. Interval ends are ``<metric>_low`` and
``<metric>_high``. Every row of a kind has the same keys; what is missing is
None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.publish.board import Board, LeaderboardRow, MetricResult, QuantizerResult, Verdict, WidthResult
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import FORGET_METRICS
from harness.records import CellResult, DocumentRecord
from harness.score.metrics.formulas import METRICS, PRIMARY

Row = dict[str, Any]

RANKED_COLUMNS = ("rank", "tier", "submission", "verdict", "rho", "recovery", "utility_share", "quantizer", "seeds_rho")
"""Columns of the ranked table that fit a terminal; why an entry has no rank stands below it."""

_PROOF = ("bits_per_weight", "max_abs_error", "mean_abs_error", "relative_error", "symmetric", "native_max_difference",
          "native_mean_difference", "native_rounding_difference")  # fmt: skip

CELL_COLUMNS = (
    "submission", "quantizer", "task", "status", "score", "change", "rho", "recovery", "verdict", "limit", "origin",
    "reason",
)  # fmt: skip
DOCUMENT_COLUMNS = ("document", "split", *PRIMARY, "min_k_40", "response", "reference", "invalid_reason")


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
    have worst backends of their own. ``flags`` are an entry's, the same at every width.

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
        "durable": bits in row.durable_bits if bits < 16 else None,
        "durable_proven": bits in row.certificates and row.certificates[bits].proven if bits < 16 else None,
        **_seeds(at),
        "few_documents": [
            name for name, found in (("rho", at.remaining), ("recovery", at.recovery), ("utility", at.utility_share))
            if found is not None and found.few
        ],
        "flags": [f"{flag.word}: {flag.reason}" for flag in row.flags],
    }  # fmt: skip


def _seeds(at: WidthResult) -> Row:
    found = at.seeds
    return {
        "seeds": len(found.names) if found else None,
        **_estimate("seeds_rho", found.remaining if found else None),
        "seeds_rho_least": found.least if found else None,
        "seeds_rho_most": found.most if found else None,
        "seeds_rho_deviation": found.deviation if found else None,
        "seeds_durable": found.certified if found else None,
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


def judged_cells(boards: Sequence[Board]) -> dict[str, MetricResult]:
    """Returns what boards say of the cells that count, by cell key."""
    return {
        cell.cell.key: result.metrics[metric]
        for board in boards
        for row in (*board.rows, *board.controls)
        for result in row.by_quantizer.values()
        for metric, cell in result.cells.items()
        if metric in result.metrics
    }


def cell_rows(cells: Sequence[CellResult], judged: Mapping[str, MetricResult] | None = None) -> list[Row]:
    """Returns one row per cell, in the given order.

    The primary metric has interval ends where the cell's documents are at
    hand. ``scores`` of other metrics stand under their own keys, None where
    a cell of another task has none. ``change`` is in the unit of the score,
    ``rho``, ``recovery``, ``recovered_share`` and ``robustness`` are
    fractions. ``few_documents`` names what too few documents carry.

    Args:
        cells: Stored cells, with or without documents.
        judged: What ``judged_cells`` gave; cells that are not in it stand alone.
    """
    secondary = [
        metric for metric in dict.fromkeys(score.metric for cell in cells for score in cell.scores)
        if metric not in PRIMARY
    ]  # fmt: skip
    known = judged or {}
    return [_cell(cell, secondary, known.get(cell.cell.key)) for cell in cells]


def _cell(cell: CellResult, secondary: Sequence[str], judged: MetricResult | None) -> Row:
    row: Row = {
        "submission": cell.cell.submission,
        "quantizer": cell.cell.quantizer,
        "task": cell.cell.task,
        "status": cell.status,
        "origin": cell.origin,
        "corpus": cell.corpus,
        "bits": cell.spec.bits,
        "method": cell.submission.method,
        "kind": cell.submission.kind,
    }
    for metric in PRIMARY:
        if judged is not None and judged.metric == metric:
            row |= _estimate(metric, judged.score, _scale(metric))
        else:
            row |= _estimate(metric, quantities.estimate(cell, metric), _scale(metric))
    row |= _judgement(judged)
    values = {score.metric: score.value for score in cell.scores}
    row |= {
        metric: None if (value := values.get(metric)) is None else value * _scale(metric) for metric in secondary
        # A package's metric may be called as a column is.
        if metric not in row
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


def _judgement(judged: MetricResult | None) -> Row:
    row: Row = {"verdict": judged.verdict if judged else None}
    few = []
    for name in ("change", "rho", "recovery", "recovered_share", "robustness"):
        found: Estimate | None = getattr(judged, name) if judged else None
        row |= _estimate(name, found, _scale(judged.metric) if judged and name == "change" else 1.0)
        few += [name] if found is not None and found.few else []
    return row | {"change_p": judged.change_p if judged else None, "few_documents": few}


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
