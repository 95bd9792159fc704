from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.errors import StoreError
from harness.records import LayerSurvival, Score
from harness.store import rows
from harness.store.store import Store


def _query(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_a_finished_cell_is_never_overwritten(tmp_path: Path, make_cell: Any) -> None:
    first = make_cell()
    with Store.open(tmp_path / "s.duckdb") as store:
        assert store.add(first) is True
        assert store.add(replace(first, scores=())) is False
        assert store.add(replace(first, status="failed", reason="later")) is False
        assert store.cells(with_documents=True) == [first]


@pytest.mark.parametrize("status", ["failed", "skipped", "cancelled"])
def test_a_cell_that_did_not_finish_gives_way_to_a_later_outcome(tmp_path: Path, make_cell: Any, status: str) -> None:
    bad = make_cell(status=status, reason="no", stage="score", scores=(), proof=None, survival=())
    with Store.open(tmp_path / "s.duckdb") as store:
        assert store.add(bad)
        assert store.add(replace(bad, reason="no again"))
        assert [cell.reason for cell in store.cells()] == ["no again"]
        assert store.add(make_cell())
        assert store.cells(with_documents=True) == [make_cell()]
        assert store.keys("failed", "skipped", "cancelled") == frozenset()
    assert _query(tmp_path / "s.duckdb", "SELECT count(*) FROM documents") == [(3,)]


def test_keys_are_told_apart_by_how_their_cells_ended(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell("a"))
        store.add(make_cell("b", status="failed", reason="no"))
        store.add(make_cell("c", status="skipped", reason="no"))
        assert store.keys("finished") == {"a"}
        assert store.keys("failed", "skipped") == {"b", "c"}
        assert store.keys() == {"a", "b", "c"}


def test_cells_without_documents_hold_everything_else(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell())
        assert store.cells() == [make_cell(documents=())]
        assert store.documents("a" * 64) == make_cell().documents
        with pytest.raises(StoreError, match="has no cell zzz"):
            store.documents("zzz")


def test_a_write_that_fails_half_way_leaves_nothing_behind(
    tmp_path: Path, make_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.duckdb"
    real = rows.insert

    def full_disk(connection: duckdb.DuckDBPyConnection, table: str, row: rows.Row) -> None:
        if table == "scores":
            raise duckdb.IOException("disk full")
        real(connection, table, row)

    with Store.open(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(rows, "insert", full_disk)
            with pytest.raises(StoreError, match="disk full"):
                store.add(make_cell())
        assert store.cells() == []
        for table in ("submissions", "quantized_models", "document_rows", "texts", "answers"):
            assert store._connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        assert store.add(make_cell())
        assert store.cells(with_documents=True) == [make_cell()]


def test_a_keyboard_interrupt_in_a_write_rolls_back_and_goes_on_up(
    tmp_path: Path, make_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with Store.open(tmp_path / "s.duckdb") as store:
        with monkeypatch.context() as patch:
            patch.setattr(rows, "score_rows", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.add(make_cell())
        assert store.add(make_cell())
        assert len(store.cells()) == 1


def test_nan_is_refused_and_nothing_of_the_cell_is_stored(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        with pytest.raises(StoreError, match="finite numbers"):
            store.add(make_cell(scores=(Score(metric="knowmem_f", value=float("nan"), num_docs=1),)))
        assert store.cells() == []


def test_proof_and_survival_are_kept_once_for_all_cells_of_a_quantized_model(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    other = LayerSurvival(
        layer="x", codes_changed=0.0, update_in_steps=None, relative_update=0.0, survival_ratio=None, cosine=None,
        num_weights=1,
    )  # fmt: skip
    with Store.open(path) as store:
        for task in range(4):
            result = make_cell(str(task))
            store.add(replace(result, cell=replace(result.cell, task=f"task{task}")))
        store.add(make_cell("x", quantizer="bnb-nf4"))
        store.add(make_cell("y", survival=(other,)))
        assert store.cells()[4].spec.name == "bnb-nf4"
        assert store.cells()[5].survival == (other,)
    assert _query(path, "SELECT count(*) FROM quantized_models") == [(3,)]
    assert _query(path, "SELECT count(*) FROM survival") == [(3,)]
    assert _query(path, "SELECT count(*) FROM submissions") == [(1,)]
    assert _query(path, "SELECT count(*) FROM quantizers") == [(2,)]


def test_texts_and_answers_that_repeat_are_stored_once(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell("a"))
    with Store.open(path) as store:  # a new process knows what is there
        store.add(make_cell("b", quantizer="bnb-nf4"))
    assert _query(path, "SELECT count(*) FROM texts") == [(6,)]
    assert _query(path, "SELECT response FROM answers") == [("Nobody.",)]
    assert _query(path, "SELECT count(*) FROM documents") == [(6,)]


def test_a_snapshot_that_changed_is_a_new_row_and_the_old_cell_keeps_its_own(tmp_path: Path, make_cell: Any) -> None:
    renamed = replace(make_cell().submission, title="Another title")
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell("a"))
        store.add(make_cell("b", submission=renamed))
        assert [cell.submission.title for cell in store.cells()] == ["NPO, all weights", "Another title"]


def test_sql_users_can_ask_for_a_metric_of_every_document(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    found = _query(
        path,
        "SELECT submission, quantizer, document, prompt_excerpt, reference_excerpt, scores['rouge1'] FROM documents",
    )
    assert found[1] == ("npo-full", "rtn-4bit-g128", 1, "Question 1: who?", "Somebody.", 0.1)
    assert _query(path, "SELECT c.submission, s.metric, s.value FROM cells c JOIN scores s ON s.cell_id = c.id") == [
        ("npo-full", "knowmem_f", 0.25)
    ]


def test_a_second_process_is_told_that_the_store_is_in_use(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    program = (
        "import sys; from pathlib import Path; from harness.store.store import Store; from harness.errors import *\n"
        "try:\n    Store.open(Path(sys.argv[1]), read_only=True)\nexcept StoreError as error:\n    print(error)"
    )
    with Store.open(path) as store:
        store.add(make_cell())
        said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()} (" in said.stdout
    assert said.stdout.count("\n") == 1


def test_a_file_that_is_no_store_is_named_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 400)
    foreign = tmp_path / "foreign.duckdb"
    with duckdb.connect(str(foreign)) as connection:
        connection.execute("CREATE TABLE shop (price INTEGER)")
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"notes\.txt is no DuckDB file"):
            Store.open(text, read_only=read_only)
        with pytest.raises(StoreError, match="no Quench store"):
            Store.open(foreign, read_only=read_only)
    assert text.read_text().startswith("not a database")
    assert _query(foreign, "SELECT table_name FROM duckdb_tables()") == [("shop",)]


def test_reading_what_is_not_there_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        Store.open(tmp_path / "none.duckdb", read_only=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path)


def test_a_store_in_a_new_folder_is_made_and_empty(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep" / "er" / "s.duckdb") as store:
        assert store.cells() == []
        assert store.keys() == frozenset()


def test_a_store_that_was_not_closed_keeps_what_was_added(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    program = (
        "import os, sys; from pathlib import Path; from harness.store import cell_files; "
        "from harness.store.store import Store\n"
        "store = Store.open(Path(sys.argv[1])); store.add(cell_files.read(Path(sys.argv[2]))); os._exit(9)"
    )
    from harness.store import cell_files

    record = cell_files.write(make_cell(), tmp_path)
    died = subprocess.run([sys.executable, "-c", program, str(path), str(record)], check=False)
    assert died.returncode == 9
    with Store.open(path) as store:
        assert store.cells(with_documents=True) == [make_cell()]


def test_a_small_store_takes_little_room(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        for number in range(12):
            store.add(make_cell(str(number)))
    assert path.stat().st_size < 600_000
