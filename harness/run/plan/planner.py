"""The cells to do: submissions x quantizers x tasks, less those that are stored.

Planning reads digests and looks at no weights, so it needs neither torch nor a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import paths, provenance
from harness.errors import CorpusError, InputError, ManifestError, QuantizationError, QuenchError, UnknownNameError
from harness.paths import may_download
from harness.quantize import backend_of, libraries, with_package
from harness.quantize.submitted_spec import spec_of
from harness.records import Cell, Job, QuantizerSpec, Submission
from harness.run.plan import calibration_texts, reference_auc
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import SCORING_VERSION
from harness.submit.checkpoint import prepare
from harness.submit.checkpoint.hub_answers import HubUnavailableError
from harness.submit.scan import target_shape

DEFAULT_QUANTIZERS = (
    "reference", "rtn-8bit-g128", "bnb-int8", "rtn-4bit-g128", "rtn-4bit-g64",
    "bnb-nf4", "bnb-fp4", "rtn-3bit-g64", "rtn-2bit-g64",
)  # fmt: skip
"""What `quench run` crosses submissions with unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        jobs: Jobs with unfinished cells, one checkpoint's quantizers together.
        done: Cells whose finished result is in the store already.
        impossible: Jobs that this machine can't do, each with the sentence why.
        added_controls: Controls that the asked-for entries need and that were added.
        references: By submission, the retrain control's cell whose AUC its
            PrivLeak is relative to; for corpora that state no AUC themselves.
        refused: By submission, the sentence why no cell of it can be planned.
        unknown: The same where a run downloads what would tell.
    """

    jobs: tuple[Job, ...]
    done: tuple[Cell, ...]
    impossible: tuple[tuple[Job, str], ...]
    added_controls: tuple[str, ...]
    references: Mapping[str, Cell] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def cells_to_do(self) -> int:
        """Number of cells that would be scored."""
        return sum(len(job.cells) for job in self.jobs)


def choose(
    submissions: Mapping[str, Submission], names: Sequence[str], *, corpus: str | None, controls: bool
) -> tuple[list[Submission], tuple[str, ...]]:
    """Returns the submissions to run, controls first, and the names of controls that were added.

    Args:
        submissions: All of the folder, by name.
        names: Those asked for; empty means all.
        corpus: Only those of this corpus; None means any.
        controls: Whether to add the target and retrain controls that chosen entries need.

    Raises:
        UnknownNameError: A name is not in ``submissions``.
        InputError: A name is of another corpus, or nothing is left to run.
    """
    for name in names:
        if name not in submissions:
            raise UnknownNameError("submission", name, submissions)
        if corpus not in (None, submissions[name].corpus):
            raise InputError(f"{name} is of the corpus {submissions[name].corpus}: leave it out, or --corpus {corpus}.")
    chosen = {
        name: submission
        for name, submission in submissions.items()
        if (not names or name in names) and (corpus is None or submission.corpus == corpus)
    }
    added = tuple(sorted(_controls_of(chosen.values()) - set(chosen))) if controls else ()
    chosen |= {name: submissions[name] for name in added}
    if not chosen:
        where = f" for corpus {corpus!r}" if corpus else ""
        raise InputError(f"There is no submission{where} to run: add a folder with a submission.yaml, or see --corpus.")
    order = {"target": 0, "retrain": 1, "entry": 2}
    return sorted(chosen.values(), key=lambda s: (order[s.role], s.name)), added


def _controls_of(submissions: Iterable[Submission]) -> set[str]:
    """Returns the names of the controls that entries are compared with."""
    entries = [submission for submission in submissions if submission.role == "entry"]
    return {name for entry in entries for name in (entry.target, entry.retrain) if name}


def weights_of(submission: Submission, submissions: Mapping[str, Submission]) -> dict[str, str | None]:
    """Returns the digests of everything loaded for a submission: its own, its base's and its target's files."""
    base, target = submission.base_model, submission.target
    if base is not None and base not in submissions:
        base_digest: str | None = f"{base}@{submission.base_revision}"
    else:
        base_digest = prepare.weights_digest(submissions[base]) if base else None
    return {
        "weights": prepare.weights_digest(submission),
        "base": base_digest,
        "target": prepare.weights_digest(submissions[target]) if target and target in submissions else None,
        "tokenizer": prepare.tokenizer_digest(submission, submissions),
    }


@functools.cache
def _task_facts(task: str) -> tuple[str, str]:
    """Returns a task's digest and metric, read once for each plan: a grid has few tasks and many cells."""
    return catalogue.task_digest(task), catalogue.metric_of(task)


def _quantizer_facts(spec: QuantizerSpec) -> dict[str, Any]:
    return asdict(spec) | {"label": None, "version": with_package(spec.backend, backend_of(spec).library_version())}


def make_cell(
    submission: Submission, spec: QuantizerSpec, task: str, *, weights: Mapping[str, str | None],
    corpus: catalogue.Corpus, seed: int, limit: int | None, reference: Cell | None = None,
    quantizer: Mapping[str, Any] | None = None,
) -> Cell:  # fmt: skip
    """Returns the cell with the key over every input that can move its numbers.

    Args:
        submission: What is scored.
        spec: How it is quantized.
        task: What it is scored on.
        weights: Its digests, of ``weights_of``.
        corpus: The task's corpus.
        seed: Seed of everything random.
        limit: Documents per task; None means all.
        reference: Cell whose AUC PrivLeak is relative to, where the corpus
            states none; None for that cell itself.
        quantizer: What the key says of ``spec``, for callers that make many
            cells of one; None has it found out.
    """
    relative_to = corpus.reference_auc if corpus.reference_auc is not None else reference and reference.key
    key = provenance.cell_key(
        **weights,
        kind=submission.kind,
        quantizer=quantizer or _quantizer_facts(spec),
        task=task,
        task_digest=_task_facts(task)[0],
        data=corpus.data_sha256,
        reference_auc=relative_to if _task_facts(task)[1] == "privleak" else None,
        scoring_version=SCORING_VERSION,
        seed=seed,
        limit=limit,
    )
    return Cell(submission=submission.name, quantizer=spec.name, task=task, key=key, limit=limit)


def plan(
    submissions: Mapping[str, Submission], *, names: Sequence[str] = (), quantizers: Sequence[QuantizerSpec],
    tasks: Sequence[str] = (), corpus: str | None = None, finished: Iterable[str] = (), data_dir: Path | None = None,
    device: str = "cpu", seed: int = 0, limit: int | None = None, controls: bool = True, check_references: bool = True,
) -> Plan:  # fmt: skip
    """Returns the jobs that remain when ``finished`` keys are taken off the grid.

    Args:
        submissions: All of the folder, by name.
        names: Submissions to run; empty means all.
        quantizers: Ways to quantize; a checkpoint that was submitted quantized
            is scored as it is instead, whatever they are.
        tasks: Task names; empty means all of each submission's corpus.
        corpus: Only submissions of this corpus.
        finished: Keys of stored finished cells.
        data_dir: Folder of a corpus in MUSE's local form.
        device: torch device the jobs will run on.
        seed: Seed of everything random.
        limit: Documents per task; None means all.
        controls: Whether to add the controls that entries are compared with.
        check_references: Whether to refuse PrivLeak cells whose reference AUC
            could not be known when they are scored.

    A submission whose files, corpus or reference value can't be used is refused
    alone, with the controls that it alone needs.

    Raises:
        InputError: A name is unknown, or nothing that was asked for can be planned.
    """
    if corpus is not None and corpus not in catalogue.corpus_names():
        raise UnknownNameError("corpus", corpus, catalogue.corpus_names())
    _task_facts.cache_clear()
    chosen, added = choose(submissions, names, corpus=corpus, controls=controls)
    stored = frozenset(finished)
    corpora = {name: _checked_corpus(name, tasks, data_dir) for name in sorted({each.corpus for each in chosen})}
    refused: dict[str, QuenchError] = {}
    inputs: dict[str, _Inputs] = {}
    for submission in chosen:
        with _refused_alone(submission, refused):
            corpus_ = corpora[submission.corpus]
            if isinstance(corpus_, QuenchError):
                raise corpus_
            target_shape.check(submission, submissions)
            mine = tuple(task for task in corpus_.tasks if not tasks or task in tasks)
            inputs[submission.name] = _Inputs(
                submission=submission, corpus=corpus_, tasks=mine, weights=weights_of(submission, submissions),
                quantizers=_quantizers_of(submission, quantizers),
                reference=_reference_cell(submission, submissions, corpus_, seed)
                if reference_auc.privleak_task(corpus_) in mine else None,
            )  # fmt: skip
    drafts = _drafts(inputs.values(), stored, device=device, seed=seed, limit=limit)
    if check_references:
        _check_references(drafts, inputs, stored, refused)
    needed = _controls_of(each.submission for each in inputs.values() if each.submission.name not in refused)
    kept = {name for name in inputs if name not in refused and (name not in added or name in needed)}
    unknown = {
        name: str(error) for name, error in refused.items()
        if isinstance(error, HubUnavailableError) and not may_download()
    }  # fmt: skip
    final = {name: error for name, error in refused.items() if name not in unknown}
    if final and not kept - set(added):
        faults = {str(error): error for error in final.values()}
        raise next(iter(faults.values())) if len(faults) == 1 else ManifestError(faults)
    drafts = [draft for draft in drafts if draft.job.submission.name in kept]
    if not refused and not any(draft.done or draft.job.cells for draft in drafts):
        raise InputError(
            f"None of the tasks {', '.join(tasks)} belongs to a corpus of the chosen submissions"
            f" ({', '.join(sorted({each.corpus.name for each in inputs.values()}))}): name tasks of those corpora."
        )
    todo = [draft for draft in drafts if draft.job.cells]
    return Plan(
        jobs=tuple(draft.job for draft in todo if draft.impossible is None),
        done=tuple(cell for draft in drafts for cell in draft.done),
        impossible=tuple((draft.job, draft.impossible) for draft in todo if draft.impossible is not None),
        added_controls=tuple(name for name in added if name in kept),
        references={name: cell for name in kept if (cell := inputs[name].reference) is not None},
        refused={name: str(error) for name, error in final.items()},
        unknown=unknown,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What is read of one submission before its cells can be named; ``reference`` as in ``Plan.references``."""

    submission: Submission
    corpus: catalogue.Corpus
    tasks: tuple[str, ...]
    weights: Mapping[str, str | None]
    quantizers: Sequence[QuantizerSpec]
    reference: Cell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A job with the cells that are to do, those that are done, and why this machine can't do it, if so."""

    job: Job
    done: tuple[Cell, ...]
    impossible: str | None


@contextmanager
def _refused_alone(submission: Submission, refused: dict[str, QuenchError]) -> Iterator[None]:
    """Notes why a submission can't be planned, so that the others can."""
    try:
        yield
    except QuenchError as error:
        refused[submission.name] = error
    except (OSError, RuntimeError, UnicodeError) as error:
        # A loop of links, a folder in place of a file, a name that no file system takes, a file without rights.
        why = getattr(error, "strerror", None) or "a loop of links, or a name that no file system takes"
        where = getattr(error, "filename", None) or submission.folder
        refused[submission.name] = InputError(
            f"{submission.name}: {where} can't be read ({why}): give plain files with plain names, and rights to them."
        )


def _drafts(
    inputs: Collection[_Inputs], stored: frozenset[str], *, device: str, seed: int, limit: int | None
) -> list[_Draft]:
    """Returns every submission under every quantizer, with the keys of its cells."""
    every = {spec.name: spec for each in inputs for spec in each.quantizers}.values()
    reasons = {
        spec.name: backend_of(spec).unavailable_reason(spec, device) or libraries.scoring_reason(spec.name)
        for spec in every
    }
    corpora = {each.corpus.name: each.corpus for each in inputs}
    calibrated = {(name, spec.name): _calibrated(spec, corpus) for name, corpus in corpora.items() for spec in every}
    facts = {name: _quantizer_facts(spec) for name, (spec, _, _) in calibrated.items()}
    drafts = []
    for each in inputs:
        for asked in each.quantizers:
            spec, texts, unusable = calibrated[each.corpus.name, asked.name]
            cells = [
                make_cell(
                    each.submission, spec, task, weights=each.weights, corpus=each.corpus, seed=seed, limit=limit,
                    reference=_reference_of(each, spec), quantizer=facts[each.corpus.name, asked.name],
                )
                for task in each.tasks
            ]  # fmt: skip
            todo = tuple(cell for cell in cells if cell.key not in stored)
            job = Job(submission=each.submission, spec=spec, cells=todo, calibration=texts)
            done = tuple(cell for cell in cells if cell.key in stored)
            drafts.append(_Draft(job=job, done=done, impossible=reasons[spec.name] or unusable))
    return drafts


def _quantizers_of(submission: Submission, quantizers: Sequence[QuantizerSpec]) -> Sequence[QuantizerSpec]:
    """Returns what a submission is scored under: what is asked for, or its own quantization where it came with one."""
    if submission.kind != "quantized_checkpoint":
        return quantizers
    try:
        return (spec_of(prepare.quantization_config(submission, cache=paths.cache_dir())),)
    except QuantizationError as error:
        raise InputError(f"{submission.name}: {error}") from error


def _calibrated(spec: QuantizerSpec, corpus: catalogue.Corpus) -> tuple[QuantizerSpec, tuple[str, ...], str | None]:
    """Returns the specification with its calibration's digest, the texts, and why there are none."""
    try:
        return *calibration_texts.prepare(spec, corpus), None
    except (CorpusError, QuantizationError) as error:
        return spec, (), str(error)


def _checked_corpus(name: str, tasks: Sequence[str], data_dir: Path | None) -> catalogue.Corpus | QuenchError:
    """Returns a corpus all of whose asked-for tasks can be scored, or why they can't."""
    try:
        corpus = catalogue.load_corpus(name, data_dir=data_dir)
        # A reference AUC that is still to be measured is no fault of the corpus: `_check_references` sees to it.
        unknown: dict[str, Any] = {} if corpus.reference_auc is not None else {"reference": "own"}
        for task in corpus.tasks:
            if not tasks or task in tasks:
                catalogue.check_task(task, data_dir=data_dir, **unknown)
    except QuenchError as error:
        return error
    return corpus


def _reference_cell(
    submission: Submission, submissions: Mapping[str, Submission], corpus: catalogue.Corpus, seed: int
) -> Cell:
    control = reference_auc.control_of(submission, submissions, corpus)
    return make_cell(
        control, reference_auc.REFERENCE, f"{corpus.group}_privleak", weights=weights_of(control, submissions),
        corpus=corpus, seed=seed, limit=None,
    )  # fmt: skip


def _reference_of(each: _Inputs, spec: QuantizerSpec) -> Cell | None:
    """Returns the cell that must stand in a PrivLeak key; None for the control at 16 bit, whose own inputs say it."""
    cell = each.reference
    is_itself = cell is not None and cell.submission == each.submission.name and spec == reference_auc.REFERENCE
    return None if is_itself else cell


def _check_references(
    drafts: Iterable[_Draft], inputs: Mapping[str, _Inputs], stored: frozenset[str], refused: dict[str, QuenchError]
) -> None:
    """Refuses what has a PrivLeak cell to do that is relative to a cell that is neither stored nor to do."""
    jobs = [draft.job for draft in drafts if draft.impossible is None]
    known = stored | {cell.key for job in jobs for cell in job.cells}
    for job in jobs:
        each = inputs[job.submission.name]
        reference = each.reference
        if reference and reference.key not in known and any(cell.task == reference.task for cell in job.cells):
            with _refused_alone(job.submission, refused):
                raise reference_auc.missing(reference.submission, each.corpus, reference.task)
