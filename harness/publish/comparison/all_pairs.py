"""Paired differences of every two entries of a board at their worst cases.

At a bit width the worst backend counts, taken anew on every resample, as in
``ranking``. What differs under a single quantizer is ``two_entries``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from harness.publish.board import Board, LeaderboardRow
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.measurements import Measurements
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate, Resampled
from harness.publish.thresholds import CONFIDENCE, FORGET_METRICS, UTILITY
from harness.records import CellResult

REMAINING = "remaining"
QUANTITIES = (REMAINING, *FORGET_METRICS, UTILITY)
"""Largest remaining share over metrics, that of each metric, least share of the target's utility."""

EVERY_WIDTH = 30
"""Entries up to which pairs are computed at every width; of more, at the headline width alone."""

MOST = 100
"""Entries whose pairs are computed; of more, the first ones of the board."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One quantity of two entries at one width, first minus second, as a share.

    Attributes:
        quantity: One of ``QUANTITIES``.
        difference: Paired over documents.
        p: Adjusted (Holm) for all gaps of the two entries.
    """

    bits: int
    quantity: str
    difference: Estimate
    p: float

    @property
    def claimed(self) -> bool:
        """Whether the difference may be claimed: its interval excludes 0, and the adjusted test agrees."""
        return self.difference.excludes_zero and self.p <= 1 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class _Worst:
    """A worst case and the backends it was taken over."""

    found: Resampled
    backends: tuple[str, ...]


def compared(board: Board) -> list[LeaderboardRow]:
    """Returns the entries whose pairs are computed, in the board's order: those with a remaining share, at most 100."""
    known = [row for row in board.rows if any(at.remaining is not None for at in row.by_bits.values())]
    return known[:MOST]


def widths(board: Board) -> tuple[int, ...]:
    """Returns the bit widths at which pairs are computed, widest first."""
    return board.widths if len(compared(board)) <= EVERY_WIDTH else (board.headline_bits,)


def gaps(cells: Sequence[CellResult], board: Board) -> dict[tuple[str, str], tuple[Gap, ...]]:
    """Returns the differences of every two compared entries, by their names in the board's order.

    Two entries have a gap at a width where both are measured under the same
    backends with the same documents; a pair without any is left out.

    Args:
        cells: Stored cells with their documents.
        board: The board ranked from them.
    """
    at = [name for bits in widths(board) for name in board.quantizers_at(bits)]
    found = Measurements(cells, board.corpus, resampled_under=at)
    controls = Controls(found)
    names = [row.submission.name for row in compared(board)]
    known: dict[str, dict[tuple[int, str], _Worst]] = {}
    for row in compared(board):
        known[row.submission.name] = {
            (bits, quantity): worst
            for bits in widths(board) if bits in row.by_bits
            for quantity, worst in _worst_cases(found, controls, row, row.by_bits[bits].quantizers)
        }  # fmt: skip
        found.forget(row.submission.name)
    pairs = {(one, two): _between(known[one], known[two]) for one, two in combinations(names, 2)}
    return {names: between for names, between in pairs.items() if between}


def _worst_cases(
    found: Measurements, controls: Controls, row: LeaderboardRow, backends: Sequence[str]
) -> Iterator[tuple[str, _Worst]]:
    entry = row.submission
    target, retrain = controls.of(entry)
    if target is None or retrain is None:
        return
    by_metric: list[_Worst] = []
    for metric in found.forget_metrics:
        shares = {name: controls.share(entry.name, target, retrain, name, metric)[0] for name in backends}
        worst = _extreme(shares, max, np.fmax)
        if worst is not None:
            by_metric.append(worst)
            yield metric, worst
    if len(by_metric) == len(found.forget_metrics):
        yield REMAINING, _joined(by_metric)
    kept = {}
    for name in backends:
        own, top = (found.resampled(one, name, UTILITY) for one in (entry.name, target))
        usable = own is not None and top is not None and top.value and own.pairs_with(top)
        kept[name] = own / top if usable and own is not None and top is not None else None
    least = _extreme(kept, min, np.fmin)
    if least is not None:
        yield UTILITY, least


def _extreme(shares: Mapping[str, Resampled | None], pick: Callable[..., Resampled], ufunc: np.ufunc) -> _Worst | None:
    """Returns the worst case over backends: its value, influences where it lies, and draws taken anew each time."""
    known = {name: share for name, share in shares.items() if share is not None}
    parts = list(known.values())
    if not parts or not all(part.pairs_with(parts[0]) for part in parts):
        return None
    draws = ufunc.reduce([part.draws for part in parts])
    return _Worst(replace(pick(parts, key=lambda part: part.value), draws=draws), tuple(known))


def _joined(by_metric: Sequence[_Worst]) -> _Worst:
    """Returns the worst metric; its documents are those of all metrics, so that only equals are paired."""
    parts = [worst.found for worst in by_metric]
    first = max(parts, key=lambda part: part.value)
    influence = None
    if all(part.influence is not None for part in parts):
        influence = np.concatenate(
            [part.influence * (part is first) for part in parts if part.influence is not None]
        )  # fmt: skip
    return _Worst(
        Resampled(
            first.value, np.fmax.reduce([part.draws for part in parts]),
            tuple(document for part in parts for document in part.documents), influence, first.reach,
        ),
        tuple(name for worst in by_metric for name in worst.backends),
    )  # fmt: skip


def _between(one: Mapping[tuple[int, str], _Worst], two: Mapping[tuple[int, str], _Worst]) -> tuple[Gap, ...]:
    drawn = []
    for place in one.keys() & two.keys():
        own, other = one[place], two[place]
        if own.backends == other.backends and own.found.pairs_with(other.found):
            apart = own.found - other.found
            # Without influences: two models may differ on every document, alike on all but a few, and the floor that
            # few carriers put under p is for documents that alone differ. k of those reach 2 exp(-k) here, and Holm's.
            p = replace(apart, influence=None).p_value()
            drawn.append(Gap(bits=place[0], quantity=place[1], difference=apart.estimate(), p=p))
    drawn.sort(key=lambda gap: (-gap.bits, QUANTITIES.index(gap.quantity)))
    adjusted = quantities.holm({str(place): gap.p for place, gap in enumerate(drawn)})
    return tuple(replace(gap, p=adjusted[str(place)]) for place, gap in enumerate(drawn))
