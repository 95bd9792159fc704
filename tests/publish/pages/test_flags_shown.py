"""Where flags are read: first page, submission's page, methodology, `quench show` and every export."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, LORA, Plan

from harness.publish import thresholds
from harness.publish.board import Board
from harness.publish.pages import site as site_pages
from harness.publish.ranking import rank as ranking
from harness.publish.tables import formats as table_formats
from harness.publish.tables import rows as table_rows
from harness.publish.tables import views as table_views
from harness.records import CellResult
from harness.store.store import Store

NASTY = "<script>alert(1)</script>"
NOTHING: dict[str, Any] = {
    "corpus": None,
    "bits": None,
    "cells": False,
    "documents": False,
    "task": None,
    "quantizer": None,
}


def flagged_cells() -> list[CellResult]:
    """An honest entry, one on the retrained model that answers all alike, and one on a base with markup."""
    plans = [
        Plan(name="honest", levels=LORA, kind="lora_adapter"),
        Plan(name="swapped", levels=LORA, kind="lora_adapter", more={"base_model": "mini-retrain"}),
        Plan(name="odd", levels=LORA, kind="lora_adapter", more={"base_model": NASTY}),
    ]
    cells = synthetic.cells([CONTROLS[0], CONTROLS[2], *plans], quantizers=("reference", "rtn-4bit-g128"))
    alike = {
        cell.cell.key: tuple(replace(document, response="secret words") for document in cell.documents)
        for cell in cells
        if cell.cell.submission == "swapped" and cell.cell.task.endswith("knowmem_f")
    }
    return [replace(cell, documents=alike.get(cell.cell.key, cell.documents)) for cell in cells]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flags") / "flags.duckdb"
    with Store.open(path) as opened:
        for cell in flagged_cells():
            opened.add(cell)
    return path


@pytest.fixture(scope="module")
def site(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_pages.render(store, tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture(scope="module")
def board() -> Board:
    return ranking.rank(flagged_cells(), "mini")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_first_page_marks_flagged_entries_and_nobody_else(site: Path) -> None:
    marks = re.findall(r'href="submission/([\w.-]+)\.html#flags" title="([^"]+)"', text_of(site / "index.html"))
    assert {name for name, _ in marks} == {"swapped", "odd"}
    assert sum(name == "swapped" for name, _ in marks) == 2 * len({16, 4})
    assert any("never knew what is to be forgotten" in title for _, title in marks)


def test_a_submission_s_page_says_each_flag_in_full_and_which_cost_the_rank(site: Path) -> None:
    page = text_of(site / "submission" / "swapped.html")
    section = page[page.index('id="flags"') :].split("</section>")[0]
    assert "<strong>other base</strong> (no rank): its adapter sits on mini-retrain" in section
    assert "<strong>one answer</strong>: it answers 91 of 91 KnowMem questions with one same answer." in section
    assert 'id="flags"' not in text_of(site / "submission" / "honest.html")
    assert 'id="flags"' not in text_of(site / "submission" / "mini-retrain.html")


def test_a_stranger_s_text_in_a_flag_is_no_markup(site: Path) -> None:
    for name in ("index.html", "submission/odd.html"):
        page = text_of(site / name)
        assert NASTY not in page
        assert "&lt;script&gt;alert" in page


def test_the_methodology_page_states_every_constant_that_flags_rest_on(site: Path) -> None:
    page = text_of(site / "methodology.html")
    told = page[page.index('id="flags"') :].split("</p>")[0]
    for constant in (
        f"{thresholds.NO_UPDATE:g}",
        f"{thresholds.SAME_NORM:g}",
        f"{thresholds.FAR_UPDATE:.2f}",
        "95%",
        "50%",
    ):
        assert constant in told
    assert all(phrase.replace("'", "&#39;") in told for phrase in thresholds.REFUSALS)


def test_ranked_rows_have_flags_at_every_width(board: Board) -> None:
    rows = [row for row in table_rows.ranked_rows(board, None) if row["submission"] == "swapped"]
    assert [[flag.partition(":")[0] for flag in row["flags"]] for row in rows] == [["other base", "one answer"]] * 2
    assert all(row["flags"] == [] for row in table_rows.ranked_rows(board, 4) if row["submission"] == "honest")


@pytest.mark.parametrize("form", ["terminal", "csv", "markdown", "latex"])
def test_a_ranking_in_text_tells_flags(form: Any, board: Board) -> None:
    rows = table_rows.ranked_rows(board, 4)
    if form == "terminal":
        said = str(table_formats.terminal_table(rows, title="T", columns=table_rows.RANKED_COLUMNS).caption)
    elif form == "csv":
        said = table_formats.text_table(rows, "csv")
    else:
        said = table_formats.paragraphs(table_formats.reasons(rows), form)
    assert "one answer: it answers 91 of 91 KnowMem questions" in said
    assert said.count("never knew what is to be forgotten") == (2 if form == "csv" else 1)


def test_what_cost_an_entry_its_rank_is_said_once_and_other_flags_as_well(board: Board) -> None:
    lines = [line for line in table_formats.reasons(table_rows.ranked_rows(board, 4)) if line.startswith("swapped")]
    assert [line.split(":")[0] for line in lines] == ["swapped has no rank", "swapped is flagged one answer"]


def test_cells_of_one_submission_say_its_flags_above_the_table(store: Path) -> None:
    titles = [table_views.view(store, submission=name, **NOTHING).title for name in ("swapped", "honest")]
    assert titles == ["swapped: 8 cells, flagged other base, one answer", "honest: 8 cells"]


def test_exports_hold_flags_and_no_answer_that_they_are_about(site: Path) -> None:
    data = site / "data"
    found = json.loads(text_of(data / "board.json"))
    jsonschema.validate(found, json.loads(text_of(data / "board.schema.json")))
    of = {row["submission"]: row["flags"] for row in found["rows"]}
    assert of["honest"] == []
    assert len(of["swapped"]) == 2
    rows = csv.DictReader(text_of(data / "board.csv").splitlines())
    assert {row["flags"] for row in rows if row["submission"] == "swapped"} == {"; ".join(of["swapped"])}
    with duckdb.connect(str(data / "board.duckdb"), read_only=True) as connection:
        kept = connection.execute("SELECT DISTINCT flags FROM board WHERE submission = 'swapped'").fetchall()
    assert kept == [(of["swapped"],)]
    for name in ("board.json", "board.csv", "board.md", "board.tex"):
        assert "one answer" in text_of(data / name)
        assert "secret words" not in text_of(data / name)
