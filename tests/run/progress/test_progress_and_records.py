"""What a person sees while a run goes on, and what the executor and the spool do at their edges."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_without_models import TASKS, make_job
from rich.console import Console

from harness.errors import StoreError
from harness.records import Job, Status
from harness.run import sweep
from harness.run.executors import local, worker
from harness.run.job import Settings, unfinished
from harness.run.progress.display import RunProgress
from harness.store import cell_files, merging
from harness.store.store import Store


def ended(job: Job, status: Status, reason: str | None = "Why.", number: int = 0) -> local.Event:
    row = replace(unfinished(job, job.cells[number], status, ""), reason=reason)
    return local.Event(job=job, result=row)


def shown(*events: local.Event, jobs: int = 1, width: int = 200) -> tuple[list[str], dict[str, int]]:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=width), jobs=jobs) as progress:
        for event in events:
            progress.show(event)
    return out.getvalue().splitlines(), dict(progress.counts)


def end(job: Job) -> local.Event:
    return local.Event(job=job, job_ended=True)


def test_stages_alone_print_nothing_off_a_terminal() -> None:
    job = make_job()
    assert shown(local.Event(job=job, stage="intake"), local.Event(job=job, stage="quantize")) == ([], {})


def test_jobs_are_numbered_in_the_order_in_which_they_end() -> None:
    first, second = make_job("first"), make_job("second", "rtn-4bit-g64")
    lines, _ = shown(ended(first, "finished", None), end(second), end(first), jobs=2)
    assert lines == ["1/2 second x rtn-4bit-g64", "2/2 first x reference"]


def test_a_job_with_one_failed_cell_is_shown_as_failed_with_the_last_reason() -> None:
    job = make_job()
    lines, counts = shown(ended(job, "failed", "One."), ended(job, "failed", "Two.", 1), end(job))
    assert lines == ["failed some-entry x reference: Two."]
    assert counts == {"failed": 2}


@pytest.mark.parametrize("status", ["finished", "skipped", "cancelled"])
def test_only_failures_are_told_with_their_reason(status: Status) -> None:
    job = make_job()
    lines, counts = shown(ended(job, status), end(job))
    assert lines == ["1/1 some-entry x reference"]
    assert counts == {status: 1}


def test_the_failure_of_one_quantizer_is_not_told_of_another() -> None:
    one, other = make_job(), make_job(quantizer="rtn-4bit-g64")
    lines, _ = shown(ended(one, "failed"), end(other), end(one), jobs=2)
    assert lines == ["1/2 some-entry x rtn-4bit-g64", "failed some-entry x reference: Why."]


@pytest.mark.parametrize("reason", ["[red]not markup[/red]", "tensor [3, 4] is no [bold", "[/] [link=x]"])
def test_square_brackets_in_a_reason_are_text_and_no_markup(reason: str) -> None:
    job = make_job()
    lines, _ = shown(ended(job, "failed", reason), end(job))
    assert lines == [f"failed some-entry x reference: {reason}"]


def test_the_bar_on_a_terminal_tells_the_stage_until_its_job_has_ended() -> None:
    out = io.StringIO()
    job = make_job()
    with RunProgress(Console(file=out, width=200, force_terminal=True), jobs=3) as progress:
        progress.show(local.Event(job=job, stage="quantize"))
        (task,) = progress._bar.tasks
        assert task.fields["now"] == "some-entry x reference: quantize"
        progress.show(local.Event(job=job, stage=TASKS[0]))
        assert task.fields["now"] == f"some-entry x reference: {TASKS[0]}"
        progress.show(end(job))
        assert (task.fields["now"], task.completed, task.total) == ("", 1, 3)
    assert "1/3 some-entry" not in out.getvalue(), "the bar says it, so no line does"


def test_several_running_jobs_stand_side_by_side() -> None:
    one, other = make_job("one"), make_job("other")
    with RunProgress(Console(file=io.StringIO(), force_terminal=True), jobs=2) as progress:
        progress.show(local.Event(job=one, stage="prepare"))
        progress.show(local.Event(job=other, stage="intake"))
        assert progress._bar.tasks[0].fields["now"] == "one x reference: prepare | other x reference: intake"


def test_a_run_that_breaks_off_stops_the_bar() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        RunProgress(Console(file=io.StringIO(), force_terminal=True), jobs=1) as progress,
    ):
        raise KeyboardInterrupt
    assert not progress._bar.live.is_started


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGKILL, "ended by SIGKILL twice (often: the machine ran out of memory)."),
        (-signal.SIGABRT, "ended by SIGABRT."),
        (0, "exit code 0."),
        (None, "exit code None."),
    ],
)
def test_the_cause_of_a_worker_s_death_is_one_sentence(code: int | None, said: str) -> None:
    assert local._cause_of_death(code).endswith(said)


@pytest.mark.parametrize(
    ("content", "tail"),
    [
        (b"", ""),
        (b"\n".join(b"line %d" % number for number in range(50)), "\n".join(f"line {n}" for n in range(30, 50))),
        (b"x" * 10_000, "x" * 4000),
        (b"caf\xe9\xff", "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
    ],
    ids=["empty", "many lines", "one long line", "no utf-8"],
)
def test_the_tail_of_a_log_is_its_last_lines_and_short(tmp_path: Path, content: bytes, tail: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert worker.tail(tmp_path / "log") == tail


def test_a_log_that_was_never_written_has_an_empty_tail(tmp_path: Path) -> None:
    assert worker.tail(tmp_path / "none") == ""


def test_no_jobs_end_at_once_and_leave_the_handler_of_ctrl_c_as_it_was(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    events: list[local.Event] = []
    local.run([], {}, Settings(cache=str(tmp_path)), workers=1, spool=tmp_path / "spool", on_event=events.append)
    assert events == []
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "spool" / "logs").is_dir()


def raise_an_error(*arguments: object, **keywords: object) -> None:
    print("this went to the log")
    raise ValueError("a mistake in the program")


def say_nothing(*arguments: object, **keywords: object) -> None:
    """Ends well without one result."""


@pytest.mark.parametrize(
    ("work", "error", "said", "logged"),
    [
        (raise_an_error, "ValueError", "a mistake in the program", "this went to the log"),
        (say_nothing, "WorkerLost", "exit code", ""),
    ],
)
def test_a_worker_that_ends_without_results_fails_its_cells_with_its_log(
    tmp_path: Path, work: Callable[..., None], error: str, said: str, logged: str
) -> None:
    events: list[local.Event] = []
    job = make_job()
    local.run([job], {}, Settings(cache=str(tmp_path), seed=9), workers=1, spool=tmp_path, on_event=events.append,
              work=work)  # fmt: skip
    results = [event.result for event in events if event.result]
    assert [result.cell for result in results] == list(job.cells)
    assert {(result.status, result.stage, result.error_type) for result in results} == {("failed", "run", error)}
    assert all(said in (result.reason or "") and result.provenance.seed == 9 for result in results)
    assert all(logged in (result.log_tail or "") for result in results)
    assert events[-1].job_ended


@pytest.mark.parametrize("known", ["failed", "cancelled", "skipped"])
def test_a_left_over_failure_does_not_replace_what_the_store_says_but_a_success_does(
    tmp_path: Path, known: Status
) -> None:
    job, spool = make_job(), tmp_path / "spool"
    with Store.open(tmp_path / "s.duckdb") as store:
        for cell in job.cells:
            store.add(unfinished(job, cell, known, "In the store."))
        cell_files.write(unfinished(job, job.cells[0], "failed", "In the spool."), spool)
        cell_files.write(replace(unfinished(job, job.cells[1], "finished", ""), reason=None), spool)
        assert sweep.recover(store, spool) == 1
        assert {result.cell.task: result.reason for result in store.cells()} == {
            TASKS[0]: "In the store.", TASKS[1]: None,
        }  # fmt: skip
        assert sweep.recover(store, spool) == 0


def test_recovering_takes_records_only_and_no_half_written_file_or_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.json").write_text("a log")
    (tmp_path / ".abc.partial").write_text("{")
    with Store.open(tmp_path / "s.duckdb") as store:
        assert sweep.recover(store, tmp_path) == 0
        assert sweep.recover(store, tmp_path / "not there") == 0


def test_one_broken_record_stores_none_of_a_folder_and_is_named(tmp_path: Path) -> None:
    cell_files.write(replace(unfinished(make_job(), make_job().cells[0], "finished", ""), reason=None), tmp_path / "in")
    (tmp_path / "in" / "zz.json").write_text("{}")
    with pytest.raises(StoreError, match=r"zz\.json is no cell record"):
        merging.ingest(tmp_path / "s.duckdb", tmp_path / "in")
    assert not (tmp_path / "s.duckdb").exists()


def test_ingesting_an_empty_folder_makes_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert merging.ingest(tmp_path / "s.duckdb", tmp_path / "in") == merging.Merged(new=0, known=0, conflicts=())
    assert sweep.finished_keys(tmp_path / "s.duckdb") == frozenset()


@pytest.mark.parametrize(
    ("store", "spool"), [("results.duckdb", "results.records"), ("a/b.c.duckdb", "a/b.c.records"), ("x", "x.records")]
)
def test_the_records_of_a_store_lie_beside_it(store: str, spool: str) -> None:
    assert sweep.spool_of(Path(store)) == Path(spool)
