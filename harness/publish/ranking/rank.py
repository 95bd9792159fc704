"""Ranks a board from stored cells. Pure; the rules in words are in ``thresholds`` and on the methodology page.

Each entry is compared with its own target and with the retrained model, under
the same quantizer and on the same resamples. At a bit width the worst backend
counts: entries are ranked by the largest remaining share, lower first; those
whose paired difference to the best of their tier includes 0 share the tier,
and stand in it by utility.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.publish.board import (
    Board,
    Certificate,
    ControlBand,
    LeaderboardRow,
    QuantizerResult,
    WidthResult,
)
from harness.publish.ranking import flags as entry_flags
from harness.publish.ranking import headline, seeds
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.fingerprints import Traces
from harness.publish.ranking.judging import adjusted, judge, plain
from harness.publish.ranking.measurements import Measurements
from harness.publish.ranking.seeds import Contender
from harness.publish.ranking.worst_case import Judged, at_width, worst_backend
from harness.publish.statistics.quantities import Estimate, Floats, interval
from harness.publish.thresholds import FORGET_METRICS, HEADLINE_BITS, REFERENCE, TAU
from harness.records import CellResult, Submission
from harness.score.metrics.formulas import PRIMARY


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
    measured = controls.measured()
    widths = tuple(sorted({spec.bits for spec in found.quantizers}, reverse=True))
    at = {
        bits: [spec.name for spec in found.quantizers if spec.bits == bits and spec.name in measured]
        for bits in widths
    }  # fmt: skip
    traces = Traces(found)
    judged = [_judge_all(found, controls, entry, traces, at) for entry in sorted(entries, key=lambda entry: entry.name)]
    by_width = {bits: _rank_width(judged, bits, at[bits]) for bits in widths}
    rows = [
        LeaderboardRow(
            submission=entry.submission,
            by_quantizer=entry.by_quantizer,
            by_bits={bits: by_width[bits][entry.submission.name] for bits in widths},
            certificates=entry.certificates,
            flags=entry.flags,
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
                submission=control,
                by_quantizer=adjusted({spec.name: plain(found, control, spec) for spec in found.quantizers}),
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
        forget_metrics=found.forget_metrics,
    )
    return replace(board, sentence=headline.sentence(board), detail=headline.detail(board))


def _judge_all(
    found: Measurements, controls: Controls, entry: Submission, traces: Traces, at: Mapping[int, Sequence[str]]
) -> Judged:  # fmt: skip
    results: dict[str, QuantizerResult] = {}
    draws: dict[str, Floats] = {}
    recoveries: dict[str, Floats] = {}
    for spec in found.quantizers:
        results[spec.name], worst = judge(found, controls, entry, spec)
        if worst.rho is not None:
            draws[spec.name] = worst.rho
        if worst.recovery is not None:
            recoveries[spec.name] = worst.recovery
    flags = entry_flags.flags(found, controls, entry, traces)
    found.forget(entry.name)
    narrow = {bits: names for bits, names in at.items() if bits < 16}
    return Judged(
        submission=entry,
        by_quantizer=adjusted(results),
        draws=draws,
        certificates=_certificates(results, recoveries, narrow),
        flags=flags,
    )


def _rank_width(judged: Sequence[Judged], bits: int, expected: Sequence[str]) -> dict[str, WidthResult]:
    """Returns every entry's result at one width; ``expected``: quantizers under which controls are measured."""
    alone = {entry.submission.name: at_width(entry, bits, expected) for entry in judged}
    draws = {
        entry.submission.name: _joint(entry, expected)
        for entry in judged
        if alone[entry.submission.name].unranked_reason is None
    }
    results, contenders = seeds.pool(alone, draws, judged)
    for number, (tier, name) in enumerate(tiers(contenders), start=1):
        results[name] = replace(results[name], rank=number, tier=tier)
    for entry in judged:
        name = entry.submission.name
        among = _among_the_same(entry, judged, results[name], expected)
        if among is not None:
            results[name] = replace(results[name], unranked_reason=f"{results[name].unranked_reason}; {among}")
    return results


def _joint(entry: Judged, names: Sequence[str]) -> Floats:
    """Returns the worst remaining share over backends on every resample."""
    worst: Floats = np.fmax.reduce([entry.draws[name] for name in names if name in entry.draws])
    return worst


def tiers(contenders: Sequence[Contender]) -> list[tuple[int, str]]:
    """Returns tier and name, best first.

    An entry opens a tier where the interval of its paired difference to the
    first of the tier above lies above 0; inside a tier utility decides, and
    the name where even that is the same.
    """
    found: list[list[Contender]] = []
    for one in sorted(contenders, key=lambda one: (one.remaining, one.name)):
        if not found or interval(one.draws - found[-1][0].draws)[0] > 0:
            found.append([])
        found[-1].append(one)
    return [
        (number, one.name)
        for number, tier in enumerate(found, start=1)
        for one in sorted(tier, key=lambda one: (-one.utility, one.name))
    ]


def _among_the_same(
    entry: Judged, judged: Sequence[Judged], result: WidthResult, expected: Sequence[str]
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
    worst = {other.submission.name: worst_backend(other, names)[1] for other in peers}
    shares = {name: found.rho.value for name, found in worst.items() if found is not None and found.rho is not None}
    if entry.submission.name not in shares:
        return None
    place = 1 + sum(share < shares[entry.submission.name] for share in shares.values())
    return f"on {', '.join(names)} alone it is number {place} of {len(shares)}"


def _certificates(
    results: Mapping[str, QuantizerResult], recoveries: Mapping[str, Floats], at: Mapping[int, Sequence[str]]
) -> dict[int, Certificate]:
    """Returns durability by width, where every metric's recovery is known and no backend destroys the model."""
    found: dict[int, Certificate] = {}
    for bits, names in at.items():
        usable = all(results[name].missing is None and results[name].verdict.word != "collapsed" for name in names)
        if not names or not usable or any(name not in recoveries for name in names):
            continue
        value = max(
            back.value
            for name in names
            for metric, result in results[name].metrics.items()
            if metric in FORGET_METRICS and (back := result.recovery) is not None
        )
        worst: Floats = np.fmax.reduce([recoveries[name] for name in names])
        low, high = interval(worst)
        found[bits] = Certificate(recovery=Estimate(value=value, low=low, high=high), holds=value <= TAU)
    return found


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
        found = [ends for name in names for ends in controls.spread(name)]
        for metric in FORGET_METRICS:
            retrain = [bottom for which, bottom, _ in found if which == metric]
            target = [top for which, _, top in found if which == metric]
            if retrain:
                bands.append(
                    ControlBand(
                        bits=bits,
                        metric=metric,
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
