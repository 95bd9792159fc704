"""How far a run is can be told while it holds the store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_without_models import TASKS, make_job

from harness.errors import StoreInUseError
from harness.run.job import unfinished
from harness.run.plan.planner import Plan
from harness.run.progress import live_status
from harness.run.sweep import spool_of
from harness.store import cell_files
from harness.store.store import Store


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A store with one failed cell that another process has open."""
    path, job = tmp_path / "s.duckdb", make_job()
    with Store.open(path) as opened:
        opened.add(unfinished(job, job.cells[0], "failed", "why"))
        live_status.write_snapshot(opened.statuses(), spool_of(path))
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield path
        process.kill()


def test_a_held_store_is_refused_with_the_process_that_holds_it(held: Path) -> None:
    with pytest.raises(StoreInUseError, match=r"in use by process \d+ \(python.* -c import duckdb"):
        Store.open(held, read_only=True)


def test_a_held_store_is_told_from_its_snapshot_and_newer_records(held: Path) -> None:
    job, live = make_job(), live_status.LiveStatus(held, spool_of(held))
    assert live.statuses() == {job.cells[0].key: "failed"}
    for cell in job.cells:
        cell_files.write(replace(unfinished(job, cell, "finished", ""), reason=None), spool_of(held))
    assert live.statuses() == {cell.key: "finished" for cell in job.cells}
    broken = spool_of(held) / "zz.json"
    broken.write_text("{")
    assert live.statuses() == {cell.key: "finished" for cell in job.cells}


def test_a_free_store_is_read_itself(tmp_path: Path) -> None:
    path, job = tmp_path / "s.duckdb", make_job()
    live = live_status.LiveStatus(path, spool_of(path))
    assert live.statuses() == {}
    with Store.open(path) as opened:
        opened.add(unfinished(job, job.cells[0], "skipped", "why"))
    assert live.statuses() == {job.cells[0].key: "skipped"}


def test_rows_count_cells_by_how_they_ended_and_impossible_jobs_too() -> None:
    job, other = make_job(), make_job("other")
    plan = Plan(jobs=(job,), done=(), impossible=((other, "needs a GPU."),), added_controls=())
    first, second = live_status.progress_rows(plan, {job.cells[0].key: "cancelled", other.cells[0].key: "skipped"})
    assert (first["cancelled"], first["to_do"]) == (1, len(TASKS) - 1)
    assert (second["submission"], second["skipped"]) == ("other", 1)
