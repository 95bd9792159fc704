"""The verdict of one entry under one quantizer: its scores against its own controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from harness.publish.board import MetricResult, QuantizerResult, Verdict
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.measurements import Measurements
from harness.publish.ranking.verdicts import collapse_reason, combine, metric_verdict, privacy_reason
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate, Floats, Resampled
from harness.publish.thresholds import AS_SUBMITTED, FORGET_METRICS, FROM_LOGS, PRIVACY, REFERENCE, UTILITY, Word
from harness.records import CellResult, QuantizerSpec, Submission
from harness.score.metrics.formulas import METRICS, PRIMARY


def _cells(found: Measurements, submission: str, quantizer: str) -> dict[str, CellResult]:
    cells = {metric: found.cell(submission, quantizer, metric) for metric in PRIMARY}
    return {metric: cell for metric, cell in cells.items() if cell is not None}


def _score(found: Measurements, submission: str, quantizer: str, metric: str) -> Estimate | None:
    cell = found.cell(submission, quantizer, metric)
    if cell is None:
        return None
    resampled = found.resampled(submission, quantizer, metric)
    return quantities.estimate(cell, metric) if resampled is None else quantities.shown(resampled, metric)


def _change(found: Measurements, submission: str, quantizer: str, metric: str) -> Resampled | None:
    now = found.resampled(submission, quantizer, metric)
    before = found.resampled(submission, REFERENCE, metric)
    if now is None or before is None or quantizer == REFERENCE or not now.pairs_with(before):
        return None
    return now - before


def plain(found: Measurements, submission: Submission, spec: QuantizerSpec) -> QuantizerResult:
    """Returns scores and changes without a judgement: what a control's row shows."""
    metrics = {}
    for metric in PRIMARY:
        score = _score(found, submission.name, spec.name, metric)
        if score is not None:
            change = _change(found, submission.name, spec.name, metric)
            metrics[metric] = MetricResult(
                metric=metric,
                score=score,
                change=None if change is None else change.cautious(),
                change_p=None if change is None else change.p_value(),
            )
    return QuantizerResult(
        spec=spec,
        metrics=metrics,
        cells=_cells(found, submission.name, spec.name),
        verdict=Verdict(word="not measured"),
        dirty=found.is_dirty(submission.name, spec.name),
    )


def adjusted(results: Mapping[str, QuantizerResult]) -> dict[str, QuantizerResult]:
    """Returns a submission's results with the p of every change adjusted for all of them: a page shows them together.

    Args:
        results: By quantizer.
    """
    raw = {
        f"{name}/{metric}": shown.change_p
        for name, result in results.items()
        for metric, shown in result.metrics.items()
        if shown.change_p is not None
    }
    holm = quantities.holm(raw)
    return {
        name: replace(
            result,
            metrics={
                metric: replace(shown, change_p=holm.get(f"{name}/{metric}"))
                for metric, shown in result.metrics.items()
            },
        )
        for name, result in results.items()
    }


@dataclass(frozen=True, slots=True)
class Worst:
    """The largest remaining share and recovery over metrics on every resample, None where none is known."""

    rho: Floats | None = None
    recovery: Floats | None = None


def judge(
    found: Measurements, controls: Controls, entry: Submission, spec: QuantizerSpec
) -> tuple[QuantizerResult, Worst]:
    """Returns an entry's result under one quantizer, and the resamples of its worst case.

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
        return replace(result, missing=missing, verdict=verdict), Worst()
    metrics = dict(result.metrics)
    rhos: list[Floats] = []
    recoveries: list[Floats] = []
    words: dict[str, Word] = {}
    for metric in found.forget_metrics:
        metrics[metric], rho, recovery = _forgotten(
            found, controls, entry.name, (target, retrain), spec.name, metrics[metric]
        )
        words[metric] = metrics[metric].verdict or "unclear"
        rhos += [] if rho is None else [rho.draws]
        recoveries += [] if recovery is None else [recovery.draws]
    collapse = _collapse(found, entry.name, target, spec.name)
    verdict = Verdict(word="collapsed", reason=collapse) if collapse else _explained(combine(words), metrics)
    dirty = any(found.is_dirty(name, spec.name) for name in (entry.name, target, retrain))
    utility = _utility_share(found, entry.name, target, spec.name)
    judged = replace(
        result,
        metrics=metrics,
        verdict=verdict,
        utility_share=utility,
        dirty=dirty,
        impossible=_impossible(found, entry.name, target, spec.name),
    )
    return judged, Worst(
        np.fmax.reduce(rhos) if rhos else None,
        np.fmax.reduce(recoveries) if len(recoveries) == len(found.forget_metrics) else None,
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
    found: Measurements, controls: Controls, entry: str, against: tuple[str, str], quantizer: str, result: MetricResult
) -> tuple[MetricResult, Resampled | None, Resampled | None]:
    """Returns a metric's result with rho, recovery and verdict, and the resamples of rho and of recovery."""
    metric, (target, retrain) = result.metric, against
    rho, note = controls.share(entry, target, retrain, quantizer, metric)
    rho_16, _ = controls.share(entry, target, retrain, REFERENCE, metric)
    recovery = rho - rho_16 if rho is not None and rho_16 is not None else None
    share, back, at_16 = (one.estimate() if one is not None else None for one in (rho, recovery, rho_16))
    stays, returned = _of_the_literature(found, entry, target, quantizer, metric)
    judged = replace(
        result,
        rho=share,
        recovery=back,
        verdict=metric_verdict(at_16, share, back),
        note=note,
        robustness=stays,
        recovered_share=returned,
    )
    return judged, rho, recovery


def _of_the_literature(
    found: Measurements, entry: str, target: str, quantizer: str, metric: str
) -> tuple[Estimate | None, Estimate | None]:
    """Returns Q and the recovered share, None where they are not defined."""
    now, top = (found.resampled(name, quantizer, metric) for name in (entry, target))
    before = found.resampled(entry, REFERENCE, metric)
    if quantizer == REFERENCE or now is None or before is None or not now.pairs_with(before):
        return None, None
    stays = quantities.robustness(now, before)
    back = quantities.recovered_share(now, before, top) if top is not None and top.pairs_with(before) else None
    return None if stays is None else stays.estimate(), None if back is None else back.estimate()


def _impossible(found: Measurements, entry: str, target: str, quantizer: str) -> str | None:
    cell = found.cell(entry, quantizer, PRIVACY)
    share = None if cell is None else quantities.stored_value(cell, PRIVACY)
    if cell is None or share is None:
        return None
    return privacy_reason(
        share, quantities.stored_value(cell, "auc"), _reference(cell),
        adds_up=not cell.documents or found.resampled(entry, quantizer, PRIVACY) is not None,
        others=_reference(found.cell(target, quantizer, PRIVACY)),
    )  # fmt: skip


def _reference(cell: CellResult | None) -> float | None:
    """Returns the AUC that a PrivLeak is relative to; None where it can't be told, an AUC of 0 being -100% of any."""
    if cell is None or not quantities.stored_value(cell, "auc"):
        return None if cell is None else quantities.stored_value(cell, "reference_auc")
    return quantities.reference_auc(cell)


def copy_of(found: Measurements, controls: Controls, entry: Submission) -> str | None:
    """Returns which control's 16-bit answers an entry repeats, score for score; None where it repeats none's."""
    target, retrain = controls.of(entry)
    for name, what in (
        (target, "the target resubmitted, or an update that changes nothing"),
        (retrain, "the retrained model is a control and no unlearned model"),
    ):
        if name is not None and _same_answers(found, entry.name, name):
            return f"at 16 bit every document has the same score as with {name}: {what}"
    return None


def _same_answers(found: Measurements, entry: str, control: str) -> bool:
    for metric in (*found.forget_metrics, UTILITY):
        own, other = (found.resampled(name, REFERENCE, metric) for name in (entry, control))
        if own is None or other is None or not own.pairs_with(other):
            return False
        if own.value != other.value or not np.array_equal(own.draws, other.draws):
            return False
    return True


def _utility_share(found: Measurements, entry: str, target: str, quantizer: str) -> Estimate | None:
    cells = [found.cell(name, quantizer, UTILITY) for name in (entry, target)]
    values = [None if cell is None else quantities.stored_value(cell, UTILITY) for cell in cells]
    if values[0] is None or not values[1]:
        return None
    own, top = (found.resampled(name, quantizer, UTILITY) for name in (entry, target))
    if own is None or top is None or not own.pairs_with(top):
        return Estimate(value=values[0] / values[1])
    return (own / top).estimate()


def _collapse(found: Measurements, entry: str, target: str, quantizer: str) -> str | None:
    cells = _cells(found, entry, quantizer)
    top = found.cell(target, quantizer, UTILITY)
    utility = quantities.stored_value(cells[UTILITY], UTILITY)
    target_utility = None if top is None else quantities.stored_value(top, UTILITY)
    invalid = sum(len([1 for one in cell.documents if one.invalid_reason is not None]) for cell in cells.values())
    degenerate = quantities.stored_value(cells[UTILITY], "degenerate")
    return collapse_reason(utility or 0.0, target_utility or 0.0, degenerate, invalid)


def _explained(verdict: Verdict, metrics: dict[str, MetricResult]) -> Verdict:
    notes = [
        f"{METRICS[metric].label}: {metrics[metric].note}"
        for metric in FORGET_METRICS
        if metric in metrics and metrics[metric].note
    ]
    return Verdict(word=verdict.word, basis=verdict.basis, reason="; ".join(notes))
