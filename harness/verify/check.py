"""Stored cells of one submission held against an independent computation of their first documents."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.errors import InputError, QuenchError, UnknownNameError
from harness.records import CellResult, DocumentRecord, QuantizerSpec, Submission
from harness.store.store import Store
from harness.store.withheld_texts import is_withheld
from harness.verify import documents as plain
from harness.verify import weights
from harness.verify.documents import Items, Scored, Tokens

DOCUMENTS = 3
"""Documents of each task that are scored again unless somebody says otherwise."""

TOLERANCE = 1e-6
"""Most that a score may differ: words and tokens are counted, so ROUGE differs by rounding alone."""

LOG_PROBABILITY_TOLERANCE = 1e-4
"""The same for means of log-probabilities, in nats: float32 sums differ with their order."""

_IN_NATS = frozenset({"min_k_40", "loss"})
_PRIMARY = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")

State = Literal["same", "different", "not checked"]
COLUMNS = ("result", "quantizer", "check", "documents", "largest_difference", "reason")
"""Columns that fit a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        check: The task, or what else was looked at.
        documents: How many documents were scored again.
        largest_difference: Of all scores of those documents.
        reason: What differs, or why it was not checked.
    """

    quantizer: str
    check: str
    result: State
    documents: int = 0
    largest_difference: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where files come from; they must have been scanned.

    Attributes:
        known: All submissions by name.
        folder: Gives the folder of ``weights`` or ``base_model``, by reference and commit.
        texts: Gives the items of a split, by corpus, configuration and split.
        settings: Gives a task's settings.
        quantizer: Gives what a quantizer's name means; a store is not believed.
        reference_auc: Gives the AUC that a corpus states for its retrained model; None where it states none.
    """

    known: Mapping[str, Submission]
    folder: Callable[[str, str | None], Path]
    texts: Callable[[str, str, str], Items]
    settings: Callable[[str], Mapping[str, Any]]
    quantizer: Callable[[str], QuantizerSpec]
    reference_auc: Callable[[str], float | None]


def verify(
    store: Path, name: str, sources: Sources, *, quantizer: str | None = None, documents: int = DOCUMENTS
) -> Iterator[Check]:
    """Yields one check for each stored cell of a submission, quantizer by quantizer.

    Args:
        store: The store; it is only read.
        name: A submission that is here and in the store.
        sources: Where its files and its corpus come from.
        quantizer: Only this one; None for all that are stored.
        documents: How many documents of each task to score again.

    Raises:
        InputError: The store holds no finished cell of it.
        UnknownNameError: Here is no such submission, or the store has not such a quantizer.
    """
    if name not in sources.known:
        raise UnknownNameError("submission", name, sources.known)
    if not store.exists():
        raise InputError(f"There is no store {store}: make one with `quench run --store {store}`.")
    with Store.open(store, read_only=True) as opened:
        cells = _newest(opened.cells(), name)
        if not cells:
            raise InputError(f"{store} holds no cell of {name} that was scored: run `quench run {name}` first.")
        if quantizer is not None and quantizer not in cells:
            raise UnknownNameError(f"quantizer of {name} in the store", quantizer, cells)
        stored = {key: opened.documents(key) for key in (
            cell.cell.key for spec, own in cells.items() if quantizer in (None, spec) for cell in own)}  # fmt: skip
    models = _Models(sources.known[name], sources)
    for spec, own in cells.items():
        if quantizer in (None, spec):
            yield from _of_quantizer(models, own, stored, sources, documents)


def _newest(cells: Sequence[CellResult], name: str) -> dict[str, list[CellResult]]:
    """Returns a submission's finished cells by quantizer: of each task the newest, whole ones before parts."""
    found: dict[tuple[str, str], CellResult] = {}
    for cell in sorted(cells, key=lambda cell: (cell.cell.limit is None, cell.provenance.created_at)):
        if (cell.cell.submission, cell.status, cell.origin) == (name, "finished", "scored"):
            found[cell.cell.quantizer, cell.cell.task] = cell
    ordered: dict[str, list[CellResult]] = {}
    for cell in sorted(found.values(), key=lambda cell: (-cell.spec.bits, cell.cell.quantizer, _primary(cell))):
        ordered.setdefault(cell.cell.quantizer, []).append(cell)
    return ordered


def _primary(cell: CellResult) -> str:
    return next((metric for metric in _PRIMARY if cell.cell.task.endswith(f"_{metric}")), "")


class _Models:
    """One submission's 16-bit model, loaded when it is first needed, under one quantizer after the other."""

    def __init__(self, submission: Submission, sources: Sources) -> None:
        self.submission, self._sources = submission, sources

    @cached_property
    def _base(self) -> Path:
        """Folder of the full model."""
        own = self.submission
        if own.kind == "full_model":
            return self._sources.folder(own.weights, own.revision)
        base = self._sources.known.get(own.base_model or "")
        named = (base.weights, base.revision) if base else (own.base_model or "", own.base_revision)
        return self._sources.folder(*named)

    @cached_property
    def tokens(self) -> Tokens:
        """The target's tokens, which an entry is scored with."""
        owner = self._sources.known.get(self.submission.target or "")
        return Tokens(self._sources.folder(owner.weights, owner.revision) if owner else self._base)

    @cached_property
    def _dense(self) -> weights.Dense:
        own = self.submission
        adapter = self._sources.folder(own.weights, own.revision) if own.kind == "lora_adapter" else None
        return weights.Dense(self._base, adapter)

    def under(self, spec: QuantizerSpec) -> Any:
        """Returns the model with a quantizer's weights; the one before is gone."""
        return self._dense.under(spec)


def _of_quantizer(
    models: _Models, cells: Sequence[CellResult], stored: Mapping[str, Sequence[DocumentRecord]], sources: Sources,
    number: int,
) -> Iterator[Check]:  # fmt: skip
    name, now = cells[0].cell.quantizer, models.submission.weights_sha256
    others = {cell.submission.weights_sha256 for cell in cells} - {None, now}
    if others and now is not None:
        reason = f"cells are of weights with the digest {_short(str(min(others, key=str)))}, and here it is {now[:12]}"
        yield Check(quantizer=name, check="weights", result="different", reason=reason)
        return
    try:
        spec = _meant(models.submission, cells, sources)
        if any(replace(cell.spec, calibration=None) != spec for cell in cells):
            reason = f"{name} means {spec.label} here, and cells are stored with other settings under this name"
            yield Check(quantizer=name, check="settings", result="different", reason=reason)
            return
        model, tokens = models.under(spec), models.tokens
    except QuenchError as error:
        yield Check(quantizer=name, check="all tasks", result="not checked", reason=str(error).rstrip("."))
        return
    for cell in cells:
        yield _of_cell(model, tokens, cell, stored[cell.cell.key], sources, number, models.submission.corpus)


def _meant(submission: Submission, cells: Sequence[CellResult], sources: Sources) -> QuantizerSpec:
    """Returns what the quantizer of cells means.

    Raises:
        NotCheckedError: Its weights, or cells made where these were, can't be made again by plain means.
    """
    if submission.kind == "quantized_checkpoint":
        raise weights.NotCheckedError(weights.SUBMITTED_QUANTIZED)
    spec = sources.quantizer(cells[0].cell.quantizer)
    reason = weights.unchecked_reason(spec)
    if device := next((cell.provenance.device for cell in cells if not cell.provenance.device.startswith("cpu")), None):
        reason = f"it was scored in 16 bit on {device}, and this check computes in float32 on a CPU"
    if reason is not None:
        raise weights.NotCheckedError(reason)
    return spec


def _of_cell(
    model: Any, tokens: Tokens, cell: CellResult, stored: Sequence[DocumentRecord], sources: Sources, number: int,
    corpus: str,
) -> Check:  # fmt: skip
    metric, task, name = _primary(cell), cell.cell.task, cell.cell.quantizer
    try:
        if not metric:
            raise weights.NotCheckedError(f"{task} is no task that this check knows")
        if not stored:
            raise weights.NotCheckedError("the store keeps no documents of it")
        settings = sources.settings(task)
        own = plain.score(
            model, tokens, metric, settings, lambda config, split: sources.texts(corpus, config, split), number
        )
        faults, differences = list(_summary_faults(cell, metric, stored, sources.reference_auc(corpus))), [0.0]
    except QuenchError as error:
        return Check(quantizer=name, check=task, result="not checked", reason=str(error).rstrip("."))
    own = own[: cell.cell.limit]
    by_index = {document.index: document for document in stored}
    if not own:
        return Check(quantizer=name, check=task, result="not checked", reason="the task has no documents here")
    for index, scored in enumerate(own):
        document = by_index.get(index)
        own_faults = _faults(scored, document, differences) if document else ("the store lacks it",)
        faults += [f"document {index}: {fault}" for fault in own_faults]
    reason = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    return Check(
        quantizer=name, check=task, result="different" if faults else "same", documents=len(own),
        largest_difference=max(differences), reason=reason + _other_versions(cell) if faults else None,
    )  # fmt: skip


def _faults(scored: Scored, document: DocumentRecord, differences: list[float]) -> Iterator[str]:
    """Yields what a stored document has otherwise; adds to ``differences`` those of its scores."""
    if _digest(scored.prompt) != document.prompt_sha256:
        yield "its prompt or text is another one here"
        return
    if scored.reference is not None and _digest(scored.reference) != document.reference_sha256:
        yield "its reference is another one here"
    response = f"[withheld: SHA-256 {_digest(scored.response)}]" if is_withheld(document) else scored.response
    if response != document.response:
        yield f"its answer here is {_short(response)}, and {_short(document.response)} is stored"
    if scored.valid != (document.invalid_reason is None):
        yield f"it counts {'here, and not in the store' if scored.valid else 'in the store, and not here'}"
        return
    for key, value in scored.scores.items() if scored.valid else ():
        there = document.scores.get(key)
        if there is None or not math.isfinite(there):
            yield f"{key} is {value:.6g} here, and {'no such score' if there is None else there} is stored"
            continue
        differences.append(abs(value - there))
        if differences[-1] > (LOG_PROBABILITY_TOLERANCE if key in _IN_NATS else TOLERANCE):
            yield f"{key} is {value:.6g} here, and {there:.6g} is stored"


def _summary_faults(
    cell: CellResult, metric: str, stored: Sequence[DocumentRecord], reference: float | None
) -> Iterator[str]:
    """Yields how the cell's score is another than its own documents give."""
    scores = {score.metric: score.value for score in cell.scores}
    own: dict[str, float | None] = {metric: None}
    if metric != "privleak":
        if values := [document.scores[metric] for document in stored if metric in document.scores]:
            own = {metric: math.fsum(values) / len(values)}
    else:
        sides = {split: [document.scores["min_k_40"] for document in stored
                         if document.split == split and "min_k_40" in document.scores]
                 for split in ("forget", "holdout")}  # fmt: skip
        # A corpus that states none takes the AUC of its retrained model, whose cell is in the store.
        reference = reference or scores.get("reference_auc") or scores.get("auc")
        if all(sides.values()) and reference:
            auc, share = plain.privleak(sides["forget"], sides["holdout"], reference)
            own = {"auc": auc, "privleak": share}
    for key, value in own.items():
        there = scores.get(key)
        agrees = value is there if value is None or there is None else abs(value - there) <= TOLERANCE
        if not agrees:
            yield f"{key} of all {len(stored)} stored documents is {value}, and {there} is stored"


def _other_versions(cell: CellResult) -> str:
    """Returns which libraries the cell was made with that are others here; nothing where all are the same."""
    others = []
    for library, then in cell.provenance.versions.items():
        try:
            now = importlib.metadata.version(library)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        if now != then and library != "quench-bench":
            others.append(f"{library[:40]} {then[:40]}, here {now}")
    return f" (it was made with {'; '.join(others)})" if others else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
