"""Stores that are damaged, locked or shared, snapshots that differ, and texts that few expect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.errors import InputError, StoreError
from harness.records import Score
from harness.store import cell_files, rows, schema
from harness.store.store import Store

ODD_TEXTS = {
    "nul": "before\0after",
    "only white space": " \t\r\n ",
    "beyond the basic plane": "\N{MATHEMATICAL BOLD CAPITAL A}\N{GRINNING FACE}",
    "combining marks": "e\N{COMBINING ACUTE ACCENT}",
    "right to left": "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "line separators": "a\N{LINE SEPARATOR}b\N{NEXT LINE}c",
    "quotes and sql": "'; DROP TABLE cells; --\"$1?",
    "json and markup": '{"a": [1]}</script><!--\\u0000',
    "no character": "\ufffe\uffff",
    "private use": "\ue000",
}
odd_text = pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)


def count(store: Store, table: str) -> int:
    found = store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


@odd_text
def test_an_odd_text_survives_record_store_and_sql(tmp_path: Path, make_cell: Any, text: str) -> None:
    document = replace(make_cell().documents[0], response=text, prompt_excerpt=text, reference_excerpt=text, split=text)
    given = make_cell(
        documents=(document,), remarks=(text, ""), reason=text, submission=replace(
            make_cell().submission, title=text, authors=(text,), hyperparameters={text: [text, {"in": text}]}
        ),
    )  # fmt: skip
    result = cell_files.read(cell_files.write(given, tmp_path / "records"))
    assert result == given
    with Store.open(tmp_path / "s.duckdb") as store:
        assert store.add(result)
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert store.cells(with_documents=True) == [given]
        found = store._connection.execute("SELECT count(*) FROM documents WHERE response = ?", [text]).fetchone()
        assert found == (1,)


def test_texts_that_only_look_alike_are_kept_apart(tmp_path: Path, make_cell: Any) -> None:
    answers = ["\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}", "E", "e", "e ", " e", ""]
    documents = tuple(replace(make_cell().documents[0], index=i, response=text) for i, text in enumerate(answers))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell(documents=documents))
        assert [document.response for document in store.documents("a" * 64)] == answers
        assert count(store, "answers") == len(answers)


def test_half_a_surrogate_pair_is_refused_and_the_store_stays_usable(tmp_path: Path, make_cell: Any) -> None:
    broken = make_cell(documents=(replace(make_cell().documents[0], response="\ud800"),))
    with Store.open(tmp_path / "s.duckdb") as store:
        with pytest.raises(StoreError, match="can't be written"):
            store.add(broken)
        assert store.keys() == frozenset()
        assert store.add(make_cell())
        assert store.cells(with_documents=True) == [make_cell()]


def test_a_document_without_a_reference_keeps_its_excerpt_and_takes_no_text_row(tmp_path: Path, make_cell: Any) -> None:
    first, second, third = make_cell().documents
    mixed = (
        replace(first, reference_sha256=None, reference_excerpt=""),
        second,
        replace(third, reference_sha256=None, reference_excerpt="only an excerpt"),
    )
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell(documents=mixed))
        assert store.documents("a" * 64) == mixed
        assert count(store, "texts") == 3 + 1


def test_two_texts_of_one_digest_with_other_excerpts_are_two(tmp_path: Path, make_cell: Any) -> None:
    document = make_cell().documents[0]
    pair = (document, replace(document, index=1, prompt_excerpt="cut elsewhere"))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell(documents=pair))
        assert store.documents("a" * 64) == pair


def test_documents_keep_the_order_of_the_record_not_of_their_index(tmp_path: Path, make_cell: Any) -> None:
    backwards = tuple(reversed(make_cell().documents))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell(documents=backwards))
        assert [document.index for document in store.documents("a" * 64)] == [2, 1, 0]
        assert store.cells(with_documents=True)[0].documents == backwards


def test_scores_keep_their_order_and_one_without_a_value_its_reason(tmp_path: Path, make_cell: Any) -> None:
    scores = (
        Score(metric="z", value=None, num_docs=0, missing_reason="no valid document"),
        Score(metric="a", value=-0.0, num_docs=1),
        Score(metric="m", value=5e-324, num_docs=2**31 - 1),
    )
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell(scores=scores))
        assert store.cells()[0].scores == scores


def test_true_one_and_one_point_zero_are_three_hyperparameters(tmp_path: Path, make_cell: Any) -> None:
    given = [
        make_cell(str(number), submission=replace(make_cell().submission, hyperparameters={"x": value}))
        for number, value in enumerate((True, 1, 1.0, "1", None))
    ]
    with Store.open(tmp_path / "s.duckdb") as store:
        assert all(map(store.add, given))
        found = [cell.submission.hyperparameters["x"] for cell in store.cells()]
        assert [type(value) for value in found] == [bool, int, float, str, type(None)]
        assert count(store, "submissions") == 5


def test_survival_without_a_proof_and_a_proof_without_survival_come_back_so(tmp_path: Path, make_cell: Any) -> None:
    given = [
        make_cell("neither", proof=None, survival=()),
        make_cell("survival", proof=None),
        make_cell("proof", survival=()),
        make_cell("both"),
    ]
    with Store.open(tmp_path / "s.duckdb") as store:
        assert all(map(store.add, given))
        assert store.cells(with_documents=True) == given
        assert count(store, "quantized_models") == 3


def test_a_replaced_failure_takes_the_place_of_the_latest_cell(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell("first", status="failed", reason="no"))
        store.add(make_cell("second"))
        store.add(make_cell("first"))
        assert [cell.cell.key for cell in store.cells()] == ["second", "first"]
        assert store.keys("finished") == {"first", "second"}


def test_a_replaced_failure_leaves_the_documents_of_other_cells_alone(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell("keep"))
        for reason in ("one", "two", "three"):
            store.add(make_cell("fails", status="failed", reason=reason))
        assert store.documents("keep") == make_cell().documents
        assert count(store, "document_rows") == 6
        assert count(store, "scores") == 2


def test_asking_for_a_status_that_no_cell_has_gives_nothing(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell())
        assert store.keys("skipped") == store.keys("cancelled", "failed") == frozenset()


def test_a_key_is_matched_as_a_whole_and_literally(tmp_path: Path, make_cell: Any) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        store.add(make_cell("abc"))
        for other in ("ab", "abcd", "ABC", "a%", "abc' OR '1'='1", ""):
            with pytest.raises(StoreError, match="quench show --cells"):
                store.documents(other)


def test_a_store_opened_for_reading_can_not_be_changed(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell("a"))
    before = path.read_bytes()
    with Store.open(path, read_only=True) as store:
        with pytest.raises(StoreError, match="read-only"):
            store.add(make_cell("b"))
        assert store.add(make_cell("a")) is False, "what has finished needs no write"
        assert store.keys() == {"a"}
    assert path.read_bytes() == before


def test_two_readers_share_a_store_and_a_writer_waits_its_turn_with_a_sentence(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    program = (
        "import sys; from pathlib import Path; from harness.store.store import Store; from harness.errors import *\n"
        "with Store.open(Path(sys.argv[1]), read_only=True) as s: print(len(s.keys()))\n"
        "try:\n    Store.open(Path(sys.argv[1]))\nexcept StoreError as error:\n    print(error)"
    )
    with Store.open(path, read_only=True) as first, Store.open(path, read_only=True) as second:
        assert first.keys() == second.keys()
        said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    one, sentence = said.stdout.splitlines()
    assert one == "1"
    assert f"in use by process {os.getpid()} (" in sentence


def test_the_same_process_is_told_too_and_the_first_writer_goes_on(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="in use by another process"):
            Store.open(path, read_only=True)
        assert store.add(make_cell())


@pytest.mark.parametrize("kept", [0, 1, 4096, 0.5])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_store_that_was_cut_off_is_one_sentence_that_names_it(
    tmp_path: Path, make_cell: Any, kept: float, read_only: bool
) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"s\.duckdb") as caught:
        Store.open(path, read_only=read_only)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert path.read_bytes() == before, "what may be rescued is left alone"


def test_a_damaged_store_is_refused_and_can_be_rebuilt_from_its_records(tmp_path: Path, make_cell: Any) -> None:
    path, records = tmp_path / "s.duckdb", tmp_path / "records"
    given = [make_cell(key) for key in ("a", "b", "c")]
    with Store.open(path) as store:
        for result in given:
            cell_files.write(result, records)
            store.add(result)
    whole = bytearray(path.read_bytes())
    whole[12_288:] = bytes(byte ^ 0xFF for byte in whole[12_288:])
    path.write_bytes(whole)
    with pytest.raises(StoreError, match=r"s\.duckdb"):
        Store.open(path, read_only=True)
    with Store.open(tmp_path / "rebuilt.duckdb") as store:
        for record in sorted(records.glob("*.json")):
            store.add(cell_files.read(record))
        assert store.cells(with_documents=True) == given


def test_a_store_below_a_file_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="check the path"):
        Store.open(tmp_path / "file" / "s.duckdb")


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("tables", [("cells",), ("schema_version",)])
def test_a_database_with_only_some_of_the_tables_is_another_program_s(
    tmp_path: Path, tables: tuple[str, ...], read_only: bool
) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table} (version INTEGER)")
    with pytest.raises(StoreError, match="no Quench store"):
        Store.open(path, read_only=read_only)


def test_an_empty_database_becomes_a_store_when_written_and_is_none_when_read(tmp_path: Path) -> None:
    path = tmp_path / "empty.duckdb"
    duckdb.connect(str(path)).close()
    with pytest.raises(StoreError, match="no Quench store"):
        Store.open(path, read_only=True)
    with Store.open(path) as store:
        assert store.cells() == []
    Store.open(path, read_only=True).close()


def test_opening_an_up_to_date_store_again_runs_no_migration(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    for _ in range(3):
        Store.open(path).close()
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM schema_version").fetchone() == (len(schema.scripts()),)


def test_several_missing_migrations_run_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "0001_cells.sql").write_text("CREATE TABLE cells (n INTEGER);")
    (tmp_path / "0002_more.sql").write_text("INSERT INTO cells VALUES (2);")
    (tmp_path / "0003_last.sql").write_text("UPDATE cells SET n = n * 10;")
    (tmp_path / "README.sql").write_text("no migration")
    (tmp_path / "0004_notes.txt").write_text("no migration")
    with duckdb.connect() as connection:
        assert schema.bring_up_to_date(connection, Path("s"), read_only=False, folder=tmp_path) == 3
        assert connection.execute("FROM cells").fetchall() == [(20,)]
        versions = connection.execute("FROM schema_version ORDER BY version").fetchall()
        assert versions == [(1, "0001_cells.sql"), (2, "0002_more.sql"), (3, "0003_last.sql")]


@pytest.mark.parametrize("names", [(), ("0002_b.sql",), ("0001_a.sql", "0001_b.sql")])
def test_migrations_that_are_absent_or_doubled_are_a_damaged_installation(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(StoreError, match="reinstall quench-bench"):
        schema.scripts(tmp_path)


def test_the_columns_of_the_tables_are_those_that_rows_fill(tmp_path: Path, make_cell: Any) -> None:
    result = make_cell()
    model = rows.model_row(result)
    assert model is not None
    filled = {
        "submissions": {"id", *rows.submission_row(result.submission)},
        "quantizers": {"id", *rows.quantizer_row(result.spec)},
        "quantized_models": {"id", *model},
        "survival": {"model_id", *rows.layer_rows(result.survival)[0]},
        "cells": {"id", "submission_id", "quantizer_id", "model_id", *rows.cell_row(result)},
        "scores": {"cell_id", *rows.score_rows(result.scores)[0]},
    }
    with Store.open(tmp_path / "s.duckdb") as store:
        for table, columns in filled.items():
            assert {row["name"] for row in rows.fetch(store._connection, f"PRAGMA table_info('{table}')")} == columns


@pytest.mark.parametrize(
    "changes", [{"title": "other"}, {"authors": ()}, {"notes": "new"}, {"hyperparameters": {"lr": 1e-4, "steps": [2]}}]
)
def test_any_change_of_a_snapshot_is_another_digest(make_cell: Any, changes: dict[str, Any]) -> None:
    before = rows.submission_row(make_cell().submission)["digest"]
    assert before == rows.submission_row(replace(make_cell().submission))["digest"]
    assert before != rows.submission_row(replace(make_cell().submission, **changes))["digest"]


@pytest.mark.parametrize("field", ["cell", "submission", "spec", "provenance"])
def test_a_record_with_a_part_that_is_null_or_absent_is_refused(tmp_path: Path, make_cell: Any, field: str) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    body = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**body, field: None}), encoding="utf-8")
    with pytest.raises(StoreError, match=f"field {field}"):
        cell_files.read(path)
    del body[field]
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(StoreError, match=f"field {field}"):
        cell_files.read(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "-Infinity"])
def test_an_infinite_number_in_a_record_is_refused_however_it_is_spelled(
    tmp_path: Path, make_cell: Any, number: str
) -> None:
    path = cell_files.write(make_cell(), tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"value":0.25', f'"value":{number}'), encoding="utf-8")
    with pytest.raises(StoreError):
        cell_files.read(path)


def test_writing_a_record_again_replaces_it_as_a_whole(tmp_path: Path, make_cell: Any) -> None:
    cell_files.write(make_cell(reason="a much longer reason than the next one"), tmp_path)
    path = cell_files.write(make_cell(reason="short"), tmp_path)
    assert cell_files.read(path).reason == "short"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
