"""Scores one loaded model on one task through lm-eval, with a record per document.

The only module that knows lm-eval's result dict. lm-eval's answer cache is
never used: it is keyed by request and would give one model another's answers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import ScoringError
from harness.provenance import sha256_text
from harness.records import DocumentRecord, Evaluation, Score
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.metrics import plugins as metric_plugins
from harness.score.metrics.formulas import MEMBERSHIP_KEYS, cut_answer, degeneration, extraction_strength, loss
from harness.score.metrics.table import plugged_in

EXCERPT = 200
"""Most characters of a corpus text that a record keeps."""

_RESPONSE_KEYS = ("rougeL_recall", "rouge1", "rouge1_recall", *degeneration(""))
_TEACHER_KEYS = ("reference_nll", "extraction_strength")

Progress = Callable[[int, int], None]


def evaluate(
    model: Any, tokenizer: Any, task: str, *, data_dir: Path | None, device: str, limit: int | None, seed: int,
    batch_size: int | None = None, on_progress: Progress | None = None, reference_auc: catalogue.ReferenceAuc = None,
) -> Evaluation:  # fmt: skip
    """Returns one task's scores and per-document records for one model.

    Args:
        model: Causal language model of transformers with dense weights.
        tokenizer: The base model's tokenizer.
        task: Name of a task, e.g. ``muse_mini_verbmem_f``.
        data_dir: Folder in MUSE's local form, None for the corpus's default.
        device: torch device to score on.
        limit: Only the task's first documents; PrivLeak's splits take turns.
        seed: Seed of torch; all scoring is greedy, so nothing should depend on it.
        batch_size: Most documents per batch; None lets a token budget decide.
        on_progress: Told how many documents of how many are done.
        reference_auc: What PrivLeak is relative to: the retrain control's
            measured AUC, or ``own`` where this model is that control; None
            takes what the corpus states.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: Texts or the reference AUC are missing.
        ScoringError: The model can't be scored on this device.
    """
    import torch

    start = time.perf_counter()
    catalogue.check_task(task, data_dir=data_dir, reference=reference_auc)
    torch.manual_seed(seed)
    with _quiet_lm_eval():
        lm = _language_model(model, tokenizer, device, batch_size, on_progress)
        samples = _run(lm, tokenizer, task, data_dir, limit, reference_auc)
    if catalogue.metric_of(task) == "privleak":
        documents = tuple(map(_scored_text, samples))
        scores = _membership_scores(samples)
    else:
        documents = tuple(_with_teacher(lm, samples) if _has_teacher(task) else map(_response, samples))
        scores = _response_means(documents, catalogue.metric_of(task), _has_teacher(task))
        texts = [(sample["doc"]["prompt"], sample["doc"]["reference"]) for sample in samples]
        documents, added = metric_plugins.scored(_added(task), documents, texts)
        scores = (*scores, *added)
    return Evaluation(
        task=task,
        scores=scores,
        documents=documents,
        remarks=tuple(_remarks(lm, task, data_dir, reference_auc)),
        seconds=time.perf_counter() - start,
    )


def membership_auc(
    model: Any, tokenizer: Any, corpus: str, *, data_dir: Path | None, device: str, batch_size: int | None = None
) -> float:
    """Returns a model's Min-40% AUC, needing no reference value: this is how one is measured.

    Args:
        model: As in ``evaluate``; a corpus's reference is its retrained model's.
        tokenizer: The base model's tokenizer.
        corpus: Name of the corpus.
        data_dir: Folder in MUSE's local form, None for the corpus's default.
        device: torch device to score on.
        batch_size: Most texts per batch.

    Raises:
        CorpusError: Texts are missing.
        ScoringError: A split has no text with finite log-probabilities.
    """
    documents = lm_eval_hooks.membership_documents(catalogue.load_corpus(corpus, data_dir=data_dir))
    with _quiet_lm_eval():
        lm = _language_model(model, tokenizer, device, batch_size, None)
    found = lm.texts.score_texts([document["text"] for document in documents])
    records = [
        lm_eval_hooks.membership_record(document, {"logprobs": one.logprobs, "means": one.means, "stds": one.stds})
        for document, one in zip(documents, found, strict=True)
    ]
    value = lm_eval_hooks.membership_auc(records)
    if value is None:
        raise ScoringError(f"No AUC on corpus {corpus!r}: {_no_valid(records)}.")
    return value


def _language_model(
    model: Any, tokenizer: Any, device: str, batch_size: int | None, on_progress: Progress | None
) -> Any:
    from harness.score.model.language_model import QuenchLM

    if str(model.device) != device and str(model.device).split(":")[0] != device:
        model.to(device)
    return QuenchLM(model, tokenizer, batch_size=batch_size, on_progress=on_progress)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Keeps lm-eval's log lines and its progress bar off the terminal."""
    import lm_eval.api.task

    logger, bar = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar


def _run(
    lm: Any, tokenizer: Any, task: str, data_dir: Path | None, limit: int | None, reference_auc: catalogue.ReferenceAuc
) -> list[dict[str, Any]]:
    """Runs lm-eval; returns its samples in document order."""
    import lm_eval.evaluator
    from lm_eval.tasks import TaskManager

    # An empty folder name keeps the environment variable out: what is scored is what was planned.
    metadata = {
        "tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer),
        "data_dir": str(data_dir) if data_dir is not None else "",
        "reference_auc": reference_auc,
    }
    if catalogue.is_outside(task):
        # lm-eval would run whatever code such a file names.
        manager = TaskManager(include_defaults=False, metadata=metadata)
        chosen: str | dict[str, Any] = lm_eval_hooks.with_functions(catalogue.task_settings(task))
    else:
        folder = str(catalogue.task_yaml(task).parent)
        manager, chosen = TaskManager(include_path=folder, include_defaults=False, metadata=metadata), task
    # lm-eval's index passes over a YAML that it can't read without a word.
    if chosen == task and task not in manager.all_tasks:
        raise ScoringError(f"lm-eval can't load {catalogue.task_yaml(task)}: restore it from the repository.")
    result = lm_eval.evaluator.evaluate(
        lm=lm, task_dict=manager.load([chosen]), limit=limit, bootstrap_iters=0, log_samples=True
    )
    return sorted(result["samples"][task], key=lambda sample: sample["doc"]["index"])


def _response(sample: Mapping[str, Any]) -> DocumentRecord:
    document = sample["doc"]
    scores = {key: float(sample[key]) for key in sample["metrics"]}
    response = sample["filtered_resps"][0]
    return DocumentRecord(
        index=document["index"],
        split=document["split"],
        prompt_sha256=sha256_text(document["prompt"]),
        prompt_excerpt=document["prompt"][-EXCERPT:],
        response=response if "verbmem_f" in scores else cut_answer(response),
        reference_sha256=sha256_text(document["reference"]),
        reference_excerpt=document["reference"][:EXCERPT],
        scores=scores,
    )


def _added(task: str) -> tuple[metric_plugins.PluggedMetric, ...]:
    return tuple(plugged_in(catalogue.metric_of(task)).values())


def _has_teacher(task: str) -> bool:
    return catalogue.metric_of(task) == "verbmem_f"


def _with_teacher(lm: Any, samples: Sequence[Mapping[str, Any]]) -> Iterator[DocumentRecord]:
    """Adds to each response what the model thinks of the true continuation: one forward pass."""
    found = lm.texts.score_continuations([(sample["doc"]["prompt"], sample["doc"]["reference"]) for sample in samples])
    for sample, one in zip(samples, found, strict=True):
        record = _response(sample)
        if one.logprobs and all(map(math.isfinite, one.logprobs)):
            teacher = {"reference_nll": loss(one.logprobs), "extraction_strength": extraction_strength(one.correct)}
            record = replace(record, scores={**record.scores, **teacher})
        yield record


def _response_means(documents: Sequence[DocumentRecord], primary: str, has_teacher: bool) -> tuple[Score, ...]:
    keys = (primary, *_RESPONSE_KEYS, *(_TEACHER_KEYS if has_teacher else ()))
    return tuple(_mean(key, documents, f"no document has a finite {key}") for key in keys)


def _mean(
    metric: str, documents: Sequence[DocumentRecord], reason: str, *, key: str | None = None, split: str | None = None
) -> Score:
    values = [
        document.scores[key or metric]
        for document in documents
        if (key or metric) in document.scores and split in (None, document.split)
    ]
    mean = math.fsum(values) / len(values) if values else None
    return Score(metric=metric, value=mean, num_docs=len(values), missing_reason=None if values else reason)


def _scored_text(sample: Mapping[str, Any]) -> DocumentRecord:
    document, record = sample["doc"], sample["privleak"]
    return DocumentRecord(
        index=document["index"],
        split=document["split"],
        prompt_sha256=sha256_text(document["text"]),
        prompt_excerpt=document["text"][:EXCERPT],
        response="",
        reference_sha256=None,
        reference_excerpt="",
        scores=record["scores"],
        invalid_reason=record["invalid_reason"],
    )


def _membership_scores(samples: Sequence[Mapping[str, Any]]) -> tuple[Score, ...]:
    records = [sample["privleak"] for sample in samples]
    documents = [_scored_text(sample) for sample in samples]
    reason = _no_valid(records)
    valid = sum(record["invalid_reason"] is None for record in records)
    measured = lm_eval_hooks.membership_auc(records)
    primary = lm_eval_hooks.privleak_of(measured, records)
    # The reference model's own AUC is what it is compared with.
    reference = records[0]["reference_auc"] if records[0]["reference_auc"] is not None else measured
    scores = [
        Score(metric=name, value=value, num_docs=valid, missing_reason=reason if value is None else None)
        for name, value in (("privleak", primary), ("reference_auc", reference))
    ]
    for key in sorted(MEMBERSHIP_KEYS, key=lambda key: key != lm_eval_hooks.MEMBERSHIP_KEY):
        value = lm_eval_hooks.membership_auc(records, key)
        counted = sum(key in record["scores"] for record in records)
        name = "auc" if key == lm_eval_hooks.MEMBERSHIP_KEY else f"auc_{key}"
        missing = None if value is not None else reason or f"no valid text of a split is long enough for {key}"
        scores.append(Score(metric=name, value=value, num_docs=counted, missing_reason=missing))
    for split in ("forget", "holdout"):
        scores.append(_mean(f"loss_{split}", documents, f"no valid {split} text", key="loss", split=split))
    return (*scores, _mean("tokens", documents, "no valid text"))


def _no_valid(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns why a split has no valid text, None when both have some."""
    for split in ("forget", "holdout"):
        mine = [record for record in records if record["split"] == split]
        if all(record["invalid_reason"] is not None for record in mine):
            first = f" (the first: {mine[0]['invalid_reason']})" if mine else ""
            return f"none of the {len(mine)} {split} texts is valid{first}"
    return None


def _remarks(lm: Any, task: str, data_dir: Path | None, reference_auc: catalogue.ReferenceAuc) -> Iterator[str]:
    metric = catalogue.metric_of(task)
    if metric in ("privleak", "verbmem_f"):
        yield (
            "The tokenizer puts BOS before each text; BOS is context only."
            if lm.texts.bos
            else "The tokenizer adds no BOS: each text's first token is context and is not scored."
        )
    for added in _added(task):
        yield f"{added.info.label} ({added.info.key}) is a metric of {added.plugin.origin}."
    if lm.texts.shortened:
        yield f"{lm.texts.shortened} texts were cut to the model's context of {lm.max_length} tokens."
    if lm.shortened_prompts:
        yield f"{lm.shortened_prompts} prompts lost their beginning to the model's context of {lm.max_length} tokens."
    corpus = catalogue.load_corpus(catalogue.corpus_of(task), data_dir=data_dir)
    foreign = catalogue.foreign_splits(corpus, metric)
    if foreign:
        yield f"The given data folder's {' and '.join(foreign)} differ from the texts that {corpus.title} pins."
    if metric == "privleak" and reference_auc == "own":
        yield "This model is the reference: PrivLeak is relative to its own AUC, and 0 by definition."
    elif metric == "privleak" and reference_auc is not None:
        yield f"The corpus states no reference AUC: PrivLeak is relative to {reference_auc:.4f}, its retrain control's."
    elif metric == "privleak" and foreign:
        yield "The reference AUC was measured on the corpus's own texts, not on those of the given data folder."
