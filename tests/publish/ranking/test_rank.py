"""Ranking, one test per rule, each with what would break it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, FULL, LORA, RETRAIN, TARGET, Plan, control

from harness.publish.board import Board, WidthResult
from harness.publish.ranking import rank as ranking
from harness.records import CellResult, Score

AT_4 = ("reference", "rtn-4bit-g128", "bnb-nf4")
LORA_PLAN = Plan(name="lora", levels=LORA, kind="lora_adapter")
FULL_PLAN = Plan(name="full", levels=FULL)


def rank(*plans: Plan, quantizers: Sequence[str] = AT_4, controls: Sequence[Plan] = CONTROLS) -> Board:
    return ranking.rank(synthetic.cells([*controls, *plans], quantizers=quantizers), "mini")


def at(board: Board, name: str, bits: int = 4) -> WidthResult:
    return next(row for row in board.rows if row.submission.name == name).by_bits[bits]


def test_the_demo_board_tells_the_story(board: Board) -> None:
    assert board.widths == (16, 8, 4, 3, 2)
    assert board.headline_bits == 4
    full, lora = at(board, "ga-gdr-full"), at(board, "ga-gdr-lora")
    assert full.verdict.word == "reverts"
    assert full.quantizer == "rtn-4bit-g128"
    assert full.remaining.value > 0.8
    assert at(board, "ga-gdr-full", 16).remaining.value < 0.25
    assert lora.verdict.word == "holds"
    assert lora.rank == 1
    assert "holds under bnb-nf4" in full.verdict.reason
    assert at(board, "ga-gdr-full-plain").verdict.word == "holds"


def test_ranked_entries_stand_by_worst_remaining_share_and_tiers_never_fall(board: Board) -> None:
    for bits in board.widths:
        results = [row.by_bits[bits] for row in board.ranked(bits)]
        assert [result.rank for result in results] == list(range(1, len(results) + 1))
        assert [result.tier for result in results] == sorted(result.tier for result in results)
        tiers = {tier: [r.remaining.value for r in results if r.tier == tier] for tier in {r.tier for r in results}}
        for tier in sorted(tiers)[:-1]:
            assert max(tiers[tier]) < min(tiers[tier + 1]) or min(tiers[tier]) < min(tiers[tier + 1])


def test_inside_a_tier_utility_decides(board: Board) -> None:
    for bits in board.widths:
        ranked = [row.by_bits[bits] for row in board.ranked(bits)]
        for one, two in itertools.pairwise(ranked):
            if one.tier == two.tier:
                assert one.utility_share.value >= two.utility_share.value


def test_entries_that_can_be_told_apart_stand_in_different_tiers() -> None:
    board = rank(LORA_PLAN, replace(LORA_PLAN, name="lora-twin"), FULL_PLAN)
    assert at(board, "lora").tier == at(board, "lora-twin").tier == 1
    assert at(board, "full").tier == 2


def test_the_worst_backend_counts_and_another_one_would_have_won() -> None:
    assert at(rank(FULL_PLAN), "full").verdict.word == "reverts"
    assert at(rank(FULL_PLAN, quantizers=("reference", "bnb-nf4")), "full").verdict.word == "holds"


def test_each_metric_has_a_worst_case_of_its_own(board: Board) -> None:
    worst = at(board, "ga-gdr-full").by_metric
    assert set(worst) == {"verbmem_f", "knowmem_f"}
    row = next(row for row in board.rows if row.submission.name == "ga-gdr-full")
    for metric, case in worst.items():
        shares = [row.by_quantizer[name].metrics[metric].rho.value for name in board.quantizers_at(4)]
        assert case.result.rho.value == max(shares)


def test_a_collapse_under_one_backend_costs_the_rank_at_that_width_only() -> None:
    broken = {**LORA, "bnb-nf4": (18, 8, 25, -30)}
    board = rank(Plan(name="brittle", levels=broken), LORA_PLAN)
    assert at(board, "brittle").rank is None
    assert at(board, "brittle").verdict.word == "collapsed"
    assert at(board, "brittle").unranked_reason.startswith("bnb-nf4: utility is 0.")
    assert at(board, "brittle", 16).rank is not None


def test_utility_is_measured_against_the_quantized_target_not_the_16_bit_one() -> None:
    weak = {name: (values if name != "bnb-nf4" else (97, 79, 40, -96)) for name, values in TARGET.items()}
    controls = (control("mini-target-4bit", "target", weak), control("mini-retrain", "retrain", RETRAIN))
    low = {**LORA, "bnb-nf4": (21, 8, 38, -58)}
    assert at(rank(Plan(name="low", levels=low), controls=controls), "low").rank == 1
    assert at(rank(Plan(name="low", levels=low)), "low").verdict.word == "collapsed"


def test_a_model_with_degenerate_answers_is_collapsed() -> None:
    cells = synthetic.cells([*CONTROLS, LORA_PLAN], quantizers=AT_4)
    changed = [
        replace(cell, scores=tuple(replace(s, value=0.6) if s.metric == "degenerate" else s for s in cell.scores))
        if cell.cell.submission == "lora" and cell.cell.task.endswith("knowmem_r") and cell.spec.bits == 4 else cell
        for cell in cells
    ]  # fmt: skip
    assert at(ranking.rank(changed, "mini"), "lora").verdict.word == "collapsed"


def test_an_invalid_document_collapses_its_cell() -> None:
    def spoil(cell: CellResult) -> CellResult:
        if cell.cell.submission != "lora" or cell.cell.quantizer != "bnb-nf4" or "privleak" not in cell.cell.task:
            return cell
        first = replace(cell.documents[0], invalid_reason="log-probabilities are not finite", scores={})
        return replace(cell, documents=(first, *cell.documents[1:]))

    found = at(
        ranking.rank([spoil(cell) for cell in synthetic.cells([*CONTROLS, LORA_PLAN], quantizers=AT_4)], "mini"), "lora"
    )
    assert found.verdict.word == "collapsed"
    assert "1 document could not be scored" in found.unranked_reason


def test_what_had_never_forgotten_has_no_rank_and_says_how_much_remained() -> None:
    found = at(rank(Plan(name="noop", levels=TARGET), LORA_PLAN), "noop")
    assert found.verdict.word == "never forgot"
    assert found.rank is None
    assert "had not forgotten at 16 bit" in found.unranked_reason
    assert "of VerbMem remains" in found.unranked_reason


def test_a_metric_that_had_never_been_forgotten_does_not_decide_the_verdict(board: Board) -> None:
    found = at(board, "text-only-lora")
    assert found.verdict.word == "holds"
    assert found.verdict.basis == "VerbMem; KnowMem never forgot"
    assert found.metric == "knowmem_f"


def test_a_limited_run_is_shown_unranked_and_never_takes_the_place_of_a_whole_one() -> None:
    board = rank(replace(LORA_PLAN, limit=4))
    assert "--limit 4" in at(board, "lora").unranked_reason
    assert at(board, "lora").verdict.word == "not measured"
    later = replace(LORA_PLAN, limit=4, created_at="2026-12-01T00:00:00+00:00")
    assert at(rank(LORA_PLAN, later), "lora").rank == 1


def test_results_from_a_dirty_tree_have_no_rank_be_they_the_entrys_or_a_controls() -> None:
    assert "uncommitted changes" in at(rank(replace(LORA_PLAN, dirty=True)), "lora").unranked_reason
    dirty = tuple(replace(plan, dirty=plan.role == "retrain") for plan in CONTROLS)
    assert "uncommitted changes" in at(rank(LORA_PLAN, controls=dirty), "lora").unranked_reason
    assert at(rank(LORA_PLAN), "lora").unranked_reason is None


def test_a_missing_backend_costs_the_rank_and_the_entry_is_placed_among_those_measured_alike() -> None:
    partial = replace(LORA_PLAN, name="partial", drop=frozenset(("bnb-nf4", metric) for metric in synthetic.DOCUMENTS))
    board = rank(partial, LORA_PLAN, FULL_PLAN)
    reason = at(board, "partial").unranked_reason
    assert reason.startswith("partial is not measured under bnb-nf4; on rtn-4bit-g128 alone it is number ")
    assert reason.endswith("of 3")
    assert at(board, "partial", 16).rank is not None


def test_a_failed_cell_is_the_reason_with_its_own_words(board: Board) -> None:
    reason = at(board, "npo-crashed").unranked_reason
    assert "knowmem_f of npo-crashed under bnb-nf4 failed: The proof of model.layers.3.mlp.up_proj fails" in reason


def test_a_backend_counts_only_where_both_controls_are_measured() -> None:
    controls = tuple(
        replace(plan, drop=frozenset(("bnb-nf4", metric) for metric in synthetic.DOCUMENTS))
        if plan.role == "retrain" else plan
        for plan in CONTROLS
    )  # fmt: skip
    found = at(rank(LORA_PLAN, controls=controls), "lora")
    assert found.quantizers == ("rtn-4bit-g128",)
    assert found.rank == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, "names no target"),
        ({"target": "mini-nobody"}, "its target mini-nobody is not measured under"),
    ],
)
def test_an_entry_without_its_own_controls_says_which(change: dict[str, object], said: str) -> None:
    assert said in at(rank(replace(LORA_PLAN, **change)), "lora").unranked_reason  # type: ignore[arg-type]


def test_without_any_controls_nothing_is_ranked() -> None:
    board = rank(LORA_PLAN, controls=())
    assert at(board, "lora").rank is None
    assert "its target mini-target-4bit is not measured" in at(board, "lora").unranked_reason
    assert "can be ranked yet" in board.sentence


def test_each_entry_is_compared_with_its_own_target() -> None:
    weak = synthetic.flat((60, 40, 82, -90))
    controls = (*CONTROLS[:1], control("mini-target-plain", "target", weak), CONTROLS[2])
    same = synthetic.flat((40, 22, 75, -50))
    board = rank(
        Plan(name="of-strong", levels=same), Plan(name="of-weak", levels=same, target="mini-target-plain"),
        controls=controls,
    )  # fmt: skip
    assert at(board, "of-weak", 16).remaining.value > at(board, "of-strong", 16).remaining.value + 0.1


def test_the_only_retrained_model_is_the_default_and_two_are_ambiguous() -> None:
    unnamed = replace(LORA_PLAN, more={"retrain": None})
    assert at(rank(unnamed), "lora").rank == 1
    two = (*CONTROLS, control("mini-retrain-2", "retrain", RETRAIN))
    assert "names no retrained model" in at(rank(unnamed, controls=two), "lora").unranked_reason


def test_the_newest_finished_result_of_a_cell_counts() -> None:
    newer = replace(FULL_PLAN, levels=LORA, created_at="2026-12-01T00:00:00+00:00")
    assert at(rank(FULL_PLAN, newer), "full").verdict.word == "holds"
    assert at(rank(newer, FULL_PLAN), "full").verdict.word == "holds"
    failed_later = replace(
        FULL_PLAN, created_at="2026-12-01T00:00:00+00:00",
        fail=frozenset((q, m) for q in AT_4 for m in synthetic.DOCUMENTS),
    )  # fmt: skip
    assert at(rank(FULL_PLAN, failed_later), "full").verdict.word == "reverts"


def test_results_of_an_older_scoring_version_are_not_compared() -> None:
    def older(cell: CellResult) -> CellResult:
        if cell.cell.submission != "full":
            return cell
        return replace(cell, provenance=replace(cell.provenance, scoring_version=0))

    cells = [older(cell) for cell in synthetic.cells([*CONTROLS, FULL_PLAN, LORA_PLAN], quantizers=AT_4)]
    board = ranking.rank(cells, "mini")
    assert "has scoring version 0, the board 1" in at(board, "full").unranked_reason
    assert at(board, "lora").rank == 1


def test_a_quantizer_that_ruins_the_target_has_no_remaining_share() -> None:
    gone = {**TARGET, "rtn-2bit-g128": (9, 1, 54, -10)}
    controls = (control("mini-target-4bit", "target", gone), CONTROLS[2])
    board = rank(LORA_PLAN, quantizers=("reference", "rtn-2bit-g128"), controls=controls)
    found = at(board, "lora", 2)
    assert found.remaining is None
    assert found.rank is None
    assert found.verdict.word == "unclear"
    assert "damages the target too much to tell" in found.unranked_reason


def test_privleak_is_shown_with_its_own_worst_case_and_moves_no_rank() -> None:
    worse = {**LORA, "bnb-nf4": (21, 8, 70, -95)}
    board = rank(LORA_PLAN, replace(LORA_PLAN, name="leaky", levels=worse))
    assert at(board, "leaky").privleak_quantizer == "bnb-nf4"
    assert at(board, "leaky").privleak.value < -85
    assert at(board, "leaky").tier == at(board, "lora").tier


def test_an_entry_lacks_privleak_only_where_its_controls_have_it() -> None:
    drop = frozenset({("bnb-nf4", "privleak")})
    assert "privleak" in at(rank(replace(LORA_PLAN, fail=drop)), "lora").unranked_reason
    controls = tuple(replace(plan, drop=drop) for plan in CONTROLS)
    assert at(rank(replace(LORA_PLAN, drop=drop), controls=controls), "lora").rank == 1


def test_durability_names_the_widths_at_which_nothing_recovers(board: Board) -> None:
    durable = {row.submission.name: row.durable_bits for row in board.rows}
    assert 4 not in durable["ga-gdr-full"]
    assert {8, 4} <= set(durable["ga-gdr-lora"])
    assert durable["ga-lora-long"] == ()  # destroyed, not durable


def test_changes_are_paired_with_the_entrys_own_16_bit_cell(board: Board) -> None:
    row = next(row for row in board.rows if row.submission.name == "ga-gdr-full")
    now, before = (row.by_quantizer[name].metrics["verbmem_f"] for name in ("rtn-4bit-g128", "reference"))
    assert now.change.value == pytest.approx(now.score.value - before.score.value)
    assert before.change is None
    assert now.recovery.value == pytest.approx(now.rho.value - before.rho.value)


def test_models_that_answered_different_documents_are_not_compared() -> None:
    def other_questions(cell: CellResult) -> CellResult:
        if cell.cell.submission != "lora":
            return cell
        return replace(cell, documents=tuple(replace(d, prompt_sha256=f"x{d.index}") for d in cell.documents))

    cells = [other_questions(cell) for cell in synthetic.cells([*CONTROLS, LORA_PLAN], quantizers=AT_4)]
    found = at(ranking.rank(cells, "mini"), "lora")
    assert found.rank is None
    assert "answered different documents" in found.verdict.reason


def test_a_finished_cell_without_a_value_is_missing_with_its_reason() -> None:
    def empty(cell: CellResult) -> CellResult:
        if cell.cell.submission != "lora" or "verbmem" not in cell.cell.task or cell.spec.bits != 4:
            return cell
        return replace(cell, scores=(Score(metric="verbmem_f", value=None, num_docs=0, missing_reason="no text"),))

    cells = [empty(cell) for cell in synthetic.cells([*CONTROLS, LORA_PLAN], quantizers=AT_4)]
    assert "has no value: no text" in at(ranking.rank(cells, "mini"), "lora").unranked_reason


def test_ranking_is_the_same_in_any_order_of_the_cells(board: Board, demo_cells: list[CellResult]) -> None:
    assert ranking.rank(list(reversed(demo_cells)), "mini").sentence == board.sentence
    again = ranking.rank(list(reversed(demo_cells)), "mini")
    assert [row.by_bits for row in again.rows] == [row.by_bits for row in board.rows]


def test_cells_of_other_corpora_are_left_out() -> None:
    other = synthetic.cells([LORA_PLAN], corpus="news", quantizers=AT_4)
    board = ranking.rank([*synthetic.cells([*CONTROLS, FULL_PLAN], quantizers=AT_4), *other], "mini")
    assert [row.submission.name for row in board.rows] == ["full"]


def test_an_empty_store_is_an_empty_board() -> None:
    board = ranking.rank([], "mini")
    assert board.rows == board.controls == ()
    assert board.sentence == "No entry has been measured on MINI yet."


@pytest.mark.parametrize(
    ("plans", "quantizers", "sentence", "detail"),
    [
        (
            (LORA_PLAN, FULL_PLAN), AT_4, "At 4 bit, 1 of 2 useful entries on MINI still forgets; it keeps ",
            "The full-parameter entry gives back what it had forgotten, the LoRA entry does not.",
        ),
        (
            (FULL_PLAN, replace(FULL_PLAN, name="full-2")), AT_4,
            "At 4 bit, none of the 2 useful entries on MINI provably still forgets under every backend.",
            "Both full-parameter entries give back what they had forgotten.",
        ),
        (
            (LORA_PLAN, FULL_PLAN), ("reference", "rtn-8bit-g128"),
            "At 8 bit, 2 of 2 useful entries on MINI still forget; ",
            "Nothing that had been forgotten provably comes back.",
        ),
        ((replace(FULL_PLAN, dirty=True),), AT_4, "At 4 bit no entry on MINI can be ranked yet: made from a tree", ""),
    ],
)  # fmt: skip
def test_the_verdict_sentence_is_counted(plans, quantizers, sentence, detail) -> None:  # type: ignore[no-untyped-def]
    board = rank(*plans, quantizers=quantizers)
    assert board.sentence.startswith(sentence)
    assert board.detail == detail
