"""Compares the prompts of a log with the corpus's own texts, if they are on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import InputError
from harness.provenance import sha256_text
from harness.rescore.records import SPLITS, LoggedAnswer, LoggedMetric
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.corpora import files as corpus_files


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusMatch:
    """How many of a log's documents are the corpus's.

    Attributes:
        documents: Distinct documents in the log whose text it keeps.
        of_corpus: Documents that the corpus has for the metric.
        known: Those whose question or text is the corpus's, spaces apart.
        same_prompt: Those whose whole prompt is, to the digest.
        same_reference: Those of ``known`` whose reference is the corpus's, or
            its beginning; None for PrivLeak.
        foreign: Splits that the given folder fills with other texts than the
            corpus's pinned ones, so that agreeing with them says little.
    """

    documents: int
    of_corpus: int
    known: int
    same_prompt: int
    same_reference: int | None
    foreign: tuple[str, ...] = ()


OF_MUSE = 100
"""Documents of each split of NEWS and BOOKS. Source: MUSE (Shi et al., 2024)."""


def lacking(log: LoggedMetric, corpus: catalogue.Corpus) -> str | None:
    """Returns how many of the corpus's documents a log lacks, by number alone; None where it lacks none.

    Args:
        log: The log.
        corpus: The corpus it is said to be on.

    Raises:
        InputError: It has more than the corpus, so it is of another one.
        CorpusError: The texts at hand are missing or malformed.
    """
    short = []
    for number, split in _numbers(log):
        has = _size(corpus, log.metric, split)
        if has is not None and number > has:
            raise InputError(
                f"{log.file}: {number} {split} documents are logged for {log.metric}, and {corpus.name} has {has}:"
                " this is the log of another corpus or benchmark; name its own with --corpus."
            )
        if has is not None and number < has:
            short.append(f"{number} {split} documents, and the corpus has {has}")
    return "; ".join(short) or None


def _numbers(log: LoggedMetric) -> list[tuple[int, str]]:
    if log.metric != "privleak":
        return [(len(log.answers), catalogue.SPLITS_OF[log.metric][0][1])]
    return [(sum(text.split == split for text in log.texts), split) for split in SPLITS]


def _size(corpus: catalogue.Corpus, metric: str, split: str) -> int | None:
    """Returns how many documents a split has; None where nobody can say."""
    folder = texts_at_hand(corpus, metric)
    if folder is None:
        return OF_MUSE if corpus.ships else None
    local = catalogue.load_corpus(corpus.name, data_dir=folder)
    return len(catalogue.load_split(local, catalogue.SPLITS_OF[metric][0][0], split))


def texts_at_hand(corpus: catalogue.Corpus, metric: str) -> Path | None:
    """Returns a folder in MUSE's local form that holds what a metric reads; None where nothing is on this machine.

    Args:
        corpus: The corpus, with the data folder that the user gave, if any.
        metric: One of ``metrics.table.PRIMARY``.
    """
    if corpus.data_dir is not None:
        return corpus.data_dir
    if corpus.hub_repo is None:
        return corpus.folder / "data"
    folder = corpus_files.hub_cache(corpus.name, str(corpus.revision))
    needed = (folder / config / f"{split}.json" for config, split in catalogue.SPLITS_OF[metric])
    return folder if all(path.is_file() for path in needed) else None


def match(log: LoggedMetric, corpus: catalogue.Corpus) -> CorpusMatch | None:
    """Returns how a log's documents compare with the corpus's own.

    Args:
        log: The log.
        corpus: The corpus it is said to be on.

    Returns:
        None where the corpus's texts are not at hand, or the log keeps none.

    Raises:
        CorpusError: The texts at hand are missing or malformed.
    """
    folder = texts_at_hand(corpus, log.metric)
    if folder is None or (log.metric == "privleak" and any(text.text is None for text in log.texts)):
        return None
    local = catalogue.load_corpus(corpus.name, data_dir=folder)
    found = _texts(log, local) if log.metric == "privleak" else _answers(log, local, folder)
    return replace(found, foreign=catalogue.foreign_splits(local, log.metric))


def _texts(log: LoggedMetric, corpus: catalogue.Corpus) -> CorpusMatch:
    own = {
        (split, sha256_text(item["text"])) for _, split in catalogue.SPLITS_OF["privleak"]
        for item in catalogue.load_split(corpus, "privleak", split)
    }  # fmt: skip
    mine = {(text.split, sha256_text(text.text or "")) for text in log.texts}
    same = len(mine & own)
    return CorpusMatch(documents=len(mine), of_corpus=len(own), known=same, same_prompt=same, same_reference=None)


def _answers(log: LoggedMetric, corpus: catalogue.Corpus, folder: Path) -> CorpusMatch:
    prompts, references = _own(log.metric, corpus, folder)
    by_question = {
        question(log.metric, prompt): squeezed(reference) for prompt, reference in zip(prompts, references, strict=True)
    }
    mine = {question(log.metric, answer.prompt): answer for answer in log.answers}
    known = [found for key, found in mine.items() if key in by_question]
    digests = {sha256_text(prompt) for prompt in prompts}
    return CorpusMatch(
        documents=len(mine),
        of_corpus=len(by_question),
        known=len(known),
        same_prompt=sum(sha256_text(found.prompt) in digests for found in mine.values()),
        same_reference=sum(_same_reference(log.metric, found, by_question) for found in known),
    )


def _own(metric: str, corpus: catalogue.Corpus, folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the prompts as they are scored here, and the references before any cut."""
    config, split = catalogue.SPLITS_OF[metric][0]
    items = catalogue.load_split(corpus, config, split)
    if metric == "verbmem_f":
        return [item["prompt"] for item in items], [item["gt"] for item in items]
    pairs = catalogue.task_settings(f"{corpus.group}_{metric}")["dataset_kwargs"]["icl_pairs"]
    made = lm_eval_hooks.knowmem_documents(
        corpus=corpus.name, questions=split, icl_pairs=pairs, data_dir=str(folder)
    )  # fmt: skip
    return list(made[split]["prompt"]), [item["answer"] for item in items]


def _same_reference(metric: str, answer: LoggedAnswer, own: Mapping[str, str]) -> bool:
    reference, whole = squeezed(answer.reference), own[question(metric, answer.prompt)]
    # A tokenizer that cuts after so many tokens may leave half a character at the end.
    return whole.startswith(reference.rstrip("\ufffd")) if metric == "verbmem_f" else reference == whole


def squeezed(text: str) -> str:
    """Returns a text without white space: what decoding tokens leaves of it is the same."""
    return "".join(text.split())


def question(metric: str, prompt: str) -> str:
    """Returns what a prompt asks, without in-context pairs and without white space."""
    _, start, rest = prompt.rpartition("Question:") if metric != "verbmem_f" else ("", "", "")
    asked, end, after = rest.rpartition("Answer:")
    return squeezed(asked if start and end and not after.strip() else prompt)
