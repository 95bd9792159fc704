"""The smallest difference that a corpus's documents can detect, from spreads in the store or in real logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from harness.publish.ranking.controls import Controls
from harness.publish.ranking.measurements import Measurements, primary_metric
from harness.publish.statistics.quantities import Resampled
from harness.publish.thresholds import CONFIDENCE, FORGET_METRICS, POWER, PRIVACY, REFERENCE
from harness.records import CellResult
from harness.score.corpora.catalogue import SPLITS_OF, Corpus, load_split
from harness.score.metrics.formulas import METRICS, PRIMARY

COLUMNS = (
    "corpus", "metric", "documents", "detectable_difference", "detectable_change", "detectable_recovery", "basis",
)  # fmt: skip
"""Columns that fit a terminal."""

_OF_MUSE = {"verbmem_f": 100, "knowmem_f": 100, "knowmem_r": 100, PRIVACY: 200}
"""Documents of NEWS and BOOKS; PrivLeak has 100 forget and 100 holdout texts. Source: MUSE (Shi et al., 2024)."""

_ASSUMED = {"verbmem_f": 0.0388, "knowmem_f": 0.0388, "knowmem_r": 0.0388, PRIVACY: 8.16}
"""Standard errors with so many documents where nothing is stored: the widest intervals that logs of Llama-2-7B gave
reach 7.6 points to each side (KnowMem, utility) and 16 points (PrivLeak)."""

_NOTE_ASSUMED = "assumed from logs of Llama-2-7B, two models' scores being correlated by a half"


def factor() -> float:
    """Returns how many standard errors a difference must have to be found with probability ``POWER``: 2.80.

    Source: Cohen (1988), the two-sided z test; its 1.96 for 95% and 0.84 for 80%.
    """
    return float(stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) + stats.norm.ppf(POWER))


def documents_of(corpus: Corpus, cells: Iterable[CellResult], limit: int | None = None) -> dict[str, int]:
    """Returns how many documents each primary metric of a corpus has; a corpus may lack some of them.

    Counted in its texts where they are at hand, else in the store, else those
    of MUSE; nothing is fetched.

    Args:
        corpus: The corpus.
        cells: Stored cells.
        limit: Documents per task, where only a part is to be run.
    """
    found = {}
    for metric in PRIMARY:
        if f"{corpus.group}_{metric}" not in corpus.tasks:
            continue
        if corpus.hub_repo is None or corpus.data_dir is not None:
            splits = [split for split in SPLITS_OF[metric] if not split[1].endswith("_icl")]
            number = sum(len(load_split(corpus, *split)) for split in splits)
        else:
            stored = [
                len(cell.documents) for cell in cells
                if cell.corpus == corpus.name and primary_metric(cell) == metric and cell.cell.limit is None
            ]  # fmt: skip
            number = max(stored, default=0) or _OF_MUSE[metric]
        found[metric] = min(number, limit or number)
    return found


def rows(cells: Iterable[CellResult], corpus: str, documents: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns one flat row for each metric: standard errors and what can be detected, in points.

    ``detectable_difference`` is between two unrelated models,
    ``detectable_change`` between a model and itself quantized;
    ``detectable_recovery``, a fraction, is how far above tau a recovery must
    lie. Standard errors are medians over the cells and changes in the store.

    Args:
        cells: Stored cells with documents; may be none.
        corpus: Name of the corpus.
        documents: How many documents each primary metric will have.
    """
    found = Measurements(cells, corpus)
    controls = Controls(found)
    return [_row(found, controls, corpus, metric, documents[metric]) for metric in PRIMARY if metric in documents]


def _row(found: Measurements, controls: Controls, corpus: str, metric: str, documents: int) -> dict[str, Any]:
    scores, changes, recoveries = _errors(found, controls, metric)
    assumed = [(_ASSUMED[metric], _OF_MUSE[metric])]
    # With a correlation of one half a difference spreads as much as a score does.
    one, two = (_at(errors or assumed, documents) for errors in (scores, changes))
    scale = METRICS[metric].display_scale
    return {
        "corpus": corpus,
        "metric": METRICS[metric].label,
        "key": metric,
        "documents": documents,
        "error_score": scale * one,
        "error_change": scale * two,
        "detectable_difference": scale * factor() * one * 2**0.5,
        "detectable_change": scale * factor() * two,
        "detectable_recovery": factor() * _at(recoveries, documents) if recoveries else None,
        "power": POWER,
        "basis": f"{len(changes)} changes in the store" if changes else _NOTE_ASSUMED,
    }


def _at(errors: Sequence[tuple[float, int]], documents: int) -> float:
    """Returns the median standard error, brought to another number of documents: it falls with their root."""
    return float(np.median([error * (size / documents) ** 0.5 for error, size in errors]))


_Errors = list[tuple[float, int]]
"""Standard errors, each with its number of documents."""


def _errors(found: Measurements, controls: Controls, metric: str) -> tuple[_Errors, _Errors, _Errors]:
    """Returns the errors of scores, of changes and of recoveries; changes that no document shows are left out."""
    scores: _Errors = []
    changes: _Errors = []
    recoveries: _Errors = []
    for submission in sorted(found.submissions.values(), key=lambda submission: submission.role != "entry"):
        before = found.resampled(submission.name, REFERENCE, metric)
        for spec in found.quantizers:
            now = found.resampled(submission.name, spec.name, metric)
            if now is None:
                continue
            _note(scores, now)
            if spec.name == REFERENCE or before is None or not now.pairs_with(before):
                continue
            _note(changes, now - before)
            target, retrain = controls.of(submission)
            if metric in FORGET_METRICS and submission.role == "entry" and target and retrain:
                here, there = (
                    controls.share(submission.name, target, retrain, name, metric)[0] for name in (spec.name, REFERENCE)
                )
                if here is not None and there is not None:
                    _note(recoveries, here - there)
        if submission.role == "entry":
            found.forget(submission.name)
    return scores, changes, recoveries


def _note(errors: _Errors, quantity: Resampled) -> None:
    # The jackknife's standard error: no draws are needed for it.
    if quantity.influence is not None and (error := float(np.linalg.norm(quantity.influence))) > 0:
        errors.append((error, len(quantity.documents)))
