"""The verdicts on one metric and on an entry (holds, reverts, unclear ...), from intervals and thresholds.

Source: the statistics section of docs/metrics.md; constants in ``thresholds``.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.publish.board import Verdict
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import (
    DEGENERATE_GATE,
    PHI,
    PRIVLEAK_TOLERANCE,
    SAME_REFERENCE,
    TAU,
    UTILITY_GATE,
    WORST_FIRST,
    Word,
)
from harness.score.metrics.formulas import METRICS


def metric_verdict(rho_16: Estimate | None, rho: Estimate | None, recovery: Estimate | None) -> Word:
    """Returns ``never forgot``, ``reverts``, ``holds`` or ``unclear`` for one metric under one quantizer.

    Args:
        rho_16: Remaining share at 16 bit, with its interval.
        rho: Remaining share under the quantizer.
        recovery: The paired difference of the two.
    """
    if rho_16 is not None and rho_16.low is not None and rho_16.low > PHI:
        return "never forgot"
    if rho is None or recovery is None or recovery.low is None or recovery.high is None:
        return "unclear"
    if recovery.low > TAU:
        return "reverts"
    if recovery.high <= TAU and rho.value <= PHI + TAU:
        return "holds"
    return "unclear"


def collapse_reason(utility: float, target_utility: float, degenerate: float | None, invalid: int) -> str | None:
    """Returns why a model counts as destroyed, None where it doesn't.

    Args:
        utility: Of the entry.
        target_utility: Of the target under the same quantizer.
        degenerate: Share of its utility answers that are empty or repeat themselves.
        invalid: Documents that could not be scored.
    """
    if utility < UTILITY_GATE * target_utility:
        return (
            f"utility is {utility / target_utility:.3f} of the target's, below {UTILITY_GATE:.2f}: "
            "a destroyed model forgets everything"
        )
    if degenerate is not None and degenerate > DEGENERATE_GATE:
        return f"{degenerate:.0%} of the utility answers are empty or repeat themselves"
    if invalid:
        return f"{invalid} document{'s' if invalid > 1 else ''} could not be scored"
    return None


def privacy_reason(
    share: float, auc: float | None, reference: float | None, adds_up: bool, others: float | None = None
) -> str | None:
    """Returns why a PrivLeak can't be believed, None where it can.

    Args:
        share: PrivLeak, in percent.
        auc: The AUC it was made from, None where the store has none.
        reference: The AUC it is relative to.
        adds_up: Whether the single texts' scores give it.
        others: The AUC that its target's PrivLeak is relative to.
    """
    if not adds_up:
        return f"its PrivLeak of {share:.1f}% is not what its texts' scores give"
    if reference is not None and not 0 < reference < 1:
        return f"its PrivLeak is relative to an AUC of {reference:.4g}, which leaves nothing to compare with"
    if reference is not None and others is not None and abs(reference - others) > SAME_REFERENCE:
        return f"its PrivLeak is relative to an AUC of {reference:.4g} and its target's to {others:.4g}"
    most = None if reference is None else 100 * (1 - reference) / reference
    if most is not None and not -100 - PRIVLEAK_TOLERANCE <= share <= most + PRIVLEAK_TOLERANCE:
        return f"its PrivLeak is {share:.1f}%, and no model has less than -100% or more than {most:.1f}%"
    if auc == 1:
        return "its AUC is exactly 1: forgotten texts are told apart from unseen ones without one exception"
    return None


def combine(words: Mapping[str, Word]) -> Verdict:
    """Returns an entry's verdict under one quantizer from those of its metrics.

    The worst (reverts, unclear, holds) among the metrics that had been
    forgotten at 16 bit; ``never forgot`` where none had.

    Args:
        words: Verdict by metric key.
    """
    forgotten = [word for word in words.values() if word != "never forgot"]
    worst: Word = next((word for word in WORST_FIRST if word in forgotten), "never forgot")
    groups: dict[Word, list[str]] = {worst: []}
    for metric, word in words.items():
        groups.setdefault(word, []).append(METRICS[metric].label)
    basis = [", ".join(groups.pop(worst))]
    basis += [f"{', '.join(labels)} {_in_a_list(word)}" for word, labels in groups.items()]
    return Verdict(word=worst, basis="; ".join(basis))


def _in_a_list(word: Word) -> str:
    return "is unclear" if word == "unclear" else word


def worst_of(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Returns an entry's verdict at one bit width from those under its backends.

    ``collapsed`` under one backend counts for the width; otherwise the worst.
    The reason names the backends on each side.

    Args:
        verdicts: By quantizer name; not empty.
    """
    order: tuple[Word, ...] = ("not measured", "collapsed", *WORST_FIRST, "never forgot")
    worst = min(verdicts.values(), key=lambda verdict: order.index(verdict.word))
    groups: dict[Word, list[str]] = {}
    for name, verdict in verdicts.items():
        groups.setdefault(verdict.word, []).append(name)
    reason = worst.reason
    if len(groups) > 1:
        sides = "; ".join(f"{word} under {', '.join(groups[word])}" for word in order if word in groups)
        reason = f"{reason} ({sides})" if reason else sides
    return Verdict(word=worst.word, basis=worst.basis, reason=reason)
