"""New entries by date, and scores that a new SCORING_VERSION has moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from harness.provenance import sha256_json
from harness.publish.formatting import prose
from harness.publish.ranking.measurements import primary_metric
from harness.publish.statistics import quantities
from harness.records import CellResult
from harness.score.metrics.formulas import METRICS


def entries_added(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Returns one row per entry with the time of its first cell, newest first."""
    first: dict[tuple[str, str], CellResult] = {}
    for cell in cells:
        place = (cell.corpus, cell.submission.name)
        if cell.submission.role == "entry" and (place not in first or _when(cell) < _when(first[place])):
            first[place] = cell
    found = sorted(first.values(), key=lambda cell: (cell.corpus, cell.submission.name))
    return [
        {
            "added": prose(_when(cell)),
            "corpus": prose(cell.corpus),
            "submission": prose(cell.submission.name),
            "title": prose(cell.submission.title),
            "method": prose(cell.submission.method),
        }
        for cell in sorted(found, key=_when, reverse=True)
    ]


def scores_changed(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Returns one row per primary score that two scoring versions give differently, in display units.

    Only whole, finished cells of the same weights, quantizer, seed and origin
    are compared, so that nothing but the version differs; of several of one
    version the newest counts.

    Returns:
        Rows with ``old_version``, ``new_version``, ``old``, ``new`` and
        ``difference``; a score that stayed has none.
    """
    versions: dict[tuple[str, ...], dict[int, CellResult]] = defaultdict(dict)
    for cell in sorted(cells, key=_when):
        metric = primary_metric(cell)
        if metric is not None and cell.status == "finished" and cell.cell.limit is None:
            made = sha256_json(
                [cell.submission.weights_sha256, cell.submission.revision, cell.spec.calibration,
                 dict(cell.spec.options), cell.provenance.seed, cell.origin]
            )  # fmt: skip
            place = (cell.corpus, cell.cell.submission, cell.cell.quantizer, metric)
            versions[*place, made][cell.provenance.scoring_version] = cell
    rows = []
    for (corpus, submission, quantizer, metric, _), found in sorted(versions.items()):
        for old, new in pairwise(sorted(found)):
            before, after = (quantities.stored_value(found[version], metric) for version in (old, new))
            if before is None or after is None or before == after:
                continue
            scale = METRICS[metric].display_scale
            rows.append(
                {
                    "corpus": prose(corpus), "submission": prose(submission), "quantizer": prose(quantizer),
                    "metric": metric, "old_version": old, "new_version": new, "old": before * scale,
                    "new": after * scale, "difference": (after - before) * scale,
                }
            )  # fmt: skip
    return rows


def _when(cell: CellResult) -> str:
    return cell.provenance.created_at
