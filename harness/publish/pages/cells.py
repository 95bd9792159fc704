"""The page of all cells: every outcome, unfinished ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.publish.board import Board
from harness.publish.ranking.measurements import primary_metric
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate
from harness.records import CellResult, Status
from harness.score.metrics.formulas import METRICS

_ORDER: tuple[Status, ...] = ("failed", "cancelled", "skipped", "finished")


def context(
    boards: Sequence[Board], cells: Sequence[CellResult], links: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:  # fmt: skip
    """Returns the template's variables: one group of rows per corpus.

    Args:
        boards: For the intervals of cells that count.
        cells: All cells of the store.
        links: Pages by corpus and submission.
    """
    known = {
        cell.cell.key: result.metrics[metric].score
        for board in boards
        for row in (*board.rows, *board.controls)
        for result in row.by_quantizer.values()
        for metric, cell in result.cells.items()
        if metric in result.metrics
    }
    counts = Counter(cell.status for cell in cells)
    return {
        "counts": ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status]) or "No cells",
        "groups": [
            {
                "corpus": board.corpus,
                "cells": [
                    _row(cell, known, links[board.corpus])
                    for cell in sorted((c for c in cells if c.corpus == board.corpus), key=_position)
                ],
            }
            for board in boards
        ],
    }


def _position(cell: CellResult) -> tuple[int, str, int, str, str, str]:
    return (
        _ORDER.index(cell.status), cell.cell.submission, -cell.spec.bits, cell.cell.quantizer, cell.cell.task,
        cell.cell.key,
    )  # fmt: skip


def _row(cell: CellResult, known: Mapping[str, Estimate], links: Mapping[str, str]) -> dict[str, Any]:
    metric = primary_metric(cell)
    score = known.get(cell.cell.key)
    if score is None and metric is not None:
        value = quantities.stored_value(cell, metric)
        score = None if value is None else Estimate(value=value)
    missing = next((one.missing_reason for one in cell.scores if one.metric == metric and one.value is None), None)
    return {
        "submission": cell.cell.submission,
        "href": links.get(cell.cell.submission),
        "quantizer": cell.cell.quantizer,
        "task": cell.cell.task,
        "status": cell.status,
        "limit": cell.cell.limit,
        "score": score,
        "scale": METRICS[metric].display_scale if metric else 1.0,
        "documents": next((one.num_docs for one in cell.scores if one.metric == metric), None),
        "seconds": sum(cell.timings.values()) if cell.timings else None,
        "created_at": cell.provenance.created_at,
        "dirty": cell.provenance.dirty,
        "stage": cell.stage,
        "reason": cell.reason or missing,
        "remarks": cell.remarks if cell.origin == "scored" else (f"{cell.origin.capitalize()}.", *cell.remarks),
        "log_tail": cell.log_tail,
    }
