"""One entry under one quantizer: its scores against its own controls, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from harness.publish import statistics
from harness.publish.board import MetricResult, QuantizerResult, Verdict
from harness.publish.measurements import Measurements
from harness.publish.rules import AS_SUBMITTED, FORGET_METRICS, FROM_LOGS, REFERENCE, UTILITY, Word
from harness.publish.statistics import Estimate, Floats, Resampled
from harness.publish.verdicts import collapse_reason, combine, metric_verdict
from harness.records import CellResult, QuantizerSpec, Submission
from harness.score.metrics import METRICS, PRIMARY


class Controls:
    """The target and retrained models of a board, and what may be compared with them."""

    def __init__(self, found: Measurements) -> None:
        self._found = found
        controls = [submission for submission in found.submissions.values() if submission.role != "entry"]
        self.targets = tuple(sorted(control.name for control in controls if control.role == "target"))
        self.retrains = tuple(sorted(control.name for control in controls if control.role == "retrain"))

    def of(self, entry: Submission) -> tuple[str | None, str | None]:
        """Returns the names of an entry's target and retrained model, None where it names none and it isn't clear."""
        retrain = entry.retrain or (self.retrains[0] if len(self.retrains) == 1 else None)
        return entry.target, retrain

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
                if top is None or bottom is None or top.documents != bottom.documents:
                    continue
                gap = top.value - bottom.value
                if statistics.interval((top - bottom).draws)[0] > 0:
                    yield (
                        metric,
                        Resampled(0.0, (bottom.draws - bottom.value) / gap, bottom.documents).estimate(),
                        Resampled(1.0, (top.draws - bottom.value) / gap, top.documents).estimate(),
                    )


def _cells(found: Measurements, submission: str, quantizer: str) -> dict[str, CellResult]:
    cells = {metric: found.cell(submission, quantizer, metric) for metric in PRIMARY}
    return {metric: cell for metric, cell in cells.items() if cell is not None}


def _score(found: Measurements, submission: str, quantizer: str, metric: str) -> Estimate | None:
    cell = found.cell(submission, quantizer, metric)
    if cell is None:
        return None
    resampled = found.resampled(submission, quantizer, metric)
    return statistics.estimate(cell, metric) if resampled is None else resampled.estimate()


def _paired(first: Resampled | None, second: Resampled | None) -> bool:
    return first is not None and second is not None and first.documents == second.documents


def _change(found: Measurements, submission: str, quantizer: str, metric: str) -> Estimate | None:
    now = found.resampled(submission, quantizer, metric)
    before = found.resampled(submission, REFERENCE, metric)
    if now is None or before is None or quantizer == REFERENCE or now.documents != before.documents:
        return None
    return (now - before).estimate()


def plain(found: Measurements, submission: Submission, spec: QuantizerSpec) -> QuantizerResult:
    """Returns scores and changes without a judgement: what a control's row shows."""
    metrics = {}
    for metric in PRIMARY:
        score = _score(found, submission.name, spec.name, metric)
        if score is not None:
            change = _change(found, submission.name, spec.name, metric)
            metrics[metric] = MetricResult(metric=metric, score=score, change=change)
    return QuantizerResult(
        spec=spec,
        metrics=metrics,
        cells=_cells(found, submission.name, spec.name),
        verdict=Verdict(word="not measured"),
        dirty=found.is_dirty(submission.name, spec.name),
    )


def judge(
    found: Measurements, controls: Controls, entry: Submission, spec: QuantizerSpec
) -> tuple[QuantizerResult, Floats | None]:
    """Returns an entry's result under one quantizer, and the resamples of its worst remaining share.

    Args:
        found: The cells that count.
        controls: The board's controls.
        entry: The submission.
        spec: The quantizer.
    """
    target, retrain = controls.of(entry)
    result = plain(found, entry, spec)
    missing = FROM_LOGS if found.from_logs(entry.name) else _missing(found, entry, target, retrain, spec.name)
    if missing is not None or target is None or retrain is None:
        verdict = Verdict(word="not measured", reason=missing or "")
        return _with(result, missing=missing, verdict=verdict), None
    metrics = dict(result.metrics)
    draws: list[Floats] = []
    words: dict[str, Word] = {}
    for metric in FORGET_METRICS:
        metrics[metric], worst = _forgotten(found, entry.name, target, retrain, spec.name, metrics[metric])
        words[metric] = metrics[metric].verdict or "unclear"
        if worst is not None:
            draws.append(worst)
    collapse = _collapse(found, entry.name, target, spec.name)
    verdict = Verdict(word="collapsed", reason=collapse) if collapse else _explained(combine(words), metrics)
    dirty = any(found.is_dirty(name, spec.name) for name in (entry.name, target, retrain))
    utility = _utility_share(found, entry.name, target, spec.name)
    judged = _with(result, metrics=metrics, verdict=verdict, utility_share=utility, dirty=dirty)
    return judged, np.fmax.reduce(draws) if draws else None


def _with(
    result: QuantizerResult, *, verdict: Verdict, missing: str | None = None,
    metrics: dict[str, MetricResult] | None = None, utility_share: Estimate | None = None, dirty: bool = False,
) -> QuantizerResult:  # fmt: skip
    return QuantizerResult(
        spec=result.spec,
        metrics=result.metrics if metrics is None else metrics,
        cells=result.cells,
        verdict=verdict,
        utility_share=utility_share,
        missing=missing,
        dirty=dirty or result.dirty,
    )


def _missing(
    found: Measurements, entry: Submission, target: str | None, retrain: str | None, quantizer: str
) -> str | None:
    if entry.kind == "quantized_checkpoint":
        return AS_SUBMITTED
    if target is None:
        return "its manifest names no target to compare with"
    if retrain is None:
        return "its manifest names no retrained model, and the board has not exactly one"
    required = found.required(target, retrain, quantizer)
    base = [metric for metric in required if metric != "privleak"]
    for name, role, metrics in ((entry.name, "", required), (target, "target ", base), (retrain, "control ", base)):
        for at in dict.fromkeys((quantizer, REFERENCE)):
            gap = found.gap(name, at, metrics if at == quantizer else base)
            if gap is not None:
                return f"its {role}{gap}" if role else gap
    return None


def _forgotten(
    found: Measurements, entry: str, target: str, retrain: str, quantizer: str, result: MetricResult
) -> tuple[MetricResult, Floats | None]:
    """Returns a metric's result with rho, recovery and verdict, and the resamples of rho."""
    metric = result.metric
    rho, note = _rho(found, entry, target, retrain, quantizer, metric)
    rho_16, _ = _rho(found, entry, target, retrain, REFERENCE, metric)
    recovery = (rho - rho_16).estimate() if rho is not None and rho_16 is not None else None
    at_16 = rho_16.estimate() if rho_16 is not None else None
    share = rho.estimate() if rho is not None else None
    judged = MetricResult(
        metric=metric,
        score=result.score,
        change=result.change,
        rho=share,
        recovery=recovery,
        verdict=metric_verdict(at_16, share, recovery),
        note=note,
    )
    return judged, None if rho is None else rho.draws


def _rho(
    found: Measurements, entry: str, target: str, retrain: str, quantizer: str, metric: str
) -> tuple[Resampled | None, str | None]:
    own, top, bottom = (found.resampled(name, quantizer, metric) for name in (entry, target, retrain))
    if own is None or top is None or bottom is None:
        return None, "the store has no documents to compute an interval from"
    if not (_paired(own, top) and _paired(own, bottom)):
        return None, "entry and controls answered different documents"
    share = statistics.remaining_share(own, bottom, top)
    return share, None if share is not None else f"{quantizer} damages the target too much to tell"


def _utility_share(found: Measurements, entry: str, target: str, quantizer: str) -> Estimate | None:
    cells = [found.cell(name, quantizer, UTILITY) for name in (entry, target)]
    values = [None if cell is None else statistics.stored_value(cell, UTILITY) for cell in cells]
    if values[0] is None or not values[1]:
        return None
    own, top = (found.resampled(name, quantizer, UTILITY) for name in (entry, target))
    if own is None or top is None or not _paired(own, top):
        return Estimate(value=values[0] / values[1])
    return (own / top).estimate()


def _collapse(found: Measurements, entry: str, target: str, quantizer: str) -> str | None:
    cells = _cells(found, entry, quantizer)
    top = found.cell(target, quantizer, UTILITY)
    utility = statistics.stored_value(cells[UTILITY], UTILITY)
    target_utility = None if top is None else statistics.stored_value(top, UTILITY)
    invalid = sum(document.invalid_reason is not None for cell in cells.values() for document in cell.documents)
    degenerate = statistics.stored_value(cells[UTILITY], "degenerate")
    return collapse_reason(utility or 0.0, target_utility or 0.0, degenerate, invalid)


def _explained(verdict: Verdict, metrics: dict[str, MetricResult]) -> Verdict:
    notes = [f"{METRICS[metric].label}: {metrics[metric].note}" for metric in FORGET_METRICS if metrics[metric].note]
    return Verdict(word=verdict.word, basis=verdict.basis, reason="; ".join(notes))
