"""Several seeds of one method: one rank by their mean; the spread between them widens the interval."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.publish.board import Seeds, Verdict, WidthResult
from harness.publish.ranking.worst_case import Judged
from harness.publish.statistics.bootstrap import Estimate, Floats, interval
from harness.publish.thresholds import RESAMPLES, SEED, WORST_FIRST, Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What is ranked at one width: an entry, or all seeds of a method under the name of the first.

    Attributes:
        remaining: Worst remaining share; the seeds' mean.
        draws: The same on every resample, the seeds' spread included.
        utility: Least utility share; the seeds' mean.
    """

    name: str
    remaining: float
    draws: Floats
    utility: float


def families(judged: Sequence[Judged]) -> dict[str, tuple[str, ...]]:
    """Returns the names of a method's seeds by the one that the others name, that one first.

    A seed whose ``seed_of`` is not on the board stands for itself.
    """
    names = {entry.submission.name for entry in judged}
    found: dict[str, list[str]] = {}
    for entry in judged:
        first = entry.submission.seed_of
        if first in names and first != entry.submission.name:
            found.setdefault(str(first), [str(first)]).append(entry.submission.name)
    return {first: tuple(members) for first, members in found.items()}


def pool(
    results: Mapping[str, WidthResult], draws: Mapping[str, Floats], judged: Sequence[Judged]
) -> tuple[dict[str, WidthResult], list[Contender]]:
    """Returns results at one width with the seeds of a method put together, and what is to be ranked.

    A method has a rank only if all of its seeds could have one: leaving out
    the seeds that fail would be choosing.

    Args:
        results: Every entry's result, by name.
        draws: Worst remaining share on every resample, of entries that may be ranked.
        judged: The entries.
    """
    pooled = dict(results)
    contenders = {name: _alone(name, results[name], mine) for name, mine in draws.items()}
    certified = {entry.submission.name: entry.certificates for entry in judged}
    for first, names in families(judged).items():
        failing = [name for name in names if name not in draws]
        for name in names:
            contenders.pop(name, None)
        if failing:
            reason = f"its seed {failing[0]}: {results[failing[0]].unranked_reason}"
            if first not in failing:
                pooled[first] = replace(results[first], unranked_reason=reason)
        else:
            bits = results[first].bits
            proven = [bits in certified[name] and certified[name][bits].holds for name in names]
            seeds, joint = _together(names, [results[name] for name in names], [draws[name] for name in names], proven)
            pooled[first] = replace(results[first], seeds=seeds, verdict=_worst(names, results))
            shares = [one.utility_share.value for name in names if (one := results[name]).utility_share is not None]
            contenders[first] = Contender(
                name=first, remaining=seeds.remaining.value, draws=joint, utility=float(np.mean(shares or [0.0]))
            )
        for name in names[1:]:
            own = results[name].unranked_reason
            pooled[name] = replace(results[name], unranked_reason=own or f"a seed of {first}, and ranked with it")
    return pooled, list(contenders.values())


def _alone(name: str, result: WidthResult, draws: Floats) -> Contender:
    return Contender(
        name=name,
        remaining=result.remaining.value if result.remaining else 0.0,
        draws=draws,
        utility=result.utility_share.value if result.utility_share else 0.0,
    )


def _together(
    names: tuple[str, ...], results: Sequence[WidthResult], draws: Sequence[Floats], certified: Sequence[bool]
) -> tuple[Seeds, Floats]:
    values = sorted(result.remaining.value if result.remaining else 0.0 for result in results)
    deviation = float(np.std(values, ddof=1))
    # Seeded by the numbers, so that neither names nor the order of rows move a tier. Student's t, because a
    # deviation from two or three seeds is itself uncertain.
    rng = np.random.default_rng([SEED, zlib.crc32(np.array(values).tobytes())])
    between = rng.standard_t(len(values) - 1, RESAMPLES) * deviation / np.sqrt(len(values))
    joint = np.mean(draws, axis=0) + between
    low, high = interval(joint)
    seeds = Seeds(
        names=names,
        remaining=Estimate(value=float(np.mean(values)), low=low, high=high),
        least=values[0],
        most=values[-1],
        deviation=deviation,
        certified=sum(certified),
    )
    return seeds, joint


def _worst(names: Sequence[str], results: Mapping[str, WidthResult]) -> Verdict:
    """Returns the worst verdict among the seeds, with which seed has which where they differ."""
    order: tuple[Word, ...] = (*WORST_FIRST, "never forgot")
    words = {name: results[name].verdict for name in names}
    worst = min(words.values(), key=lambda verdict: order.index(verdict.word))
    if len({verdict.word for verdict in words.values()}) == 1:
        return worst
    sides = "; ".join(
        f"{word} with seed {', '.join(name for name in names if words[name].word == word)}"
        for word in order
        if any(verdict.word == word for verdict in words.values())
    )
    return replace(worst, reason=f"{worst.reason} ({sides})" if worst.reason else sides)
