"""The verdict rule, one row per clause, each with the counter-example beside it."""

from __future__ import annotations

import pytest

from harness.publish.board import Verdict
from harness.publish.ranking.verdicts import collapse_reason, combine, metric_verdict, worst_of
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import PHI, TAU, UTILITY_GATE


def e(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=value if low is None else low, high=value if high is None else high)


def test_the_constants_are_the_published_ones() -> None:
    assert (TAU, PHI, UTILITY_GATE) == (0.10, 0.25, 0.75)


@pytest.mark.parametrize(
    ("rho_16", "rho", "recovery", "word"),
    [
        # never forgot: the low end decides, and it comes before everything else
        (e(0.4, 0.26, 0.5), e(0.9), e(0.5, 0.4, 0.6), "never forgot"),
        (e(0.4, 0.25, 0.5), e(0.9), e(0.5, 0.4, 0.6), "reverts"),
        # reverts: the whole interval above tau
        (e(0.1), e(0.6), e(0.5, 0.11, 0.9), "reverts"),
        (e(0.1), e(0.6), e(0.5, 0.10, 0.9), "unclear"),
        # holds: the whole interval at or below tau ...
        (e(0.1), e(0.15), e(0.05, 0.0, 0.10), "holds"),
        (e(0.1), e(0.15), e(0.05, 0.0, 0.11), "unclear"),
        # ... and not too much left
        (e(0.3, 0.2, 0.4), e(0.35), e(0.05, 0.0, 0.10), "holds"),
        (e(0.3, 0.2, 0.4), e(0.36), e(0.06, 0.0, 0.10), "unclear"),
        # less than before holds, too
        (e(0.1), e(-0.2), e(-0.3, -0.4, -0.2), "holds"),
        # what can't be told
        (e(0.1), None, None, "unclear"),
        (None, e(0.1), None, "unclear"),
        (e(0.1), e(0.1), Estimate(value=0.0), "unclear"),
    ],
)
def test_a_metrics_verdict(rho_16: Estimate | None, rho: Estimate | None, recovery: Estimate | None, word: str) -> None:
    assert metric_verdict(rho_16, rho, recovery) == word


@pytest.mark.parametrize(
    ("verbmem", "knowmem", "word", "basis"),
    [
        ("holds", "holds", "holds", "VerbMem, KnowMem"),
        ("holds", "reverts", "reverts", "KnowMem; VerbMem holds"),
        ("reverts", "unclear", "reverts", "VerbMem; KnowMem is unclear"),
        ("unclear", "holds", "unclear", "VerbMem; KnowMem holds"),
        ("holds", "never forgot", "holds", "VerbMem; KnowMem never forgot"),
        ("never forgot", "never forgot", "never forgot", "VerbMem, KnowMem"),
    ],
)
def test_an_entrys_verdict_is_the_worst_among_forgotten_metrics(verbmem, knowmem, word, basis) -> None:  # type: ignore[no-untyped-def]
    verdict = combine({"verbmem_f": verbmem, "knowmem_f": knowmem})
    assert (verdict.word, verdict.basis) == (word, basis)


@pytest.mark.parametrize(
    ("utility", "target", "degenerate", "invalid", "said"),
    [
        (0.374, 0.5, None, 0, "below 0.75"),
        (0.375, 0.5, None, 0, None),
        (0.0, 0.8, None, 0, "0.000 of the target's"),
        (0.8, 0.8, 0.51, 0, "51% of the utility answers"),
        (0.8, 0.8, 0.50, 0, None),
        (0.8, 0.8, None, 1, "1 document could"),
        (0.8, 0.8, None, 2, "2 documents could"),
        (0.0, 0.0, 0.0, 0, None),
    ],
)
def test_a_destroyed_model_is_recognized(utility, target, degenerate, invalid, said) -> None:  # type: ignore[no-untyped-def]
    reason = collapse_reason(utility, target, degenerate, invalid)
    assert reason is None if said is None else said in reason


def test_at_a_width_the_worst_backend_counts_and_all_are_named() -> None:
    holds, reverts = Verdict(word="holds", basis="VerbMem"), Verdict(word="reverts", basis="KnowMem")
    found = worst_of({"bnb-nf4": holds, "rtn-4bit-g128": reverts, "rtn-4bit-g64": reverts})
    assert (found.word, found.basis) == ("reverts", "KnowMem")
    assert found.reason == "reverts under rtn-4bit-g128, rtn-4bit-g64; holds under bnb-nf4"
    assert worst_of({"bnb-nf4": holds}) == holds


def test_a_collapse_under_one_backend_counts_for_the_width() -> None:
    found = worst_of({"a": Verdict(word="reverts"), "b": Verdict(word="collapsed", reason="utility is low")})
    assert found.word == "collapsed"
    assert found.reason == "utility is low (collapsed under b; reverts under a)"
