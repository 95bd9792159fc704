"""The bootstrap: a table of counts times a matrix of scores, and intervals from its draws.

Every quantity is a ``Resampled``: its value on all documents, and the same on
each of B resamples. Resamples of one label and number of documents are the
same for every cell, so arithmetic on two of them is a *paired* comparison:
both models answered the same drawn documents.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.publish.thresholds import CONFIDENCE, FEW_DOCUMENTS, RESAMPLES, SEED, UNSEEN
from harness.score.metrics.formulas import auc

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.number[Any]]
Ids = tuple[tuple[str, int, str], ...]
"""Split, index and prompt digest of every document that was drawn from."""

_SOME = 500
_PRODUCT = 200_000
"""Multiplications in one matrix product: from 262,144 on OpenBLAS wakes threads, which wait for each other longer than
they compute on a machine that does anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with the ends of its 95% interval; ends are None where there are no documents to draw from.

    Attributes:
        carriers: How many documents the interval rests on, in effect: k where
            k documents differ alike from all others, a third of them where
            scores spread like a normal distribution. Below ``FEW_DOCUMENTS``
            a bootstrap interval is too narrow. None where it isn't known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    carriers: float | None = None

    @property
    def few(self) -> bool:
        """Whether too few documents carry the interval for it to cover 95%."""
        return self.low is not None and self.carriers is not None and self.carriers < FEW_DOCUMENTS

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; False without an interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """A quantity on all documents and on every resample.

    Attributes:
        value: On all documents.
        draws: On resample 0 .. B-1, shape [B]; NaN where it is undefined.
        documents: What was drawn from; equal for cells that may be paired.
        influence: What each document adds to or takes from the value, shape
            [n], to first order; None where it isn't known.
        reach: The most that one document could move the value; 0 where
            scores have no limits.
    """

    value: float
    draws: Floats
    documents: Ids
    influence: Floats | None = None
    reach: float = 0.0

    def __sub__(self, other: Resampled) -> Resampled:
        self._check(other)
        influence = None
        if self.influence is not None and other.influence is not None:
            influence = self.influence - other.influence
        # Shares of resamples whose controls are alike are infinite; their difference is undefined.
        with np.errstate(invalid="ignore"):
            draws = self.draws - other.draws
        return Resampled(
            self.value - other.value, draws, self.documents, influence, max(self.reach, other.reach)
        )  # fmt: skip

    def __truediv__(self, other: Resampled) -> Resampled:
        self._check(other)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = self.draws / other.draws
            value = float(np.float64(self.value) / np.float64(other.value))
        influence = None
        if self.influence is not None and other.influence is not None and other.value:
            influence = (self.influence - value * other.influence) / other.value
        return Resampled(
            value, draws, self.documents, influence, self.reach / abs(other.value) if other.value else 0.0
        )  # fmt: skip

    def _check(self, other: Resampled) -> None:
        if not self.pairs_with(other):
            raise ValueError("Quantities of different documents can't be paired.")

    def pairs_with(self, other: Resampled) -> bool:
        """Returns whether both were drawn from the same documents."""
        return self.documents is other.documents or self.documents == other.documents

    @property
    def carriers(self) -> float | None:
        """How many documents carry the spread of the value: (sum of squares)^2 over the sum of fourth powers.

        Source: the inverse participation ratio, of the jackknife's influences.
        """
        if self.influence is None:
            return None
        squares = np.square(self.influence)
        fourth = float(squares @ squares)
        return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0

    def estimate(self) -> Estimate:
        """Returns the value with its percentile interval."""
        low, high = interval(self.draws)
        return Estimate(value=self.value, low=low, high=high, carriers=self.carriers)

    def cautious(self, least: float = -np.inf, most: float = np.inf) -> Estimate:
        """Returns the same, widened where few documents carry the interval.

        A share of documents that none of n shows may still be 3.69 / n with
        2.5% probability (``UNSEEN``): the interval then reaches at least as
        far as so many documents could move the value.

        Args:
            least: Lowest possible value.
            most: Highest possible value.
        """
        found = self.estimate()
        if not found.few or found.low is None or found.high is None:
            return found
        away = UNSEEN * self.reach
        low, high = max(least, found.value - away), min(most, found.value + away)
        return replace(found, low=min(found.low, low), high=max(found.high, high))

    def p_value(self) -> float:
        """Returns the two-sided p of the quantity being 0: twice the share of draws on 0's rarer side.

        Ties with 0 count on both sides and one draw is added to each, so that
        p is never below 2 / (B + 1). Where only k documents carry the
        difference it is never below 2 / 2^k, the least p of a test on their signs.
        Source: Davison & Hinkley (1997), section 4.4 (the added draw).
        """
        finite = _finite(self.draws)
        rarer = min(int(np.count_nonzero(finite <= 0)), int(np.count_nonzero(finite >= 0)))
        carriers = self.carriers
        least = 2 * 0.5**carriers if carriers is not None and carriers < FEW_DOCUMENTS else 0.0
        return min(1.0, max(2 * (rarer + 1) / (finite.size + 1), least))


def _finite(draws: Floats) -> Floats:
    # NaN is its own least and largest value: two reductions instead of a mask where all draws are defined.
    if math.isfinite(draws.min()) and math.isfinite(draws.max()):
        return draws
    return np.asarray(draws[np.isfinite(draws)])


def interval(draws: Floats) -> tuple[float, float]:
    """Returns the ends of the central 95% of the draws; undefined draws are left out.

    Ends between two draws are interpolated linearly, as ``np.quantile`` does.
    """
    finite = _finite(draws)
    place = (1 - CONFIDENCE) / 2 * (finite.size - 1)
    # A board has tens of thousands of intervals: what lies well inside the ends need not be sorted. Bounds come from
    # a few draws; where one is too tight, all draws are taken.
    some = np.sort(finite[:_SOME])
    inside = some.size * 8 // 100
    low = _ranked(finite[finite <= some[inside]], finite, place, 1)
    high = _ranked(finite[finite >= some[-1 - inside]], finite, place, -1)
    return low, high


def _ranked(tail: Floats, draws: Floats, place: float, direction: int) -> float:
    """Returns the draw at ``place`` from below (direction 1) or above (-1); between two draws their weighted mean."""
    near = int(place)
    chosen = direction * (tail if tail.size > near + 1 else draws)
    next_one = min(near + 1, chosen.size - 1)
    chosen.partition(sorted({near, next_one}))
    return direction * float(chosen[near] + (place - near) * (chosen[next_one] - chosen[near]))


@lru_cache(maxsize=64)
def counts(
    label: str, documents: int, resamples: int = RESAMPLES, seed: int = SEED, dtype: type[np.number[Any]] = np.float64
) -> Counts:
    """Returns how often each document is drawn in each resample, shape [resamples, documents].

    A document's counts lie in one piece of memory (Fortran order): both the
    product of ``resampled_mean`` and the walk of ``resampled_auc`` read them so.

    Args:
        label: What is drawn (metric and split); others are drawn independently.
        documents: Number of documents; every row sums to it.
        resamples: Number of resamples.
        seed: The same seed gives the same table.
        dtype: Type of the counts; the numbers are the same in all.
    """
    rng = np.random.default_rng([seed, zlib.crc32(label.encode()), documents])
    drawn = rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    table = np.asfortranarray(drawn, dtype=dtype)
    table.flags.writeable = False
    return table


def resampled_mean(values: Floats, drawn: Counts) -> Floats:
    """Returns the means of ``values`` on every resample.

    Scores are rounded to a grid on which every sum is exact (to n units in
    the last place of the largest), so that a cell's draws have the same bytes
    whichever cells stand beside it in the product, on every machine.

    Args:
        values: Scores of one cell [n], or of many [k, n].
        drawn: Counts, shape [B, n].

    Returns:
        Shape [B]; [k, B] for many cells, which is one matrix product.
    """
    size = values.shape[-1]
    _, exponent = np.frexp(size * np.abs(values).max(axis=-1, keepdims=True))
    rounded = np.ldexp(np.rint(np.ldexp(values, 53 - exponent)), exponent - 53)
    means = np.empty((*values.shape[:-1], drawn.shape[0]))
    step = max(1, _PRODUCT // values.size)
    for start in range(0, drawn.shape[0], step):
        np.matmul(rounded, drawn.T[:, start : start + step], out=means[..., start : start + step])
    return np.asarray(np.divide(means, size, out=means))


def resampled_auc(forget: Floats, holdout: Floats, drawn_forget: Counts, drawn_holdout: Counts) -> Floats:
    """Returns P(s_holdout < s_forget), ties counted half, on every resample.

    Forget and holdout documents are drawn separately. The scores are walked
    in rising order, every forget text meeting the drawn holdout texts below
    it: m + n steps over [B], where a product with the [m, n] table of wins
    would take m * n. All arithmetic is of whole numbers, so it is exact.

    Args:
        forget: Scores, shape [m].
        holdout: Scores, shape [n].
        drawn_forget: Counts, shape [B, m]; fastest as ``counts`` gives them in uint16.
        drawn_holdout: Counts, shape [B, n].
    """
    pairs = forget.size * holdout.size
    whole: Any = np.uint16 if pairs < 2**16 else np.float64
    rows = [*np.asfortranarray(drawn_forget, dtype=whole).T, *np.asfortranarray(drawn_holdout, dtype=whole).T]
    below, wins, ties, term = (np.zeros(drawn_forget.shape[0], dtype=whole) for _ in range(4))
    scores = np.concatenate([forget, holdout])
    order = np.argsort(scores, kind="stable")
    ends = (np.flatnonzero(np.diff(scores[order], append=np.inf)) + 1).tolist()
    places, start = order.tolist(), 0
    for end in ends:
        tied = places[start:end]
        start = end
        if len(tied) > 1:
            mine = [rows[place] for place in tied if place < forget.size]
            others = [rows[place] for place in tied if place >= forget.size]
            if mine and others:
                ties += np.sum(mine, axis=0, dtype=whole) * np.sum(others, axis=0, dtype=whole)
        # Forget texts come first in a stable order: they meet what lies strictly below.
        for place in tied:
            if place < forget.size:
                wins += np.multiply(rows[place], below, out=term)
            else:
                below += rows[place]
    return np.asarray((wins + 0.5 * ties) / pairs)


def area(forget: Floats, holdout: Floats, drawn_forget: Counts, drawn_holdout: Counts, documents: Ids) -> Resampled:
    """Returns the AUC of forget against holdout texts, resampled; arguments as for ``resampled_auc``.

    Args:
        forget: Scores, shape [m].
        holdout: Scores, shape [n].
        drawn_forget: Counts, shape [B, m].
        drawn_holdout: Counts, shape [B, n].
        documents: Forget texts, then holdout texts.
    """
    value = auc(forget, holdout)
    wins = (holdout < forget[:, None]) + 0.5 * (holdout == forget[:, None])
    influence = np.concatenate([(wins.mean(axis=1) - value) / forget.size, (wins.mean(axis=0) - value) / holdout.size])
    return Resampled(
        value, resampled_auc(forget, holdout, drawn_forget, drawn_holdout), documents, influence,
        1 / min(forget.size, holdout.size),
    )  # fmt: skip
