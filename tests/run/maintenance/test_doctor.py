"""What is wrong with a store is found, told, and mended without losing a result."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from jobs_without_models import make_job

from harness.errors import StoreError
from harness.records import CellResult, Job, Score
from harness.run.job import unfinished
from harness.run.maintenance import doctor
from harness.run.sweep import spool_of
from harness.store import cell_files, schema
from harness.store.store import Store


def finished(job: Job, number: int = 0, value: float = 0.5) -> CellResult:
    row = replace(unfinished(job, job.cells[number], "finished", ""), reason=None)
    return replace(row, scores=(Score(metric="verbmem_f", value=value, num_docs=2),))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sound store of two finished cells with their records."""
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        for number in range(2):
            cell_files.write(finished(make_job(), number), spool_of(path))
            opened.add(finished(make_job(), number))
    return path


def examine(store: Path) -> list[doctor.Finding]:
    return doctor.examine(store, cache=store.parent / "cache", site=store.parent / "public" / "site")


def kinds(store: Path) -> list[str]:
    return [found.what for found in examine(store)]


def repair(store: Path) -> None:
    doctor.repair(store, examine(store), cache=store.parent / "cache")


def keys(store: Path) -> set[str]:
    with Store.open(store, read_only=True) as opened:
        return set(opened.keys("finished"))


def test_a_sound_store_has_no_finding_and_is_left_as_it_is(store: Path) -> None:
    before = store.read_bytes()
    assert examine(store) == []
    assert store.read_bytes() == before


def test_a_lost_store_is_made_anew_from_its_records(store: Path) -> None:
    expected = keys(store)
    store.unlink()
    assert kinds(store) == ["no store"]
    repair(store)
    assert keys(store) == expected
    assert kinds(store) == []


def test_a_damaged_store_is_put_aside_and_made_anew(store: Path) -> None:
    expected = keys(store)
    store.write_bytes(b"no database at all" * 1000)
    assert kinds(store) == ["damaged store"]
    repair(store)
    assert keys(store) == expected
    assert store.with_name("s.duckdb.damaged").exists()


def test_records_that_are_not_stored_are_stored_and_broken_ones_put_aside(store: Path) -> None:
    other = make_job("other")
    cell_files.write(finished(other), spool_of(store))
    cut = cell_files.write(finished(other, 1), spool_of(store))
    cut.write_bytes(cut.read_bytes()[:100])
    assert kinds(store) == ["broken record", "not stored"]
    repair(store)
    assert other.cells[0].key in keys(store)
    assert other.cells[1].key not in keys(store)
    assert cut.with_name(f"{cut.name}.broken").exists()
    assert kinds(store) == []


def test_a_record_that_contradicts_the_store_is_told_and_nothing_is_changed(store: Path) -> None:
    cell_files.write(finished(make_job(), value=0.75), spool_of(store))
    (found,) = examine(store)
    assert (found.what, found.remedy) == ("digest mismatch", None)
    assert "verbmem_f 0.5 here, 0.75 there" in found.sentence
    before = store.read_bytes()
    repair(store)
    assert store.read_bytes() == before


def test_a_row_that_somebody_has_changed_is_told(store: Path) -> None:
    with duckdb.connect(str(store)) as connection:
        connection.execute("UPDATE submissions SET method = 'better'")
    (found,) = examine(store)
    assert found.what == "digest mismatch"
    assert "some-entry was changed" in found.sentence


def test_a_store_of_an_older_schema_is_brought_up_to_date(store: Path) -> None:
    expected = keys(store)
    newest = len(schema.scripts())
    with duckdb.connect(str(store)) as connection:
        connection.execute("ALTER TABLE submissions DROP COLUMN seed_of")
        for column in ("update_norm", "norm_ratio", "effective_rank"):
            connection.execute(f"ALTER TABLE survival DROP COLUMN {column}")
        connection.execute("DROP TABLE relearning")
        connection.execute("DELETE FROM schema_version WHERE version > 4")
    assert schema.version_of_file(store) == 4
    assert kinds(store) == ["older schema"]
    repair(store)
    assert schema.version_of_file(store) == newest
    assert keys(store) == expected


def test_a_store_of_a_newer_program_is_refused_and_not_touched(store: Path) -> None:
    with duckdb.connect(str(store)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99, 'later.sql')")
    with pytest.raises(StoreError, match="update quench-bench"):
        examine(store)
    assert store.exists()


def test_what_killed_processes_were_writing_is_removed(store: Path) -> None:
    spool = spool_of(store)
    (spool / ".abc.partial").write_text("{")
    (spool / "logs" / "a--b.tmp").mkdir(parents=True)
    (store.parent / "public" / ".site.abc").mkdir(parents=True)
    assert kinds(store) == ["left over"] * 3
    repair(store)
    assert kinds(store) == []
    assert not (spool / ".abc.partial").exists()


def test_old_scratch_of_the_cache_is_removed_and_that_of_today_left(store: Path) -> None:
    cache = store.parent / "cache"
    for name in ("quantizing-old", "quantizing-new"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "quantizing-old", (time.time() - 10**6,) * 2)
    assert kinds(store) == ["left in the cache"]
    repair(store)
    assert [path.name for path in cache.iterdir()] == ["quantizing-new"]


def test_where_there_is_nothing_at_all_the_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        doctor.examine(tmp_path / "none.duckdb", cache=tmp_path)
