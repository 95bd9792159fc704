"""Several seeds of a method: one rank, by their mean, with the spread between them; none may be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import synthetic_board as synthetic
from scipy import stats
from synthetic_board import CONTROLS, FULL, LORA, Plan

from harness.publish.board import Board, LeaderboardRow, WidthResult
from harness.publish.ranking import rank as ranking
from harness.publish.ranking import seeds
from harness.publish.tables import rows as table_rows
from harness.records import CellResult

QUANTIZERS = ("reference", "rtn-4bit-g128")


def shifted(points: float) -> dict[str, synthetic.Levels]:
    return {name: (v + points, k + points, u, p) for name, (v, k, u, p) in LORA.items()}


def plan(name: str, levels: Any, seed_of: str | None = None, **more: Any) -> Plan:
    return Plan(name=name, levels=levels, kind="lora_adapter", more={"seed_of": seed_of}, **more)


FIRST, OTHER = plan("method", LORA), plan("other", shifted(6))


def rank(*plans: Plan) -> Board:
    return ranking.rank(cells(*plans), "mini")


def cells(*plans: Plan) -> list[CellResult]:
    return synthetic.cells([CONTROLS[0], CONTROLS[2], *plans], quantizers=QUANTIZERS)


def row(board: Board, name: str) -> LeaderboardRow:
    return next(row for row in board.rows if row.submission.name == name)


def at(board: Board, name: str, bits: int = 4) -> WidthResult:
    return row(board, name).by_bits[bits]


@pytest.fixture(scope="module")
def board() -> Board:
    return rank(FIRST, plan("method-s1", shifted(3), "method"), plan("method-s2", shifted(9), "method"), OTHER)


def test_a_method_has_one_rank_and_its_other_seeds_say_with_whom(board: Board) -> None:
    assert at(board, "method").rank is not None
    for name in ("method-s1", "method-s2"):
        assert at(board, name).rank is None
        assert at(board, name).unranked_reason == "a seed of method, and ranked with it"
    assert {found.rank for name in ("method", "other") if (found := at(board, name))} == {1, 2}


def test_the_mean_over_seeds_and_its_spread_stand_beside_the_documents_interval(board: Board) -> None:
    found = at(board, "method")
    alone = [at(board, name).remaining.value for name in ("method", "method-s1", "method-s2")]
    assert found.seeds.names == ("method", "method-s1", "method-s2")
    assert found.seeds.remaining.value == pytest.approx(np.mean(alone))
    assert (found.seeds.least, found.seeds.most) == (min(alone), max(alone))
    assert found.seeds.deviation == pytest.approx(np.std(alone, ddof=1))
    assert found.remaining.value == alone[0]


def test_the_interval_over_seeds_holds_students_interval_of_their_mean(board: Board) -> None:
    found = at(board, "method").seeds
    students = stats.t.ppf(0.975, 2) * found.deviation / 3**0.5
    assert found.remaining.high - found.remaining.low >= 2 * students
    documents = at(board, "method").remaining
    assert found.remaining.high - found.remaining.low > documents.high - documents.low


def test_two_seeds_that_differ_much_can_not_be_told_from_a_rival_that_one_seed_beats() -> None:
    rival = plan("rival", shifted(20))
    assert at(rank(FIRST, rival), "rival").tier == 2
    pair = rank(FIRST, plan("method-s1", shifted(14), "method"), rival)
    assert at(pair, "rival").tier == at(pair, "method").tier == 1


def test_the_best_seed_alone_does_not_decide_the_rank() -> None:
    unlucky = rank(FIRST, plan("method-s1", shifted(16), "method"), plan("method-s2", shifted(16), "method"), OTHER)
    assert at(unlucky, "method").remaining.value < at(unlucky, "other").remaining.value
    assert at(unlucky, "method").seeds.remaining.value > at(unlucky, "other").remaining.value


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (plan("method-s1", synthetic.flat((4, 1, 1, 9)), "method"), "its seed method-s1: rtn-4bit-g128: utility is"),
        (plan("method-s1", LORA, "method", dirty=True), "its seed method-s1: made from a tree"),
        (plan("method-s1", LORA, "method", limit=4), "its seed method-s1: method-s1 was run with --limit 4"),
    ],
)
def test_a_seed_that_fails_costs_the_method_its_rank(failing: Plan, said: str) -> None:
    found = rank(FIRST, failing, OTHER)
    assert at(found, "method").rank is None
    assert str(at(found, "method").unranked_reason).startswith(said)
    assert "ranked with it" not in str(at(found, "method-s1").unranked_reason)
    assert at(found, "other").rank == 1


def test_where_the_first_seed_fails_its_own_reason_stands() -> None:
    found = rank(plan("method", LORA, dirty=True), plan("method-s1", LORA, "method"))
    assert str(at(found, "method").unranked_reason).startswith("made from a tree")
    assert at(found, "method-s1").rank is None


def test_the_verdict_is_the_worst_seeds_and_says_which_seed_has_which() -> None:
    found = rank(FIRST, plan("method-s1", FULL, "method"))
    verdict = at(found, "method").verdict
    assert verdict.word == "reverts"
    assert verdict.reason.endswith("reverts with seed method-s1; holds with seed method") or (
        "reverts with seed method-s1; holds with seed method" in verdict.reason
    )


def test_the_certificate_is_counted_over_seeds(board: Board) -> None:
    assert at(board, "method").seeds.certified == 3
    mixed = rank(FIRST, plan("method-s1", FULL, "method"))
    assert at(mixed, "method").seeds.certified == 1
    assert row(mixed, "method-s1").durable_bits == ()


def test_certificates_carry_the_largest_recovery_with_its_interval() -> None:
    found = rank(FIRST, plan("full", FULL))
    held, broken = (row(found, name).certificates[4] for name in ("method", "full"))
    assert held.holds
    assert not broken.holds
    assert not broken.proven
    assert broken.recovery.low < broken.recovery.value < broken.recovery.high
    recoveries = [row(found, "full").by_quantizer["rtn-4bit-g128"].metrics[m].recovery.value for m in
                  ("verbmem_f", "knowmem_f")]  # fmt: skip
    assert broken.recovery.value == max(recoveries)
    assert held.proven == (held.recovery.high <= 0.10)


def test_a_seed_of_an_entry_that_is_not_here_stands_for_itself() -> None:
    found = rank(plan("method-s1", LORA, "nowhere"), OTHER)
    assert at(found, "method-s1").rank is not None
    assert at(found, "method-s1").seeds is None


def test_neither_names_nor_the_order_of_rows_move_the_spread(board: Board) -> None:
    plans = [FIRST, plan("method-s1", shifted(3), "method"), plan("method-s2", shifted(9), "method"), OTHER]
    turned = ranking.rank(list(reversed(cells(*plans))), "mini")
    assert at(turned, "method").seeds.remaining == at(board, "method").seeds.remaining


def test_rows_show_seeds_beside_the_interval_of_documents(board: Board) -> None:
    shown = {row["submission"]: row for row in table_rows.ranked_rows(board, 4)}
    assert shown["method"]["seeds"] == 3
    assert shown["method"]["seeds_rho_low"] < shown["method"]["seeds_rho"] < shown["method"]["seeds_rho_high"]
    assert shown["method"]["seeds_durable"] == 3
    assert shown["other"]["seeds"] is None


def test_families_are_named_by_the_first_seed() -> None:
    board = rank(FIRST, OTHER)
    judged = [replace_seed(board, name, of) for name, of in (("method", None), ("other", "method"))]
    assert seeds.families(judged) == {"method": ("method", "other")}
    assert seeds.families([replace_seed(board, "other", "other")]) == {}


def replace_seed(board: Board, name: str, seed_of: str | None) -> Any:
    from harness.publish.ranking.worst_case import Judged

    found = row(board, name)
    return Judged(
        submission=replace(found.submission, seed_of=seed_of), by_quantizer=found.by_quantizer, draws={}
    )  # fmt: skip
