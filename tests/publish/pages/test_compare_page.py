from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic

from harness.publish.board import Board
from harness.publish.comparison import all_pairs
from harness.publish.formatting import ends, signed
from harness.publish.pages import compare as compare_page
from harness.publish.ranking import rank as ranking
from harness.publish.thresholds import FORGET_METRICS, UTILITY
from harness.records import CellResult

Gaps = dict[tuple[str, str], tuple[all_pairs.Gap, ...]]
_CALL = re.compile(r"quenchEntry\((\{.*\})\);\n")


@pytest.fixture(scope="module")
def gaps(page_cells: list[CellResult], page_board: Board) -> Gaps:
    return all_pairs.gaps(page_cells, page_board)


def entry_file(text: str) -> dict[str, Any]:
    found = _CALL.fullmatch(text)
    assert found is not None
    return json.loads(found.group(1))  # type: ignore[no-any-return]


def gap_of(gaps: Gaps, one: str, two: str, bits: int, quantity: str) -> all_pairs.Gap:
    key = (one, two) if (one, two) in gaps else (two, one)
    return next(gap for gap in gaps[key] if (gap.bits, gap.quantity) == (bits, quantity))


def test_every_two_measured_entries_are_paired_in_the_boards_order(gaps: Gaps, page_board: Board) -> None:
    names = [row.submission.name for row in all_pairs.compared(page_board)]
    assert set(gaps) <= set(combinations(names, 2))
    assert len(names) > 3
    assert "npo-limited" not in names


def test_a_gap_is_the_difference_of_what_the_board_shows(gaps: Gaps, page_board: Board) -> None:
    rows = {row.submission.name: row for row in page_board.rows}
    checked = 0
    for (one, two), between in gaps.items():
        for gap in between:
            shown = []
            for name in (one, two):
                at = rows[name].by_bits[gap.bits]
                if gap.quantity == all_pairs.REMAINING:
                    shown.append(at.remaining)
                elif gap.quantity == UTILITY:
                    shown.append(at.utility_share)
                else:
                    shown.append(at.by_metric[gap.quantity].result.rho)
            assert gap.difference.value == pytest.approx(shown[0].value - shown[1].value), (one, two, gap)  # type: ignore[union-attr]
            checked += 1
    assert checked > 20


def test_a_full_model_that_reverts_is_told_apart_from_a_lora_that_holds_but_not_at_16_bit(gaps: Gaps) -> None:
    at_4 = gap_of(gaps, "ga-gdr-full", "ga-gdr-lora", 4, "verbmem_f")
    at_16 = gap_of(gaps, "ga-gdr-full", "ga-gdr-lora", 16, "verbmem_f")
    assert at_4.claimed
    assert abs(at_4.difference.value) > 0.5
    assert not at_16.claimed
    assert at_4.p < at_16.p


def test_adjusted_p_values_are_no_smaller_than_those_of_fewer_tests(gaps: Gaps) -> None:
    for between in gaps.values():
        assert all(0 < gap.p <= 1 for gap in between)
        # B + 1 = 10,001 draws: the least p of one test, times the number of tests.
        assert min(gap.p for gap in between) >= 2 / 10_001


def test_a_destroyed_model_and_an_unchanged_one_are_told_apart_though_few_documents_vary() -> None:
    plans = [
        synthetic.Plan(name="ruined", levels=synthetic.flat((0, 0, 5, -50))),
        synthetic.Plan(name="unchanged", levels=synthetic.TARGET),
    ]
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128"))
    gaps = all_pairs.gaps(cells, ranking.rank(cells, "mini"))
    for quantity in all_pairs.QUANTITIES:
        gap = gap_of(gaps, "ruined", "unchanged", 4, quantity)
        assert abs(gap.difference.value) > 0.8
        assert gap.claimed


def test_entries_under_different_backends_have_no_gap_at_that_width() -> None:
    plans = [
        synthetic.Plan(name="whole", levels=synthetic.LORA),
        synthetic.Plan(
            name="part", levels=synthetic.FULL,
            drop=frozenset(("bnb-nf4", metric) for metric in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")),
        ),
    ]  # fmt: skip
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128", "bnb-nf4"))
    board = ranking.rank(cells, "mini")
    between = next(iter(all_pairs.gaps(cells, board).values()))
    assert {gap.bits for gap in between} == {16}


def test_large_boards_are_paired_at_one_width_and_huge_ones_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [synthetic.Plan(name=f"e{number}", levels=synthetic.LORA) for number in range(4)]
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128"))
    board = ranking.rank(cells, "mini")
    monkeypatch.setattr(all_pairs, "EVERY_WIDTH", 3)
    assert all_pairs.widths(board) == (4,)
    assert {gap.bits for between in all_pairs.gaps(cells, board).values() for gap in between} == {4}
    monkeypatch.setattr(all_pairs, "MOST", 2)
    assert len(all_pairs.gaps(cells, board)) == 1
    assert compare_page.context(board, {}, {f"e{n}": f"submission/e{n}.html" for n in range(4)})["left_out"] == 2


def test_the_page_lists_every_pair_with_its_interval_without_javascript(
    site: Path, gaps: Gaps, page_board: Board
) -> None:
    source = (site / "compare.html").read_text(encoding="utf-8")
    listed = [between for between in gaps.values() if any(gap.bits == page_board.headline_bits for gap in between)]
    assert source.split("<tbody>")[1].count("<tr>") == len(listed)
    for between in listed:
        for gap in between:
            if gap.bits == page_board.headline_bits:
                opening = "<strong>" if gap.claimed else '<span class="before">'
                assert f"{opening}{signed(gap.difference.value)}</" in source
                assert ends(gap.difference) in source


def test_each_entry_has_a_file_with_its_curves_and_its_pairs(site: Path, gaps: Gaps, page_board: Board) -> None:
    files = {path.stem: entry_file(path.read_text()) for path in (site / "compare").iterdir()}
    assert set(files) == {row.submission.name for row in all_pairs.compared(page_board)}
    for (one, two), between in gaps.items():
        stored = files[one]["pairs"][two]
        assert one not in files[two]["pairs"]
        assert len(stored["gaps"]) == len(between)
        for numbers, gap in zip(stored["gaps"], between, strict=True):
            assert numbers[0] == gap.bits
            assert all_pairs.QUANTITIES[numbers[1]] == gap.quantity
            assert numbers[2] == pytest.approx(gap.difference.value, abs=1e-4)
            assert numbers[5] == gap.claimed
    row = next(row for row in page_board.rows if row.submission.name == "ga-gdr-full")
    for width in files["ga-gdr-full"]["widths"]:
        assert width["verdict"] == row.by_bits[width["bits"]].verdict.word
        remaining = row.by_bits[width["bits"]].remaining
        assert remaining is not None
        assert width["values"][0] == pytest.approx([remaining.value, remaining.low, remaining.high], abs=1e-4)


def test_a_sentence_claims_only_what_stands_and_warns_of_destroyed_models(gaps: Gaps, page_board: Board) -> None:
    rows = {row.submission.name: row for row in page_board.rows}
    one, two = next(key for key in gaps if set(key) == {"ga-gdr-full", "ga-gdr-lora"})
    said = compare_page.sentence(rows[one], rows[two], 4, gaps[one, two])
    way = "less" if one == "ga-gdr-lora" else "more"
    assert f"{way} of VerbMem remains, by 0." in said
    at_16 = compare_page.sentence(rows[one], rows[two], 16, gaps[one, two])
    assert "VerbMem cannot be told apart" in at_16
    assert compare_page.sentence(rows[one], rows[two], 5, gaps[one, two]) == ""


def test_a_sentence_warns_of_destroyed_models() -> None:
    plans = [
        synthetic.Plan(name="fine", levels=synthetic.LORA),
        synthetic.Plan(name="ruined", levels=synthetic.flat((0, 0, 5, -50))),
    ]
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128"))
    board = ranking.rank(cells, "mini")
    rows = {row.submission.name: row for row in board.rows}
    (((one, two), between),) = all_pairs.gaps(cells, board).items()
    said = compare_page.sentence(rows[one], rows[two], 4, between)
    assert said.endswith("But collapsed there: ruined; a destroyed model forgets everything.")


def test_metrics_are_named_as_everywhere() -> None:
    assert set(compare_page.LABELS) == {all_pairs.REMAINING, *FORGET_METRICS, UTILITY}


def test_hostile_names_end_neither_script_nor_string() -> None:
    hostile = '</script><script>alert(1)//"\u2028\\'
    text = compare_page.script_json({hostile: [hostile]})
    assert "<" not in text
    assert ">" not in text
    assert text.isascii()
    assert json.loads(text) == {hostile: [hostile]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        compare_page.script_json(float("nan"))


def test_pairs_at_one_width_are_those_of_all_widths(
    page_cells: list[CellResult], page_board: Board, gaps: Gaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_pairs, "EVERY_WIDTH", 0)
    for names, between in all_pairs.gaps(page_cells, page_board).items():
        assert {gap.bits for gap in between} == {page_board.headline_bits}
        whole = [gap for gap in gaps[names] if gap.bits == page_board.headline_bits]
        assert [gap.difference for gap in between] == [gap.difference for gap in whole]
