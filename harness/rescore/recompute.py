"""Every metric of a past evaluation recomputed from its logged responses and log-probabilities.

The same functions score here as score a model that is run: ROUGE, the cut of
KnowMem answers, the AUC, PrivLeak with the corpus's reference. What needs the
model or its tokenizer can't come from a log: extraction strength, the loss on
references, Min-K%++, and a VerbMem reference cut to its first 128 tokens where
the log's program did not cut it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from harness.provenance import sha256_text
from harness.records import DocumentRecord, Evaluation, Score
from harness.rescore.records import SPLITS, LoggedAnswer, LoggedMetric, LoggedModel, LoggedText
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.metrics import formulas
from harness.score.metrics.formulas import MEMBERSHIP_KEYS

EXCERPT = 200
"""Most characters of a corpus text that a record keeps."""

UNKNOWN_TEXT = ""
"""Stands for the digest of a text that the log does not keep."""

_RESULTS: Mapping[str, Callable[[Mapping[str, Any], Sequence[str]], dict[str, float]]] = {
    "verbmem_f": lm_eval_hooks.verbmem_results,
    "knowmem_f": lm_eval_hooks.knowmem_f_results,
    "knowmem_r": lm_eval_hooks.knowmem_r_results,
}
_SPLITS = {"verbmem_f": "forget", "knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
# A log in 16 bit rounds each number for itself.
_ROUNDING = 0.01
# No log-probability of a 16- or 32-bit model is as large; sums of such numbers would overflow.
_LARGEST = 1e6


def rescore(model: LoggedModel, log: LoggedMetric, corpus: catalogue.Corpus) -> Evaluation:
    """Returns one metric's scores and per-document records, from its log alone.

    Args:
        model: Whose log it is.
        log: One of its metrics.
        corpus: Corpus that it was evaluated on; PrivLeak needs its reference AUC.

    Raises:
        CorpusError: PrivLeak is logged and the corpus has no reference AUC.
    """
    start = time.perf_counter()
    if log.metric == "privleak":
        documents = tuple(map(_scored_text, log.texts))
        scores = tuple(_membership_scores(documents, reference_auc(corpus)))
    else:
        documents = tuple(_response(log.metric, answer) for answer in log.answers)
        scores = tuple(_response_scores(documents))
    return Evaluation(
        task=f"{corpus.group}_{log.metric}",
        scores=scores,
        documents=documents,
        remarks=tuple(_remarks(model, log)),
        seconds=time.perf_counter() - start,
    )


def reference_auc(corpus: catalogue.Corpus) -> float:
    """Returns the AUC of the corpus's retrained model, which no log may replace.

    Raises:
        CorpusError: The corpus states none.
    """
    value = catalogue.reference_auc(corpus)
    assert value is not None  # only the reference model itself is scored without one
    return value


def _response(metric: str, answer: LoggedAnswer) -> DocumentRecord:
    response = answer.response if metric == "verbmem_f" else formulas.cut_answer(answer.response)
    return DocumentRecord(
        index=answer.index,
        split=_SPLITS[metric],
        prompt_sha256=sha256_text(answer.prompt),
        prompt_excerpt=answer.prompt[-EXCERPT:],
        response=response,
        reference_sha256=sha256_text(answer.reference),
        reference_excerpt=answer.reference[:EXCERPT],
        scores=_RESULTS[metric]({"reference": answer.reference}, [answer.response]),
    )


def _response_scores(documents: Sequence[DocumentRecord]) -> Iterator[Score]:
    for key in documents[0].scores:
        values = [document.scores[key] for document in documents]
        yield Score(metric=key, value=math.fsum(values) / len(values), num_docs=len(values))


def _scored_text(text: LoggedText) -> DocumentRecord:
    scores, invalid = _usable(text)
    return DocumentRecord(
        index=text.index,
        split=text.split,
        prompt_sha256=UNKNOWN_TEXT if text.text is None else sha256_text(text.text),
        prompt_excerpt=(text.text or "")[:EXCERPT],
        response="",
        reference_sha256=None,
        reference_excerpt="",
        scores=scores,
        invalid_reason=invalid,
    )


def _usable(text: LoggedText) -> tuple[dict[str, float], str | None]:
    """Returns the scores that count, and why the text counts for nothing."""
    primary = text.scores[lm_eval_hooks.MEMBERSHIP_KEY]
    if not abs(primary) < _LARGEST:
        return {}, f"the log gives {primary:g} as its Min-{formulas.MEMBERSHIP_PERCENT}% score"
    scores = {key: value for key, value in text.scores.items() if abs(value) < _LARGEST}
    loss, most = scores.get("loss"), scores.get("min_k_60")
    # The mean of all losses is at most that of the largest 60% and at least 60% of it; a perplexity isn't.
    if loss is not None and (
        most is None or not 0.6 * most * (1 - _ROUNDING) <= loss <= most * (1 + _ROUNDING) + _ROUNDING
    ):
        del scores["loss"]
    if "loss" in scores and text.text:
        scores["zlib_loss"] = formulas.zlib_loss(scores["loss"], text.text)
    return scores, None


def _membership_scores(documents: Sequence[DocumentRecord], reference: float) -> Iterator[Score]:
    records = [{"split": document.split, "scores": document.scores} for document in documents]
    valid = [document for document in documents if document.invalid_reason is None]
    auc = lm_eval_hooks.membership_auc(records)
    missing = None if auc is not None else _no_valid(documents)
    value = None if auc is None else formulas.privleak(auc, reference)
    yield Score(metric="privleak", value=value, num_docs=len(valid), missing_reason=missing)
    yield Score(metric="auc", value=auc, num_docs=len(valid), missing_reason=missing)
    for key in MEMBERSHIP_KEYS:
        held = sum(key in document.scores for document in valid)
        # An AUC over some of the texts is another quantity; a log has a score for all of them or says nothing.
        if key != lm_eval_hooks.MEMBERSHIP_KEY and valid and held == len(valid):
            found = lm_eval_hooks.membership_auc(records, key)
            if found is not None:
                yield Score(metric=f"auc_{key}", value=found, num_docs=held)
    for split in SPLITS:
        losses = [document.scores.get("loss") for document in valid if document.split == split]
        known = [loss for loss in losses if loss is not None]
        if known and len(known) == len(losses):
            yield Score(metric=f"loss_{split}", value=math.fsum(known) / len(known), num_docs=len(known))


def _no_valid(documents: Sequence[DocumentRecord]) -> str:
    for split in SPLITS:
        mine = [document for document in documents if document.split == split]
        if all(document.invalid_reason is not None for document in mine):
            return f"none of the {len(mine)} {split} texts is valid (the first: {mine[0].invalid_reason})"
    return "no AUC"


def _remarks(model: LoggedModel, log: LoggedMetric) -> Iterator[str]:
    yield f"Recomputed from {log.file} of {model.family}, SHA-256 {log.sha256[:16]}."
    if model.family == "OpenUnlearning" and log.metric == "verbmem_f":
        yield (
            "OpenUnlearning does not cut references to 128 tokens, and only a tokenizer could: VerbMem is not"
            " comparable with MUSE's where references are longer."
        )
    if model.family == "OpenUnlearning" and log.metric == "privleak":
        yield "The log keeps no texts and does not say its k: Min-40%, OpenUnlearning's setting for MUSE, is assumed."
    if model.family == "muse_bench" and log.metric == "verbmem_f":
        yield "The log does not say how it decoded: FailureLLMUnlearning samples VerbMem at temperature 0.9, unseeded."


@cache
def _stemmed() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def by_its_own_rule(log: LoggedMetric, evaluation: Evaluation) -> tuple[float, ...]:
    """Returns ROUGE-L F1 of every response as the log's own program defines it.

    What the log states is compared with these: a difference is then no matter
    of definitions.

    Args:
        log: A log of responses.
        evaluation: The same log rescored.
    """
    if log.stemmed:
        return tuple(
            float(_stemmed().score(target=answer.reference, prediction=answer.response)["rougeL"].fmeasure)
            for answer in log.answers
        )
    return tuple(document.scores[log.metric] for document in evaluation.documents)
