"""A whole run over a store: everything ends as a row, a crash loses nothing, a second run does nothing."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from jobs_without_models import TASKS, make_job
from rich.console import Console

from harness.errors import StoreError
from harness.records import CellResult, Job, Score, Status, Submission
from harness.run import sweep
from harness.run.executors import local
from harness.run.job import Settings, unfinished
from harness.run.plan.planner import Plan
from harness.run.progress import live_status
from harness.store import cell_files, merging, schema
from harness.store.store import Store


def finished(job: Job, number: int = 0) -> CellResult:
    cell = job.cells[number]
    metric = cell.task.removeprefix("muse_mini_")
    row = replace(unfinished(job, cell, "finished", ""), reason=None, stage=None)
    return replace(row, scores=(Score(metric=metric, value=0.25, num_docs=2),))


def plan_of(*jobs: Job, impossible: tuple[tuple[Job, str], ...] = ()) -> Plan:
    return Plan(jobs=jobs, done=(), impossible=impossible, added_controls=())


def silent() -> Console:
    return Console(file=io.StringIO(), width=200)


def execute(plan: Plan, store: Path, console: Console | None = None) -> Mapping[str, int]:
    settings = Settings(cache=str(store.parent))
    return sweep.execute(plan, {}, settings, store=store, workers=1, console=console or silent())


def statuses(store: Path) -> Mapping[str, Status]:
    return live_status.LiveStatus(store, sweep.spool_of(store)).statuses()


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Replaces worker processes: each job's first cell finishes and its second fails. Returns the jobs that ran."""
    ran: list[Job] = []

    def run(
        jobs: Any,
        submissions: Mapping[str, Submission],
        settings: Settings,
        *,
        spool: Path,
        on_event: Any,
        **rest: object,
    ) -> None:
        for job in jobs:
            ran.append(job)
            on_event(local.Event(job=job, stage="quantize"))
            for result in (finished(job), unfinished(job, job.cells[1], "failed", "It broke.", stage="score")):
                cell_files.write(result, spool)
                on_event(local.Event(job=job, result=result))
            on_event(local.Event(job=job, job_ended=True))

    monkeypatch.setattr(local, "run", run)
    return ran


def test_every_outcome_becomes_a_row_and_is_counted(without_workers: list[Job], tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store.duckdb"
    counts = execute(plan_of(make_job("a"), make_job("b")), store)
    assert counts == {"finished": 2, "failed": 2}
    with Store.open(store, read_only=True) as opened:
        by_status = {result.status: result for result in opened.cells()}
    assert by_status["failed"].reason == "It broke."
    assert by_status["finished"].scores[0].value == 0.25


def test_impossible_jobs_are_stored_as_skipped_with_their_sentence(without_workers: list[Job], tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    counts = execute(plan_of(impossible=((make_job(), "needs a GPU."),)), store)
    assert counts == {"skipped": 2}
    assert without_workers == []
    with Store.open(store, read_only=True) as opened:
        assert {result.reason for result in opened.cells()} == {"needs a GPU."}


def test_finished_keys_are_those_of_finished_cells_only(without_workers: list[Job], tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    assert sweep.finished_keys(store) == frozenset()
    job = make_job()
    execute(plan_of(job), store)
    assert sweep.finished_keys(store) == {job.cells[0].key}


def test_a_later_success_replaces_a_failure(without_workers: list[Job], tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    job = make_job()
    execute(plan_of(job), store)
    with Store.open(store) as opened:
        assert opened.add(finished(job, 1))
    assert sweep.finished_keys(store) == {cell.key for cell in job.cells}


def test_records_that_a_killed_run_left_behind_are_stored_by_the_next(
    without_workers: list[Job], tmp_path: Path
) -> None:
    store = tmp_path / "store.duckdb"
    job, lost = make_job("a"), make_job("lost")
    cell_files.write(finished(lost), sweep.spool_of(store))
    cell_files.write(unfinished(lost, lost.cells[1], "failed", "Old."), sweep.spool_of(store))
    execute(plan_of(job), store)
    assert lost.cells[0].key in sweep.finished_keys(store)
    assert lost.cells[1].key not in sweep.finished_keys(store)


def test_what_a_killed_run_recorded_and_did_not_store_is_not_planned_again(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    lost = make_job("lost")
    cell_files.write(finished(lost), sweep.spool_of(store))
    cell_files.write(unfinished(lost, lost.cells[1], "failed", "Old."), sweep.spool_of(store))
    (sweep.spool_of(store) / "cut-short.json").write_text('{"schema": "quench.cell/1", ', encoding="utf-8")
    assert sweep.finished_keys(store) == {lost.cells[0].key}


def test_a_store_of_an_older_program_is_brought_up_to_date_before_planning_reads_it(tmp_path: Path) -> None:
    store, older = tmp_path / "store.duckdb", tmp_path / "migrations"
    older.mkdir()
    for script in schema.scripts()[:3]:
        shutil.copy(script, older)
    with duckdb.connect(str(store)) as connection:
        schema.bring_up_to_date(connection, store, read_only=False, folder=older)
    with pytest.raises(StoreError, match="has schema 3"):
        sweep.finished_keys(store)
    sweep.bring_up_to_date(store)
    assert sweep.finished_keys(store) == frozenset()


def test_bringing_up_to_date_makes_no_store(tmp_path: Path) -> None:
    sweep.bring_up_to_date(tmp_path / "store.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_ingesting_records_twice_stores_them_once(tmp_path: Path) -> None:
    store, folder = tmp_path / "store.duckdb", tmp_path / "records"
    for name in ("a", "b", "c"):
        cell_files.write(finished(make_job(name)), folder)
    assert merging.ingest(store, folder) == merging.Merged(new=3, known=0, conflicts=())
    assert merging.ingest(store, folder) == merging.Merged(new=0, known=3, conflicts=())


def test_progress_rows_count_cells_by_how_they_ended(without_workers: list[Job], tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    done, waiting = make_job("done"), make_job("waiting")
    execute(plan_of(done), store)
    first, second = live_status.progress_rows(plan_of(done, waiting), statuses(store))
    assert (first["finished"], first["failed"], first["to_do"]) == (1, 1, 0)
    assert (second["finished"], second["failed"], second["to_do"]) == (0, 0, len(TASKS))


def test_progress_without_a_store_is_all_to_do(tmp_path: Path) -> None:
    (row,) = live_status.progress_rows(plan_of(make_job()), statuses(tmp_path / "none.duckdb"))
    assert row["to_do"] == len(TASKS)


def test_off_a_terminal_progress_is_one_plain_line_per_job_with_failures_named(
    without_workers: list[Job], tmp_path: Path
) -> None:
    out = io.StringIO()
    execute(plan_of(make_job("a"), make_job("b")), tmp_path / "store.duckdb", Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in out.getvalue()
    assert all("It broke." in line for line in lines)
    assert "a x reference" in lines[0]


def test_on_a_terminal_the_bar_tells_jobs_done_and_what_runs(without_workers: list[Job], tmp_path: Path) -> None:
    out = io.StringIO()
    execute(plan_of(make_job("a")), tmp_path / "s.duckdb", Console(file=out, width=200, force_terminal=True))
    assert "1/1" in out.getvalue()
    assert "Scoring" in out.getvalue()


@pytest.mark.parametrize(("workers", "threads"), [(1, 16), (6, 2), (10_000, 1)])
def test_workers_share_the_cores_and_a_gpu_has_one_worker(
    monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert sweep.threads_for(workers) == threads
    assert sweep.default_workers("cuda") == 1
    assert sweep.default_workers("cpu") >= 1
