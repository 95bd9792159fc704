"""Paired bootstrap over documents: intervals, differences, remaining share and recovery.

Every quantity is a ``Resampled``: its value on all documents, and the same on
each of B resamples. Resamples of one metric and number of documents are the
same for every cell, so arithmetic on two of them is a *paired* comparison:
both models answered the same drawn documents.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.publish.rules import CONFIDENCE, PRIVACY, RESAMPLES, SEED
from harness.records import CellResult, DocumentRecord
from harness.score.metrics import auc, privleak

Floats = NDArray[np.floating[Any]]

_CLOSE = 1e-6
_MEMBERSHIP = "min_k_40"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with the ends of its 95% interval; ends are None where there are no documents to draw from."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """A quantity on all documents and on every resample.

    Attributes:
        value: On all documents.
        draws: On resample 0 .. B-1, shape [B]; NaN where it is undefined.
        documents: What was drawn from; equal for cells that may be paired.
    """

    value: float
    draws: Floats
    documents: tuple[tuple[str, int, str], ...]

    def _with(self, other: Resampled, operation: Callable[[Any, Any], Any]) -> Resampled:
        if self.documents != other.documents:
            raise ValueError("Quantities of different documents can't be paired.")
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = operation(self.draws, other.draws)
            value = float(operation(np.float64(self.value), np.float64(other.value)))
        return Resampled(value, draws, self.documents)

    def __sub__(self, other: Resampled) -> Resampled:
        return self._with(other, np.subtract)

    def __truediv__(self, other: Resampled) -> Resampled:
        return self._with(other, np.divide)

    def estimate(self) -> Estimate:
        """Returns the value with its percentile interval."""
        low, high = interval(self.draws)
        return Estimate(value=self.value, low=low, high=high)


def interval(draws: Floats) -> tuple[float, float]:
    """Returns the ends of the central 95% of the draws; undefined draws are left out."""
    finite = draws[np.isfinite(draws)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=64)
def counts(label: str, documents: int, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Returns how often each document is drawn in each resample, shape [resamples, documents].

    Args:
        label: What is drawn (metric and split); others are drawn independently.
        documents: Number of documents; every row sums to it.
        resamples: Number of resamples.
        seed: The same seed gives the same table.
    """
    rng = np.random.default_rng([seed, zlib.crc32(label.encode()), documents])
    table = rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(np.float64)
    table.flags.writeable = False
    return table


def resampled_mean(values: Floats, drawn: Floats) -> Floats:
    """Returns the mean of ``values`` [n] on every resample of ``drawn`` [B, n]."""
    return np.asarray(drawn @ values / values.size)


def resampled_auc(forget: Floats, holdout: Floats, drawn_forget: Floats, drawn_holdout: Floats) -> Floats:
    """Returns P(s_holdout < s_forget), ties counted half, on every resample.

    Forget and holdout documents are drawn separately. Computed in float32,
    which is exact here: all terms are half-integers below 2**24.

    Args:
        forget: Scores, shape [m].
        holdout: Scores, shape [n].
        drawn_forget: Counts, shape [B, m].
        drawn_holdout: Counts, shape [B, n].
    """
    wins = (holdout[None, :] < forget[:, None]) + 0.5 * (holdout[None, :] == forget[:, None])
    by_holdout = drawn_forget.astype(np.float32) @ wins.astype(np.float32)
    total = np.einsum("bn,bn->b", by_holdout, drawn_holdout.astype(np.float32))
    return np.asarray(total.astype(np.float64) / (forget.size * holdout.size))


def _ids(documents: Sequence[DocumentRecord]) -> tuple[tuple[str, int, str], ...]:
    return tuple((document.split, document.index, document.prompt_sha256) for document in documents)


def _ordered(result: CellResult) -> list[DocumentRecord]:
    valid = [document for document in result.documents if document.invalid_reason is None]
    return sorted(valid, key=lambda document: (document.split, document.index))


def _values(documents: Sequence[DocumentRecord], metric: str) -> Floats | None:
    if not documents or any(metric not in document.scores for document in documents):
        return None
    return np.array([document.scores[metric] for document in documents], dtype=np.float64)


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


def _mean(documents: Sequence[DocumentRecord], metric: str, label: str) -> Resampled | None:
    values = _values(documents, metric)
    if values is None:
        return None
    return Resampled(float(values.mean()), resampled_mean(values, counts(label, values.size)), _ids(documents))


def _membership(documents: Sequence[DocumentRecord], key: str) -> Resampled | None:
    forget, holdout = (_values(_split(documents, split), key) for split in ("forget", "holdout"))
    if forget is None or holdout is None:
        return None
    draws = resampled_auc(
        forget, holdout, counts("privleak/forget", forget.size), counts("privleak/holdout", holdout.size)
    )
    return Resampled(auc(forget, holdout), draws, _ids(documents))


def resample(result: CellResult, metric: str) -> Resampled | None:
    """Returns a score of a cell on all documents and on every resample.

    ``privleak``, ``auc`` and ``auc_*`` are rebuilt from the membership scores
    of the single texts, everything else is a mean over documents.

    Returns:
        None where the cell has no such score, its documents are not at hand,
        or they do not add up to the stored score.
    """
    stored = stored_value(result, metric)
    documents = _ordered(result)
    if stored is None or not documents:
        return None
    for candidate in _candidates(result, documents, metric):
        # Scale by the stored value: PrivLeak is in percent.
        if candidate is not None and abs(candidate.value - stored) <= _CLOSE * max(1.0, abs(stored)):
            return candidate
    return None


def _candidates(result: CellResult, documents: Sequence[DocumentRecord], metric: str) -> Sequence[Resampled | None]:
    if metric == PRIVACY:
        found = _membership(documents, _MEMBERSHIP)
        reference = reference_auc(result)
        if found is None or reference is None:
            return ()
        draws = 100 * (found.draws - reference) / reference
        return (Resampled(privleak(found.value, reference), draws, found.documents),)
    if metric == "auc":
        return (_membership(documents, _MEMBERSHIP),)
    if metric.startswith("auc_"):
        return (_membership(documents, metric.removeprefix("auc_")),)
    splits = {document.split for document in documents}
    base = metric.removesuffix("_forget").removesuffix("_holdout")
    whole = _mean(documents, metric, result.cell.task.removeprefix(f"muse_{result.corpus}_"))
    if len(splits) == 1:
        return (whole,)
    return (whole, *(_mean(_split(documents, split), base, f"privleak/{split}") for split in sorted(splits)))


def estimate(result: CellResult, metric: str) -> Estimate | None:
    """Returns a cell's score with its interval; without ends where the documents are not at hand."""
    stored = stored_value(result, metric)
    if stored is None:
        return None
    found = resample(result, metric)
    return Estimate(value=stored) if found is None else found.estimate()


def remaining_share(model: Resampled, retrain: Resampled, target: Resampled) -> Resampled | None:
    """Returns rho = (m - m_retrain) / (m_target - m_retrain), all under one quantizer.

    0: knows as little as the retrained model; 1: as much as the target.

    Returns:
        None where the interval of the denominator does not lie above 0: then
        the quantizer damages the target too much to tell.
    """
    gap = target - retrain
    low, _ = interval(gap.draws)
    return (model - retrain) / gap if low > 0 else None


def recovered_share(quantized: float, unquantized: float, target: float) -> float | None:
    """Returns (m_q - m_16) / (m_target,q - m_16): the share of what was unlearned that came back.

    Source: reproductions of Zhang et al. (ICLR 2025).
    """
    return (quantized - unquantized) / (target - unquantized) if target != unquantized else None


def robustness(quantized: float, unquantized: float) -> float | None:
    """Returns Q = 1 - |m_q - m_16| / (|m_q| + |m_16|): 1 where quantization changes nothing.

    Source: OpenUnlearning.
    """
    size = abs(quantized) + abs(unquantized)
    return 1 - abs(quantized - unquantized) / size if size else None
