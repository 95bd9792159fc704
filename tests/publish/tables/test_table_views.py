"""What `quench show` is given: one view per question, and one sentence where there is no answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, FULL, LORA, Plan

from harness.errors import InputError, StoreError, UnknownNameError
from harness.publish.ranking import rank as ranking
from harness.publish.tables import rows as table_rows
from harness.publish.tables import views as table_views
from harness.records import CellResult
from harness.store.store import Store

QUANTIZERS = ("reference", "rtn-8bit-g128", "rtn-4bit-g128")
PLANS = (CONTROLS[0], CONTROLS[2], Plan(name="full", levels=FULL), Plan(name="lora", levels=LORA, kind="lora_adapter"))
TASK = "muse_mini_knowmem_f"
NOTHING: dict[str, Any] = {
    "submission": None, "corpus": None, "bits": None, "cells": False, "documents": False, "task": None,
    "quantizer": None,
}  # fmt: skip


def elsewhere(cell: CellResult) -> CellResult:
    """The same result on a corpus of another name."""
    moved = replace(cell.cell, key=cell.cell.key[::-1], task=cell.cell.task.replace("muse_mini", "muse_books"))
    return replace(cell, cell=moved, corpus="books", submission=replace(cell.submission, corpus="books"))


@pytest.fixture(scope="module")
def results() -> list[CellResult]:
    mini = synthetic.cells(PLANS, quantizers=QUANTIZERS)
    return [*mini, *(elsewhere(cell) for cell in mini if cell.cell.submission != "full" and cell.spec.bits != 8)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, results: list[CellResult]) -> Path:
    path = tmp_path_factory.mktemp("views") / "results.duckdb"
    with Store.open(path) as opened:
        for cell in results:
            opened.add(cell)
    return path


def view(store: Path, **asked: Any) -> table_views.View:
    return table_views.view(store, **{**NOTHING, **asked})


def test_without_a_name_the_ranking_of_every_corpus_is_shown_in_order(store: Path) -> None:
    shown = view(store)
    assert shown.title == "Ranking at 4 bit (worst backend)"
    assert shown.columns == ("corpus", *table_rows.RANKED_COLUMNS)
    assert view(store, corpus="mini").columns == table_rows.RANKED_COLUMNS
    assert [(row["corpus"], row["submission"]) for row in shown.rows] == [
        ("books", "lora"), ("mini", "lora"), ("mini", "full"),
    ]  # fmt: skip


def test_a_ranking_holds_the_same_rows_as_the_board_of_that_corpus(store: Path, results: list[CellResult]) -> None:
    board = ranking.rank(results, "mini")
    assert view(store, corpus="mini").rows == table_rows.ranked_rows(board, 4)
    assert view(store, corpus="mini", bits=8).rows == table_rows.ranked_rows(board, 8)


def test_the_ranking_of_a_store_without_4_bit_gives_reasons_and_no_ranks(
    tmp_path: Path, results: list[CellResult]
) -> None:
    path = tmp_path / "wide.duckdb"
    with Store.open(path) as opened:
        for cell in results:
            if cell.spec.bits != 4:
                opened.add(cell)
    rows = view(path).rows
    assert {row["rank"] for row in rows} == {None}
    assert {row["unranked_reason"] for row in rows} == {"not measured at 4 bit"}


@pytest.mark.parametrize("asked", [{}, {"cells": True}, {"submission": "full"}])
@pytest.mark.parametrize("bits", [-1, 0, 3, 99])
def test_a_width_that_nothing_has_is_refused_with_those_that_there_are(
    store: Path, asked: dict[str, Any], bits: int
) -> None:
    with pytest.raises(InputError, match=rf"Nothing in the store is of {bits} bit: --at takes 16, 8, 4\."):
        view(store, bits=bits, **asked)


def test_cells_stand_by_corpus_then_controls_first_then_from_wide_to_narrow(store: Path) -> None:
    rows = view(store, cells=True).rows
    seen = list(dict.fromkeys((row["corpus"], row["submission"]) for row in rows))
    assert seen == [
        ("books", "mini-target-4bit"), ("books", "mini-retrain"), ("books", "lora"),
        ("mini", "mini-target-4bit"), ("mini", "mini-retrain"), ("mini", "full"), ("mini", "lora"),
    ]  # fmt: skip
    full = [row["bits"] for row in rows if row["submission"] == "full"]
    assert full == sorted(full, reverse=True)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"submission": "full"}, 12),
        ({"submission": "lora"}, 20),
        ({"submission": "lora", "corpus": "books"}, 8),
        ({"submission": "lora", "corpus": "mini", "quantizer": "rtn-8bit-g128"}, 4),
        ({"submission": "full", "task": TASK}, 3),
        ({"cells": True, "task": TASK}, 12),
        ({"cells": True, "quantizer": "rtn-8bit-g128"}, 16),
        ({"cells": True, "corpus": "books", "quantizer": "rtn-8bit-g128"}, 0),
        ({"cells": True}, 72),
    ],
)
def test_cells_are_narrowed_by_every_option_together(store: Path, asked: dict[str, Any], count: int) -> None:
    shown = view(store, **asked)
    assert len(shown.rows) == count
    assert shown.title.endswith(f"{count} cells")
    for row in shown.rows:
        assert all(row[name] == value for name, value in asked.items() if name != "cells")


def test_cells_have_intervals_because_documents_are_read_for_them(store: Path) -> None:
    for row in view(store, submission="full", task=TASK).rows:
        assert row["knowmem_f_low"] < row["knowmem_f"] < row["knowmem_f_high"]


def test_documents_of_one_cell_are_those_that_were_stored(store: Path, results: list[CellResult]) -> None:
    shown = view(store, submission="full", task=TASK, quantizer="rtn-4bit-g128", documents=True)
    cell = next(
        r for r in results if (r.cell.submission, r.cell.task, r.cell.quantizer) == ("full", TASK, "rtn-4bit-g128")
    )
    assert shown.title == f"full x rtn-4bit-g128 x {TASK}"
    assert [row["document"] for row in shown.rows] == [document.index for document in cell.documents]
    assert [row["response"] for row in shown.rows] == [document.response for document in cell.documents]
    assert shown.rows[0]["knowmem_f"] == pytest.approx(100 * cell.documents[0].scores["knowmem_f"])


@pytest.mark.parametrize("absent", ["submission", "task", "quantizer"])
def test_documents_need_all_three_names_of_their_cell(store: Path, absent: str) -> None:
    asked = {"submission": "full", "task": TASK, "quantizer": "reference", absent: None}
    with pytest.raises(InputError, match="Documents belong to one cell: name a submission, --task and --quantizer"):
        view(store, documents=True, **asked)


def test_a_cell_that_is_not_there_is_named_with_the_command_that_lists_the_others(store: Path) -> None:
    with pytest.raises(InputError, match=r"no cell full x bnb-nf4 x muse_mini_knowmem_f: `quench show full` lists"):
        view(store, submission="full", task=TASK, quantizer="bnb-nf4", documents=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"submission": "ful"}, "no submission in the store named 'ful': did you mean full"),
        ({"submission": "zzz", "cells": True}, "known: full, lora, mini-retrain"),
        ({"submission": "zzz", "documents": True, "task": TASK, "quantizer": "reference"}, "named 'zzz'"),
        ({"corpus": "news"}, "no corpus in the store named 'news': known: books, mini"),
        ({"corpus": "min"}, "did you mean mini"),
    ],
)
def test_a_name_that_the_store_does_not_hold_is_answered_with_those_it_does(
    store: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownNameError) as raised:
        view(store, **asked)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_store_is_answered_with_how_to_make_one_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.duckdb"
    with pytest.raises(InputError, match=r"There is no store .*: make one with `quench run --store"):
        view(path)
    assert not path.exists()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.duckdb"
    path.write_text("not a database at all", encoding="utf-8")
    with pytest.raises(StoreError):
        view(path)
    assert path.read_text(encoding="utf-8") == "not a database at all"


def test_an_empty_store_has_an_empty_ranking_and_no_cells(tmp_path: Path) -> None:
    path = tmp_path / "empty.duckdb"
    with Store.open(path):
        pass
    assert view(path).rows == []
    assert view(path, cells=True).title == "0 cells"


def test_looking_at_a_store_changes_nothing_in_it(store: Path) -> None:
    before = store.read_bytes()
    for asked in ({}, {"cells": True}, {"submission": "full", "task": TASK, "quantizer": "reference"}):
        view(store, **asked)
    assert store.read_bytes() == before


def test_a_finished_cell_is_shown_before_a_newer_failure_of_the_same_name(
    tmp_path: Path, results: list[CellResult]
) -> None:
    whole = next(r for r in results if r.cell.submission == "full" and r.cell.task == TASK and r.spec.bits == 4)
    later = replace(whole.provenance, created_at="2027-01-01T00:00:00+00:00")
    failed = replace(
        whole, cell=replace(whole.cell, key="f" * 64), provenance=later, status="failed", scores=(), documents=(),
        stage="score", reason="out of memory", survival=(), proof=None,
    )  # fmt: skip
    path = tmp_path / "both.duckdb"
    with Store.open(path) as opened:
        opened.add(failed)
        opened.add(whole)
    asked = {"submission": "full", "task": TASK, "quantizer": "rtn-4bit-g128", "documents": True}
    assert len(view(path, **asked).rows) == len(whole.documents)


def test_of_two_finished_cells_the_newer_ones_documents_are_shown(tmp_path: Path, results: list[CellResult]) -> None:
    old = next(r for r in results if r.cell.submission == "full" and r.cell.task == TASK and r.spec.bits == 4)
    new = replace(
        old, cell=replace(old.cell, key="e" * 64), documents=old.documents[:5], scores=old.scores,
        provenance=replace(old.provenance, created_at="2027-01-01T00:00:00+00:00"),
    )  # fmt: skip
    path = tmp_path / "two.duckdb"
    with Store.open(path) as opened:
        opened.add(new)
        opened.add(old)
    asked = {"submission": "full", "task": TASK, "quantizer": "rtn-4bit-g128", "documents": True}
    assert len(view(path, **asked).rows) == 5


def test_every_view_can_be_written_as_json(store: Path) -> None:
    asked: tuple[dict[str, Any], ...] = (
        {}, {"cells": True}, {"submission": "lora", "task": TASK, "quantizer": "reference", "documents": True},
    )  # fmt: skip
    for one in asked:
        rows = view(store, **one).rows
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        assert len({tuple(row) for row in rows}) == 1
