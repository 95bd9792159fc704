from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.errors import StoreError
from harness.store import schema
from harness.store.store import Store


def _newer(tmp_path: Path, sql: str) -> Path:
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder)
    (folder / f"{len(schema.scripts()) + 1:04d}_next.sql").write_text(sql)
    return folder


def _take_back(path: Path, version: int) -> None:
    """Makes a store one of an older schema: what later migrations added is taken away."""
    native = [f"native_{name}_difference" for name in ("max", "mean", "rounding")]
    added = {
        2: ("cells", ["origin"]),
        3: ("quantized_models", ["mean_abs_error", "symmetric"]),
        4: ("quantized_models", native),
        5: ("submissions", ["seed_of"]),
        6: ("survival", ["update_norm", "norm_ratio", "effective_rank"]),
        7: ("relearning", []),
    }
    with duckdb.connect(str(path)) as connection:
        for number in range(version + 1, len(schema.scripts()) + 1):
            table, columns = added[number]
            for column in columns:
                connection.execute(f'ALTER TABLE {table} DROP COLUMN "{column}"')
            if not columns:
                connection.execute(f"DROP TABLE {table}")
        connection.execute("DELETE FROM schema_version WHERE version > ?", [version])


def test_a_new_store_says_which_schema_it_has(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.duckdb").close()
    with duckdb.connect(str(tmp_path / "s.duckdb")) as connection:
        assert schema.version_of(connection) == len(schema.scripts())
        ran = connection.execute("SELECT script FROM schema_version ORDER BY version").fetchall()
        assert ran == [(script.name,) for script in schema.scripts()]
        assert ran[0] == ("0001_cells.sql",)


def test_an_older_store_is_brought_up_to_date_and_keeps_its_cells(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    folder = _newer(tmp_path, "ALTER TABLE cells ADD COLUMN mood VARCHAR;")
    with duckdb.connect(str(path)) as connection:
        newest = len(schema.scripts()) + 1
        assert schema.bring_up_to_date(connection, path, read_only=False, folder=folder) == newest
        assert connection.execute("SELECT key, mood FROM cells").fetchall() == [("a" * 64, None)]
        assert schema.bring_up_to_date(connection, path, read_only=False, folder=folder) == newest


def test_cells_of_a_store_without_origins_were_scored_here(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    _take_back(path, 1)
    with pytest.raises(StoreError, match="has schema 1 and needs"):
        Store.open(path, read_only=True)
    with Store.open(path) as store:
        assert store.cells(with_documents=True) == [make_cell()]
        assert store.add(make_cell("b" * 64, origin="rescored from logs"))
        assert [cell.origin for cell in store.cells()] == ["scored", "rescored from logs"]


def test_proofs_of_a_store_without_mean_errors_are_kept_and_say_none(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    measured = replace(make_cell().proof, mean_abs_error=0.004, symmetric=False)
    with Store.open(path) as store:
        store.add(replace(make_cell(), proof=measured))
    _take_back(path, 2)
    with pytest.raises(StoreError, match=f"has schema 2 and needs {len(schema.scripts())}"):
        Store.open(path, read_only=True)
    unknown = replace(measured, max_abs_error=None, relative_error=None, mean_abs_error=None, symmetric=None)
    with Store.open(path) as store:
        kept = store.cells()[0].proof
        assert kept == replace(measured, mean_abs_error=None, symmetric=None)
        new = replace(measured, mean_abs_error=0.005)
        for key, proof in (("b", new), ("c", unknown)):
            assert store.add(replace(make_cell(key * 64), proof=proof))
        assert [cell.proof for cell in store.cells()[1:]] == [new, unknown]


def test_the_committed_store_is_of_the_newest_schema() -> None:
    committed = Path(__file__).parents[2] / "results.duckdb"
    if not committed.exists():
        pytest.skip("the board's store is not shipped here")
    with Store.open(committed, read_only=True) as store:
        proofs = [cell.proof for cell in store.cells() if cell.proof is not None]
    assert proofs
    assert all(proof.relative_error is not None for proof in proofs)


def test_submissions_from_before_seeds_are_read_and_not_stored_a_second_time(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.add(make_cell())
    _take_back(path, 4)
    with Store.open(path) as store:
        assert store.add(make_cell("b" * 64))
        assert [cell.submission.seed_of for cell in store.cells()] == [None, None]
        again = replace(make_cell("c" * 64), submission=replace(make_cell().submission, seed_of="first"))
        assert store.add(again)
        assert store.cells()[-1].submission.seed_of == "first"
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT seed_of FROM submissions ORDER BY id").fetchall() == [(None,), ("first",)]


def test_layers_from_before_norms_and_ranks_are_kept_and_new_ones_have_them(tmp_path: Path, make_cell: Any) -> None:
    path = tmp_path / "s.duckdb"
    (old,) = make_cell().survival
    new = replace(old, update_norm=0.5, norm_ratio=1.5, effective_rank=7.25)
    with Store.open(path) as store:
        store.add(make_cell())
    _take_back(path, 5)
    with Store.open(path) as store:
        assert store.cells()[0].survival == (old,)
        assert store.add(make_cell("b" * 64, survival=(new,)))
    with Store.open(path, read_only=True) as store:
        assert [cell.survival for cell in store.cells()] == [(old,), (new,)]
    with duckdb.connect(str(path), read_only=True) as connection:
        found = connection.execute("SELECT update_norm, norm_ratio, effective_rank FROM survival ORDER BY model_id")
        assert found.fetchall() == [(None, None, None), (0.5, 1.5, 7.25)]


def test_an_older_store_can_not_be_migrated_while_it_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Store.open(path).close()
    folder = _newer(tmp_path, "SELECT 1;")
    with (
        duckdb.connect(str(path), read_only=True) as connection,
        pytest.raises(StoreError, match="bring it up to date first"),
    ):
        schema.bring_up_to_date(connection, path, read_only=True, folder=folder)


def test_a_migration_that_fails_is_undone_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Store.open(path).close()
    folder = _newer(tmp_path, "CREATE TABLE half (x INTEGER); SELECT no_such_column FROM cells;")
    with duckdb.connect(str(path)) as connection:
        with pytest.raises(StoreError, match=r"\d{4}_next\.sql"):
            schema.bring_up_to_date(connection, path, read_only=False, folder=folder)
        assert schema.version_of(connection) == len(schema.scripts())
        assert connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'").fetchone() == (0,)


def test_a_store_of_a_newer_program_is_refused_for_reading_and_writing(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Store.open(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99, 'later.sql')")
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"schema 99 .* update quench-bench"):
            Store.open(path, read_only=read_only)


def test_migrations_with_a_gap_are_a_damaged_installation(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("")
    (tmp_path / "0003_c.sql").write_text("")
    with pytest.raises(StoreError, match="reinstall"):
        schema.scripts(tmp_path)
