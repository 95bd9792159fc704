"""Finds submissions that repeat earlier ones: digests of weights, answers and norms of updates. Pure.

The norm of an update in every layer is a sketch of it that the store has for
every quantizer alike: it depends on the two 16-bit models only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.publish.ranking.measurements import Measurements
from harness.publish.thresholds import NO_UPDATE, REFERENCE, SAME_NORM, UTILITY
from harness.quantize.survival.measure import ALL_LAYERS
from harness.records import Submission
from harness.score.metrics.formulas import PRIMARY


@dataclass(slots=True)
class _Group:
    """Submissions that can be compared number by number: one row each."""

    rows: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    stacked: npt.NDArray[Any] | None = None

    def others(self, name: str) -> tuple[list[str], npt.NDArray[Any]]:
        """Returns the names of all, and their numbers as rows."""
        if self.stacked is None:
            self.stacked = np.stack(list(self.rows.values()))
        return list(self.rows), self.stacked


class Traces:
    """What the submissions of one board left behind, controls first and then by age."""

    def __init__(self, found: Measurements) -> None:
        first: dict[str, str] = {}
        for cell in found.cells:
            first.setdefault(cell.submission.name, cell.provenance.created_at)
        self._submissions = found.submissions
        self._order = sorted(
            found.submissions, key=lambda name: (found.submissions[name].role == "entry", first[name], name)
        )
        self._answers, self._norms = defaultdict[Hashable, _Group](_Group), defaultdict[Hashable, _Group](_Group)
        self._place: dict[str, tuple[Hashable, Hashable]] = {}
        numbers: dict[str, int] = {}
        for name in self._order:
            if not found.from_logs(name):
                asked, answers = _answers(found, name, numbers)
                layers, norms = _norms(found, name)
                self._place[name] = asked, layers
                if asked:
                    self._answers[asked].rows[name] = answers
                if layers:
                    self._norms[layers].rows[name] = norms

    def before(self, name: str) -> Sequence[str]:
        """Returns who was on the board before a submission: controls, however young, and older entries."""
        return self._order[: self._order.index(name)]

    def same_weights(self, entry: Submission) -> str | None:
        """Returns the oldest one before an entry whose weights are the same, None where there is none.

        Weights are the same where their digest is and, as an adapter means
        nothing without it, what they sit on. Without a stated digest nothing
        is compared.
        """
        if entry.weights_sha256 is None:
            return None
        before = self.before(entry.name)
        return next((other for other in before if _weights(self._submissions[other]) == _weights(entry)), None)

    def shared_answers(self, name: str) -> Mapping[str, float]:
        """Returns the share of 16-bit answers that others have word for word, by their names.

        Only of those that were asked the very same; empty where the
        submission lacks a 16-bit cell.
        """
        asked, _ = self._place.get(name, ((), ()))
        if not asked:
            return {}
        names, rows = self._answers[asked].others(name)
        shares = (rows == self._answers[asked].rows[name]).mean(axis=1)
        return {other: float(share) for other, share in zip(names, shares, strict=True) if other != name}

    def same_norms(self, name: str) -> frozenset[str]:
        """Returns others of the same target whose update has the same norm, to three digits, in every layer."""
        _, layers = self._place.get(name, ((), ()))
        if not layers:
            return frozenset()
        names, rows = self._norms[layers].others(name)
        own = self._norms[layers].rows[name]
        alike = (np.abs(rows - own) <= SAME_NORM * np.maximum(rows, own)).all(axis=1)
        return frozenset(other for other, same in zip(names, alike, strict=True) if same and other != name)


def _weights(submission: Submission) -> tuple[str | None, str | None, str | None]:
    return submission.weights_sha256, submission.base_model, submission.base_revision


def _answers(found: Measurements, name: str, numbers: dict[str, int]) -> tuple[Hashable, npt.NDArray[Any]]:
    """Returns what a submission was asked at 16 bit, and its answers as numbers that ``numbers`` gives to texts."""
    cells = [found.cell(name, REFERENCE, metric) for metric in (*found.forget_metrics, UTILITY)]
    documents = [document for cell in cells if cell is not None for document in cell.documents]
    if None in cells or not documents:
        return (), np.empty(0)
    asked = tuple((document.split, document.index, document.prompt_sha256) for document in documents)
    return asked, np.array([numbers.setdefault(document.response, len(numbers)) for document in documents])


def _norms(found: Measurements, name: str) -> tuple[Hashable, npt.NDArray[Any]]:
    """Returns the target and layers of a submission, and the norms of its update there; none where it has no update."""
    cells = (found.cell(name, spec.name, metric) for spec in found.quantizers for metric in PRIMARY)
    survival = next((cell.survival for cell in cells if cell is not None and cell.survival), ())
    layers = [layer for layer in survival if layer.layer != ALL_LAYERS]
    norms = np.array([layer.relative_update for layer in layers])
    if not layers or norms.max() < NO_UPDATE:
        return (), norms
    return (found.submissions[name].target, *(layer.layer for layer in layers)), norms
