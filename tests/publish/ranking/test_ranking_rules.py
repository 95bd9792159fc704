"""Every rule of the ranking with the counter-example that it exists for: what would win, or lose, without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import synthetic_board as synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_board import CONTROLS, FULL, LORA, RETRAIN, TARGET, Plan

from harness.publish.board import Board, WidthResult
from harness.publish.ranking import rank as ranking
from harness.publish.ranking.seeds import Contender
from harness.publish.ranking.verdicts import privacy_reason
from harness.publish.thresholds import RESAMPLES, UTILITY_GATE
from harness.records import CellResult, Score

QUANTIZERS = ("reference", "rtn-4bit-g128", "bnb-nf4")
HONEST = Plan(name="honest", levels=LORA, kind="lora_adapter")
ALL = tuple(synthetic.DOCUMENTS)
FORGETS_MOST = synthetic.flat((4, 1, 1, 9))


def made(*plans: Plan, controls: Sequence[Plan] = CONTROLS) -> list[CellResult]:
    return synthetic.cells([*controls, *plans], quantizers=QUANTIZERS)


def of(board: Board, name: str, bits: int = 4) -> WidthResult:
    return next(row for row in board.rows if row.submission.name == name).by_bits[bits]


def resubmitted(cells: list[CellResult], control: str, name: str) -> list[CellResult]:
    """Returns a control's own cells under the name of an entry."""
    entry = next(cell.submission for cell in cells if cell.submission.role == "entry")
    return [
        replace(
            cell, cell=replace(cell.cell, submission=name, key=f"{name}-{cell.cell.key}"[:64]),
            submission=replace(entry, name=name, title=name),
        )
        for cell in cells if cell.cell.submission == control
    ]  # fmt: skip


def with_privleak(
    cells: list[CellResult], change: Callable[[CellResult], CellResult], name: str = "leaky", bits: int = 4
) -> list[CellResult]:
    return [
        change(cell)
        if cell.cell.submission == name and "privleak" in cell.cell.task and cell.spec.bits == bits
        else cell
        for cell in cells
    ]


def stated(share: float) -> Callable[[CellResult], CellResult]:
    def change(cell: CellResult) -> CellResult:
        return replace(cell, scores=(replace(cell.scores[0], value=share), *cell.scores[1:]))

    return change


def told_apart(cell: CellResult) -> CellResult:
    """Every forget text scores above every holdout text: the AUC is 1."""
    documents = tuple(
        replace(d, scores={**d.scores, "min_k_40": d.index + (1000.0 if d.split == "forget" else 0.0)})
        for d in cell.documents
    )
    return replace(cell, documents=documents, scores=synthetic.scores_of("privleak", documents))


def relative_to(reference: float) -> Callable[[CellResult], CellResult]:
    def change(cell: CellResult) -> CellResult:
        return replace(cell, scores=(*cell.scores, Score(metric="reference_auc", value=reference, num_docs=0)))

    return change


RULES = {
    "a collapsed model forgets most of all": (
        made(HONEST, Plan(name="rival", levels=FORGETS_MOST)), "a destroyed model forgets everything",
    ),
    "a no-op repeats its target": (
        (cells := made(HONEST)) + resubmitted(cells, "mini-target-4bit", "rival"),
        "the same score as with mini-target-4bit: the target resubmitted, or an update that changes nothing",
    ),
    "the retrained model forgets perfectly and is no method": (
        cells + resubmitted(cells, "mini-retrain", "rival"), "the retrained model is a control and no unlearned model",
    ),
    "a model that never forgot has nothing to lose": (
        made(HONEST, Plan(name="rival", levels=TARGET)), "it had not forgotten at 16 bit",
    ),
    "a backend where it fails was left out": (
        made(HONEST, Plan(name="rival", levels=FULL, drop=frozenset(("rtn-4bit-g128", m) for m in ALL))),
        "rival is not measured under rtn-4bit-g128; on bnb-nf4 alone it is number",
    ),
    "four easy documents are no run": (made(HONEST, Plan(name="rival", levels=LORA, limit=4)), "--limit 4"),
    "changed code may score anything": (
        made(HONEST, Plan(name="rival", levels=LORA, dirty=True)), "uncommitted changes",
    ),
    "a PrivLeak that no model has": (
        with_privleak(
            made(HONEST, Plan(name="rival", levels=LORA)), lambda cell: relative_to(0.5)(stated(180.0)(cell)), "rival"
        ),
        "is not what its texts' scores give",
    ),
    "a PrivLeak relative to an AUC of one's own": (
        with_privleak(made(HONEST, Plan(name="rival", levels=LORA)), stated(-20.0), "rival"),
        "and its target's to 0.5",
    ),
    "a PrivLeak of texts told apart without exception": (
        with_privleak(made(HONEST, Plan(name="rival", levels=LORA)), told_apart, "rival"), "its AUC is exactly 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_exists_for_has_no_rank_a_reason_and_moves_nobody(rule: str) -> None:
    cells, reason = RULES[rule]
    board = ranking.rank(cells, "mini")
    rival = of(board, "rival")
    assert (rival.rank, rival.tier) == (None, None)
    assert reason in str(rival.unranked_reason)
    assert of(board, "honest") == of(ranking.rank(made(HONEST), "mini"), "honest")
    assert [row.submission.name for row in board.rows] == ["honest", "rival"]


@pytest.mark.parametrize("rule", [rule for rule in RULES if "resubmitted" in RULES[rule][1] or "exception" in rule])
def test_the_same_entry_without_the_fault_is_ranked(rule: str) -> None:
    board = ranking.rank(made(HONEST, Plan(name="rival", levels=LORA)), "mini")
    assert of(board, "rival").rank is not None


def test_without_the_gate_a_destroyed_model_would_have_won() -> None:
    board = ranking.rank(made(HONEST, Plan(name="rival", levels=FORGETS_MOST)), "mini")
    assert of(board, "rival").remaining.value < of(board, "honest").remaining.value
    assert of(board, "rival").utility_share.value < UTILITY_GATE


def test_without_the_worst_case_a_method_that_reverts_would_have_won() -> None:
    better_on_nf4 = {name: (v - 3, k - 3, u, p) for name, (v, k, u, p) in FULL.items()}
    board = ranking.rank(made(HONEST, Plan(name="full", levels=better_on_nf4)), "mini")
    shares = {
        name: next(row for row in board.rows if row.submission.name == name).by_quantizer["bnb-nf4"].worst_metric
        for name in ("honest", "full")
    }
    assert shares["full"].rho.value < shares["honest"].rho.value
    assert of(board, "honest").rank == 1
    assert (of(board, "full").rank, of(board, "full").quantizer) == (2, "rtn-4bit-g128")


@pytest.mark.parametrize(
    ("share", "auc", "reference", "adds_up", "reason"),
    [
        (-100.0, 0.0, 0.4772, True, None),
        (109.5, 0.9999, 0.4772, True, None),
        (109.6, 0.9999, 0.4772, True, None),
        (110.0, 0.9999, 0.4772, True, "no model has less than -100% or more than 109.6%"),
        (-100.2, 0.0, 0.4772, True, "no model has less than -100%"),
        (109.6, 1.0, 0.4772, True, "its AUC is exactly 1"),
        (0.0, 0.5, 0.5, False, "is not what its texts' scores give"),
        (0.0, 0.5, 1.0, True, "relative to an AUC of 1"),
        (0.0, 0.5, 0.0, True, "relative to an AUC of 0"),
        (5.0, None, None, True, None),
    ],
)
def test_which_privleaks_can_be_believed(
    share: float, auc: float | None, reference: float | None, adds_up: bool, reason: str | None
) -> None:
    found = privacy_reason(share, auc, reference, adds_up)
    assert found is None if reason is None else reason in str(found)


def test_a_privleak_against_an_impossible_reference_costs_the_rank() -> None:
    cells = with_privleak(made(HONEST, Plan(name="leaky", levels=LORA)), relative_to(1.0))
    assert "PrivLeak" in str(of(ranking.rank(cells, "mini"), "leaky").unranked_reason)


# What may not move a rank: pure contenders, as the tiers see them.

_DRAWS = np.random.default_rng(7).normal(size=(12, RESAMPLES)) * 0.05


def contenders(shares: Sequence[float], utilities: Sequence[float]) -> list[Contender]:
    return [
        Contender(name=f"entry-{place:02d}", remaining=share, draws=share + _DRAWS[place], utility=utility)
        for place, (share, utility) in enumerate(zip(shares, utilities, strict=True))
    ]


SOME = st.lists(
    st.tuples(st.floats(0, 1).map(lambda x: round(x, 4)), st.floats(0, 1).map(lambda x: round(x, 4))),
    min_size=1, max_size=10, unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(SOME, st.integers(0, 2**16))
def test_the_order_of_rows_moves_no_rank(pairs: list[tuple[float, float]], seed: int) -> None:
    found = contenders(*zip(*pairs, strict=True))
    mixed = random.Random(seed).sample(found, len(found))
    assert ranking.tiers(mixed) == ranking.tiers(found)


@settings(max_examples=40, deadline=None)
@given(SOME, st.integers(0, 2**16))
def test_other_names_move_no_rank(pairs: list[tuple[float, float]], seed: int) -> None:
    found = contenders(*zip(*pairs, strict=True))
    names = [f"name-{number}" for number in random.Random(seed).sample(range(100), len(found))]
    other = [replace(one, name=name) for one, name in zip(found, names, strict=True)]
    back = {name: one.name for one, name in zip(found, names, strict=True)}
    assert [(tier, back[name]) for tier, name in ranking.tiers(other)] == ranking.tiers(found)


@settings(max_examples=40, deadline=None)
@given(SOME)
def test_an_entry_that_is_clearly_worse_than_all_moves_nobody(pairs: list[tuple[float, float]]) -> None:
    found = contenders(*zip(*pairs, strict=True))
    worse = Contender(name="worst", remaining=9.0, draws=np.full(RESAMPLES, 9.0), utility=1.0)
    ranked = ranking.tiers(found)
    assert ranking.tiers([*found, worse]) == [*ranked, (ranked[-1][0] + 1, "worst")]


def test_a_new_best_may_take_others_into_its_tier_and_that_is_the_rule() -> None:
    still = np.zeros(RESAMPLES)
    wide = np.linspace(-0.2, 0.2, RESAMPLES)
    one, two = (Contender(name=n, remaining=r, draws=r + still, utility=0.9) for n, r in (("one", 0.2), ("two", 0.3)))
    assert ranking.tiers([one, two]) == [(1, "one"), (2, "two")]
    unsure = Contender(name="unsure", remaining=0.19, draws=0.19 + wide, utility=0.8)
    assert ranking.tiers([one, two, unsure]) == [(1, "one"), (1, "two"), (1, "unsure")]


@settings(max_examples=40, deadline=None)
@given(SOME)
def test_inside_a_tier_utility_falls_and_no_tier_holds_what_is_told_apart_from_its_first(
    pairs: list[tuple[float, float]],
) -> None:
    found = {one.name: one for one in contenders(*zip(*pairs, strict=True))}
    ranked = ranking.tiers(list(found.values()))
    assert [tier for tier, _ in ranked] == sorted(tier for tier, _ in ranked)
    for number in {tier for tier, _ in ranked}:
        members = [found[name] for tier, name in ranked if tier == number]
        assert [one.utility for one in members] == sorted((one.utility for one in members), reverse=True)
        first = min(members, key=lambda one: one.remaining)
        for one in members:
            assert np.quantile(one.draws - first.draws, 0.025) <= 1e-12


def test_controls_are_never_ranked() -> None:
    board = ranking.rank(made(HONEST, controls=(*CONTROLS, synthetic.control("more", "retrain", RETRAIN))), "mini")
    assert all(not row.by_bits for row in board.controls)
