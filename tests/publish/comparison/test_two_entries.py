"""Two entries side by side: the numbers are paired, the sentences claim no more than the numbers hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, FULL, LORA, Plan

from harness.errors import InputError, UnknownNameError
from harness.publish.comparison import sentences, two_entries
from harness.publish.comparison.two_entries import Comparison, Difference, Quantity
from harness.publish.ranking import rank as ranking
from harness.publish.statistics.quantities import Estimate, resample
from harness.records import CellResult

QUANTIZERS = ("reference", "rtn-4bit-g128", "bnb-nf4", "rtn-8bit-g128")
DESTROYED = synthetic.flat((4, 1, 1, 9))


@pytest.fixture(scope="module")
def cells() -> list[CellResult]:
    plans = [
        *CONTROLS, Plan(name="lora", levels=LORA, kind="lora_adapter"), Plan(name="full", levels=FULL),
        Plan(name="twin", levels=LORA, kind="lora_adapter"), Plan(name="destroyed", levels=DESTROYED),
        Plan(name="plain", levels=LORA, target="mini-target-plain"),
    ]  # fmt: skip
    return synthetic.cells(plans, quantizers=QUANTIZERS)


@pytest.fixture(scope="module")
def pair(cells: list[CellResult]) -> Comparison:
    return two_entries.compare(cells, ["lora", "full"], 4)[0]


def of(comparison: Comparison, quantizer: str, metric: str, quantity: Quantity) -> Difference:
    (found,) = [
        one for one in comparison.differences
        if (one.quantizer, one.metric, one.quantity) == (quantizer, metric, quantity)
    ]  # fmt: skip
    return found


def drawn(cells: Sequence[CellResult], name: str, quantizer: str, metric: str) -> np.ndarray:
    cell = next(
        c for c in cells
        if (c.cell.submission, c.cell.quantizer) == (name, quantizer) and c.cell.task.endswith(metric)
    )  # fmt: skip
    found = resample(cell, metric)
    assert found is not None
    return found.draws


def test_differences_are_paired_on_the_same_resamples(cells: list[CellResult], pair: Comparison) -> None:
    found = of(pair, "rtn-4bit-g128", "verbmem_f", "score")
    apart = drawn(cells, "lora", "rtn-4bit-g128", "verbmem_f") - drawn(cells, "full", "rtn-4bit-g128", "verbmem_f")
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])))
    assert found.difference.value == pytest.approx(found.first - found.second)


def test_what_was_recovered_is_the_change_from_each_ones_own_16_bit_cell(pair: Comparison) -> None:
    found = of(pair, "rtn-4bit-g128", "verbmem_f", "recovered")
    lora, full = pair.first.by_quantizer["rtn-4bit-g128"], pair.second.by_quantizer["rtn-4bit-g128"]
    assert found.first == pytest.approx(lora.metrics["verbmem_f"].change.value)
    assert found.second == pytest.approx(full.metrics["verbmem_f"].change.value)


def test_remaining_shares_are_those_of_the_board(pair: Comparison) -> None:
    found = of(pair, "bnb-nf4", "knowmem_f", "remaining share")
    assert found.first == pair.first.by_quantizer["bnb-nf4"].metrics["knowmem_f"].rho.value
    assert found.scale == 1.0


def test_privleak_is_compared_by_its_distance_from_0(pair: Comparison) -> None:
    found = of(pair, "rtn-4bit-g128", "privleak", "distance from 0")
    assert found.first > 0
    assert found.first == pytest.approx(abs(pair.first.by_quantizer["rtn-4bit-g128"].metrics["privleak"].score.value))
    assert found.difference.value < 0


def test_at_16_bit_there_is_nothing_to_recover(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare(cells, ["lora", "full"], 16)
    assert {one.quantity for one in found.differences} == {"score", "remaining share", "distance from 0"}


def test_only_quantizers_of_the_width_are_compared(pair: Comparison) -> None:
    assert pair.quantizers == ("bnb-nf4", "rtn-4bit-g128")
    assert pair.bits == 4


def test_p_values_are_adjusted_for_all_differences_of_the_two(pair: Comparison) -> None:
    least = 2 / 10_001
    assert min(one.p for one in pair.differences) == pytest.approx(len(pair.differences) * least)


def test_the_first_of_several_is_compared_with_each_of_the_others(cells: list[CellResult]) -> None:
    found = two_entries.compare(cells, ["lora", "full", "twin", "destroyed"], 4)
    assert [one.second.submission.name for one in found] == ["full", "twin", "destroyed"]
    assert {one.first.submission.name for one in found} == {"lora"}


def test_the_other_way_round_every_difference_is_mirrored(cells: list[CellResult], pair: Comparison) -> None:
    (back,) = two_entries.compare(cells, ["full", "lora"], 4)
    for one, other in zip(pair.differences, back.differences, strict=True):
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.p == pytest.approx(other.p)


def test_other_entries_in_the_store_change_nothing(cells: list[CellResult], pair: Comparison) -> None:
    alone = [c for c in cells if c.submission.role != "entry" or c.cell.submission in ("lora", "full")]
    assert two_entries.compare(alone, ["lora", "full"], 4)[0].differences == pair.differences


@pytest.mark.parametrize(
    ("names", "bits", "error", "said"),
    [
        (["lora"], 4, InputError, "name 2 to 4 different submissions"),
        (["lora", "lora"], 4, InputError, "name 2 to 4 different submissions"),
        (["a", "b", "c", "d", "e"], 4, InputError, "name 2 to 4 different submissions"),
        (["lora", "ful"], 4, UnknownNameError, "did you mean full"),
        (["lora", "full"], 3, InputError, "No quantizer of 3 bit was measured for both lora and full: name another"),
    ],
)
def test_what_can_not_be_compared_is_answered_with_one_sentence(
    cells: list[CellResult], names: list[str], bits: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as raised:
        two_entries.compare(cells, names, bits)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_submissions_of_two_corpora_are_not_compared(cells: list[CellResult]) -> None:
    moved = [replace(c, corpus="books") if c.cell.submission == "full" else c for c in cells]
    with pytest.raises(InputError, match="of different corpora can't be compared: lora is of mini, full is of books"):
        two_entries.compare(moved, ["lora", "full"], 4)


def test_submissions_without_a_common_cell_are_told_to_run(cells: list[CellResult]) -> None:
    left = [c for c in cells if c.cell.submission != "full" or c.status != "finished"]
    failed = [replace(c, status="failed", scores=()) for c in cells if c.cell.submission == "full"]
    with pytest.raises(InputError, match="run them first"):
        two_entries.compare([*left, *failed], ["lora", "full"], 4)


# Sentences.


def test_the_sentence_says_how_much_less_returns_and_what_is_left(pair: Comparison) -> None:
    said = sentences.sentences(pair)
    sentence = next(one for one in said if one.startswith("Under rtn-4bit-g128: "))
    found = of(pair, "rtn-4bit-g128", "verbmem_f", "recovered").difference
    assert f"lora recovers {-100 * found.high:.0f} to {-100 * found.low:.0f} points less of VerbMem" in sentence
    assert "less of KnowMem than full" in sentence
    assert "lora is left with" in sentence
    assert sentence.endswith(".")


def test_the_summary_counts_the_quantizers(pair: Comparison) -> None:
    summary = sentences.sentences(pair)[0]
    assert summary.startswith("lora against full at 4 bit, over 2 quantizers. VerbMem recovered: less under 1, ")
    assert "no difference claimed under 1" in summary


def test_of_twins_nothing_is_claimed(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare(cells, ["lora", "twin"], 4)
    said = " ".join(sentences.sentences(found))
    assert "cannot be told apart" in said
    for claim in ("points less", "points more", "points lower", "points higher", "closer to 0"):
        assert claim not in said


def test_a_destroyed_model_is_called_so_before_anyone_praises_it(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare(cells, ["destroyed", "full"], 4)
    said = sentences.sentences(found)
    assert any(one.startswith("But destroyed is collapsed under bnb-nf4, rtn-4bit-g128") for one in said)


def test_models_of_other_targets_are_marked(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare(cells, ["lora", "plain"], 4)
    assert any("unlearned from mini-target-4bit and plain from mini-target-plain" in one
               for one in sentences.sentences(found))  # fmt: skip


def test_a_control_may_be_compared_and_needs_no_caution(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare(cells, ["lora", "mini-retrain"], 4)
    assert {one.quantity for one in found.differences} == {"score", "recovered", "distance from 0"}
    assert not any("mini-retrain can't" in one for one in sentences.sentences(found))


def test_changed_code_is_named(cells: list[CellResult]) -> None:
    dirty = [
        replace(c, provenance=replace(c.provenance, dirty=True)) if c.cell.submission == "full" else c for c in cells
    ]
    (found,) = two_entries.compare(dirty, ["lora", "full"], 4)
    assert any("Results of full" in one and "uncommitted" in one for one in sentences.sentences(found))


def test_what_had_not_been_forgotten_is_named(cells: list[CellResult]) -> None:
    (found,) = two_entries.compare([*cells, *named(cells)], ["lora", "never"], 4)
    said = sentences.sentences(found)
    assert any(one.startswith("never had not forgotten VerbMem and KnowMem at 16 bit") for one in said)


def named(cells: list[CellResult]) -> list[CellResult]:
    return synthetic.cells([Plan(name="never", levels=synthetic.TARGET)], quantizers=QUANTIZERS)


@pytest.mark.parametrize(
    ("low", "high", "p", "claimed"),
    [
        (-0.2, -0.1, 0.01, True),
        (0.1, 0.2, 0.05, True),
        (0.1, 0.2, 0.06, False),
        (-0.1, 0.2, 0.01, False),
        (None, None, 0.001, False),
    ],
)
def test_a_claim_needs_the_interval_and_the_adjusted_test(
    low: float | None, high: float | None, p: float, claimed: bool
) -> None:
    one = Difference(
        quantizer="q", metric="verbmem_f", quantity="score", first=0.1, second=0.2, p=p,
        difference=Estimate(value=0.1, low=low, high=high),
    )  # fmt: skip
    assert sentences.told_apart(one) is claimed


def test_rows_are_flat_json_in_points_and_keep_the_sentences(pair: Comparison) -> None:
    said = sentences.sentences(pair)
    rows = two_entries.rows(pair, said)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len({tuple(row) for row in rows}) == 1
    assert set(two_entries.COLUMNS) <= set(rows[0])
    first = rows[0]
    one = pair.differences[0]
    assert first["difference"] == pytest.approx(100 * one.difference.value)
    assert first["difference_low"] <= first["difference"] <= first["difference_high"]
    assert first["sentences"] == said


def test_comparing_leaves_the_boards_verdicts_as_they_are(cells: list[CellResult], pair: Comparison) -> None:
    board = ranking.rank(cells, "mini")
    for row in (pair.first, pair.second):
        whole = next(one for one in board.rows if one.submission.name == row.submission.name)
        assert {q: r.verdict for q, r in row.by_quantizer.items()} == {
            q: r.verdict for q, r in whole.by_quantizer.items()
        }
