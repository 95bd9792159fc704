"""Frozen records that all rooms share: Submission, QuantizerSpec, Cell, Score, CellResult, Provenance.

The noun is the *cell*: submission x quantizer x task. Nothing here does I/O or
imports anything beyond the standard library, so every room may import it.

Conventions: scores are fractions in [0, 1] except ``privleak``, which is in
percent; sizes are bytes; durations are seconds; digests are lower-case
hexadecimal SHA-256; times are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.records.proof import LayerSurvival, Proof, QuantizedLayer

__all__ = [
    "Cell",
    "CellResult",
    "Checkpoint",
    "Direction",
    "DocumentRecord",
    "Evaluation",
    "Job",
    "Kind",
    "LayerSurvival",
    "MetricInfo",
    "Origin",
    "Proof",
    "Provenance",
    "QuantizedLayer",
    "QuantizedModel",
    "QuantizerSpec",
    "Role",
    "Score",
    "Status",
    "Submission",
]

Kind = Literal["full_model", "lora_adapter", "quantized_checkpoint"]
Role = Literal["entry", "target", "retrain"]
Status = Literal["finished", "failed", "skipped", "cancelled"]
Origin = Literal["scored", "rescored from logs"]
Direction = Literal["lower", "higher", "toward_zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One folder of ``submissions/``: an entry to be scored or a control.

    Attributes:
        name: Folder name and identifier, ``[a-z0-9-]``.
        title: What pages show; the name when the manifest gives none.
        method: Unlearning method as the field names it, e.g. ``NPO+GDR``.
        corpus: ``mini``, ``news``, ``books`` or another folder of ``tasks/``.
        kind: What the weights are.
        role: ``entry``, or the control that entries are compared with.
        target: Name of the control it was unlearned from (entries only).
        retrain: Name of the retrain control that it is compared with.
        base_model: For adapters: the submission whose weights the adapter
            sits on, or ``hf://owner/name``. For quantized checkpoints: the
            16-bit model that they were made from, where it is known.
        base_revision: Commit of a hub ``base_model``.
        weights: Folder with the weights (absolute), or ``hf://owner/name``.
        revision: Commit of hub ``weights``.
        weights_sha256: Digest of the weights as the manifest states it.
        folder: The submission's own folder (absolute).
        seed_of: Name of the entry that it repeats with another seed, for one rank.
        base_sha256: Digest that the base's files must have; results leave it out.
    """

    name: str
    title: str
    method: str
    corpus: str
    kind: Kind
    role: Role
    target: str | None
    retrain: str | None
    base_model: str | None
    base_revision: str | None
    weights: str
    revision: str | None
    weights_sha256: str | None
    folder: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    authors: tuple[str, ...] = ()
    paper_url: str | None = None
    license: str | None = None
    notes: str | None = None
    seed_of: str | None = None
    base_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """One way to quantize: a backend with every choice that moves a code.

    Attributes:
        name: Identifier such as ``rtn-4bit-g128``; ``reference`` is 16 bit.
        backend: Module of ``harness/quantize`` that does it.
        bits: Bits per code (16 for the reference).
        group_size: Weights that share a scale; None means one scale per row.
        symmetric: True, False, or None where the code book decides.
        label: What tables show, with group size and symmetry spelled out.
        calibration: Digest of calibration data, None where none is used.
        options: Further settings of the backend, all JSON values.
    """

    name: str
    backend: str
    bits: int
    group_size: int | None
    symmetric: bool | None
    label: str
    calibration: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One model on disk: dense in 16 bit and ready to be quantized, or quantized as it was submitted.

    Attributes:
        path: Folder with ``config.json`` and safetensors weights (or one
            ``.gguf`` file).
        tokenizer_path: Folder of the tokenizer to score with (the base's).
        dtype: Floating type of the stored weights, e.g. ``bfloat16``.
        sha256: Digest over the weight files.
        merged_from_adapter: Whether an adapter was merged into a base.
        unquantized_path: For a quantized checkpoint: folder of the 16-bit
            model that it was made from, None where nobody has named one.
    """

    path: str
    tokenizer_path: str
    dtype: str
    sha256: str
    merged_from_adapter: bool
    unquantized_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A quantized model as it is scored: dense weights with their proof.

    Attributes:
        model: transformers model with dequantized float weights; where ``streamed``, blocks are read as they run.
        spec: How it was quantized.
        proof: Read-back proof; None only for the 16-bit reference.
        layers: Codes by module name; none of the 16-bit reference, a streamed model, one submitted quantized.
        quantize_seconds: Time inside the backend, loading included.
    """

    model: Any
    spec: QuantizerSpec
    proof: Proof | None
    layers: Mapping[str, QuantizedLayer]
    quantize_seconds: float
    streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What one metric is called, how it is shown and which way is good.

    Attributes:
        key: Column name, e.g. ``verbmem_f``.
        label: What pages show.
        unit: Unit of the displayed value.
        display_scale: Stored value times this is what is displayed.
        direction: Which way is good for an unlearned model.
        description: One sentence for pages.
        source: Paper section or file the definition comes from.
    """

    key: str
    label: str
    unit: str
    display_scale: float
    direction: Direction
    description: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one cell.

    Attributes:
        metric: Key of METRICS, or of a secondary metric.
        value: The score, None when there is none.
        num_docs: Documents that it rests on.
        missing_reason: Why ``value`` is None; None otherwise.
    """

    metric: str
    value: float | None
    num_docs: int
    missing_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """What one model made of one document.

    Attributes:
        index: Position in the task's own document order.
        split: Split of the corpus, e.g. ``forget_qa`` or ``holdout``.
        prompt_sha256: Digest of the whole prompt (or scored text).
        prompt_excerpt: At most 200 characters of its end (of its start for
            scored texts).
        response: Model's answer after the task's cuts; empty for texts that
            are only scored.
        reference_sha256: Digest of the reference answer, None without one.
        reference_excerpt: At most 200 characters of it.
        scores: Every per-document score by metric key.
        invalid_reason: Why the document counts for nothing; None otherwise.
    """

    index: int
    split: str
    prompt_sha256: str
    prompt_excerpt: str
    response: str
    reference_sha256: str | None
    reference_excerpt: str
    scores: Mapping[str, float]
    invalid_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One task scored on one model: what ``score.evaluation`` hands back."""

    task: str
    scores: tuple[Score, ...]
    documents: tuple[DocumentRecord, ...]
    remarks: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Submission x quantizer x task, with the key of everything that made it.

    Attributes:
        key: SHA-256 over every input; see ``provenance.cell_key``.
        limit: Documents per task when only a part was asked for.
    """

    submission: str
    quantizer: str
    task: str
    key: str
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The expensive unit of work: one submission under one quantizer.

    Attributes:
        cells: Its unfinished cells; loading and quantizing is shared.
        calibration: Texts for a backend that looks at activations; the
            digest of them is in ``spec``.
    """

    submission: Submission
    spec: QuantizerSpec
    cells: tuple[Cell, ...]
    calibration: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where and with what a result was made.

    Attributes:
        created_at: ISO 8601, UTC.
        versions: Distribution name to version.
        git_commit: Commit of the checkout; None outside one.
        dirty: Whether code or tasks differ from that commit.
        device: e.g. ``cpu`` or the card's name.
        threads: torch threads (last bits may depend on it).
        seed: Seed of everything random.
        scoring_version: ``score.metrics.formulas.SCORING_VERSION``.
    """

    created_at: str
    versions: Mapping[str, str]
    git_commit: str | None
    dirty: bool
    device: str
    threads: int
    seed: int
    scoring_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """How one cell ended. Every planned cell ends as one of these.

    Attributes:
        submission: Snapshot of the manifest, so that a store stands alone.
        spec: Snapshot of the quantizer.
        corpus: Corpus of the task.
        reason: One sentence for anything but ``finished``.
        stage: Where a failure happened: plan, intake, prepare, quantize,
            score or store.
        error_type: Exception class of a failure.
        log_tail: Last lines of the job's log, for failures.
        timings: Seconds by stage.
        peak_memory_bytes: Peak resident memory of the worker.
        origin: Whether a model was run here, or numbers were recomputed from
            what somebody else's run has logged; those are never ranked.
    """

    cell: Cell
    submission: Submission
    spec: QuantizerSpec
    corpus: str
    status: Status
    provenance: Provenance
    scores: tuple[Score, ...] = ()
    documents: tuple[DocumentRecord, ...] = ()
    proof: Proof | None = None
    survival: tuple[LayerSurvival, ...] = ()
    reason: str | None = None
    stage: str | None = None
    error_type: str | None = None
    log_tail: str | None = None
    remarks: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    origin: Origin = "scored"
