"""Entries that are not what they say, and honest ones that only look like it: flags, and who keeps a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, LORA, RETRAIN, TARGET, Plan

from harness.publish.board import Board
from harness.publish.ranking import rank as ranking
from harness.publish.thresholds import FAR_UPDATE, NO_UPDATE, REFUSALS
from harness.quantize.survival.measure import ALL_LAYERS
from harness.records import CellResult, LayerSurvival

AT_4 = ("reference", "rtn-4bit-g128")
DIGEST = "5" * 64
ONE, TWO = Plan(name="one", levels=LORA, kind="lora_adapter"), Plan(name="two", levels=LORA, kind="lora_adapter")
TARGET_NAME, RETRAIN_NAME = "mini-target-4bit", "mini-retrain"
Change = Callable[[CellResult], CellResult]
Told = Sequence[tuple[str, bool]]


def honest(plans: Sequence[Plan] = (ONE, TWO)) -> list[CellResult]:
    return synthetic.cells([CONTROLS[0], CONTROLS[2], *plans], quantizers=AT_4)


def changed(cells: Sequence[CellResult], name: str, change: Change) -> list[CellResult]:
    return [change(cell) if cell.cell.submission == name else cell for cell in cells]


def manifest(**fields: Any) -> Change:
    return lambda cell: replace(cell, submission=replace(cell.submission, **fields))


def made_at(time: str) -> Change:
    return lambda cell: replace(cell, provenance=replace(cell.provenance, created_at=time))


def answers(say: Callable[[int, str], str], metrics: Sequence[str] = ("verbmem_f", "knowmem_f", "knowmem_r")) -> Change:
    """Changes the texts of answers, never a score: flags must look at what a model says."""

    def change(cell: CellResult) -> CellResult:
        if not cell.cell.task.endswith(tuple(metrics)):
            return cell
        documents = [replace(one, response=say(number, one.response)) for number, one in enumerate(cell.documents)]
        return replace(cell, documents=tuple(documents))

    return change  # fmt: skip


def update(norm: float) -> Change:
    """Gives an entry an update of one norm in all layers together."""
    pooled = LayerSurvival(
        layer=ALL_LAYERS, codes_changed=0.0, update_in_steps=None, relative_update=norm, survival_ratio=None,
        cosine=None, num_weights=1,
    )  # fmt: skip
    return lambda cell: replace(cell, survival=(pooled, *cell.survival)) if cell.survival else cell


def like(cells: Sequence[CellResult], other: str, *, texts: bool = False, norms: float | None = None) -> Change:
    """Gives an entry the answers of another one, or norms of an update that are that many times the other's."""
    theirs = {(cell.cell.quantizer, cell.cell.task): cell for cell in cells if cell.cell.submission == other}

    def change(cell: CellResult) -> CellResult:
        source = theirs[cell.cell.quantizer, cell.cell.task]
        if texts:
            documents = zip(cell.documents, source.documents, strict=True)
            cell = replace(cell, documents=tuple(replace(own, response=said.response) for own, said in documents))
        if norms is not None:
            layers = [replace(layer, relative_update=norms * layer.relative_update) for layer in source.survival]
            cell = replace(cell, survival=tuple(layers))
        return cell

    return change


def told(cells: Sequence[CellResult], name: str = "two") -> Told:
    row = row_of(ranking.rank(cells, "mini"), name)
    return [(flag.word, flag.decisive) for flag in row.flags]


def row_of(board: Board, name: str) -> Any:
    return next(row for row in board.rows if row.submission.name == name)


def test_honest_entries_have_no_flag_and_a_rank_each() -> None:
    board = ranking.rank(honest(), "mini")
    assert [row.flags for row in board.rows] == [(), ()]
    assert {row.by_bits[4].rank for row in board.rows} == {1, 2}


SAME = {"weights_sha256": DIGEST, "base_model": TARGET_NAME}


@pytest.mark.parametrize(
    ("times", "copy", "first"),
    [({"one": "2026-12-02", "two": "2026-12-01"}, "one", "two"), ({}, "two", "one")],
    ids=["the younger one", "the later name where both are equally old"],
)
def test_of_two_entries_with_the_same_weights_one_has_no_rank(times: dict[str, str], copy: str, first: str) -> None:
    cells = changed(changed(honest(), "one", manifest(**SAME)), "two", manifest(**SAME))
    for name, time in times.items():
        cells = changed(cells, name, made_at(f"{time}T00:00:00+00:00"))
    board = ranking.rank(cells, "mini")
    at = row_of(board, copy).by_bits[4]
    assert at.rank is None
    assert f"the same digest as those of {first}, which was there before" in at.unranked_reason
    assert row_of(board, first).by_bits[4].rank == 1
    assert row_of(board, first).flags == ()


def test_a_control_was_there_first_however_young_it_is() -> None:
    cells = changed(honest(), TARGET_NAME, manifest(**SAME))
    cells = changed(changed(cells, TARGET_NAME, made_at("2027-01-01T00:00:00+00:00")), "two", manifest(**SAME))
    assert ("same weights", True) in told(cells)


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": "6" * 64}, {"weights_sha256": None}, {"base_revision": "7" * 40},
        {"kind": "full_model", "base_model": None},
    ],
    ids=["another digest", "no digest stated", "another revision of the base", "another base"],
)  # fmt: skip
def test_other_weights_are_not_called_the_same(other: Mapping[str, Any]) -> None:
    cells = changed(changed(honest(), "one", manifest(**SAME)), "two", manifest(**{**SAME, **other}))
    assert told(cells) == []


def test_an_update_that_is_rounding_and_changes_no_answer_is_decisive() -> None:
    cells = changed(honest(), "two", update(0.5 * NO_UPDATE))
    same = changed(cells, "two", like_the_target(cells))
    assert told(same) == [("no update", True)]
    reason = row_of(ranking.rank(same, "mini"), "two").by_bits[4].unranked_reason
    assert "gives the target's answer to 100% of the documents" in reason


def like_the_target(cells: Sequence[CellResult]) -> Change:
    return like(cells, TARGET_NAME, texts=True)


def test_an_update_that_is_rounding_in_the_blocks_alone_is_told_and_keeps_its_rank() -> None:
    cells = changed(honest(), "two", update(0.5 * NO_UPDATE))
    assert told(cells) == [("no update", False)]
    row = row_of(ranking.rank(cells, "mini"), "two")
    assert "yet answers differ" in row.flags[0].reason
    assert row.by_bits[4].rank is not None


def test_an_update_that_is_rounding_is_told_where_answers_can_t_be_compared() -> None:
    cells = changed(honest(), "two", update(0.5 * NO_UPDATE))
    unanswered = changed(cells, TARGET_NAME, lambda cell: replace(cell, documents=()))
    row = row_of(ranking.rank(unanswered, "mini"), "two")
    assert [(flag.word, flag.decisive) for flag in row.flags] == [("no update", False)]
    assert "answers" not in row.flags[0].reason


def test_the_target_resubmitted_is_told_from_its_answers_where_no_norm_is_known() -> None:
    cells = honest([Plan(name="two", levels=TARGET, kind="full_model")])
    source = {(c.cell.quantizer, c.cell.task): c for c in cells if c.cell.submission == TARGET_NAME}
    copied = changed(
        cells, "two",
        lambda cell: replace(
            cell, survival=(), documents=source[cell.cell.quantizer, cell.cell.task].documents,
            scores=source[cell.cell.quantizer, cell.cell.task].scores,
        ),
    )  # fmt: skip
    assert told(copied) == [("answers of a control", True)]


@pytest.mark.parametrize(
    ("texts", "norms", "expected"),
    [
        (True, 1.0, [("near-duplicate", True)]),
        (True, 1.0004, [("near-duplicate", True)]),
        (True, 1.01, [("near-duplicate", False)]),
        (True, None, [("near-duplicate", False)]),
        (False, 1.0, [("near-duplicate", False)]),
        (False, 1.01, []),
    ],
    ids=["both", "both but for noise", "answers, other norms", "answers alone", "norms alone", "neither"],
)
def test_a_near_duplicate_needs_answers_and_norms_to_lose_its_rank(
    texts: bool, norms: float | None, expected: Told
) -> None:
    cells = honest()
    cells = changed(cells, "two", like(cells, "one", texts=texts, norms=norms))
    assert told(cells) == expected
    assert told(cells, "one") == []
    assert (row_of(ranking.rank(cells, "mini"), "two").by_bits[4].rank is None) == (
        ("near-duplicate", True) in expected
    )


def test_one_document_in_ten_answered_otherwise_is_no_near_duplicate() -> None:
    cells = changed(honest(), "two", like(honest(), "one", texts=True))
    assert told(changed(cells, "two", answers(lambda number, said: f"{said}!" if number % 10 == 0 else said))) == []
    nearly = changed(cells, "two", answers(lambda number, said: f"{said}!" if number % 50 == 0 else said))
    assert told(nearly) == [("near-duplicate", False)]


def test_updates_of_one_norm_on_two_targets_are_not_compared() -> None:
    cells = honest()
    cells = changed(cells, "two", like(cells, "one", norms=1.0))
    other = changed(cells, "two", manifest(target="mini-target-plain", base_model="mini-target-plain"))
    assert told([*other, *synthetic.cells([CONTROLS[1]], quantizers=AT_4)]) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"base_model": RETRAIN_NAME}, [("other base", True)]),
        ({"base_model": "one"}, [("other base", False)]),
        ({"base_model": "somewhere-else"}, [("other base", False)]),
        ({"base_model": TARGET_NAME}, []),
        ({"base_model": "hf://owner/name", "base_revision": "1" * 40}, []),
        ({"base_model": RETRAIN_NAME, "kind": "full_model"}, []),
    ],
    ids=["the retrained model", "an entry", "unknown here", "the target", "the hub, target local", "no adapter"],
)
def test_an_adapter_on_another_base_than_its_target_is_told(fields: dict[str, Any], expected: Told) -> None:
    assert told(changed(honest(), "two", manifest(**fields))) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"weights": "hf://owner/name", "revision": "1" * 40}, []),
        ({"weights": "hf://owner/name", "revision": "2" * 40}, [("other base", False)]),
        ({"weights": "hf://owner/other", "revision": "1" * 40}, [("other base", False)]),
    ],
    ids=["the same commit", "another commit", "another repository"],
)
def test_a_hub_base_is_held_against_a_target_on_the_hub(target: dict[str, Any], expected: Told) -> None:
    cells = changed(honest(), "two", manifest(base_model="hf://owner/name", base_revision="1" * 40))
    assert told(changed(cells, TARGET_NAME, manifest(**target))) == expected


@pytest.mark.parametrize(("norm", "expected"), [(FAR_UPDATE + 0.1, [("far from its target", False)]), (0.3, [])])
def test_weights_far_from_those_of_the_target_are_told(norm: float, expected: Told) -> None:
    assert told(changed(honest(), "two", update(norm))) == expected


@pytest.mark.parametrize(
    ("name", "field", "values", "expected"),
    [
        ("two", "weights_sha256", ("1" * 64, "2" * 64), [("mixed weights", True)]),
        ("two", "revision", ("1" * 40, "2" * 40), [("mixed weights", True)]),
        (TARGET_NAME, "weights_sha256", ("1" * 64, "2" * 64), [("mixed weights", False)]),
        (RETRAIN_NAME, "weights_sha256", ("1" * 64, "2" * 64), [("mixed weights", False)]),
        ("two", "weights_sha256", (None, "2" * 64), []),
        ("one", "weights_sha256", ("1" * 64, "2" * 64), []),
        ("two", "notes", ("old", "new"), []),
    ],
    ids=["digests", "commits", "its target", "its control", "stated later", "another entry", "notes"],
)
def test_a_row_made_of_two_models_is_told(
    name: str, field: str, values: tuple[str | None, str | None], expected: Told
) -> None:
    at_16, at_4 = (manifest(**{field: value}) for value in values)
    cells = changed(honest(), name, lambda cell: (at_16 if cell.spec.bits == 16 else at_4)(cell))
    assert told(cells) == expected


def said_by(text: str, share: float, *, unique: bool = False) -> Change:
    return answers(
        lambda number, own: f"{text} {number if unique else ''}" if number % 100 < 100 * share else f"{number} {own}",
        metrics=["knowmem_f"],
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (said_by("brown otter", 1), [("one answer", False)]),
        (said_by("Brown  Otter", 0.6), [("one answer", False)]),
        (said_by("", 0.6), [("one answer", False)]),
        (said_by("brown otter", 0.3), []),
        (said_by("brown otter", 1, unique=True), []),
        (said_by("I don\u2019t know", 1), [("one answer", False), ("refusals", False)]),
        (said_by("Sorry, I can't help with number", 0.6, unique=True), [("refusals", False)]),
        (said_by("Sorry, I can't help with number", 0.3, unique=True), []),
        (said_by("She says: I don't know", 0.9, unique=True), []),
    ],
    ids=[
        "constant", "most, spelt alike", "empty", "a third", "all differ", "one refusal", "many refusals",
        "few refusals", "a refusal that is quoted",
    ],
)  # fmt: skip
def test_constant_answers_and_refusals_are_told_and_keep_their_rank(change: Change, expected: Told) -> None:
    cells = changed(honest(), "two", change)
    assert told(cells) == expected
    assert row_of(ranking.rank(cells, "mini"), "two").by_bits[4].rank is not None


@pytest.mark.parametrize("begin", REFUSALS)
def test_every_refusal_of_the_list_is_found_however_it_is_written(begin: str) -> None:
    assert ("refusals", False) in told(changed(honest(), "two", said_by(f" {begin.capitalize()}:", 1, unique=True)))


@pytest.mark.parametrize(("share", "expected"), [(0.8, [("degenerate", False)]), (0.3, [])])
def test_forgotten_answers_that_repeat_themselves_are_told(share: float, expected: Told) -> None:
    def change(cell: CellResult) -> CellResult:
        scores = [
            replace(score, value=share) if score.metric == "degenerate" and cell.cell.task.endswith("_verbmem_f")
            else score
            for score in cell.scores
        ]  # fmt: skip
        return replace(cell, scores=tuple(scores))

    assert told(changed(honest(), "two", change)) == expected


def test_an_entry_from_logs_is_not_held_against_anybody() -> None:
    cells = changed(honest(), "two", like(honest(), "one", texts=True, norms=1.0))
    logged = changed(cells, "two", lambda cell: replace(cell, origin="rescored from logs", survival=()))
    assert told(logged) == []


def test_a_quantized_checkpoint_is_judged_by_its_own_answers() -> None:
    cells = changed(honest(), "two", manifest(kind="quantized_checkpoint", base_model=None))
    cells = [c for c in cells if c.cell.submission != "two" or c.spec.bits == 4]
    assert told(changed(cells, "two", said_by("brown otter", 1))) == [("one answer", False)]


def test_no_flag_moves_a_score_and_only_decisive_ones_move_a_rank() -> None:
    plain = ranking.rank(honest(), "mini")
    cells = changed(changed(honest(), "two", said_by("no", 1)), "two", update(FAR_UPDATE + 1))
    flagged = ranking.rank(cells, "mini")
    barred = ranking.rank(changed(honest(), "two", manifest(base_model=RETRAIN_NAME)), "mini")
    for name in ("one", "two"):
        assert row_of(plain, name).by_bits == row_of(flagged, name).by_bits
        numbers = [
            {quantizer: result.metrics for quantizer, result in row_of(board, name).by_quantizer.items()}
            for board in (plain, barred)
        ]
        assert numbers[0] == numbers[1]
    assert row_of(barred, "one").by_bits[4].rank == 1
    assert row_of(barred, "two").by_bits[4].rank is None


def test_decisive_flags_come_first_and_the_first_is_the_reason() -> None:
    cells = changed(changed(honest(), "two", said_by("no", 1)), "two", manifest(base_model=RETRAIN_NAME))
    row = row_of(ranking.rank(cells, "mini"), "two")
    assert [flag.word for flag in row.flags] == ["other base", "one answer"]
    assert row.by_bits[4].unranked_reason == row.flags[0].reason


def test_the_retrained_model_as_an_entry_has_the_answers_of_a_control() -> None:
    cells = honest([Plan(name="two", levels=RETRAIN, kind="full_model")])
    source = {(c.cell.quantizer, c.cell.task): c for c in cells if c.cell.submission == RETRAIN_NAME}
    copied = changed(
        cells, "two",
        lambda cell: replace(
            cell, documents=source[cell.cell.quantizer, cell.cell.task].documents,
            scores=source[cell.cell.quantizer, cell.cell.task].scores,
        ),
    )  # fmt: skip
    assert told(copied) == [("answers of a control", True)]
