"""Paired differences of two entries under every quantizer of one bit-width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.errors import InputError, UnknownNameError
from harness.publish.board import Board, LeaderboardRow
from harness.publish.ranking import rank as ranking
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.measurements import Measurements
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate, Resampled
from harness.publish.thresholds import FORGET_METRICS, PRIVACY, REFERENCE
from harness.records import CellResult, Submission
from harness.score.metrics.formulas import METRICS, PRIMARY

Quantity = Literal["score", "distance from 0", "recovered", "remaining share"]

COLUMNS = ("quantizer", "metric", "quantity", "first", "second", "difference", "p")
"""Columns that fit a terminal."""

MOST = 4
"""Entries that may be compared at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One quantity of two entries under one quantizer, first minus second.

    Attributes:
        quantity: ``score``; for PrivLeak the ``distance from 0``;
            ``recovered``: change from the own 16-bit cell; ``remaining share``.
        first: In stored units.
        second: In stored units.
        difference: Paired, in stored units.
        p: Adjusted (Holm) for all differences of the two entries.
    """

    quantizer: str
    metric: str
    quantity: Quantity
    first: float
    second: float
    difference: Estimate
    p: float

    @property
    def scale(self) -> float:
        """Times which a value is shown: points out of 100, remaining shares as fractions."""
        return 1.0 if self.quantity == "remaining share" else METRICS[self.metric].display_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two entries at one bit width.

    Attributes:
        first: Row of the entry that is spoken of.
        second: Row of the one it is compared with.
        quantizers: Under which both are measured, in the board's order.
        differences: By quantizer, metric and quantity.
    """

    first: LeaderboardRow
    second: LeaderboardRow
    bits: int
    quantizers: tuple[str, ...]
    differences: tuple[Difference, ...]


def compare(cells: Sequence[CellResult], names: Sequence[str], bits: int) -> list[Comparison]:
    """Returns the first of some entries compared with each of the others.

    Args:
        cells: Stored cells with their documents.
        names: Two to four submissions of one corpus; controls may be among them.
        bits: Bit width.

    Raises:
        InputError: Not two to four different names, of different corpora, or
            without a quantizer of that width under which both are measured.
        UnknownNameError: The store has no submission of that name.
    """
    if not 2 <= len(names) <= MOST or len(set(names)) < len(names):
        raise InputError(f"{', '.join(names)}: name 2 to {MOST} different submissions to compare.")
    known = {cell.cell.submission: cell for cell in cells}
    for name in names:
        if name not in known:
            raise UnknownNameError("submission in the store", name, known)
    corpora = {name: known[name].corpus for name in names}
    if len(set(corpora.values())) > 1:
        told = ", ".join(f"{name} is of {corpus}" for name, corpus in corpora.items())
        raise InputError(f"Submissions of different corpora can't be compared: {told}.")
    chosen = [cell for cell in cells if cell.cell.submission in names or cell.submission.role != "entry"]
    corpus = corpora[names[0]]
    board = ranking.rank(chosen, corpus)
    found = Measurements(chosen, corpus)
    return [_pair(found, Controls(found), board, (names[0], other), bits) for other in names[1:]]


def _pair(found: Measurements, controls: Controls, board: Board, names: tuple[str, str], bits: int) -> Comparison:
    both = [
        spec.name
        for spec in found.quantizers
        if spec.bits == bits and any(all(found.cell(name, spec.name, metric) for name in names) for metric in PRIMARY)
    ]
    if not both:
        widths = sorted(
            {spec.bits for spec in found.quantizers if all(found.cell(n, spec.name, PRIMARY[0]) for n in names)}
        )
        measured = f"name another width with --at: {', '.join(map(str, widths))}" if widths else "run them first"
        raise InputError(f"No quantizer of {bits} bit was measured for both {names[0]} and {names[1]}: {measured}.")
    rows = {row.submission.name: row for row in (*board.rows, *board.controls)}
    drawn = [one for name in both for one in _differences(found, controls, names, name)]
    adjusted = quantities.holm({str(place): one.p for place, one in enumerate(drawn)})
    return Comparison(
        first=rows[names[0]],
        second=rows[names[1]],
        bits=bits,
        quantizers=tuple(both),
        differences=tuple(replace(one, p=adjusted[str(place)]) for place, one in enumerate(drawn)),
    )


def _differences(
    found: Measurements, controls: Controls, names: tuple[str, str], quantizer: str
) -> Iterator[Difference]:  # fmt: skip
    for metric in PRIMARY:
        own, other = (found.resampled(name, quantizer, metric) for name in names)
        if own is None or other is None or not own.pairs_with(other):
            continue
        if metric == PRIVACY:
            yield _difference(quantizer, metric, "distance from 0", _distance(own), _distance(other))
            continue
        yield _difference(quantizer, metric, "score", own, other)
        if metric not in FORGET_METRICS:
            continue
        before = [found.resampled(name, REFERENCE, metric) for name in names]
        if quantizer != REFERENCE and all(one is not None and one.pairs_with(own) for one in before):
            back = [now - then for now, then in zip((own, other), before, strict=True) if then is not None]
            yield _difference(quantizer, metric, "recovered", back[0], back[1])
        shares = [_share(found, controls, found.submissions[name], quantizer, metric) for name in names]
        if shares[0] is not None and shares[1] is not None:
            yield _difference(quantizer, metric, "remaining share", shares[0], shares[1])


def _share(
    found: Measurements, controls: Controls, entry: Submission, quantizer: str, metric: str
) -> Resampled | None:  # fmt: skip
    target, retrain = controls.of(entry)
    if entry.role != "entry" or target is None or retrain is None:
        return None
    return controls.share(entry.name, target, retrain, quantizer, metric)[0]


def _distance(found: Resampled) -> Resampled:
    influence = None if found.influence is None else np.sign(found.value) * found.influence
    return replace(found, value=abs(found.value), draws=np.abs(found.draws), influence=influence)


def _difference(quantizer: str, metric: str, quantity: Quantity, own: Resampled, other: Resampled) -> Difference:
    apart = own - other
    return Difference(
        quantizer=quantizer,
        metric=metric,
        quantity=quantity,
        first=own.value,
        second=other.value,
        difference=apart.estimate() if quantity == "remaining share" else apart.cautious(),
        p=apart.p_value(),
    )


def rows(comparison: Comparison, said: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one flat row for each difference; scores and PrivLeak in points, remaining shares as fractions.

    Args:
        comparison: The two entries.
        said: Sentences on them, kept in every row.
    """
    return [
        {
            "submission": comparison.first.submission.name,
            "compared_with": comparison.second.submission.name,
            "bits": comparison.bits,
            "quantizer": one.quantizer,
            "metric": METRICS[one.metric].label,
            "key": one.metric,
            "quantity": one.quantity,
            "first": one.scale * one.first,
            "second": one.scale * one.second,
            "difference": one.scale * one.difference.value,
            "difference_low": None if one.difference.low is None else one.scale * one.difference.low,
            "difference_high": None if one.difference.high is None else one.scale * one.difference.high,
            "p": one.p,
            "few_documents": ["difference"] if one.difference.few else [],
            "digits": 2 if one.quantity == "remaining share" else 1,
            "sentences": list(said),
        }
        for one in comparison.differences
    ]
