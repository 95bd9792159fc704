"""Logs of past MUSE evaluations as records, whichever program wrote them.

Two families are read: ``muse_bench`` with its forks (``muse_bench``) and
OpenUnlearning (``open_unlearning``); ``find`` finds both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

Family = Literal["muse_bench", "OpenUnlearning"]

SPLITS = ("forget", "holdout")
"""The splits that PrivLeak tells apart; what a log says of others is not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAnswer:
    """One response in a log.

    Attributes:
        index: Position among the log's documents.
        rouge_l: ROUGE-L F1 as the log states it; None where it states none.
    """

    index: int
    prompt: str
    reference: str
    response: str
    rouge_l: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedText:
    """One scored text in a log.

    Attributes:
        index: Position, forget and holdout texts by turns.
        split: ``forget`` or ``holdout``.
        text: None where the log keeps no text.
        scores: Membership scores by metric key, as logged: possibly not finite.
    """

    index: int
    split: str
    text: str | None
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMetric:
    """What a log says about one metric of one model.

    Attributes:
        metric: One of ``metrics.table.PRIMARY``.
        file: The log, named from the model's folder.
        sha256: Digest of the log's file.
        stemmed: Whether its program computes ROUGE with a stemmer.
        answers: Responses; empty for PrivLeak.
        texts: Scored texts, for PrivLeak only.
        stated: The summary that the log's program wrote, in stored units
            (PrivLeak in percent); None where it wrote none.
        stated_auc: Its AUC in MUSE's orientation (memorized is 0).
    """

    metric: str
    file: str
    sha256: str
    stemmed: bool = False
    answers: tuple[LoggedAnswer, ...] = ()
    texts: tuple[LoggedText, ...] = ()
    stated: float | None = None
    stated_auc: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """One model's logs.

    Attributes:
        name: The model's folder.
        family: Which kind of program wrote them.
        metrics: In the order of ``metrics.table.PRIMARY``, as far as logged.
        not_recomputed: Sentences on summaries that have nothing behind them.
    """

    name: str
    family: Family
    metrics: tuple[LoggedMetric, ...]
    not_recomputed: tuple[str, ...] = ()


def by_turns(splits: Mapping[str, list[tuple[str | None, dict[str, float]]]]) -> Iterator[LoggedText]:
    """Yields forget and holdout texts by turns, numbered as a host-scored cell numbers them.

    Args:
        splits: Text (None where unknown) and scores of every entry, by split.
    """
    index = 0
    for pair in zip_longest(*(splits[split] for split in SPLITS)):
        for split, item in zip(SPLITS, pair, strict=True):
            if item is not None:
                yield LoggedText(index=index, split=split, text=item[0], scores=item[1])
                index += 1
