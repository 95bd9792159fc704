"""One job, in this process, with every room but the runner replaced: whatever happens, each cell ends once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_without_models import TASKS, make_job, make_submission

from harness.errors import CorpusError, QuantizationError, UnsafeSubmissionError
from harness.quantize import resolve
from harness.records import (
    CellResult,
    Checkpoint,
    Evaluation,
    Job,
    LayerSurvival,
    Proof,
    QuantizedLayer,
    QuantizedModel,
    Score,
    Submission,
)  # fmt: skip
from harness.run import job as job_runner
from harness.score import evaluation as evaluation_room

PROOF = Proof(
    linear_layers=2, quantized_layers=2, parameter_share=1.0, max_levels=16, group_size=128, bits_per_weight=4.16,
    size_bytes=10, max_abs_error=0.1, relative_error=0.1, codes_sha256="0" * 64, dense_modules=("lm_head",),
)  # fmt: skip
LAYER = LayerSurvival(layer="l", codes_changed=0.5, update_in_steps=0.1, relative_update=0.1, survival_ratio=0.4,
                      cosine=0.3, num_weights=8)  # fmt: skip


class Rooms:
    """What the other rooms answer, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.quantized: list[str] = []
        self.notes: tuple[str, ...] = ()

    def __call__(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise self.fails[what]


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Rooms:
    rooms = Rooms()

    def prepare(
        submission: Submission, submissions: object, *, cache: Path, notes: list[str] | None = None
    ) -> Checkpoint:
        rooms("prepare")
        if notes is not None and rooms.notes:
            notes += [*rooms.notes, "config.json: ignored on the hub."]
        return Checkpoint(
            path=submission.name, tokenizer_path="t", dtype="bfloat16", sha256="0", merged_from_adapter=False
        )

    class Backend:
        def quantize(self, checkpoint: Checkpoint, spec: Any, *, device: str, calibration: Any = ()) -> QuantizedModel:
            rooms("quantize")
            rooms.quantized.append(checkpoint.path)
            layers = {"l": QuantizedLayer(codes=None, step=1.0)} if spec.bits < 16 else {}
            return QuantizedModel(model=checkpoint.path, spec=spec, proof=PROOF, layers=layers, quantize_seconds=0.0)

        def library_version(self) -> str:
            return "1.2"

    def evaluate(model: object, tokenizer: object, task: str, **options: object) -> Evaluation:
        rooms(task)
        metric = task.removeprefix("muse_mini_")
        score = Score(metric=metric, value=0.5, num_docs=3)
        return Evaluation(task=task, scores=(score,), documents=(), remarks=(f"scored {model}",), seconds=0.25)

    def measure(*models: object) -> tuple[LayerSurvival, ...]:
        rooms("measure")
        return (LAYER,)

    def scan(submission: Submission, submissions: object) -> tuple[str, ...]:
        rooms("intake")
        return rooms.notes

    monkeypatch.setattr(job_runner.folder_scan, "scan", scan)
    monkeypatch.setattr(job_runner.prepare, "prepare", prepare)
    monkeypatch.setattr(job_runner.prepare, "load_tokenizer", lambda checkpoint: rooms("tokenizer"))
    for room in (job_runner, job_runner.model_cache):
        monkeypatch.setattr(room, "backend_of", lambda spec: Backend())
    monkeypatch.setattr(job_runner.survival_measure, "measure", measure)
    monkeypatch.setattr(evaluation_room, "evaluate", evaluate)
    return rooms


def run(job: Job, submissions: dict[str, Submission] | None = None, **settings: Any) -> list[CellResult]:
    ended: list[CellResult] = []
    job_runner.run_job(
        job, submissions or {}, job_runner.Settings(cache="cache", cache_limit=0, **settings), emit=ended.append
    )
    assert [result.cell for result in ended] == list(job.cells)
    return ended


def test_a_job_walks_through_the_rooms_in_order_and_loads_once_for_all_tasks(rooms: Rooms) -> None:
    run(make_job())
    assert rooms.asked == ["intake", "prepare", "tokenizer", "quantize", *TASKS]


def test_a_finished_cell_carries_scores_proof_remarks_timings_and_memory(rooms: Rooms) -> None:
    first, second = run(make_job(quantizer="rtn-4bit-g128"))
    assert (first.status, second.status) == ("finished", "finished")
    assert first.scores == (Score(metric="verbmem_f", value=0.5, num_docs=3),)
    assert second.scores == (Score(metric="knowmem_f", value=0.5, num_docs=3),)
    assert first.proof == PROOF
    assert first.remarks == ("scored some-entry",)
    assert first.timings["score"] == 0.25
    assert {"intake", "prepare", "quantize"} <= set(first.timings)
    assert (first.peak_memory_bytes or 0) > 1_000_000
    assert first.reason is None
    assert first.corpus == "mini"


def test_what_the_scans_ignore_is_stored_once_with_each_row(rooms: Rooms) -> None:
    rooms.notes = ("trainer_state.json: ignored.",)
    for result in run(make_job()):
        assert result.remarks == (*rooms.notes, "config.json: ignored on the hub.", "scored some-entry")


def test_the_backend_s_version_stands_in_the_provenance(rooms: Rooms) -> None:
    (first, _) = run(make_job(quantizer="bnb-nf4"), seed=5)
    assert first.provenance.versions["backend:bnb"] == "1.2"
    assert first.provenance.seed == 5


def test_the_digests_of_downloads_stand_in_the_provenance(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"hf://owner/name@" + "a" * 40: "b" * 64}
    monkeypatch.setattr(job_runner.prepare, "downloaded", lambda *arguments, **options: told)
    for result in run(make_job("target")):
        assert result.provenance.versions.items() >= told.items()


@pytest.mark.parametrize("stage", ["intake", "prepare", "quantize"])
def test_a_failure_before_scoring_fails_every_cell_with_stage_type_and_sentence(rooms: Rooms, stage: str) -> None:
    rooms.fails[stage] = QuantizationError("It broke: do that.\nsecond line")
    for result in run(make_job()):
        assert result.status == "failed"
        assert result.stage == stage
        assert result.error_type == "QuantizationError"
        assert result.reason == "It broke: do that."
        assert result.scores == ()
    assert not set(TASKS) & set(rooms.asked)


def test_a_failure_while_scoring_one_task_fails_that_cell_and_the_next_goes_on(rooms: Rooms) -> None:
    rooms.fails[TASKS[0]] = RuntimeError("no such kernel")
    first, second = run(make_job())
    assert (first.status, first.stage, first.reason) == ("failed", TASKS[0], "no such kernel")
    assert second.status == "finished"


def test_an_exception_without_words_is_named_by_its_type(rooms: Rooms) -> None:
    rooms.fails["prepare"] = MemoryError()
    assert {result.reason for result in run(make_job())} == {"MemoryError"}


def test_a_very_long_message_is_cut(rooms: Rooms) -> None:
    rooms.fails["intake"] = UnsafeSubmissionError("x" * 10_000)
    assert {len(result.reason or "") for result in run(make_job())} == {500}


def entry_with_target() -> tuple[Job, dict[str, Submission]]:
    target = make_submission("the-target", role="target")
    entry = make_submission("some-entry", target="the-target")
    job = replace(make_job(quantizer="rtn-4bit-g128"), submission=entry)
    return job, {"the-target": target, "some-entry": entry}


def test_an_entry_s_survival_is_measured_against_its_target_under_the_same_quantizer(rooms: Rooms) -> None:
    results = run(*entry_with_target())
    assert rooms.quantized == ["some-entry", "the-target"]
    assert all(result.survival == (LAYER,) for result in results)


def test_in_16_bit_there_are_no_codes_and_no_survival(rooms: Rooms) -> None:
    job, submissions = entry_with_target()
    job = replace(job, spec=resolve("reference"))
    assert all(result.survival == () for result in run(job, submissions))
    assert "measure" not in rooms.asked


def test_a_control_has_no_survival(rooms: Rooms) -> None:
    _, submissions = entry_with_target()
    job = replace(make_job("the-target", "rtn-4bit-g128"), submission=submissions["the-target"])
    assert all(result.survival == () for result in run(job, submissions))
    assert rooms.quantized == ["the-target"]


def test_a_library_s_own_kernel_is_run_for_the_target_alone_on_retain_texts(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def probe(quantized: QuantizedModel, checkpoint: Checkpoint, tokenizer: Any, texts: Any, *, device: str) -> Any:
        asked.append((checkpoint.path, len(texts)))
        return replace(quantized, proof=replace(PROOF, native_mean_difference=0.5))

    monkeypatch.setattr(job_runner.kernel_check, "probe", probe)
    job, submissions = entry_with_target()
    assert all(result.proof == PROOF for result in run(job, submissions))
    assert asked == []
    job = replace(make_job("the-target", "rtn-4bit-g128"), submission=submissions["the-target"])
    assert all(result.proof and result.proof.native_mean_difference == 0.5 for result in run(job, submissions))
    assert asked == [("the-target", job_runner.kernel_check.TEXTS)]


def test_a_corpus_without_retain_texts_is_scored_without_running_a_kernel(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: Any) -> None:
        raise CorpusError("The corpus has no file privleak/retain.json.")

    monkeypatch.setattr(job_runner.catalogue, "load_split", missing)
    _, submissions = entry_with_target()
    job = replace(make_job("the-target", "rtn-4bit-g128"), submission=submissions["the-target"])
    assert all(result.status == "finished" and result.proof == PROOF for result in run(job, submissions))


def test_every_stage_is_told_as_it_begins(rooms: Rooms) -> None:
    stages: list[str] = []
    ignore: Callable[[CellResult], None] = lambda result: None  # noqa: E731
    settings = job_runner.Settings(cache="cache", cache_limit=0)
    job, submissions = entry_with_target()
    job_runner.run_job(job, submissions, settings, emit=ignore, on_stage=stages.append)
    assert stages == ["intake", "prepare", "quantize", "quantize target", "survival", *TASKS]
    stages.clear()
    job_runner.run_job(make_job(), {}, settings, emit=ignore, on_stage=stages.append)
    assert stages == ["intake", "prepare", "quantize", *TASKS]


@pytest.mark.parametrize("status", ["failed", "skipped", "cancelled"])
def test_a_cell_without_scores_has_its_reason_and_whole_identity(status: Any) -> None:
    job = make_job()
    row = job_runner.unfinished(job, job.cells[0], status, "Because.", seed=3)
    assert (row.status, row.reason, row.cell, row.spec) == (status, "Because.", job.cells[0], job.spec)
    assert row.provenance.seed == 3
    assert row.scores == row.documents == ()


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ("/somewhere/some-entry/weights", "weights"),
        ("/somewhere/some-entry", "."),
        ("hf://owner/name", "hf://owner/name"),
    ],
)
def test_a_result_names_no_folder_of_this_machine(weights: str, kept: str) -> None:
    submission = make_submission(folder="/somewhere/some-entry", weights=weights)
    job = replace(make_job(), submission=submission)
    row = job_runner.unfinished(job, job.cells[0], "skipped", "Because.")
    assert row.submission.folder == "some-entry"
    assert row.submission.weights == kept
