"""Stored cells -> a ranked board. Pure; the rules in words stand in ``rules`` and on the methodology page.

Each entry is compared with its own target and with the retrained model, under
the same quantizer and on the same resamples. At a bit width the worst backend
counts: entries are ranked by the largest remaining share, lower first; those
whose paired difference to the best of their tier includes 0 share the tier,
and stand in it by utility.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.publish import headline
from harness.publish.board import (
    Board,
    ControlBand,
    LeaderboardRow,
    MetricResult,
    QuantizerResult,
    Verdict,
    WidthResult,
)
from harness.publish.entries import Controls, judge, plain
from harness.publish.measurements import Measurements
from harness.publish.rules import FORGET_METRICS, HEADLINE_BITS, PRIVACY, REFERENCE, TAU
from harness.publish.statistics import Estimate, Floats, interval
from harness.publish.verdicts import worst_of
from harness.records import CellResult, Submission
from harness.score.metrics import PRIMARY


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """An entry under every quantizer, with the resamples of its remaining share at every width."""

    submission: Submission
    by_quantizer: Mapping[str, QuantizerResult]
    draws: Mapping[str, Floats]


def rank(cells: Sequence[CellResult], corpus: str) -> Board:
    """Returns the ranked board of one corpus.

    Args:
        cells: Stored cells with their documents; those of other corpora are
            left out.
        corpus: Name of the corpus.
    """
    found = Measurements(cells, corpus)
    controls = Controls(found)
    entries = [submission for submission in found.submissions.values() if submission.role == "entry"]
    judged = [_judge_all(found, controls, entry) for entry in sorted(entries, key=lambda entry: entry.name)]
    measured = controls.measured()
    widths = tuple(sorted({spec.bits for spec in found.quantizers}, reverse=True))
    at = {
        bits: [spec.name for spec in found.quantizers if spec.bits == bits and spec.name in measured]
        for bits in widths
    }  # fmt: skip
    by_width = {bits: _rank_width(judged, bits, at[bits]) for bits in widths}
    rows = [
        LeaderboardRow(
            submission=entry.submission,
            by_quantizer=entry.by_quantizer,
            by_bits={bits: by_width[bits][entry.submission.name] for bits in widths},
            durable_bits=_durable(entry, {bits: at[bits] for bits in widths if bits < 16}),
        )
        for entry in judged
    ]
    headline_bits = headline.headline_bits(rows, widths, HEADLINE_BITS)
    rows.sort(key=lambda row: _position(row, headline_bits))
    board = Board(
        corpus=corpus,
        rows=tuple(rows),
        controls=tuple(
            LeaderboardRow(
                submission=control, by_quantizer={spec.name: plain(found, control, spec) for spec in found.quantizers}
            )
            for control in sorted(found.submissions.values(), key=lambda control: (control.role, control.name))
            if control.role != "entry"
        ),
        quantizers=found.quantizers,
        widths=widths,
        headline_bits=headline_bits,
        sentence="",
        detail="",
        documents=_documents(found),
        statuses=dict(sorted(Counter(cell.status for cell in found.cells).items())),
        bands=tuple(_bands(controls, at)),
        scoring_version=found.scoring_version,
    )
    return replace(board, sentence=headline.sentence(board), detail=headline.detail(board))


def _judge_all(found: Measurements, controls: Controls, entry: Submission) -> _Judged:
    results: dict[str, QuantizerResult] = {}
    draws: dict[str, Floats] = {}
    for spec in found.quantizers:
        results[spec.name], worst = judge(found, controls, entry, spec)
        if worst is not None:
            draws[spec.name] = worst
    found.forget(entry.name)
    return _Judged(submission=entry, by_quantizer=results, draws=draws)


def _rank_width(judged: Sequence[_Judged], bits: int, expected: Sequence[str]) -> dict[str, WidthResult]:
    """Returns every entry's result at one width; ``expected``: quantizers under which controls are measured."""
    results = {entry.submission.name: _width(entry, bits, expected) for entry in judged}
    eligible = [entry for entry in judged if results[entry.submission.name].unranked_reason is None]
    for number, (tier, entry) in enumerate(_tiers(eligible, results, expected), start=1):
        name = entry.submission.name
        results[name] = replace(results[name], rank=number, tier=tier)
    for entry in judged:
        name = entry.submission.name
        among = _among_the_same(entry, judged, results[name], expected)
        if among is not None:
            results[name] = replace(results[name], unranked_reason=f"{results[name].unranked_reason}; {among}")
    return results


def _width(entry: _Judged, bits: int, expected: Sequence[str]) -> WidthResult:
    results = entry.by_quantizer
    measured = [name for name in expected if results[name].missing is None]
    if not measured:
        reason = next((results[name].missing for name in expected), None) or _nothing_at(entry, bits)
        return WidthResult(
            bits=bits, quantizers=(), verdict=Verdict(word="not measured", reason=reason), unranked_reason=reason
        )
    quantizer, metric = _worst(entry, measured)
    utilities = [(results[name].utility_share, name) for name in measured]
    utility = min(utilities, key=lambda item: item[0].value if item[0] else 0.0)
    privacy = [
        (results[name].metrics[PRIVACY].score, name) for name in measured if PRIVACY in results[name].metrics
    ]  # fmt: skip
    furthest = max(privacy, key=lambda item: abs(item[0].value), default=(None, None))
    verdict = worst_of({name: results[name].verdict for name in measured})
    unranked = _unranked_reason(entry, measured, expected, verdict)
    return WidthResult(
        bits=bits,
        quantizers=tuple(measured),
        verdict=verdict,
        quantizer=quantizer,
        metric=metric.metric if metric else None,
        remaining=metric.rho if metric else None,
        recovery=metric.recovery if metric else None,
        utility_share=utility[0],
        utility_quantizer=utility[1],
        privleak=furthest[0],
        privleak_quantizer=furthest[1],
        unranked_reason=unranked,
    )


def _nothing_at(entry: _Judged, bits: int) -> str:
    return next(
        (result.missing for result in entry.by_quantizer.values() if result.spec.bits == bits and result.missing),
        f"not measured at {bits} bit",
    )


def _worst(entry: _Judged, names: Sequence[str]) -> tuple[str | None, MetricResult | None]:
    known = [(name, worst) for name in names if (worst := entry.by_quantizer[name].worst_metric) is not None]
    return max(known, key=lambda item: item[1].rho.value if item[1].rho else 0.0, default=(None, None))


def _unranked_reason(
    entry: _Judged, measured: Sequence[str], expected: Sequence[str], verdict: Verdict
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
    if all(name not in entry.draws for name in measured):
        return f"{', '.join(measured)} damages the target too much to tell what remains"
    return None


def _joint(entry: _Judged, names: Sequence[str]) -> Floats:
    """Returns the worst remaining share over backends on every resample."""
    worst: Floats = np.fmax.reduce([entry.draws[name] for name in names if name in entry.draws])
    return worst


def _tiers(
    eligible: Sequence[_Judged], results: Mapping[str, WidthResult], names: Sequence[str]
) -> list[tuple[int, _Judged]]:
    def remaining(entry: _Judged) -> float:
        share = results[entry.submission.name].remaining
        return share.value if share else 0.0

    def utility(entry: _Judged) -> float:
        share = results[entry.submission.name].utility_share
        return share.value if share else 0.0

    tiers: list[list[_Judged]] = []
    best: Floats | None = None
    for entry in sorted(eligible, key=lambda entry: (remaining(entry), entry.submission.name)):
        mine = _joint(entry, names)
        if best is None or interval(mine - best)[0] > 0:
            tiers.append([])
            best = mine
        tiers[-1].append(entry)
    return [
        (number, entry)
        for number, tier in enumerate(tiers, start=1)
        for entry in sorted(tier, key=lambda entry: (-utility(entry), entry.submission.name))
    ]


def _among_the_same(
    entry: _Judged, judged: Sequence[_Judged], result: WidthResult, expected: Sequence[str]
) -> str | None:
    """Returns where an entry with missing backends stands among entries measured on the same ones."""
    names = result.quantizers
    if not names or len(names) == len(expected) or result.verdict.word == "collapsed":
        return None
    peers = [
        other for other in judged
        if all(
            other.by_quantizer[name].missing is None and not other.by_quantizer[name].dirty
            and other.by_quantizer[name].verdict.word != "collapsed"
            for name in names
        )
    ]  # fmt: skip
    worst = {other.submission.name: _worst(other, names)[1] for other in peers}
    shares = {name: found.rho.value for name, found in worst.items() if found is not None and found.rho is not None}
    if entry.submission.name not in shares:
        return None
    place = 1 + sum(share < shares[entry.submission.name] for share in shares.values())
    return f"on {', '.join(names)} alone it is number {place} of {len(shares)}"


def _durable(entry: _Judged, at: Mapping[int, Sequence[str]]) -> tuple[int, ...]:
    """Returns the widths at which no metric's recovery exceeds tau under any backend."""

    def holds(name: str) -> bool:
        result = entry.by_quantizer[name]
        recoveries = [result.metrics[metric].recovery for metric in FORGET_METRICS if metric in result.metrics]
        return result.missing is None and all(found is not None and found.value <= TAU for found in recoveries)

    return tuple(bits for bits, names in at.items() if names and all(holds(name) for name in names))


def _position(row: LeaderboardRow, bits: int) -> tuple[int, int, str]:
    result = row.by_bits.get(bits)
    unranked = result is None or result.rank is None
    return int(unranked), (result.rank or 0) if result else 0, row.submission.name


def _documents(found: Measurements) -> dict[str, int]:
    counted: dict[str, int] = {}
    for metric in PRIMARY:
        numbers = [
            score.num_docs
            for submission in found.submissions
            for score in getattr(found.cell(submission, REFERENCE, metric), "scores", ())
            if score.metric == metric
        ]
        if numbers:
            counted[metric] = max(numbers)
    return counted


def _bands(controls: Controls, at: Mapping[int, Sequence[str]]) -> list[ControlBand]:
    bands = []
    for bits, names in at.items():
        ends = [ends for name in names for ends in controls.spread(name)]
        if ends:
            retrain, target = ([end[side] for end in ends] for side in (0, 1))
            bands.append(
                ControlBand(
                    bits=bits,
                    retrain_low=min(_low(end) for end in retrain),
                    retrain_high=max(_high(end) for end in retrain),
                    target_low=min(_low(end) for end in target),
                    target_high=max(_high(end) for end in target),
                )
            )
    return bands


def _low(found: Estimate) -> float:
    return found.value if found.low is None else found.low


def _high(found: Estimate) -> float:
    return found.value if found.high is None else found.high
