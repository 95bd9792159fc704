"""The table and the paragraph: counted from boards whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest

from harness.experiments.arxiv_2602_13151 import models as paper_models
from harness.experiments.arxiv_2602_13151 import report as paper_report
from harness.publish.pages import published as published_page
from harness.publish.ranking import rank as ranking
from tests.publish import synthetic_board


def _row(method: str, parameters: str, quantizer: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "submission": f"{method}-{parameters}", "method": method, "parameters": parameters, "target": "t", "seed": 0,
        "quantizer": quantizer, "verdict": "holds",
    }  # fmt: skip
    for metric in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak"):
        row |= {metric: 50.0, f"{metric}_low": 45.0, f"{metric}_high": 55.0, f"{metric}_paper": None}
    return row | values


ROWS = [
    _row("GA", "full", "reference", verbmem_f=20.0),
    _row("GA", "LoRA", "reference", verbmem_f=22.0),
    _row("GA", "full", "bnb-fp4", verbmem_f=80.0, verdict="reverts", privleak=-80.0, knowmem_r_paper=40.0),
    _row("GA", "LoRA", "bnb-fp4", verbmem_f=23.0, knowmem_r=60.0, knowmem_r_low=56.0, knowmem_r_high=64.0,
         privleak=-20.0, knowmem_r_paper=44.8),
    _row("NPO", "full", "bnb-fp4", verbmem_f=30.0, verdict="unclear", knowmem_r_paper=44.0),
    _row("NPO", "LoRA", "bnb-fp4", knowmem_r=40.0, knowmem_r_low=35.0, knowmem_r_high=45.5, knowmem_r_paper=43.0),
]  # fmt: skip


def test_reverting_and_holding_models_are_counted_by_what_was_trained() -> None:
    said = paper_report.paragraph(ROWS, "t")
    assert "Under bnb-fp4 1 of 2 full models revert and 0 hold, VerbMem +60.0 points on average" in said
    assert "0 of 2 LoRA models revert and 2 hold, VerbMem +1.0 points on average" in said


def test_lora_and_full_are_compared_within_a_method_beside_the_paper() -> None:
    said = paper_report.paragraph(ROWS, "t")
    assert "utility at 4 bit (FP4) is higher for 1 of 2 pairs of the same method (1 with intervals apart)" in said
    assert "in the paper's own figures for 1 of 2" in said
    assert "PrivLeak at 4 bit (FP4) is nearer to 0 for 1 of 2 pairs" in said


def test_other_numbers_make_other_sentences() -> None:
    turned = [row | {"verdict": "reverts"} for row in ROWS]
    assert "2 of 2 full models revert and 0 hold" in paper_report.paragraph(turned, "t")
    assert paper_report.paragraph(turned, "t") != paper_report.paragraph(ROWS, "t")


def test_the_contrast_is_told_apart() -> None:
    other = _row("GA", "full", "rtn-4bit-g128", target="plain")
    said = paper_report.paragraph([*ROWS, other], "t")
    assert said.endswith("Unlearned from the ordinary target plain, 0 of 1 cells at 4 bit revert.")
    assert "rtn-4bit-g128" not in said


def test_without_whole_cells_nothing_is_claimed() -> None:
    assert paper_report.paragraph([], "t") == paper_report.NOTHING
    unmeasured = [row | {"verbmem_f": None, "verdict": "not measured"} for row in ROWS]
    assert paper_report.paragraph(unmeasured, "t") == paper_report.NOTHING


def test_the_paper_s_figures_are_the_published_ones() -> None:
    found = paper_report.figures(published_page.load(published_page.shipped_file()), "books")
    assert len(found) == 16
    assert found["NPO+GDR", "full", "bnb-fp4"].scores["knowmem_r"] == pytest.approx(50.17)
    assert found["NPO+GDR", "LoRA", "bnb-fp4"].scores["knowmem_r"] == pytest.approx(58.10)
    assert found["GA+KLR", "LoRA", "bnb-fp4"].scores["privleak"] == pytest.approx(-5.86)
    assert not paper_report.figures(published_page.load(published_page.shipped_file()), "mini")


def test_the_table_has_a_row_for_each_model_and_quantizer_with_intervals() -> None:
    plans = synthetic_board.demo_plans()
    board = ranking.rank(synthetic_board.cells(plans), "mini")
    entry = next(row for row in board.rows if len(row.by_quantizer) > 2)
    model = paper_models.models("mini", str(entry.submission.target))[0]
    named = paper_models.Model(name=entry.submission.name, recipe=model.recipe, target=model.target, seed=0)
    paper = paper_report.figures(published_page.load(published_page.shipped_file()), "books")
    rows = paper_report.table(board, [named], paper)
    assert [row["quantizer"] for row in rows] == list(entry.by_quantizer)
    for row in rows:
        assert row["verbmem_f_low"] <= row["verbmem_f"] <= row["verbmem_f_high"]
        assert 0 <= row["verbmem_f"] <= 100
    sixteen = next(row for row in rows if row["quantizer"] == "reference")
    assert sixteen["paper"] == "0.0 / 36.3 / 68.7 / -24.0"
    assert sixteen["knowmem_r_paper"] == pytest.approx(68.74)
    assert paper_report.table(board, [model], paper) == []
