"""Sentences about the difference of two entries; they claim only what survives the Holm correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.publish.board import LeaderboardRow
from harness.publish.comparison.two_entries import Comparison, Difference, Quantity
from harness.publish.formatting import number, signed
from harness.publish.thresholds import CONFIDENCE, FORGET_METRICS, PRIVACY, REFERENCE, UTILITY
from harness.score.metrics.formulas import METRICS


def told_apart(one: Difference) -> bool:
    """Returns whether a difference may be claimed: its interval excludes 0, and the adjusted test agrees."""
    return one.difference.excludes_zero and one.p <= 1 - CONFIDENCE


def sentences(comparison: Comparison) -> list[str]:
    """Returns a summary over quantizers, one sentence for each, and what a reader must know before believing them."""
    each = [f"Under {name}: {'; '.join(_clauses(comparison, name))}." for name in comparison.quantizers]
    claimed = (
        f"A difference is claimed where its {CONFIDENCE:.0%} interval excludes 0 and it stands after Holm's correction"
        f" for the {len(comparison.differences)} differences of these two."
    )
    return [_summary(comparison), *each, *_cautions(comparison), claimed]


def _chosen(
    comparison: Comparison, metrics: Sequence[str], quantity: Quantity, quantizer: str | None = None
) -> list[Difference]:  # fmt: skip
    return [
        one for one in comparison.differences
        if one.metric in metrics and one.quantity == quantity and quantizer in (None, one.quantizer)
    ]  # fmt: skip


def _clauses(comparison: Comparison, quantizer: str) -> Iterator[str]:
    first, second = comparison.first.submission.name, comparison.second.submission.name
    for quantity, verb, noun in (
        ("recovered", "recovers", "what they recover of"),
        ("score", "is left with", "what is left of"),
    ):
        found = _chosen(comparison, FORGET_METRICS, quantity, quantizer)  # type: ignore[arg-type]
        claimed = [
            f"{_amount(one)} {'less' if one.difference.value < 0 else 'more'} of {METRICS[one.metric].label}"
            for one in found if told_apart(one)
        ]  # fmt: skip
        if claimed:
            yield f"{first} {verb} {' and '.join(claimed)} than {second}"
        for corrected in (False, True):
            unsure = [
                f"{METRICS[one.metric].label} ({_range(one)})"
                for one in found
                if not told_apart(one) and one.difference.excludes_zero == corrected
            ]
            if unsure:
                yield f"{noun} {' and '.join(unsure)} {_not_apart(corrected)}"
    for metric, quantity, up, down in (
        (UTILITY, "score", "higher", "lower"),
        (PRIVACY, "distance from 0", "farther from 0", "closer to 0"),
    ):
        for one in _chosen(comparison, (metric,), quantity, quantizer):  # type: ignore[arg-type]
            name = "utility" if metric == UTILITY else METRICS[metric].label
            if told_apart(one):
                yield f"{name} of {first} is {_amount(one)} {up if one.difference.value > 0 else down}"
            else:
                yield f"{name} {_not_apart(one.difference.excludes_zero)} ({_range(one)})"


def _not_apart(corrected: bool) -> str:
    return "cannot be told apart after correction" if corrected else "cannot be told apart"


def _summary(comparison: Comparison) -> str:
    first, second = comparison.first.submission.name, comparison.second.submission.name
    back = any(name != REFERENCE for name in comparison.quantizers)
    quantity: Quantity = "recovered" if back else "score"
    parts = [
        f"{METRICS[metric].label} {'recovered' if back else 'left'}: {_counted(found, 'less', 'more')}"
        for metric in FORGET_METRICS
        if (found := _chosen(comparison, (metric,), quantity))
    ]
    useful = _chosen(comparison, (UTILITY,), "score")
    if useful:
        parts.append(f"utility: {_counted(useful, 'lower', 'higher')}")
    total = len(comparison.quantizers)
    over = f"over {total} quantizers" if total > 1 else f"under {comparison.quantizers[0]}"
    return f"{first} against {second} at {comparison.bits} bit, {over}. {'; '.join(parts)}."


def _counted(found: Sequence[Difference], down: str, up: str) -> str:
    fewer = sum(told_apart(one) and one.difference.value < 0 for one in found)
    more = sum(told_apart(one) and one.difference.value > 0 for one in found)
    said = [f"{word} under {count}" for word, count in ((down, fewer), (up, more)) if count]
    rest = len(found) - fewer - more
    return ", ".join([*said, *([f"no difference claimed under {rest}"] if rest else [])])


def _cautions(comparison: Comparison) -> Iterator[str]:
    for row in (comparison.first, comparison.second):
        yield from _of_row(row, comparison.quantizers)
    first, second = comparison.first.submission, comparison.second.submission
    if first.target != second.target and first.target and second.target:
        yield (
            f"{first.name} was unlearned from {first.target} and {second.name} from {second.target}: only remaining"
            " shares, each against its own target, compare like with like."
        )


def _of_row(row: LeaderboardRow, quantizers: Sequence[str]) -> Iterator[str]:
    name, results = row.submission.name, [row.by_quantizer[one] for one in quantizers]
    if row.submission.role != "entry":
        return
    destroyed = [result for result in results if result.verdict.word == "collapsed"]
    if destroyed:
        where = ", ".join(result.spec.name for result in destroyed)
        yield f"But {name} is collapsed under {where} ({destroyed[0].spec.name}: {destroyed[0].verdict.reason})."
    never = [
        metric for metric in FORGET_METRICS
        if any(metric in result.metrics and result.metrics[metric].verdict == "never forgot" for result in results)
    ]  # fmt: skip
    if never:
        labels = " and ".join(METRICS[metric].label for metric in never)
        yield f"{name} had not forgotten {labels} at 16 bit: there was less of it to recover."
    for result in results:
        if result.missing is not None:
            yield f"{name} can't be judged under {result.spec.name}: {result.missing}."
    if any(result.dirty for result in results):
        yield f"Results of {name} or of its controls were made from a tree with uncommitted changes."


def _amount(one: Difference) -> str:
    low, high = sorted(abs(one.scale * end) for end in (one.difference.low or 0.0, one.difference.high or 0.0))
    digits = 0 if low >= 1 else 1
    near, far = number(low, digits), number(high, digits)
    return f"{near} to {far} points" if near != far else f"{near} points"


def _range(one: Difference) -> str:
    if one.difference.low is None or one.difference.high is None:
        return "no documents at hand"
    low, high = one.scale * one.difference.low, one.scale * one.difference.high
    digits = 0 if max(abs(low), abs(high)) >= 1 else 1
    return f"{signed(low, digits)} to {signed(high, digits)}"
