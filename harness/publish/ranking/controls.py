"""Target and retrain controls of a board, and the entries measured against them."""

from __future__ import annotations

from collections.abc import Iterable

from harness.publish.ranking.measurements import Measurements
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate, Resampled
from harness.publish.thresholds import FORGET_METRICS, REFERENCE
from harness.records import Submission


class Controls:
    """The target and retrained models of a board, and what may be compared with them."""

    def __init__(self, found: Measurements) -> None:
        self._found = found
        controls = [submission for submission in found.submissions.values() if submission.role != "entry"]
        self.targets = tuple(sorted(control.name for control in controls if control.role == "target"))
        self.retrains = found.retrains
        self._gaps: dict[tuple[str, str, str, str], Resampled | None] = {}
        self._at_16: dict[tuple[str, str], tuple[Resampled | None, str | None]] = {}

    def of(self, entry: Submission) -> tuple[str | None, str | None]:
        """Returns the names of an entry's target and retrained model, None where it names none and it isn't clear."""
        return entry.target, self._found.retrain_of(entry)

    def share(
        self, entry: str, target: str, retrain: str, quantizer: str, metric: str
    ) -> tuple[Resampled | None, str | None]:
        """Returns an entry's remaining share of one metric under one quantizer, or why there is none."""
        if quantizer != REFERENCE:
            return self._share(entry, target, retrain, quantizer, metric)
        if (entry, metric) not in self._at_16:
            # Of the entry at hand only: the draws of all of them would not fit in memory.
            self._at_16 = {place: found for place, found in self._at_16.items() if place[0] == entry}
            self._at_16[entry, metric] = self._share(entry, target, retrain, quantizer, metric)
        return self._at_16[entry, metric]

    def _share(
        self, entry: str, target: str, retrain: str, quantizer: str, metric: str
    ) -> tuple[Resampled | None, str | None]:
        own, top, bottom = (self._found.resampled(name, quantizer, metric) for name in (entry, target, retrain))
        if own is None or top is None or bottom is None:
            return None, "the store has no documents to compute an interval from"
        if not (own.pairs_with(top) and own.pairs_with(bottom)):
            return None, "entry and controls answered different documents"
        place = (target, retrain, quantizer, metric)
        if place not in self._gaps:
            self._gaps[place] = quantities.knowledge_gap(top, bottom)
        gap = self._gaps[place]
        if gap is None:
            return None, f"{quantizer} damages the target too much to tell"
        return quantities.remaining_share(own, bottom, gap), None

    def measured(self) -> frozenset[str]:
        """Returns the quantizers under which a target and a retrained model are measured."""
        found, names = self._found, [spec.name for spec in self._found.quantizers]
        return frozenset(
            name
            for name in names
            if any(found.has_required(control, name) for control in self.targets)
            and any(found.has_required(control, name) for control in self.retrains)
        )

    def spread(self, quantizer: str) -> Iterable[tuple[str, Estimate, Estimate]]:
        """Yields the controls' own intervals as remaining share: metric, around 0, around 1; for every target."""
        for target in self.targets:
            retrain = self.retrains[0] if self.retrains else ""
            for metric in FORGET_METRICS:
                top = self._found.resampled(target, quantizer, metric)
                bottom = self._found.resampled(retrain, quantizer, metric)
                if top is None or bottom is None or not top.pairs_with(bottom):
                    continue
                gap = top.value - bottom.value
                if quantities.interval((top - bottom).draws)[0] > 0:
                    yield (
                        metric,
                        Resampled(0.0, (bottom.draws - bottom.value) / gap, bottom.documents).estimate(),
                        Resampled(1.0, (top.draws - bottom.value) / gap, top.documents).estimate(),
                    )
