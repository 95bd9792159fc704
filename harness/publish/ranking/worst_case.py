"""The worst case of an entry over all quantizers of a bit-width, and the reason where it has no rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.publish.board import Certificate, Flag, MetricResult, QuantizerResult, Verdict, WidthResult, WorstCase
from harness.publish.ranking.verdicts import worst_of
from harness.publish.statistics.quantities import Floats
from harness.publish.thresholds import FORGET_METRICS, PRIVACY, REFERENCE
from harness.records import Submission
from harness.score.metrics.formulas import METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An entry under every quantizer.

    Attributes:
        draws: Resamples of its worst remaining share, by quantizer.
        certificates: Durability by width.
        flags: What a reader must know; decisive ones leave it without a rank.
    """

    submission: Submission
    by_quantizer: Mapping[str, QuantizerResult]
    draws: Mapping[str, Floats]
    certificates: Mapping[int, Certificate] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


def at_width(entry: Judged, bits: int, expected: Sequence[str]) -> WidthResult:
    """Returns the worst case over the backends of one width, ranks left open.

    Args:
        entry: The entry under every quantizer.
        bits: The width.
        expected: Quantizers of that width under which the controls are measured.
    """
    results = entry.by_quantizer
    measured = [name for name in expected if results[name].missing is None]
    if not measured:
        reason = next((results[name].missing for name in expected), None) or _nothing_at(entry, bits)
        return WidthResult(
            bits=bits, quantizers=(), verdict=Verdict(word="not measured", reason=reason), unranked_reason=reason
        )
    quantizer, metric = worst_backend(entry, measured)
    utilities = [(results[name].utility_share, name) for name in measured]
    utility = min(utilities, key=lambda item: item[0].value if item[0] else 0.0)
    privacy = [
        (results[name].metrics[PRIVACY].score, name) for name in measured if PRIVACY in results[name].metrics
    ]  # fmt: skip
    furthest = max(privacy, key=lambda item: abs(item[0].value), default=(None, None))
    verdict = worst_of({name: results[name].verdict for name in measured})
    if verdict.word == "never forgot":
        verdict = replace(verdict, reason=_had(entry))
    unranked = _unranked_reason(entry, measured, expected, verdict)
    return WidthResult(
        bits=bits,
        quantizers=tuple(measured),
        verdict=verdict,
        quantizer=quantizer,
        metric=metric.metric if metric else None,
        by_metric=_by_metric(entry, measured),
        remaining=metric.rho if metric else None,
        recovery=metric.recovery if metric else None,
        utility_share=utility[0],
        utility_quantizer=utility[1],
        privleak=furthest[0],
        privleak_quantizer=furthest[1],
        unranked_reason=unranked,
    )


def _had(entry: Judged) -> str:
    """Returns the remaining shares at 16 bit, in words."""
    at_16 = entry.by_quantizer[REFERENCE].metrics
    shares = [
        f"{rho.value:.2f} of {METRICS[metric].label} remains" for metric in FORGET_METRICS
        if metric in at_16 and (rho := at_16[metric].rho) is not None
    ]  # fmt: skip
    return ", ".join(shares)


def _nothing_at(entry: Judged, bits: int) -> str:
    return next(
        (result.missing for result in entry.by_quantizer.values() if result.spec.bits == bits and result.missing),
        f"not measured at {bits} bit",
    )


def worst_backend(entry: Judged, names: Sequence[str]) -> tuple[str | None, MetricResult | None]:
    """Returns the backend among ``names`` with the largest remaining share, and the metric's result there."""
    known = [(name, worst) for name in names if (worst := entry.by_quantizer[name].worst_metric) is not None]
    return max(known, key=lambda item: item[1].rho.value if item[1].rho else 0.0, default=(None, None))


def _by_metric(entry: Judged, names: Sequence[str]) -> dict[str, WorstCase]:
    worst: dict[str, WorstCase] = {}
    for name in names:
        known = entry.by_quantizer[name].metrics
        for metric in FORGET_METRICS:
            share = known[metric].rho if metric in known else None
            before = worst[metric].result.rho if metric in worst else None
            if share is not None and (before is None or share.value > before.value):
                worst[metric] = WorstCase(quantizer=name, result=known[metric])
    return worst


def _unranked_reason(
    entry: Judged, measured: Sequence[str], expected: Sequence[str], verdict: Verdict
) -> str | None:  # fmt: skip
    if verdict.word == "collapsed":
        return next(
            f"{name}: {result.verdict.reason}"
            for name in measured
            if (result := entry.by_quantizer[name]).verdict.word == "collapsed"
        )
    if any(entry.by_quantizer[name].dirty for name in measured):
        return "made from a tree with uncommitted changes, its own or a control's: run it from a commit"
    absent = [name for name in expected if name not in measured]
    if absent:
        return "; ".join(str(entry.by_quantizer[name].missing) for name in absent)
    decisive = next((flag.reason for flag in entry.flags if flag.decisive), None)
    if decisive is not None:
        return decisive
    impossible = [f"{name}: {reason}" for name in measured if (reason := entry.by_quantizer[name].impossible)]
    if impossible:
        return impossible[0]
    if verdict.word == "never forgot":
        return f"it had not forgotten at 16 bit: {verdict.reason}"
    if all(name not in entry.draws for name in measured):
        return f"{', '.join(measured)} damages the target too much to tell what remains"
    return None
