"""The page of each quantizer: what it is, its proofs, every score under it, and the way there and back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic
from test_site import Page, store_of

from harness.publish.board import Board
from harness.publish.formatting import number, signed
from harness.publish.pages import quantizer as quantizer_page
from harness.publish.pages import site as site_pages
from harness.publish.ranking import rank as ranking
from harness.records import CellResult, Proof

PAGE = "quantizer/rtn-4bit-g128.html"


@pytest.fixture(scope="module")
def page(site: Path) -> Page:
    return Page(site / PAGE)


def proof(**changed: Any) -> Proof:
    found = synthetic.cells([synthetic.Plan(name="one", levels=synthetic.LORA)], quantizers=("rtn-4bit-g128",))[0].proof
    assert found is not None
    return replace(found, **changed)


def context_of(cells: list[CellResult], name: str = "rtn-4bit-g128") -> dict[str, Any]:
    boards = [ranking.rank(cells, corpus) for corpus in sorted({cell.corpus for cell in cells})]
    return quantizer_page.context(name, boards, cells, {board.corpus: "index.html" for board in boards})


def small(*plans: synthetic.Plan, corpus: str = "mini") -> list[CellResult]:
    return synthetic.cells([*synthetic.CONTROLS, *plans], corpus=corpus, quantizers=("reference", "rtn-4bit-g128"))


def test_a_quantizer_is_told_in_words(page: Page) -> None:
    assert "round to nearest, 4 bit, group 128, asymmetric" in page.text
    assert "Bits per code 4 Group 128 weights share a scale Grid asymmetric Calibration none" in page.text


def test_what_is_told_covers_rows_code_books_calibration_and_options() -> None:
    spec = replace(
        synthetic.SPECS["bnb-nf4"], group_size=None, calibration="c" * 64, options={"z": 1, "desc_act": False}
    )
    assert quantizer_page.in_words(spec) == [
        ("Backend", "bnb"), ("Bits per code", "4"), ("Group", "one scale per row"), ("Grid", "the code book decides"),
        ("Calibration", f"texts {'c' * 16}"), ("desc_act", "False"), ("z", "1"),
    ]  # fmt: skip
    assert quantizer_page.in_words(replace(spec, symmetric=True))[3] == ("Grid", "symmetric")


def test_the_reference_claims_no_proof(site: Path) -> None:
    text = Page(site / "quantizer/reference.html").text
    assert "weights as submitted, in 16 bit" in text
    assert "What reading the weights back has shown" not in text
    assert "keeps" not in text


def test_proofs_are_summed_up_by_their_range() -> None:
    made = dict(
        quantizer_page.summary(
            [
                proof(quantized_layers=28, relative_error=0.08, size_bytes=1_000),
                proof(
                    quantized_layers=27, relative_error=0.0912, size_bytes=2_000, bits_per_weight=4.5, symmetric=True
                ),
            ]
        )
    )
    assert made["Proofs"] == "2, one for each model"
    assert made["Layers"] == "55 of 56 quantized"
    assert made["Most levels in a group"] == "16"
    assert made["Bits per weight"] == "4.25 to 4.50"
    assert made["Bytes"] == "1,000 to 2,000"
    assert made["Relative error"] == "0.0800 to 0.0912"
    assert made["Grid found"] == "not measured, symmetric"


def test_unknown_errors_are_not_given_a_figure_and_no_proof_gives_no_summary() -> None:
    unknown = proof(relative_error=None, max_abs_error=None)
    assert dict(quantizer_page.summary([unknown]))["Relative error"] == "not known"
    assert dict(quantizer_page.summary([unknown, proof()]))["Relative error"] == "0.0800"
    assert quantizer_page.summary([]) == []


def test_there_is_one_proof_for_each_model_and_not_for_each_cell(page: Page, page_board: Board) -> None:
    rows = [*page_board.rows, *page_board.controls]
    models = [row for row in rows if row.by_quantizer["rtn-4bit-g128"].cells]
    assert len(models) == len(rows) - 1, "the entry scored on four documents only has no cell that counts"
    assert f"{len(models)}, one for each model" in page.text
    folded = page.source.split("<summary>Every proof</summary>")[1].split("</details>")[0]
    for row in models:
        assert folded.count(f"<bdi>{row.submission.name}</bdi>") == 1
    assert f"{28 * len(models)} of {28 * len(models)} quantized" in page.text


def test_every_submission_s_score_stands_with_its_interval_change_and_verdict(page: Page, page_board: Board) -> None:
    for row in (*page_board.rows, *page_board.controls):
        at = row.by_quantizer["rtn-4bit-g128"]
        shown = re.search(
            rf'<tr><th scope="row"><a href="\.\./submission/{row.submission.name}\.html">.*?</tr>',
            page.source.split("Every submission on")[1], re.DOTALL,
        )  # fmt: skip
        assert shown is not None, row.submission.name
        text = " ".join(re.sub("<[^>]+>", " ", shown.group()).split())
        for metric, found in at.metrics.items():
            scale = 1 if metric == "privleak" else 100
            assert found.score.low is not None
            assert f"{number(found.score.value * scale, 1)} [{number(found.score.low * scale, 1)}," in text
            if found.change is not None:
                assert signed(found.change.value * scale, 1) in text
            if found.rho is not None:
                assert number(found.rho.value) in text
        word = at.verdict.word if row.submission.role == "entry" else f"control: {row.submission.role}"
        assert word in text


def test_the_sentence_counts_every_entry_once(page_cells: list[CellResult], page_board: Board) -> None:
    group = context_of(page_cells)["groups"][0]
    counts = [int(found) for found in re.findall(r" (\d+)(?=[,.])", group["sentence"])]
    assert group["sentence"].startswith(f"{len(page_board.rows)} entries: holds ")
    assert sum(counts) == len(page_board.rows)
    assert context_of(small(synthetic.Plan(name="one", levels=synthetic.LORA)))["groups"][0]["sentence"].startswith(
        "1 entry: "
    )
    assert context_of(small())["groups"][0]["sentence"] == "No entry yet."


def test_damage_to_the_controls_is_relative_to_their_own_16_bit_cell() -> None:
    cells = small()
    board = ranking.rank(cells, "mini")
    target = next(row for row in board.controls if row.submission.name == "mini-target-4bit")
    now, before = (
        target.by_quantizer[name].metrics["knowmem_r"].score.value for name in ("rtn-4bit-g128", "reference")
    )
    told = context_of(cells)["groups"][0]["damage"]
    assert f"mini-target-4bit keeps {100 * now / before:.0f}% of its own 16-bit utility" in told
    without = [cell for cell in cells if not (cell.spec.bits == 16 and cell.cell.submission == "mini-target-4bit")]
    assert not [line for line in context_of(without)["groups"][0]["damage"] if "mini-target-4bit" in line]


def test_pages_lead_to_a_quantizer_and_back(site: Path, page: Page) -> None:
    links = {name: Page(site / name).links for name in ("index.html", "cells.html", "submission/ga-gdr-full.html")}
    assert ("a", PAGE) in links["index.html"]
    assert ("a", PAGE) in links["cells.html"]
    assert ("a", f"../{PAGE}") in links["submission/ga-gdr-full.html"]
    for target in ("../index.html", "../submission/ga-gdr-full.html", "../quantizer/bnb-nf4.html"):
        assert ("a", target) in page.links
    matrix = (site / "index.html").read_text(encoding="utf-8").split('<table class="matrix">')[1]
    assert f'<a href="{PAGE}" title="round to nearest, 4 bit, group 128, asymmetric">' in matrix


def test_a_quantizer_that_never_finished_has_a_page_that_says_so(tmp_path: Path) -> None:
    cells = [
        cell if cell.spec.bits == 16 else replace(
            cell, status="failed", reason="out of memory", scores=(), documents=(), proof=None, survival=()
        )
        for cell in small(synthetic.Plan(name="one", levels=synthetic.LORA))
    ]  # fmt: skip
    out = site_pages.render(store_of(tmp_path / "s.duckdb", cells), tmp_path / "out").parent
    text = Page(out / PAGE).text
    assert f"Not finished: {sum(cell.status == 'failed' for cell in cells)} failed." in text
    assert "not measured" in text
    assert "What reading the weights back has shown" not in text


def test_a_quantizer_of_two_corpora_shows_both_on_one_page() -> None:
    other = [replace(cell, cell=replace(cell.cell, key=f"x{cell.cell.key[1:]}")) for cell in small(corpus="elsewhere")]
    made = context_of([*small(), *other])
    assert [group["corpus"] for group in made["groups"]] == ["elsewhere", "mini"]
    assert len(made["proofs"]) == 2 * len(synthetic.CONTROLS)
