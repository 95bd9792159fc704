"""Quantities with intervals from stored cells: scores, differences, remaining share, recovery.

The machine of the bootstrap is ``bootstrap``; here stands what each quantity
is. docs/statistics.md has formulas and sources.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from harness.publish.statistics.bootstrap import (
    Estimate,
    Floats,
    Ids,
    Resampled,
    area,
    counts,
    interval,
    resampled_auc,
    resampled_mean,
)
from harness.publish.thresholds import PRIVACY
from harness.records import CellResult, DocumentRecord
from harness.score.metrics.formulas import METRICS, auc, privleak

__all__ = [
    "Estimate", "Floats", "Resampled", "area", "counts", "estimate", "holm", "interval", "knowledge_gap",
    "recovered_share", "reference_auc", "relative", "remaining_share", "resample", "resample_all", "resampled_auc",
    "resampled_mean", "robustness", "shown", "stored_value",
]  # fmt: skip

_CLOSE = 1e-6
_MEMBERSHIP = "min_k_40"
_IDENTITY = operator.attrgetter("split", "index", "prompt_sha256")


def _ordered(result: CellResult) -> list[DocumentRecord]:
    valid = [document for document in result.documents if document.invalid_reason is None]
    return sorted(valid, key=operator.attrgetter("split", "index"))


def _values(documents: Sequence[DocumentRecord], metric: str) -> Floats | None:
    try:
        values = [document.scores[metric] for document in documents]
    except KeyError:
        return None
    return np.array(values, dtype=np.float64) if values else None


def _split(documents: Sequence[DocumentRecord], name: str) -> list[DocumentRecord]:
    return [document for document in documents if document.split == name]


def stored_value(result: CellResult, metric: str) -> float | None:
    """Returns a cell's score, None where it has none."""
    return next((score.value for score in result.scores if score.metric == metric), None)


def reference_auc(result: CellResult) -> float | None:
    """Returns the AUC that a cell's PrivLeak is relative to, None where the cell has no PrivLeak.

    Taken from the score of that name, else solved for from ``auc`` and
    ``privleak``: a store stands alone. An AUC of 0 is -100% of any reference,
    and so is every resample of it: then 1 stands in.
    """
    known = stored_value(result, "reference_auc")
    found, share = stored_value(result, "auc"), stored_value(result, PRIVACY)
    if known is not None or found is None or share is None:
        return known
    return found / (1 + share / 100) if found > 0 else 1.0


def resample(result: CellResult, metric: str, reference: Resampled | None = None) -> Resampled | None:
    """Returns a score of a cell on all documents and on every resample; see ``resample_all``."""
    return resample_all([result], metric, reference)[0]


def resample_all(
    results: Sequence[CellResult], metric: str, reference: Resampled | None = None
) -> list[Resampled | None]:
    """Returns a score of many cells on all documents and on every resample: one matrix product for all.

    ``privleak``, ``auc`` and ``auc_*`` are rebuilt from the membership scores
    of the single texts, everything else is a mean over documents.

    Args:
        results: Cells with their documents.
        metric: Key of the score.
        reference: AUC of the retrained model that PrivLeak is relative to, on
            resamples of the same texts: then its uncertainty is part of
            PrivLeak's. Without it, or where it answered other texts, the
            reference counts as known.

    Returns:
        One for each cell; None where the cell has no such score, its
        documents are not at hand, or they do not add up to the stored score.
    """
    if metric in (PRIVACY, "auc") or metric.startswith("auc_"):
        return [_area(result, metric, reference) for result in results]
    found: list[Resampled | None] = [None] * len(results)
    alike: dict[tuple[str, Ids], list[tuple[int, Floats]]] = defaultdict(list)
    for place, result in enumerate(results):
        part = _part(result, metric)
        if part is not None:
            label, values, documents = part
            alike[label, documents].append((place, values))
    for (label, documents), parts in alike.items():
        draws = resampled_mean(np.stack([values for _, values in parts]), counts(label, len(documents)))
        for (place, values), row in zip(parts, draws, strict=True):
            value = float(values.mean())
            influence, reach = (values - value) / values.size, (1 / values.size if _is_share(metric) else 0.0)
            found[place] = Resampled(value, row, documents, influence, reach)
    return found


def _is_share(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].display_scale == 100


def _part(result: CellResult, metric: str) -> tuple[str, Floats, Ids] | None:
    """Returns the documents whose mean is the stored score, with their label: all, or those of one split."""
    stored = stored_value(result, metric)
    documents = _ordered(result)
    if stored is None or not documents:
        return None
    label = result.cell.task.removeprefix(f"muse_{result.corpus}_")
    base = metric.removesuffix("_forget").removesuffix("_holdout")
    splits = sorted({document.split for document in documents})
    candidates = [(label, metric, documents)]
    if len(splits) > 1:
        candidates += [(f"privleak/{split}", base, _split(documents, split)) for split in splits]
    for name, key, chosen in candidates:
        values = _values(chosen, key)
        if values is not None and _adds_up(float(values.mean()), stored):
            return name, values, tuple(map(_IDENTITY, chosen))
    return None


def _adds_up(found: float, stored: float) -> bool:
    # Scaled by the stored value: PrivLeak is in percent.
    return abs(found - stored) <= _CLOSE * max(1.0, abs(stored))


def _area(result: CellResult, metric: str, reference: Resampled | None) -> Resampled | None:
    stored = stored_value(result, metric)
    documents = _ordered(result)
    key = metric.removeprefix("auc_") if metric.startswith("auc_") else _MEMBERSHIP
    forget, holdout = (_values(_split(documents, split), key) for split in ("forget", "holdout"))
    if stored is None or forget is None or holdout is None:
        return None
    known = reference_auc(result) if metric == PRIVACY else None
    value = auc(forget, holdout)
    score = value if metric != PRIVACY else None if known is None else privleak(value, known)
    if score is None or not _adds_up(score, stored):
        return None
    drawn_forget, drawn_holdout = (
        counts(f"privleak/{split}", side.size, dtype=np.uint16)
        for split, side in (("forget", forget), ("holdout", holdout))
    )
    found = area(forget, holdout, drawn_forget, drawn_holdout, tuple(map(_IDENTITY, documents)))
    return found if known is None else relative(found, known, reference)


def relative(area: Resampled, known: float, reference: Resampled | None) -> Resampled:
    """Returns PrivLeak, in percent.

    Args:
        area: A model's AUC.
        known: The AUC that it is relative to.
        reference: The same resampled; see ``resample_all``.
    """
    if reference is None or not reference.pairs_with(area):
        share = (area.draws - known) / known
        influence = None if area.influence is None else 100 * area.influence / known
        return Resampled(privleak(area.value, known), 100 * share, area.documents, influence, 100 * area.reach / known)
    # The stored reference stays the value; the cell it comes from lends its uncertainty.
    draws = known + (reference.draws - reference.value)
    relative_to = Resampled(known, draws, area.documents, reference.influence)
    found = (area - relative_to) / relative_to
    influence = None if found.influence is None else 100 * found.influence
    return Resampled(privleak(area.value, known), 100 * found.draws, area.documents, influence, 100 * found.reach)


def shown(found: Resampled, metric: str) -> Estimate:
    """Returns a score's value with its interval, kept inside what is possible and widened where few documents carry it.

    Args:
        found: The resampled score.
        metric: Its key.
    """
    if metric == PRIVACY:
        return found.cautious(least=-100.0)
    return found.cautious(0.0, 1.0) if _is_share(metric) else found.estimate()


def estimate(result: CellResult, metric: str) -> Estimate | None:
    """Returns a cell's score with its interval; without ends where the documents are not at hand."""
    stored = stored_value(result, metric)
    if stored is None:
        return None
    found = resample(result, metric)
    return Estimate(value=stored) if found is None else shown(found, metric)


def knowledge_gap(target: Resampled, retrain: Resampled) -> Resampled | None:
    """Returns how much more the target knows than the retrained model, both under one quantizer.

    Returns:
        None where the interval of the difference does not lie above 0: then
        the quantizer damages the target too much to tell.
    """
    gap = target - retrain
    low, _ = interval(gap.draws)
    return gap if low > 0 else None


def remaining_share(model: Resampled, retrain: Resampled, gap: Resampled) -> Resampled:
    """Returns rho = (m - m_retrain) / (m_target - m_retrain), all under one quantizer.

    0: knows as little as the retrained model; 1: as much as the target.

    Args:
        model: The entry's score.
        retrain: The retrained model's.
        gap: What ``knowledge_gap`` gave for its target.
    """
    return (model - retrain) / gap


def recovered_share(quantized: Resampled, unquantized: Resampled, target: Resampled) -> Resampled | None:
    """Returns (m_q - m_16) / (m_target,q - m_16): the share of what was unlearned that came back.

    Returns:
        None where the interval of the denominator includes 0: then nothing
        had provably been unlearned that could come back.
    Source: reproductions of Zhang et al. (ICLR 2025).
    """
    unlearned = target - unquantized
    low, high = interval(unlearned.draws)
    return (quantized - unquantized) / unlearned if low > 0 or high < 0 else None


def robustness(quantized: Resampled, unquantized: Resampled) -> Resampled | None:
    """Returns Q = 1 - |m_q - m_16| / (|m_q| + |m_16|): 1 where quantization changes nothing.

    Returns:
        None where both scores are 0.
    Source: OpenUnlearning.
    """
    if quantized.value == unquantized.value == 0:
        return None
    gap = quantized - unquantized
    with np.errstate(invalid="ignore"):
        draws = 1 - np.abs(gap.draws) / (np.abs(quantized.draws) + np.abs(unquantized.draws))
    value = 1 - abs(gap.value) / (abs(quantized.value) + abs(unquantized.value))
    return Resampled(value, draws, gap.documents)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Returns p-values adjusted so that all tests together err with at most the stated probability.

    Args:
        p_values: One for each test, by name; they may depend on each other.

    Source: Holm (1979), "A simple sequentially rejective multiple test
    procedure", Scandinavian Journal of Statistics 6.
    """
    adjusted: dict[str, float] = {}
    reached = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}
