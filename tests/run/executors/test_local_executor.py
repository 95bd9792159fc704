"""Workers that behave, crash and hang: every cell ends all the same."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_without_models import TASKS, make_job, make_submission

from harness.records import CellResult, Job, Submission
from harness.run.executors import local
from harness.run.job import Settings, unfinished

Emit = Callable[[CellResult], None]


def finish(
    job: Job, submissions: Mapping[str, Submission], settings: Settings, *, emit: Emit, on_stage: Callable[[str], None]
) -> None:
    for cell in job.cells:
        on_stage(cell.task)
        emit(unfinished(job, cell, "finished", "no reason"))


def crash_after_one_cell(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    emit(unfinished(job, job.cells[0], "finished", "no reason"))
    print("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_when_named_bad(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    if job.submission.name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    for cell in job.cells:
        emit(unfinished(job, cell, "finished", "no reason"))


def leave_quietly(*arguments: object, **keywords: object) -> None:
    os._exit(3)


def hang(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    emit(unfinished(job, job.cells[0], "finished", "no reason"))
    time.sleep(3600)


def outcomes(tmp_path: Path, jobs: list[Job], work: local.Work, **options: object) -> dict[str, CellResult]:
    """Runs jobs and returns how each cell ended, by key; a cell that ends twice fails the test."""
    ended: dict[str, CellResult] = {}

    def take(event: local.Event) -> None:
        if event.result is not None:
            assert event.result.cell.key not in ended
            ended[event.result.cell.key] = event.result

    settings = Settings(cache=str(tmp_path))
    defaults: dict[str, object] = {"workers": 2}
    local.run(jobs, {}, settings, spool=tmp_path / "spool", on_event=take, work=work, **{**defaults, **options})  # type: ignore[arg-type]
    assert set(ended) == {cell.key for job in jobs for cell in job.cells}
    return ended


def test_every_cell_of_every_job_ends_once_and_is_a_record_on_disk(tmp_path: Path) -> None:
    jobs = [make_job(f"entry-{number}") for number in range(5)]
    ended = outcomes(tmp_path, jobs, finish)
    assert {result.status for result in ended.values()} == {"finished"}
    assert {path.stem for path in (tmp_path / "spool").glob("*.json")} == set(ended)


def test_stages_are_told_while_a_job_runs_and_its_end_after_it(tmp_path: Path) -> None:
    events: list[local.Event] = []
    local.run([make_job()], {}, Settings(cache=str(tmp_path)), workers=1, spool=tmp_path, on_event=events.append,
              work=finish)  # fmt: skip
    assert [event.stage for event in events if event.stage] == list(TASKS)
    assert events[-1].job_ended
    assert sum(event.job_ended for event in events) == 1


def test_a_crash_fails_only_the_cells_that_were_not_done_and_says_which_signal(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job()], crash_after_one_cell)
    done, lost = (ended[f"some-entry-reference-{task}"] for task in TASKS)
    assert done.status == "finished"
    assert lost.status == "failed"
    assert "SIGSEGV" in (lost.reason or "")
    assert lost.error_type == "WorkerLost"
    assert "about to crash" in (lost.log_tail or "")


def test_a_killed_worker_leaves_the_other_jobs_alone_and_hints_at_memory(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job("bad"), make_job("good")], crash_when_named_bad)
    by_name = {result.submission.name: result for result in ended.values()}
    assert by_name["good"].status == "finished"
    assert by_name["bad"].status == "failed"
    assert "ran out of memory" in (by_name["bad"].reason or "")


def test_a_worker_that_exits_early_is_a_failure_with_its_exit_code(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job()], leave_quietly)
    assert {result.reason for result in ended.values()} == {"The worker process ended early with exit code 3."}


def test_a_job_past_its_time_limit_is_ended_and_keeps_what_it_had(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job()], hang, timeout=3.0)
    done, late = (ended[f"some-entry-reference-{task}"] for task in TASKS)
    assert done.status == "finished"
    assert late.status == "failed"
    assert "time limit of 3 s" in (late.reason or "")


def test_an_interrupt_lets_running_jobs_finish_and_cancels_the_rest(tmp_path: Path) -> None:
    jobs = [make_job(f"entry-{number}") for number in range(4)]
    seen = threading.Event()

    def take(event: local.Event) -> None:
        if event.stage is not None and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)
        if event.result is not None:
            statuses[event.job.submission.name].add(event.result.status)

    statuses: dict[str, set[str]] = {job.submission.name: set() for job in jobs}
    local.run(jobs, {}, Settings(cache=str(tmp_path)), workers=1, spool=tmp_path, on_event=take, work=finish)
    assert statuses == {
        "entry-0": {"finished"}, "entry-1": {"cancelled"}, "entry-2": {"cancelled"}, "entry-3": {"cancelled"},
    }  # fmt: skip


def test_a_second_interrupt_ends_running_jobs_at_once(tmp_path: Path) -> None:
    reasons: list[str | None] = []

    def take(event: local.Event) -> None:
        if event.result is not None and event.result.status == "finished":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        elif event.result is not None:
            assert event.result.status == "cancelled"
            reasons.append(event.result.reason)

    local.run([make_job()], {}, Settings(cache=str(tmp_path)), workers=1, spool=tmp_path, on_event=take, work=hang)
    assert reasons == ["The run was interrupted while this job ran."]


def be_killed_the_first_time(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    mark = Path(job.submission.folder) / "tried"
    if not mark.exists():
        mark.touch()
        emit(unfinished(job, job.cells[0], "finished", "no reason"))
        os.kill(os.getpid(), signal.SIGKILL)
    for cell in job.cells:
        emit(unfinished(job, cell, "finished", "the second time"))


def need_a_batch_of_one(
    job: Job, submissions: object, settings: Settings, *, emit: Emit, on_stage: Callable[[str], None]
) -> None:
    for cell in job.cells:
        on_stage(cell.task)
        if settings.batch_size == 1 or cell.task != TASKS[1]:
            emit(unfinished(job, cell, "finished", "no reason"))
        else:
            emit(unfinished(job, cell, "failed", "no memory", stage=cell.task, error="OutOfMemoryError"))


def never_fit(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    for cell in job.cells:
        emit(unfinished(job, cell, "failed", "no memory", stage=cell.task, error="MemoryError"))


def tell_environment(
    job: Job, submissions: object, settings: Settings, *, emit: Emit, on_stage: Callable[[str], None]
) -> None:
    told = f"{settings.device} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('SOME_TOKEN')}"
    for cell in job.cells:
        emit(unfinished(job, cell, "finished", told))


def test_a_job_whose_worker_was_killed_is_tried_once_more_for_the_cells_that_are_left(tmp_path: Path) -> None:
    # The folder of records is one that a fenced worker may write to.
    folder = tmp_path / "spool"
    folder.mkdir()
    job = replace(make_job(), submission=make_submission(folder=str(folder)))
    ended = outcomes(tmp_path, [job], be_killed_the_first_time)
    assert [ended[cell.key].reason for cell in job.cells] == ["no reason", "the second time"]


def test_a_cell_that_ran_out_of_memory_is_scored_row_by_row_and_says_so(tmp_path: Path) -> None:
    job = make_job()
    ended = outcomes(tmp_path, [job], need_a_batch_of_one)
    first, second = (ended[cell.key] for cell in job.cells)
    assert (first.status, first.remarks) == ("finished", ())
    assert (second.status, second.remarks) == ("finished", (local._BATCH_OF_ONE,))


def test_a_cell_that_never_fits_fails_after_the_second_try_with_its_own_reason(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job()], never_fit)
    assert {(result.status, result.error_type) for result in ended.values()} == {("failed", "MemoryError")}


def emit_what_no_record_holds(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    bad = {"nan": {"timings": {"score": math.nan}}, "text": {"remarks": ("\ud83d",)}, "type": {"timings": {"a": {}}}}
    for cell in job.cells:
        changes = bad[job.submission.name] if cell == job.cells[0] else {}
        emit(replace(unfinished(job, cell, "finished", ""), **changes))


@pytest.mark.parametrize(("name", "said"), [("nan", "nan as timings[score]"), ("text", "surrogate"), ("type", "recor")])
def test_a_result_that_no_record_can_hold_is_its_own_cell_s_failure_and_no_other_s(
    tmp_path: Path, name: str, said: str
) -> None:
    ended = outcomes(tmp_path, [make_job(name)], emit_what_no_record_holds)
    first, second = (ended[f"{name}-reference-{task}"] for task in TASKS)
    assert (first.status, first.stage, first.error_type) == ("failed", "store", "StoreError")
    assert said in (first.reason or "")
    assert TASKS[0] in (first.reason or "")
    assert second.status == "finished"


def write_what_can_not_be_read(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    whole = local.cell_files.to_json
    for cell in job.cells:
        if cell == job.cells[0]:
            local.cell_files.to_json = lambda result: whole(result)[:-9]  # type: ignore[assignment]
        emit(unfinished(job, cell, "finished", ""))
        local.cell_files.to_json = whole


def test_a_record_that_can_not_be_read_back_fails_its_cell_and_no_run(tmp_path: Path) -> None:
    ended = outcomes(tmp_path, [make_job()], write_what_can_not_be_read)
    first, second = (ended[f"some-entry-reference-{task}"] for task in TASKS)
    assert (first.status, first.error_type, second.status) == ("failed", "StoreError", "finished")
    assert "is no cell record" in (first.reason or "")


def test_each_worker_sees_one_card_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "not-for-workers")
    jobs = [make_job(f"entry-{number}") for number in range(2)]
    ended = outcomes(tmp_path, jobs, tell_environment, cards=("0", "GPU-7"), workers=2)
    assert {result.reason for result in ended.values()} == {"cuda 0 None", "cuda GPU-7 None"}


def test_workers_take_the_state_of_the_checkout_from_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.provenance, "code_state", lambda: ("c" * 40, True))
    ended = outcomes(tmp_path, [make_job()], finish)
    assert {(each.provenance.git_commit, each.provenance.dirty) for each in ended.values()} == {("c" * 40, True)}


def test_nothing_that_asks_a_card_what_it_can_is_imported_before_workers_for_it_are_forked() -> None:
    names = local.preloaded("cuda:0")
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules, sep=chr(10))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert not {"bitsandbytes", "torchao", "peft"} & set(done.stdout.split())
    assert "lm_eval.evaluator" in names
    assert set(names) < set(local.preloaded("cpu"))


def test_peft_is_imported_before_workers_are_forked_only_where_a_job_merges_an_adapter() -> None:
    whole = make_job()
    adapter = replace(whole, submission=make_submission(kind="lora_adapter"))
    above_one = replace(whole, submission=make_submission(target="control"))
    known = {"control": make_submission("control", kind="lora_adapter")}
    assert ["peft" in local.preloaded("cpu", jobs, known) for jobs in ([whole], [whole, adapter], [above_one], [])] == [
        False,
        True,
        True,
        True,
    ]
    assert "peft" not in local.preloaded("cuda", [adapter], known)
