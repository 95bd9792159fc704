"""Selects the cells that count, and resamples their scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Resampled
from harness.publish.thresholds import FORGET_METRICS, PRIVACY, REFERENCE, UTILITY
from harness.records import CellResult, QuantizerSpec, Submission
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import PRIMARY

Place = tuple[str, str, str]
"""Submission, quantizer, metric."""


def primary_metric(result: CellResult) -> str | None:
    """Returns the primary metric of a cell's task, None where the task has none."""
    return next((metric for metric in PRIMARY if result.cell.task.endswith(f"_{metric}")), None)


def _age(result: CellResult) -> tuple[str, str]:
    return result.provenance.created_at, result.cell.key


def _one_origin(cells: Sequence[CellResult]) -> list[CellResult]:
    """Returns the cells without those from logs under a name that was scored here: they would replace its manifest."""
    scored = {cell.submission.name for cell in cells if cell.origin == "scored"}
    return [cell for cell in cells if cell.origin == "scored" or cell.submission.name not in scored]


class Measurements:
    """The cells of one corpus that count: newest, finished, whole, of the current scoring version.

    Args:
        cells: Stored cells with their documents.
        corpus: Name of the corpus.
        resampled_under: Quantizers of which resamples will be asked for, so that no others are drawn; None for all.

    Attributes:
        scoring_version: The newest one present.
        submissions: Newest manifest snapshot by name.
        quantizers: Newest specification by name, widest first.
        retrains: Names of the retrained models.
        forget_metrics: Metrics that verdicts rest on: those of forgotten knowledge that the corpus has.
    """

    def __init__(
        self, cells: Iterable[CellResult], corpus: str, resampled_under: Iterable[str] | None = None
    ) -> None:  # fmt: skip
        self._all = sorted(_one_origin([cell for cell in cells if cell.corpus == corpus]), key=_age)
        finished = [cell for cell in self._all if cell.status == "finished"]
        here = [cell for cell in finished if cell.origin == "scored"]
        self.scoring_version = max((cell.provenance.scoring_version for cell in here or finished), default=0)
        self.submissions: dict[str, Submission] = {cell.submission.name: cell.submission for cell in self._all}
        specs: dict[str, QuantizerSpec] = {cell.spec.name: cell.spec for cell in self._all}
        self.quantizers = tuple(sorted(specs.values(), key=lambda spec: (-spec.bits, spec.name)))
        self._chosen: dict[Place, CellResult] = {}
        for cell in finished:
            metric = primary_metric(cell)
            if (
                metric is not None
                and cell.cell.limit is None
                and cell.provenance.scoring_version == self.scoring_version
                and quantities.stored_value(cell, metric) is not None
            ):
                self._chosen[cell.cell.submission, cell.cell.quantizer, metric] = cell
        self.retrains = tuple(sorted(name for name, found in self.submissions.items() if found.role == "retrain"))
        self.forget_metrics = _forget_metrics(corpus, {metric for _, _, metric in self._chosen})
        self._from_logs = frozenset(cell.submission.name for cell in self._all if cell.origin != "scored")
        self._names = tuple(specs if resampled_under is None else resampled_under)
        self._resampled: dict[Place, Resampled | None] = {}
        self._areas: dict[str, Resampled | None] = {}

    @property
    def cells(self) -> Sequence[CellResult]:
        """Every cell of the corpus, oldest first."""
        return self._all

    def cell(self, submission: str, quantizer: str, metric: str) -> CellResult | None:
        """Returns the cell that counts, None where there is none."""
        return self._chosen.get((submission, quantizer, metric))

    def resampled(self, submission: str, quantizer: str, metric: str) -> Resampled | None:
        """Returns the resampled score of the cell that counts; computed once until ``forget``.

        The first question computes all quantizers of that submission and
        metric: one matrix product.
        """
        place = (submission, quantizer, metric)
        if place not in self._resampled and place in self._chosen:
            names = [name for name in self._names if (submission, name, metric) in self._chosen]
            cells = [self._chosen[submission, name, metric] for name in names]
            reference = self.reference_auc(submission) if metric == PRIVACY else None
            for name, found in zip(names, quantities.resample_all(cells, metric, reference), strict=True):
                self._resampled[submission, name, metric] = found
        return self._resampled.get(place)

    def retrain_of(self, submission: Submission) -> str | None:
        """Returns the retrained model that a submission is compared with: the one it names, else the only one."""
        return submission.retrain or (self.retrains[0] if len(self.retrains) == 1 else None)

    def reference_auc(self, submission: str) -> Resampled | None:
        """Returns the AUC that a submission's PrivLeak is relative to, where the cell that it comes from is here.

        It is here where the 16-bit cell of its retrained model is stored and
        the reference lies in the interval of that cell's AUC. None for the
        retrained model itself, which is its own measure.
        """
        retrain = self.retrain_of(self.submissions[submission])
        cell = self._chosen.get((retrain, REFERENCE, PRIVACY)) if retrain and retrain != submission else None
        if cell is None:
            return None
        if cell.cell.key not in self._areas:
            known, found = quantities.reference_auc(cell), quantities.resample(cell, "auc")
            low, high = (0.0, 0.0) if found is None else quantities.interval(found.draws)
            self._areas[cell.cell.key] = found if known is not None and low <= known <= high else None
        return self._areas[cell.cell.key]

    def forget(self, submission: str) -> None:
        """Frees the resamples of one submission: a hundred entries would not fit in memory."""
        for place in [place for place in self._resampled if place[0] == submission]:
            del self._resampled[place]

    def has_required(self, submission: str, quantizer: str) -> bool:
        """Returns whether the metrics that verdicts rest on are all there."""
        return all(self.cell(submission, quantizer, metric) for metric in (*self.forget_metrics, UTILITY))

    def gap(self, submission: str, quantizer: str, metrics: Iterable[str]) -> str | None:
        """Returns what is missing for a judgement and why, None where nothing is.

        Args:
            submission: Name of an entry or a control.
            quantizer: Name of a quantizer.
            metrics: Metrics that have to be there.
        """
        absent = [metric for metric in metrics if self.cell(submission, quantizer, metric) is None]
        if not absent:
            return None
        mine = [
            cell for cell in self._all
            if (cell.cell.submission, cell.cell.quantizer) == (submission, quantizer) and primary_metric(cell) in absent
        ]  # fmt: skip
        if not mine:
            return f"{submission} is not measured under {quantizer}"
        last = mine[-1]
        what = f"{primary_metric(last)} of {submission} under {quantizer}"
        if last.status != "finished":
            return f"{what} {last.status}: {_one_line(last.reason)}"
        if last.cell.limit is not None:
            return f"{submission} was run with --limit {last.cell.limit} under {quantizer}: stored, never ranked"
        if last.provenance.scoring_version != self.scoring_version:
            return f"{what} has scoring version {last.provenance.scoring_version}, the board {self.scoring_version}"
        missing = next((score.missing_reason for score in last.scores if score.metric == primary_metric(last)), None)
        return f"{what} has no value: {_one_line(missing)}"

    def from_logs(self, submission: str) -> bool:
        """Returns whether a submission is known from another program's logs only."""
        return submission in self._from_logs

    def is_dirty(self, submission: str, quantizer: str) -> bool:
        """Returns whether a counting cell was made from a tree that differs from its commit."""
        found = (self.cell(submission, quantizer, metric) for metric in PRIMARY)
        return any(cell.provenance.dirty for cell in found if cell is not None)

    def required(self, target: str, retrain: str, quantizer: str) -> tuple[str, ...]:
        """Returns the metrics an entry must have: PrivLeak only where both controls have it."""
        both = all(self.cell(control, quantizer, PRIVACY) for control in (target, retrain))
        return (*self.forget_metrics, UTILITY, *((PRIVACY,) if both else ()))


def _forget_metrics(corpus: str, measured: Iterable[str]) -> tuple[str, ...]:
    """Returns those of ``FORGET_METRICS`` that a corpus has a task for; all where it isn't known here or has none.

    One that was measured all the same counts too: a corpus may have lost a task since.
    """
    facts = catalogue.corpus_facts(corpus)
    if facts is None:
        return FORGET_METRICS
    asked = {catalogue.metric_of(task) for task in facts.tasks}
    return tuple(metric for metric in FORGET_METRICS if metric in asked.union(measured)) or FORGET_METRICS


def _one_line(text: str | None) -> str:
    return " ".join((text or "no reason given").split()).rstrip(".")
