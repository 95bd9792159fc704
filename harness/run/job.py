"""One job from scan to scores: checkpoint, quantized model, one row for each cell.

``run_job`` is the walk that docs/architecture.md describes, and the only place
where an exception becomes a failed cell: before scoring it fails the whole
job, while scoring it fails that task's cell and the others go on.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import memory, provenance
from harness.errors import CorpusError, first_line
from harness.quantize import backend_of, kernel_check, model_cache, with_package
from harness.quantize.survival import measure as survival_measure
from harness.quantize.survival.layer_by_layer import stream, streams
from harness.records import (
    Cell,
    CellResult,
    Checkpoint,
    Evaluation,
    Job,
    LayerSurvival,
    Provenance,
    QuantizedModel,
    Status,
    Submission,
)
from harness.score.corpora import catalogue
from harness.score.corpora.catalogue import ReferenceAuc
from harness.score.metrics.formulas import SCORING_VERSION
from harness.submit.checkpoint import prepare
from harness.submit.scan import folder as folder_scan
from harness.submit.weight_files import HUB


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How jobs run, the same for all of them.

    Attributes:
        cache: Folder for merged checkpoints and quantized models.
        cache_limit: Bytes that kept quantized models may take together.
        device: torch device of this worker.
        threads: torch threads; 0 leaves torch's own choice.
        seed: Seed of everything random.
        data_dir: Folder of a corpus in MUSE's local form, None for the default.
        batch_size: Rows per batch; None lets scoring choose.
        stream: Whether models are read layer by layer: always, never, or
            (``auto``) where memory does not hold them.
        memory_limit: Bytes of data that a worker may take; None means no limit.
        card: GPU that a worker sees, as CUDA_VISIBLE_DEVICES names it; None
            leaves them all visible.
        reference_aucs: By key of a PrivLeak cell what it is relative to;
            cells that are not here take what their corpus states.
    """

    cache: str
    cache_limit: int = model_cache.DEFAULT_LIMIT
    device: str = "cpu"
    threads: int = 0
    seed: int = 0
    data_dir: str | None = None
    batch_size: int | None = None
    stream: memory.Streaming = "auto"
    memory_limit: int | None = None
    card: str | None = None
    reference_aucs: Mapping[str, ReferenceAuc] = field(default_factory=dict)


@dataclass(slots=True)
class _Stopwatch:
    """Which stage a job is in, and how long each took."""

    on_stage: Callable[[str], None]
    stage: str = "plan"
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def during(self, stage: str):  # type: ignore[no-untyped-def]
        self.stage = stage
        self.on_stage(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def run_job(
    job: Job, submissions: Mapping[str, Submission], settings: Settings, *,
    emit: Callable[[CellResult], None], on_stage: Callable[[str], None] = lambda stage: None,
) -> None:  # fmt: skip
    """Runs one job and emits one result for each of its cells, as soon as it is there.

    Args:
        job: Submission, quantizer and the cells to score.
        submissions: All submissions by name: the base of an adapter and the
            target of an entry are looked up here.
        settings: Device, seed, folders.
        emit: Receives every result; called once per cell.
        on_stage: Told the stage that begins: intake, prepare, quantize,
            quantize target (or prepare target, of a streamed model), survival,
            or the task being scored.
    """
    watch = _Stopwatch(on_stage)
    made_with = _provenance(job, settings)

    def fail(cells: Sequence[Cell], error: Exception) -> None:
        for cell in cells:
            row = unfinished(
                job, cell, "failed", first_line(error)[:500], made_with, stage=watch.stage, error=type(error).__name__
            )
            emit(replace(row, timings=dict(watch.seconds), peak_memory_bytes=_peak_memory()))

    try:
        _set_up_torch(settings)
        with memory.streaming(settings.stream):
            with watch.during("intake"):
                notes = list(folder_scan.scan(job.submission, submissions))
            with watch.during("prepare"):
                checkpoint = prepare.prepare(job.submission, submissions, cache=Path(settings.cache), notes=notes)
                tokenizer = prepare.load_tokenizer(checkpoint)
                files = prepare.downloaded(job.submission, submissions, cache=Path(settings.cache))
                made_with = replace(made_with, versions={**made_with.versions, **files})
            with watch.during("quantize"):
                quantized = _probed(_quantize(job, checkpoint, settings), job, checkpoint, tokenizer, settings)
            survived = _survival(job, submissions, settings, checkpoint, quantized, watch)
    except Exception as error:
        return fail(job.cells, error)
    for cell in job.cells:
        try:
            with watch.during(cell.task):
                evaluation = _score(cell, quantized, tokenizer, settings)
                evaluation = replace(evaluation, remarks=(*dict.fromkeys(notes), *evaluation.remarks))
        except Exception as error:
            fail((cell,), error)
        else:
            emit(_finished(job, cell, made_with, quantized, survived, evaluation, watch.seconds))


def unfinished(
    job: Job, cell: Cell, status: Status, reason: str, made_with: Provenance | None = None, *,
    stage: str | None = None, error: str | None = None, log_tail: str | None = None, device: str = "cpu", seed: int = 0,
) -> CellResult:  # fmt: skip
    """Returns the row of a cell that has no scores: failed, skipped or cancelled, with its reason."""
    return CellResult(
        cell=cell,
        submission=_without_place(job.submission),
        spec=job.spec,
        corpus=catalogue.corpus_of(cell.task),
        status=status,
        reason=reason,
        stage=stage,
        error_type=error,
        log_tail=log_tail,
        provenance=made_with
        or provenance.collect(device=device, threads=0, seed=seed, scoring_version=SCORING_VERSION),
    )


def _quantize(job: Job, checkpoint: Checkpoint, settings: Settings) -> QuantizedModel:
    return model_cache.quantize_once(
        checkpoint,
        job.spec,
        device=settings.device,
        calibration=job.calibration,
        cache=Path(settings.cache),
        limit=settings.cache_limit,
    )


def _probed(
    quantized: QuantizedModel, job: Job, checkpoint: Checkpoint, tokenizer: object, settings: Settings
) -> QuantizedModel:
    """Runs the library's own kernels once per quantizer, on the control that entries were unlearned from."""
    # A kernel wants its whole model, and the comparison a copy of the dense one.
    if job.submission.role != "target" or quantized.proof is None or quantized.streamed:
        return quantized
    data_dir = Path(settings.data_dir) if settings.data_dir else None
    corpus = catalogue.load_corpus(catalogue.corpus_of(job.cells[0].task), data_dir=data_dir)
    try:
        texts = [item["text"] for item in catalogue.load_split(corpus, "privleak", "retain")[: kernel_check.TEXTS]]
    except CorpusError:
        # No metric needs this split: a corpus may come without it.
        return quantized
    return kernel_check.probe(quantized, checkpoint, tokenizer, texts, device=settings.device)


def _score(cell: Cell, quantized: QuantizedModel, tokenizer: object, settings: Settings) -> Evaluation:
    from harness.score.evaluation import evaluate

    return evaluate(
        quantized.model,
        tokenizer,
        cell.task,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        device=settings.device,
        limit=cell.limit,
        seed=settings.seed,
        batch_size=settings.batch_size,
        reference_auc=settings.reference_aucs.get(cell.key),
    )


def _survival(
    job: Job,
    submissions: Mapping[str, Submission],
    settings: Settings,
    checkpoint: Checkpoint,
    quantized: QuantizedModel,
    watch: _Stopwatch,
) -> tuple[LayerSurvival, ...]:
    """Measures the update's survival against the entry's target under the same quantizer."""
    target = submissions.get(job.submission.target) if job.submission.target else None
    if target is not None and quantized.streamed and streams(job.spec):
        with watch.during("prepare target"):
            target_checkpoint = prepare.prepare(target, submissions, cache=Path(settings.cache))
        with watch.during("survival"):
            return stream(checkpoint, target_checkpoint, [job.spec], device=settings.device)[job.spec.name]
    if target is None or not quantized.layers:
        return ()
    with watch.during("quantize target"):
        target_checkpoint = prepare.prepare(target, submissions, cache=Path(settings.cache))
        quantized_target = _quantize(job, target_checkpoint, settings)
    with watch.during("survival"):
        layers = survival_measure.measure(quantized, quantized_target, checkpoint, target_checkpoint)
        del quantized_target
        gc.collect()
    return layers


def _finished(
    job: Job, cell: Cell, made_with: Provenance, quantized: QuantizedModel, survived: Sequence[LayerSurvival],
    evaluation: Evaluation, seconds: Mapping[str, float],
) -> CellResult:  # fmt: skip
    stages = {stage: taken for stage, taken in seconds.items() if not stage.startswith("muse_")}
    return CellResult(
        cell=cell,
        submission=_without_place(job.submission),
        spec=job.spec,
        corpus=catalogue.corpus_of(cell.task),
        status="finished",
        provenance=made_with,
        scores=evaluation.scores,
        documents=evaluation.documents,
        proof=quantized.proof,
        survival=tuple(survived),
        remarks=evaluation.remarks,
        timings={**stages, "score": evaluation.seconds},
        peak_memory_bytes=_peak_memory(),
    )


def _without_place(submission: Submission) -> Submission:
    """Returns the snapshot that a result keeps: a store may be published, so it names no folder of this machine."""
    weights = submission.weights
    if not weights.startswith(HUB):
        weights = Path(os.path.relpath(weights, submission.folder)).as_posix()
    return replace(submission, folder=submission.name, weights=weights, base_sha256=None)


def _provenance(job: Job, settings: Settings) -> Provenance:
    version = with_package(job.spec.backend, backend_of(job.spec).library_version())
    return provenance.collect(
        device=settings.device,
        threads=settings.threads,
        seed=settings.seed,
        scoring_version=SCORING_VERSION,
        extra_versions={f"backend:{job.spec.backend}": version} if version else {},
    )


def _set_up_torch(settings: Settings) -> None:
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)


def _peak_memory() -> int:
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
