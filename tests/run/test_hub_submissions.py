"""Submissions whose weights lie on a hub: planned without a download, fetched before any worker starts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_without_models import TASKS, make_job, make_submission
from rich.console import Console

from harness.errors import InputError, UnsafeSubmissionError
from harness.quantize import resolve
from harness.records import CellResult, Job, Submission
from harness.run import sweep
from harness.run.executors import local
from harness.run.job import Settings, unfinished
from harness.run.plan import planner
from harness.run.plan.planner import Plan
from harness.store.store import Store

RTN = resolve("rtn-4bit-g64")
COMMIT = "a" * 40
HUB = {"weights": "hf://owner/name", "revision": COMMIT}


def job_of(name: str, *, quantizer: str = "reference", **changes: object) -> Job:
    return replace(make_job(name, quantizer), submission=make_submission(name, **changes))


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces downloads: those of bad-* and evil-* fail. Returns the names that were asked for, in order."""

    asked: list[str] = []

    def prepare(submission: Submission, submissions: object, *, cache: Path) -> None:
        assert submission.name not in asked, "fetched twice"
        asked.append(submission.name)
        if submission.name.startswith("bad"):
            raise InputError(f"{submission.weights} at {submission.revision} can't be downloaded: check the name.")
        if submission.name.startswith("evil"):
            raise UnsafeSubmissionError("Its config names code.")

    monkeypatch.setattr(sweep.prepare, "prepare", prepare)
    return asked


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces worker processes by ones that finish everything; returns the names of the jobs they were given."""
    names: list[str] = []

    def run(jobs: Any, *rest: object, on_event: Any, **options: object) -> None:
        for job in jobs:
            names.append(job.submission.name)
            for cell in job.cells:
                row = replace(unfinished(job, cell, "finished", ""), reason=None)
                on_event(local.Event(job=job, result=row))
            on_event(local.Event(job=job, job_ended=True))

    monkeypatch.setattr(local, "run", run)
    return names


def execute(jobs: tuple[Job, ...], store: Path, **settings: Any) -> tuple[dict[str, int], str]:
    out = io.StringIO()
    plan = Plan(jobs=jobs, done=(), impossible=(), added_controls=())
    counts = sweep.execute(
        plan, {job.submission.name: job.submission for job in jobs}, Settings(cache=str(store.parent), **settings),
        store=store, workers=1, console=Console(file=out, width=300),
    )  # fmt: skip
    return dict(counts), out.getvalue()


def stored(store: Path) -> list[CellResult]:
    with Store.open(store, read_only=True) as opened:
        return opened.cells()


def test_local_weights_are_not_prepared_in_the_main_process(
    downloads: list[str], ran: list[str], tmp_path: Path
) -> None:
    execute((job_of("here"), job_of("adapter", kind="lora_adapter", base_model="here")), tmp_path / "s.duckdb")
    assert downloads == []
    assert ran == ["here", "adapter"]


@pytest.mark.parametrize(
    "changes", [HUB, {"kind": "lora_adapter", "base_model": "hf://owner/base", "base_revision": COMMIT}],
    ids=["weights", "base"],
)  # fmt: skip
def test_what_lies_on_a_hub_is_fetched_once_for_all_its_quantizers(
    downloads: list[str], ran: list[str], tmp_path: Path, changes: dict[str, object]
) -> None:
    jobs = tuple(job_of("far", quantizer=name, **changes) for name in ("reference", "rtn-4bit-g64", "bnb-nf4"))
    counts, _ = execute(jobs, tmp_path / "s.duckdb")
    assert downloads == ["far"]
    assert ran == ["far"] * 3
    assert counts == {"finished": 3 * len(TASKS)}


def test_a_failed_download_is_failed_rows_with_the_sentence_and_starts_no_worker(
    downloads: list[str], ran: list[str], tmp_path: Path
) -> None:
    jobs = tuple(job_of("bad-one", quantizer=name, **HUB) for name in ("reference", "rtn-4bit-g64"))
    counts, _ = execute(jobs, tmp_path / "s.duckdb", device="cpu", seed=7)
    assert ran == []
    assert counts == {"failed": 2 * len(TASKS)}
    for result in stored(tmp_path / "s.duckdb"):
        assert result.status == "failed"
        assert result.stage == "fetch"
        assert result.error_type == "InputError"
        assert result.reason == f"hf://owner/name at {COMMIT} can't be downloaded: check the name."
        assert result.provenance.seed == 7
        assert result.submission.weights == "hf://owner/name"


def test_a_failed_download_leaves_the_other_submissions_alone(
    downloads: list[str], ran: list[str], tmp_path: Path
) -> None:
    jobs = (job_of("bad-one", **HUB), job_of("far", **HUB), job_of("here"), job_of("evil-one", **HUB))
    counts, _ = execute(jobs, tmp_path / "s.duckdb")
    assert ran == ["far", "here"]
    assert counts == {"failed": 2 * len(TASKS), "finished": 2 * len(TASKS)}
    reasons = {result.submission.name: result.reason for result in stored(tmp_path / "s.duckdb")}
    assert reasons["evil-one"] == "Its config names code."
    assert reasons["far"] is reasons["here"] is None


def test_a_failed_download_counts_as_an_ended_job_and_is_shown(
    downloads: list[str], ran: list[str], tmp_path: Path
) -> None:
    _, shown = execute((job_of("bad-one", **HUB), job_of("here")), tmp_path / "s.duckdb")
    first, second = shown.splitlines()
    assert first.startswith("failed bad-one x reference: hf://owner/name at")
    assert second == "2/2 here x reference"


def test_a_download_that_works_later_replaces_the_failed_rows(
    downloads: list[str], ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("bad-one", **HUB)
    execute((job,), tmp_path / "s.duckdb")
    assert sweep.finished_keys(tmp_path / "s.duckdb") == frozenset()
    monkeypatch.setattr(sweep.prepare, "prepare", lambda *arguments, **options: None)
    execute((job,), tmp_path / "s.duckdb")
    assert sweep.finished_keys(tmp_path / "s.duckdb") == {cell.key for cell in job.cells}
    assert {result.status for result in stored(tmp_path / "s.duckdb")} == {"finished"}


def test_whatever_ends_a_download_fails_the_cells_that_need_it_and_no_others(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a mistake of the program")

    monkeypatch.setattr(sweep.prepare, "prepare", broken)
    execute((job_of("far", **HUB), job_of("here")), tmp_path / "s.duckdb")
    assert ran == ["here"]
    outcomes = {result.submission.name: (result.status, result.reason) for result in stored(tmp_path / "s.duckdb")}
    assert outcomes["here"][0] == "finished"
    assert outcomes["far"][0] == "failed"
    assert "a mistake of the program" in (outcomes["far"][1] or "")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("planning downloaded something")

    monkeypatch.setattr(sweep.prepare, "prepare", refuse)
    monkeypatch.setattr(sweep.prepare.hub, "download", refuse)


def far_board(**changes: object) -> dict[str, Submission]:
    made = [
        make_submission("target", role="target", **HUB),
        make_submission("entry", target="target", kind="lora_adapter", base_model="hf://owner/base",
                        base_revision="b" * 40, weights="hf://owner/entry", revision="c" * 40),
    ]  # fmt: skip
    board = {submission.name: submission for submission in made}
    return board | {name: replace(board[name], **values) for name, values in changes.items()}  # type: ignore[arg-type]


def keys(board: dict[str, Submission]) -> frozenset[str]:
    plan = planner.plan(board, names=["entry"], quantizers=[RTN], controls=False)
    return frozenset(cell.key for job in plan.jobs for cell in job.cells)


@pytest.mark.usefixtures("no_network")
def test_a_board_that_lies_on_a_hub_is_planned_without_a_download() -> None:
    plan = planner.plan(far_board(), quantizers=[RTN])
    assert [job.submission.name for job in plan.jobs] == ["target", "entry"]
    assert plan.cells_to_do == 8


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "changes",
    [
        {"entry": {"revision": "d" * 40}},
        {"entry": {"weights": "hf://owner/other"}},
        {"entry": {"base_revision": "d" * 40}},
        {"entry": {"base_model": "hf://other/base"}},
        {"target": {"revision": "d" * 40}},
    ],
    ids=["own commit", "own name", "base's commit", "base's name", "target's commit"],
)
def test_a_hub_submission_s_keys_follow_every_name_and_commit(changes: dict[str, Any]) -> None:
    assert not keys(far_board()) & keys(far_board(**changes))
    assert keys(far_board()) == keys(far_board())


@pytest.mark.usefixtures("no_network")
def test_the_digests_of_a_hub_submission_are_those_of_its_parts() -> None:
    board = far_board()
    digests = planner.weights_of(board["entry"], board)
    assert digests["base"] == f"hf://owner/base@{'b' * 40}"
    assert digests["target"] == planner.weights_of(board["target"], board)["weights"]
    assert planner.weights_of(board["target"], board)["base"] is None
    assert digests["tokenizer"] == digests["target"], "an entry is scored with its target's tokenizer"


def test_a_control_that_is_not_there_is_left_out_of_the_digests() -> None:
    alone = make_submission("alone", target="gone", **HUB)
    assert planner.weights_of(alone, {"alone": alone})["target"] is None


def test_without_controls_only_the_named_are_planned_and_none_is_said_to_be_added() -> None:
    plan = planner.plan(far_board(), names=["entry"], quantizers=[RTN], controls=False)
    assert {job.submission.name for job in plan.jobs} == {"entry"}
    assert plan.added_controls == ()
    with_controls = planner.plan(far_board(), names=["entry"], quantizers=[RTN])
    assert with_controls.added_controls == ("target",)


def test_a_control_that_was_named_itself_is_not_said_to_be_added() -> None:
    assert planner.plan(far_board(), names=["entry", "target"], quantizers=[RTN]).added_controls == ()


def test_done_cells_keep_a_plan_from_being_empty_and_are_counted_apart() -> None:
    whole = planner.plan(far_board(), quantizers=[RTN])
    every = {cell.key for job in whole.jobs for cell in job.cells}
    one = whole.jobs[0].cells[0]
    part = planner.plan(far_board(), quantizers=[RTN], finished=[one.key, "some other key"])
    assert part.done == (one,)
    assert part.cells_to_do == 7
    assert planner.plan(far_board(), quantizers=[RTN], finished=every).cells_to_do == 0
