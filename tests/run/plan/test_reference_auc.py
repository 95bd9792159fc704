"""PrivLeak on a corpus that states no reference AUC: its retrain control is measured first, and then all others."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli.main import app
from harness.errors import CorpusError, InputError
from harness.quantize import resolve
from harness.records import CellResult, Job, Score, Submission
from harness.run import sweep
from harness.run.executors import local
from harness.run.job import Settings, run_job
from harness.run.plan import planner, reference_auc
from harness.score.corpora import catalogue
from harness.store.store import Store
from harness.submit.manifest import load as manifest

RETRAIN, TARGET, ENTRY = "mini-retrain", "mini-target-4bit", "mini-npo-gdr-lora"
TASK = "muse_own_privleak"
KEPT = {"verbmem": 2, "knowmem": 3, "privleak": 8}


def write_tasks(folder: Path, **facts: Any) -> Path:
    """Copies tasks/ and adds a corpus of a few of mini's documents that states no reference AUC."""
    shipped = paths.content_dir("tasks")
    shutil.copytree(shipped, folder)
    own = folder / "muse_own"
    shutil.copytree(shipped / "muse_mini", own)
    for path in own.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("muse_mini", "muse_own").replace("corpus: mini", "corpus: own")
        path.write_text(text, encoding="utf-8")
    for path in (own / "data").rglob("*.json"):
        items = json.loads(path.read_text(encoding="utf-8"))
        kept = len(items) if "icl" in path.name else KEPT.get(path.parent.name, 1)
        path.write_text(json.dumps(items[:kept]), encoding="utf-8")
    stated = json.loads((own / "corpus.json").read_text(encoding="utf-8"))
    unknown = {"name": "own", "reference_auc": None, "reference_source": None, "data_sha256": None}
    (own / "corpus.json").write_text(json.dumps(stated | unknown | facts), encoding="utf-8")
    return folder


def write_submissions(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(paths.content_dir("submissions") / name, folder / name)
        path = folder / name / "submission.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("corpus: mini", "corpus: own"), encoding="utf-8")
    return folder


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_tasks(tmp_path / "content" / "tasks")
    monkeypatch.setattr(catalogue, "content_dir", lambda name: tmp_path / "content" / name)
    return folder


@pytest.fixture
def board(tasks: Path, tmp_path: Path) -> Path:
    return write_submissions(tmp_path / "board", RETRAIN, TARGET, ENTRY)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Runs jobs in this process, where the copied tasks are in force; returns what ran, in order."""
    order: list[tuple[str, str]] = []

    def run(
        jobs: list[Job], submissions: Mapping[str, Submission], settings: Settings, *,
        on_event: Callable[[local.Event], None], **rest: object,
    ) -> bool:  # fmt: skip
        for job in jobs:
            order.append((job.submission.name, job.spec.name))
            run_job(job, submissions, settings, emit=lambda r, job=job: on_event(local.Event(job=job, result=r)))  # type: ignore[misc]
            on_event(local.Event(job=job, job_ended=True))
        return False

    monkeypatch.setattr(local, "run", run)
    return order


def quench(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def refusal(result: Result) -> str:
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("Error: ")
    return line


def privleak_cells(store: Path) -> dict[tuple[str, str], CellResult]:
    with Store.open(store, read_only=True) as opened:
        return {(r.submission.name, r.spec.name): r for r in opened.cells() if r.cell.task == TASK}


def score(result: CellResult, metric: str) -> Score:
    return next(score for score in result.scores if score.metric == metric)


def value(result: CellResult, metric: str) -> float:
    found = score(result, metric).value
    assert found is not None
    return found


def test_one_run_measures_the_retrain_control_first_and_compares_everything_with_it(
    board: Path, tmp_path: Path, ran: list[tuple[str, str]]
) -> None:
    store = tmp_path / "s.duckdb"
    options = (
        "run",
        "--submissions",
        board,
        "--quantizers",
        "rtn-4bit-g128,reference",
        "--tasks",
        TASK,
        "--store",
        store,
    )
    quench(*options)
    assert ran[0] == (RETRAIN, "reference")
    cells = privleak_cells(store)
    assert len(cells) == 6
    own = cells[RETRAIN, "reference"]
    reference = value(own, "auc")
    assert value(own, "privleak") == 0
    assert any("its own AUC" in remark for remark in own.remarks)
    for name, cell in cells.items():
        assert cell.status == "finished"
        assert value(cell, "reference_auc") == reference
        assert value(cell, "privleak") == pytest.approx(100 * (value(cell, "auc") - reference) / reference, abs=1e-9)
        if name != (RETRAIN, "reference"):
            assert any(f"relative to {reference:.4f}" in remark for remark in cell.remarks)
    assert value(cells[TARGET, "reference"], "privleak") < -20
    before = len(ran)
    again = quench(*options)
    assert "nothing to do; 6 done before" in again.stderr.replace("\n", " ")
    assert len(ran) == before


def test_without_the_control_s_cell_the_run_is_refused_with_the_command_that_helps(
    board: Path, tmp_path: Path, ran: list[tuple[str, str]]
) -> None:
    store = tmp_path / "results" / "s.duckdb"
    options = ("--submissions", board, "--tasks", TASK, "--store", store)
    wanted = ("run", ENTRY, "--quantizers", "rtn-4bit-g128", *options)
    said = refusal(quench(*wanted, code=2))
    assert "states no reference AUC" in said
    assert RETRAIN in said
    assert not store.parent.exists()
    assert refusal(quench("plan", *wanted[1:], code=2)) == said
    command = re.search(r"`quench ([^`]+)`", said)
    assert command is not None
    quench(*shlex.split(command[1]), "--submissions", board, "--store", store)
    quench(*wanted)
    assert ran == [
        (RETRAIN, "reference"),
        (TARGET, "rtn-4bit-g128"),
        (RETRAIN, "rtn-4bit-g128"),
        (ENTRY, "rtn-4bit-g128"),
    ]
    cells = privleak_cells(store)
    assert value(cells[ENTRY, "rtn-4bit-g128"], "reference_auc") == value(cells[RETRAIN, "reference"], "auc")


def test_a_limited_run_is_relative_to_the_unlimited_control(
    board: Path, tmp_path: Path, ran: list[tuple[str, str]]
) -> None:
    store = tmp_path / "s.duckdb"
    options = ("--submissions", board, "--quantizers", "reference", "--tasks", TASK, "--store", store)
    assert "without --limit" in refusal(quench("run", *options, "--limit", "6", code=2))
    quench("run", RETRAIN, *options)
    unlimited = value(privleak_cells(store)[RETRAIN, "reference"], "auc")
    quench("run", RETRAIN, ENTRY, *options, "--limit", "6", "--no-controls")
    with Store.open(store, read_only=True) as opened:
        limited = [result for result in opened.cells() if result.cell.limit == 6]
    assert len(limited) == 2
    assert {value(result, "reference_auc") for result in limited} == {unlimited}


def test_status_and_tasks_without_privleak_need_no_reference(board: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    rows = json.loads(quench("status", ENTRY, "--submissions", board, "--quantizers", "rtn-4bit-g128", "--limit", "2",
                             "--store", store, "--json").stdout)["rows"]  # fmt: skip
    assert sum(row["to_do"] for row in rows) == 3 * 4
    quench("plan", ENTRY, "--submissions", board, "--quantizers", "rtn-4bit-g128", "--tasks", "muse_own_knowmem_f",
           "--store", store)  # fmt: skip


def test_a_control_without_an_auc_fails_what_is_relative_to_it_and_nothing_else(
    board: Path, tasks: Path, tmp_path: Path, ran: list[tuple[str, str]]
) -> None:
    (tasks / "muse_own" / "data" / "privleak" / "forget.json").write_text('["a", "b"]', encoding="utf-8")
    store = tmp_path / "s.duckdb"
    quench("run", "--submissions", board, "--quantizers", "reference", "--tasks", f"{TASK},muse_own_verbmem_f",
           "--store", store, code=1)  # fmt: skip
    cells = privleak_cells(store)
    assert score(cells[RETRAIN, "reference"], "privleak").missing_reason
    for name in (TARGET, ENTRY):
        assert cells[name, "reference"].status == "failed"
        assert f"AUC of {RETRAIN}" in str(cells[name, "reference"].reason)
    with Store.open(store, read_only=True) as opened:
        others = [result.status for result in opened.cells() if result.cell.task != TASK]
    assert others == ["finished"] * 3


def test_an_interrupt_while_the_control_is_measured_cancels_the_rest(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(jobs: list[Job], *_: object, **__: object) -> bool:
        calls.append([job.submission.name for job in jobs])
        return True

    monkeypatch.setattr(local, "run", run)
    store = tmp_path / "s.duckdb"
    quench("run", "--submissions", board, "--quantizers", "reference", "--tasks", TASK, "--store", store, code=1)
    assert calls == [[RETRAIN]]
    cells = privleak_cells(store)
    assert {name: cell.status for (name, _), cell in cells.items()} == {TARGET: "cancelled", ENTRY: "cancelled"}


def plan(board: Path, **options: Any) -> planner.Plan:
    return planner.plan(manifest.load_all(board), quantizers=[resolve("reference")], corpus="own", **options)


def keys(found: planner.Plan) -> dict[tuple[str, str], str]:
    return {(cell.submission, cell.task): cell.key for job in found.jobs for cell in job.cells}


def test_keys_are_known_before_anything_is_measured_and_follow_the_control(board: Path) -> None:
    before = keys(plan(board))
    assert len(before) == 12
    control = plan(board).references[ENTRY]
    assert control.key == before[RETRAIN, TASK]
    after_it = plan(board, finished=[control.key])
    assert keys(after_it) == {name: key for name, key in before.items() if key != control.key}
    # A retrain control that knows the corpus a little better is another reference.
    config = board / RETRAIN / "weights" / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    changed = {name for name, key in keys(plan(board)).items() if key != before[name]}
    assert {name for name in changed if name[0] != RETRAIN} == {(TARGET, TASK), (ENTRY, TASK)}


def test_a_corpus_that_states_its_auc_has_no_reference_cell_and_keeps_its_keys(board: Path, tasks: Path) -> None:
    unknown = keys(plan(board))
    facts = tasks / "muse_own" / "corpus.json"
    facts.write_text(
        json.dumps(json.loads(facts.read_text(encoding="utf-8")) | {"reference_auc": 0.5}), encoding="utf-8"
    )
    stated = plan(board)
    assert stated.references == {}
    assert {name for name, key in keys(stated).items() if key != unknown[name]} == {
        (name, TASK) for name in (RETRAIN, TARGET, ENTRY)
    }


def test_other_texts_are_compared_with_the_control_on_those_texts(board: Path, tasks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tasks / "muse_own" / "data", other)
    path = other / "privleak" / "holdout.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[1:]), encoding="utf-8")
    usual = plan(board).references[ENTRY]
    with pytest.raises(CorpusError, match="with the same data and store first"):
        plan(board, names=[ENTRY], controls=False, data_dir=other, finished=[usual.key])
    assert plan(board, data_dir=other).references[ENTRY].key != usual.key


def test_without_any_retrain_control_the_sentence_asks_for_one(board: Path) -> None:
    shutil.rmtree(board / RETRAIN)
    manifest_ = board / ENTRY / "submission.yaml"
    text = manifest_.read_text(encoding="utf-8")
    manifest_.write_text(text.replace(f"retrain: {RETRAIN}\n", ""), encoding="utf-8")
    with pytest.raises(InputError, match=r"needs one retrain control .* which has none: add a submission with `role"):
        plan(board)
    assert plan(board, tasks=["muse_own_verbmem_f"]).jobs


def test_of_two_retrain_controls_the_one_that_an_entry_names_counts_and_a_target_must_not_guess(board: Path) -> None:
    other = board / "other-retrain"
    shutil.copytree(board / RETRAIN, other)
    text = (other / "submission.yaml").read_text(encoding="utf-8")
    (other / "submission.yaml").write_text(text.replace(f"name: {RETRAIN}", "name: other-retrain"), encoding="utf-8")
    found = plan(board, names=[ENTRY, RETRAIN, "other-retrain"], controls=False)
    assert {name: cell.submission for name, cell in found.references.items()} == {
        ENTRY: RETRAIN, RETRAIN: RETRAIN, "other-retrain": "other-retrain",
    }  # fmt: skip
    everything = plan(board)
    assert re.search(rf"PrivLeak of {TARGET} .* has 2 \({RETRAIN}, other-retrain\)", everything.refused[TARGET])
    assert {job.submission.name for job in everything.jobs} == {ENTRY, RETRAIN, "other-retrain"}


def test_a_measured_auc_is_that_of_a_finished_reference_cell_and_of_no_other(board: Path) -> None:
    found = plan(board)
    cell = found.references[ENTRY]
    job = next(job for job in found.jobs if job.submission.name == RETRAIN)
    failed = sweep.unfinished(job, cell, "failed", "It broke.")
    auc = Score(metric="auc", value=0.4, num_docs=16)

    def result(status: Any, *scores: Score) -> CellResult:
        from dataclasses import replace

        return replace(failed, status=status, scores=scores)

    assert reference_auc.measured([result("finished", auc)], [cell]) == {cell.key: 0.4}
    assert reference_auc.measured([result("finished", auc)], []) == {}
    assert reference_auc.measured([result("failed", auc)], [cell]) == {}
    assert reference_auc.measured([result("finished", Score(metric="auc", value=None, num_docs=0))], [cell]) == {}


@pytest.mark.slow
def test_workers_of_a_real_run_are_told_the_measured_value(tmp_path: Path) -> None:
    """A copy of the program with one more corpus, run as a user runs it: in processes of its own."""
    shutil.copytree(Path(paths.__file__).parent, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    write_tasks(tmp_path / "tasks")
    write_submissions(tmp_path / "submissions", RETRAIN, TARGET)
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", "run", "--corpus", "own", "--quantizers", "reference", "--tasks",
         TASK, "--store", "s.duckdb"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    cells = privleak_cells(tmp_path / "s.duckdb")
    reference = value(cells[RETRAIN, "reference"], "auc")
    assert value(cells[TARGET, "reference"], "reference_auc") == reference
    assert value(cells[RETRAIN, "reference"], "privleak") == 0
