"""Past evaluations as rows: recomputed scores with intervals and flags, and the cells that a store keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import InputError
from harness.publish.tables import rows as table_rows
from harness.publish.thresholds import PRIVACY
from harness.records import Cell, CellResult, Evaluation, Provenance, QuantizerSpec, Submission
from harness.rescore import corpus_match, recompute
from harness.rescore import flags as log_flags
from harness.rescore.flags import Flag
from harness.rescore.records import LoggedMetric, LoggedModel
from harness.score.corpora.catalogue import Corpus
from harness.score.metrics.formulas import METRICS, SCORING_VERSION
from harness.store.store import Store

COLUMNS = ("model", "metric", "score", "stated", "num_docs", "flags")
"""Columns that fit a terminal; the reasons of flags stand below."""

_USED = ("quench-bench", "rouge-score", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """One metric of one past evaluation, recomputed.

    Attributes:
        flags: What is wrong, with reasons.
        corpus_check: Whether its documents are the corpus's, or why nobody knows.
        result: The cell that a store keeps of it.
    """

    model: LoggedModel
    log: LoggedMetric
    flags: tuple[Flag, ...]
    corpus_check: str
    result: CellResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What precision the logs were made with; logs do not say it.

    Attributes:
        stated: Whether a person has said so, or it is assumed.
    """

    spec: QuantizerSpec
    stated: bool

    @property
    def remark(self) -> str:
        """Says where the precision comes from."""
        if self.stated:
            return f"The log does not say its precision; {self.spec.name} is what the person who rescored it stated."
        return f"The log does not say its precision, and nobody stated it: {self.spec.label} is assumed."


def rescore(models: Sequence[LoggedModel], corpus: Corpus, precision: Precision) -> list[Rescored]:
    """Returns every logged metric of every model, recomputed.

    Args:
        models: What ``find.find`` gave.
        corpus: Corpus that they were evaluated on.
        precision: What the models were quantized with.

    Raises:
        CorpusError: PrivLeak is logged and the corpus has no reference AUC,
            or the given texts of the corpus are malformed.
        InputError: Two models would be called the same, or a log has more documents than the corpus.
    """
    names = [submission_name(model) for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{names.count(name)} of the logged models would be called {name!r}: rename their folders, or rescore"
                " them one at a time into different stores."
            )
    return [found for model in models for found in _rescore(model, corpus, precision)]


def submission_name(model: LoggedModel) -> str:
    """Returns the identifier of a logged model: its folder's name in ``[a-z0-9-]``.

    Raises:
        InputError: The name has no such character.
    """
    name = re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")[:64].strip("-")
    if not name:
        raise InputError(
            f"The folder name {model.name!r} has no letter a-z and no digit: rename it, for models are named after it."
        )
    return name


def _rescore(model: LoggedModel, corpus: Corpus, precision: Precision) -> Iterator[Rescored]:
    evaluations = {log.metric: recompute.rescore(model, log, corpus) for log in model.metrics}
    collapsed = log_flags.collapse(evaluations)
    lacking = {log.metric: corpus_match.lacking(log, corpus) for log in model.metrics}
    for log in model.metrics:
        found = corpus_match.match(log, corpus)
        flags = (
            *((collapsed,) if collapsed else ()),
            *_of_metric(log, evaluations[log.metric], corpus, collapsed is not None),
            *log_flags.documents(log, found, lacking[log.metric]),
        )
        check = _check(log, corpus, found)
        yield Rescored(
            model=model, log=log, flags=flags, corpus_check=check,
            result=_cell(model, log, evaluations[log.metric], corpus, precision, (check, *log_flags.sentences(flags))),
        )  # fmt: skip


def _of_metric(log: LoggedMetric, evaluation: Evaluation, corpus: Corpus, collapsed: bool) -> Iterator[Flag]:
    reference = recompute.reference_auc(corpus) if log.metric == PRIVACY else None
    if reference is not None:
        yield from log_flags.privacy(log, evaluation, reference, collapsed=collapsed)
    yield from log_flags.disagreements(log, evaluation, reference)


def _check(log: LoggedMetric, corpus: Corpus, found: corpus_match.CorpusMatch | None) -> str:
    if found is not None:
        checked = f"Corpus checked: {found.known} of {found.documents} documents are those of {corpus.name}."
        if found.foreign:
            checked += f" But {', '.join(found.foreign)} of the given folder are not the corpus's pinned texts."
        return checked
    if any(text.text is None for text in log.texts):
        return "Corpus not checked: the log keeps no texts."
    return f"Corpus not checked: the texts of {corpus.name} are not at hand."


def _cell(
    model: LoggedModel, log: LoggedMetric, evaluation: Evaluation, corpus: Corpus, precision: Precision,
    remarks: Sequence[str],
) -> CellResult:  # fmt: skip
    submission, spec = _submission(model, corpus), precision.spec
    key = provenance.cell_key(
        origin="rescored from logs", submission=submission.name, log=log.sha256, task=evaluation.task,
        quantizer=provenance.sha256_json([spec.name, precision.stated]), scoring_version=SCORING_VERSION,
        reference_auc=corpus.reference_auc if log.metric == PRIVACY else None,
    )  # fmt: skip
    return CellResult(
        cell=Cell(submission=submission.name, quantizer=spec.name, task=evaluation.task, key=key),
        submission=submission,
        spec=spec,
        corpus=corpus.name,
        status="finished",
        provenance=_provenance(),
        scores=evaluation.scores,
        documents=evaluation.documents,
        remarks=(precision.remark, *evaluation.remarks, *remarks),
        timings={"score": evaluation.seconds},
        origin="rescored from logs",
    )


def _submission(model: LoggedModel, corpus: Corpus) -> Submission:
    files = ", ".join(dict.fromkeys(log.file for log in model.metrics))
    return Submission(
        name=submission_name(model),
        title=model.name,
        method="not stated in the log",
        corpus=corpus.name,
        kind="full_model",
        role="entry",
        target=None,
        retrain=None,
        base_model=None,
        base_revision=None,
        weights="",
        revision=None,
        weights_sha256=None,
        folder="",
        notes=f"Rescored from logs of {model.family}: {files}. No weights were seen; kind and method are not logged.",
    )


def _provenance() -> Provenance:
    """Returns where the rescoring was done; where the model ran, no log says."""
    made = provenance.collect(device="cpu", threads=1, seed=0, scoring_version=SCORING_VERSION)
    versions = {name: version for name, version in made.versions.items() if name in _USED}
    return replace(made, versions=versions, device="rescored from logs")


def rows(found: Sequence[Rescored], models: Sequence[LoggedModel]) -> list[dict[str, Any]]:
    """Returns one flat row per model and metric, with the keys of ``quench show --cells`` and those of logs.

    ``stated`` is what the log's program wrote, scaled as the recomputed value
    is. Metrics that a log only summarizes have a row without a value.

    Args:
        found: Recomputed metrics.
        models: All models, for what could not be recomputed.
    """
    cells = table_rows.cell_rows([one.result for one in found])
    made = [_row(one, cell) for one, cell in zip(found, cells, strict=True)]
    blank: Mapping[str, Any] = dict.fromkeys(made[0]) if made else {}
    lacking = [
        {
            **blank, "model": model.name, "family": model.family, "submission": submission_name(model),
            "corpus": made[0]["corpus"], "metric": sentence.partition(":")[0], "flags": [], "reasons": [],
            "remarks": [], "status": "skipped", "reason": sentence, "scoring_version": SCORING_VERSION,
        }
        for model in models for sentence in model.not_recomputed
    ]  # fmt: skip
    return made + lacking


def _row(one: Rescored, cell: dict[str, Any]) -> dict[str, Any]:
    scale = METRICS[one.log.metric].display_scale
    return {
        "model": one.model.name,
        "family": one.model.family,
        "metric": one.log.metric,
        **cell,
        "stated": _finite(one.log.stated, scale),
        "stated_auc": _finite(one.log.stated_auc, 100),
        "flags": list(dict.fromkeys(flag.word for flag in one.flags)),
        "reasons": [flag.reason for flag in one.flags],
        "corpus_check": one.corpus_check,
        "file": one.log.file,
        "file_sha256": one.log.sha256,
    }


def _finite(value: float | None, scale: float) -> float | None:
    # What a log states may be NaN, which JSON has no word for; its flag says so.
    return None if value is None or not math.isfinite(value * scale) else value * scale


def notes(found: Sequence[Rescored], models: Sequence[LoggedModel]) -> list[str]:
    """Returns the reasons behind flags and missing values, each once, as lines to stand below a table."""
    lines = []
    for one in found:
        place = f"{one.model.name} {one.log.metric}"
        # A destroyed model is one fact, though all its metrics are flagged.
        lines += [
            f"{one.model.name if flag.word == 'collapsed' else place}: {flag.word}, {flag.reason}" for flag in one.flags
        ]
        lines += [f"{place}: {score.missing_reason}" for score in one.result.scores if score.metric == one.log.metric
                  and score.missing_reason]  # fmt: skip
    lines += [f"{model.name} {sentence}" for model in models for sentence in model.not_recomputed]
    return list(dict.fromkeys(lines))


def keep(found: Sequence[Rescored], store: Path) -> tuple[int, int]:
    """Stores recomputed cells, marked as what they are.

    Returns:
        How many were new, and how many the store had.

    Raises:
        InputError: A model of that name was scored here: its manifest and the
            logs' would be taken for the same submission.
        StoreError: The store can't be written.
    """
    with Store.open(store) as opened:
        scored = {(cell.corpus, cell.submission.name) for cell in opened.cells() if cell.origin == "scored"}
        for one in found:
            if (one.result.corpus, one.result.submission.name) in scored:
                raise InputError(
                    f"The store {store} holds a submission {one.result.submission.name!r} that was scored here:"
                    f" rename the folder {one.model.name!r} of the logs, or use another store."
                )
        new = sum(opened.add(one.result) for one in found)
    return new, len(found) - new
