"""A corpus without questions about its forget set: verdicts rest on VerbMem alone, and nothing else is lost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic

from harness.publish.board import Board, LeaderboardRow
from harness.publish.charts import altair_charts
from harness.publish.comparison import all_pairs
from harness.publish.pages import compare as compare_page
from harness.publish.pages import site as site_pages
from harness.publish.ranking import rank as ranking
from harness.publish.thresholds import FORGET_METRICS, UTILITY
from harness.records import CellResult
from harness.store.store import Store


@pytest.fixture(scope="module")
def smol(page_cells: list[CellResult]) -> Board:
    return ranking.rank(synthetic.as_smol(page_cells), "smol")


def entries(board: Board) -> dict[str, LeaderboardRow]:
    return {row.submission.name: row for row in board.rows}


def test_every_verdict_is_that_of_verbmem(page_board: Board, smol: Board) -> None:
    told = set()
    for name, row in entries(page_board).items():
        for quantizer, result in row.by_quantizer.items():
            alone = entries(smol)[name].by_quantizer[quantizer]
            if result.verdict.word in ("holds", "reverts", "unclear", "never forgot"):
                assert alone.metrics["verbmem_f"].verdict == result.metrics["verbmem_f"].verdict
                assert alone.verdict.word == alone.metrics["verbmem_f"].verdict
                told.add(alone.verdict.word)
            elif result.verdict.word == "collapsed":
                assert alone.verdict.word == "collapsed"
    assert "holds" in told
    assert "reverts" in told


def test_remaining_shares_and_recoveries_of_verbmem_stay_to_the_last_bit(page_board: Board, smol: Board) -> None:
    compared = 0
    for name, row in entries(page_board).items():
        for bits, at in row.by_bits.items():
            before, after = at.by_metric.get("verbmem_f"), entries(smol)[name].by_bits[bits].by_metric.get("verbmem_f")
            if before is not None and after is not None and before.quantizer == after.quantizer:
                assert (before.result.rho, before.result.recovery) == (after.result.rho, after.result.recovery)
                compared += before.result.rho is not None
    assert compared > 10


def test_a_corpus_that_has_both_is_not_judged_by_one_of_them(page_cells: list[CellResult]) -> None:
    cells = [cell for cell in page_cells if not cell.cell.task.endswith("knowmem_f")]
    board = ranking.rank(cells, "mini")
    assert board.forget_metrics == FORGET_METRICS
    assert {result.verdict.word for row in board.rows for result in row.by_quantizer.values()} == {"not measured"}


def test_a_corpus_that_is_not_known_here_is_judged_by_both(page_cells: list[CellResult]) -> None:
    cells = [replace(cell, corpus="elsewhere") for cell in page_cells]
    assert ranking.rank(cells, "elsewhere").forget_metrics == FORGET_METRICS


def test_the_only_panel_of_the_curves_names_its_entries(smol: Board) -> None:
    drawn = altair_charts.remaining_curves(smol)
    assert drawn is not None
    assert "VerbMem" in drawn
    assert "KnowMem" not in drawn
    for name in entries(smol):
        if "limited" not in name:
            assert name in drawn, name


def test_the_only_panel_is_as_wide_as_two_and_its_axis_has_numbers(smol: Board, page_cells: list[CellResult]) -> None:
    """A page stretches the drawing to its column: a narrow one would come out with letters twice the size."""
    alone, both = (str(altair_charts.remaining_curves(board)) for board in (smol, ranking.rank(page_cells, "mini")))
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)', alone)[0])
    wide, high = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)', both)[0])
    assert width / height == pytest.approx(wide / high, rel=0.1)
    assert ">0.5<" in alone


def test_pages_have_no_column_for_what_the_corpus_does_not_have(page_cells: list[CellResult], tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        for cell in synthetic.as_smol(page_cells):
            store.add(cell)
    site_pages.render(tmp_path / "s.duckdb", tmp_path / "site")
    index = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert 'data-key="verbmem_f"' in index
    assert 'data-key="knowmem_f"' not in index
    assert "quantizer: V of VerbMem; 0 is" in index
    page = (tmp_path / "site/submission/ga-gdr-full.html").read_text(encoding="utf-8")
    assert "KnowMem, gap" not in page
    assert "VerbMem, gap" in page


def test_entries_are_compared_in_what_the_corpus_has_and_in_nothing_twice(
    smol: Board, page_cells: list[CellResult]
) -> None:
    gaps = all_pairs.gaps(synthetic.as_smol(page_cells), smol)
    links = {name: f"submission/{name}.html" for name in entries(smol)}
    assert list(compare_page.context(smol, gaps, links)["labels"]) == ["verbmem_f", UTILITY]
    files = {Path(path).stem: text for path, text in compare_page.files(smol, gaps, links)}
    seen = set()
    for name, text in files.items():
        entry = json.loads(text.removeprefix("quenchEntry(").removesuffix(");\n"))
        assert all(len(width["values"]) == 2 for width in entry["widths"])
        for other, between in entry["pairs"].items():
            known = {(gap.bits, gap.quantity): gap.difference.value for gap in gaps[name, other]}
            for bits, place, value, *_ in between["gaps"]:
                assert value == pytest.approx(known[bits, ("verbmem_f", UTILITY)[place]], abs=1e-4)
                seen.add(place)
    assert seen == {0, 1}
