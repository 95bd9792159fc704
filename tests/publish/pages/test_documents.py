"""Documents across bits: which answer stands for a width, in which order, and what leaves the store."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
import synthetic_board as synthetic

from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow
from harness.publish.pages import documents
from harness.publish.ranking import rank as ranking
from harness.records import CellResult
from harness.store import withheld_texts


def row_of(board: Board, name: str = "ga-gdr-full") -> LeaderboardRow:
    return next(row for row in board.rows if row.submission.name == name)


def sliced(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8").removeprefix("window.quenchDocuments = ").rstrip().rstrip(";"))


def test_the_document_that_came_back_most_is_first(board: Board) -> None:
    found = documents.across_bits(row_of(board))
    assert len(found) == synthetic.DOCUMENTS["verbmem_f"] + synthetic.DOCUMENTS["knowmem_f"]
    back = [document["back"] for document in found]
    assert back == sorted(back, reverse=True)
    assert back[0] > 0.3


def test_the_backend_with_the_highest_score_stands_for_its_width(board: Board) -> None:
    row = row_of(board)
    for document in documents.across_bits(row)[:5]:
        metric = "verbmem_f" if document["label"] == "VerbMem" else "knowmem_f"
        assert [answer["bits"] for answer in document["answers"]] == [16, 8, 4, 3, 2]
        for answer in document["answers"]:
            scores = {
                name: next(
                    d.scores[metric] for d in result.cells[metric].documents if d.index == document["document"]
                )
                for name, result in row.by_quantizer.items()
                if result.spec.bits == answer["bits"]
            }  # fmt: skip
            assert answer["score"] == max(scores.values()) == scores[answer["quantizer"]]


def test_no_text_is_longer_than_an_excerpt(page_cells: list[CellResult]) -> None:
    long = [
        replace(cell, documents=tuple(
            replace(d, response="r" * 999, reference_excerpt="f" * 999, prompt_excerpt="p" * 999)
            for d in cell.documents
        ))
        for cell in page_cells
    ]  # fmt: skip
    board = ranking.rank(long, "mini")
    texts = [
        text
        for document in documents.across_bits(board.rows[0])
        for text in (document["prompt"], document["reference"], *(a["text"] for a in document["answers"]))
    ]
    texts += [row[name] for row in documents.rows(long) for name in ("prompt", "reference", "response")]
    assert max(map(len, texts)) == formatting.EXCERPT


def test_a_slice_is_a_script_that_sets_one_variable_and_hostile_text_can_not_leave_it(board: Board) -> None:
    hostile = '"];alert(1)//</script>\u2028'
    found = [{**documents.across_bits(row_of(board))[0], "prompt": hostile}]
    text = documents.as_script(found)
    assert text.isascii()
    assert json.loads(text.removeprefix("window.quenchDocuments = ").removesuffix(";\n"))[0]["prompt"] == hostile


def test_every_submission_has_its_slice_its_page_and_a_link_to_it(site: Path, page_board: Board) -> None:
    for row in (*page_board.rows, *page_board.controls):
        name = row.submission.name
        page = (site / "submission" / f"{name}.html").read_text(encoding="utf-8")
        if not documents.across_bits(row):
            assert "Documents across bits" not in page
            continue
        plain = (site / "submission" / f"{name}-documents.html").read_text(encoding="utf-8")
        found = sliced(site / "data" / "documents" / f"{name}.js")
        assert f'data-slice="../data/documents/{name}.js"' in page
        assert f'<a href="{name}-documents.html">' in page
        assert plain.count('<section class="document"') == min(20, len(found))
        assert plain.count("<table") == min(20, len(found))


def test_the_parquet_file_holds_every_answered_document_and_no_scored_text(
    site: Path, page_cells: list[CellResult]
) -> None:
    path = str(site / "data" / "documents.parquet")
    count, longest = duckdb.sql(f"SELECT count(*), max(length(response)) FROM '{path}'").fetchall()[0]
    answered = [cell for cell in page_cells if cell.scores and not cell.cell.task.endswith("privleak")]
    assert count == sum(len(cell.documents) for cell in answered)
    assert longest <= formatting.EXCERPT
    assert {m for (m,) in duckdb.sql(f"SELECT DISTINCT metric FROM '{path}'").fetchall()} == set(synthetic.SPLITS)


@pytest.mark.slow
def test_the_command_of_a_cell_s_page_gives_its_scores_again(tmp_path: Path) -> None:
    """The page's own words in a shell, nothing added: the same scores."""
    import html
    import os
    import re
    import sys

    from harness.publish.pages import site as site_pages
    from harness.store.store import Store

    root = Path(__file__).parents[3]
    with Store.open(root / "results.duckdb", read_only=True) as store:
        published = [
            cell for cell in store.cells(with_documents=True)
            if cell.corpus == "mini" and cell.cell.quantizer in ("reference", "rtn-4bit-g64")
        ]  # fmt: skip
    name = next(cell.cell.submission for cell in published if cell.submission.kind == "full_model"
                and cell.submission.role == "entry")  # fmt: skip
    small = tmp_path / "small.duckdb"
    with Store.open(small) as store:
        for cell in published:
            store.add(cell)
    site = site_pages.render(small, tmp_path / "site").parent
    page = (site / "submission" / f"{name}.html").read_text(encoding="utf-8")
    command = html.unescape(re.search(r'<code id="command">(.*?)</code>', page).group(1))  # type: ignore[union-attr]
    (tmp_path / "bin").mkdir()
    quench = tmp_path / "bin" / "quench"
    quench.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness.cli.main "$@"\n', encoding="utf-8")
    quench.chmod(0o755)
    paths = {"PATH": f"{quench.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, **paths}, check=True)
    with Store.open(tmp_path / "reproduced.duckdb", read_only=True) as store:
        again = {(c.cell.submission, c.cell.quantizer, c.cell.task): c.scores for c in store.cells()}
    expected = {
        (c.cell.submission, c.cell.quantizer, c.cell.task): c.scores for c in published if c.cell.submission == name
    }
    assert len(expected) == 8
    for key, scores in expected.items():
        assert [score.metric for score in again[key]] == [score.metric for score in scores]
        for mine, published_ in zip(again[key], scores, strict=True):
            # Processors sum log-probabilities in different orders; ranks and words are counted.
            summed = mine.metric.startswith("loss_") or mine.metric == "reference_nll"
            within = pytest.approx(published_.value, rel=1e-6) if summed else published_.value
            assert (key, mine.metric, mine.value) == (key, published_.metric, within)


def test_documents_whose_texts_are_withheld_have_no_viewer_and_keep_their_scores(page_cells: list[CellResult]) -> None:
    closed = [withheld_texts.without_texts(cell) for cell in page_cells]
    assert documents.across_bits(row_of(ranking.rank(closed, "mini"))) == []
    for open_row, row in zip(documents.rows(page_cells), documents.rows(closed), strict=True):
        texts = {"prompt", "reference", "response"}
        assert {k: v for k, v in row.items() if k not in texts} == {k: v for k, v in open_row.items() if k not in texts}
        assert (row["prompt"], row["reference"]) == ("", "")
        assert open_row["response"] not in row["response"] or not open_row["response"]
