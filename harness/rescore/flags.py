"""Flags of a past evaluation, as far as its logs show faults: numbers in, flags with reasons out.

A log has no target beside it, so nothing here is a verdict on forgetting. The
flags say which numbers mean nothing: those of a destroyed model, a PrivLeak
that no healthy model has, scores that their own texts contradict, documents
that are not the corpus's. Its constants are in ``thresholds``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.publish.thresholds import (
    CORPUS_SHARE,
    DEGENERATE_GATE,
    ENTRY_TOLERANCE,
    LEAST_SCORE,
    PRIVACY,
    PRIVLEAK_TOLERANCE,
    SUMMARY_TOLERANCE,
    UNIFORM_LOSS,
    UTILITY,
)
from harness.records import Evaluation
from harness.rescore import recompute
from harness.rescore.corpus_match import CorpusMatch
from harness.rescore.records import LoggedMetric

Word = Literal[
    "collapsed", "absurd PrivLeak", "disagrees with its log", "corpus looks wrong", "other prompts",
    "other references", "few documents",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that a reader of a number must know, with its reason: a sentence without a full stop."""

    word: Word
    reason: str


def value(evaluation: Evaluation | None, metric: str) -> float | None:
    """Returns a recomputed score, None where there is none."""
    scores = () if evaluation is None else evaluation.scores
    return next((score.value for score in scores if score.metric == metric), None)


def collapse(evaluations: Mapping[str, Evaluation]) -> Flag | None:
    """Returns why a model counts as destroyed; None where its logs don't show it.

    It is, where most utility answers are empty or repeat themselves, or where
    utility and KnowMem are both next to nothing: whoever answers no question
    at all has forgotten nothing in particular.

    Args:
        evaluations: The model's rescored metrics by key; without a log of
            utility nothing can be said.
    """
    utility, forget = evaluations.get(UTILITY), evaluations.get("knowmem_f")
    kept, known = value(utility, UTILITY), value(forget, "knowmem_f")
    degenerate = value(utility, "degenerate")
    if degenerate is not None and degenerate > DEGENERATE_GATE:
        return Flag("collapsed", f"{degenerate:.0%} of the utility answers are empty or repeat themselves")
    if kept is not None and kept < LEAST_SCORE and (known is None or known < LEAST_SCORE):
        both = "" if known is None else f" and KnowMem {100 * known:.1f}"
        return Flag("collapsed", f"utility is {100 * kept:.1f} of 100{both}: a destroyed model forgets everything")
    return None


def privacy(log: LoggedMetric, evaluation: Evaluation, reference: float, *, collapsed: bool) -> Iterator[Flag]:
    """Yields why a PrivLeak can't be what it looks like.

    Args:
        log: The log of PrivLeak.
        evaluation: The same rescored.
        reference: AUC of the retrained model.
        collapsed: Whether the model counts as destroyed.
    """
    most = 100 * (1 - reference) / reference
    if log.stated is not None and not -100 - PRIVLEAK_TOLERANCE <= log.stated <= most + PRIVLEAK_TOLERANCE:
        yield Flag(
            "absurd PrivLeak",
            f"the log states {log.stated:.6g}%, and with the reference AUC {reference:.4f} no model has less than"
            f" -100% or more than {most:.1f}%",
        )
    auc = value(evaluation, "auc")
    if auc == 1 or (auc == 0 and collapsed):
        yield Flag("absurd PrivLeak", f"the AUC is exactly {auc:.0f}: the splits are told apart without one exception")
    scores = {document.scores["min_k_40"] for document in evaluation.documents if "min_k_40" in document.scores}
    if len(scores) == 1 and len(evaluation.documents) > 1:
        yield Flag("absurd PrivLeak", "every text has the same score, so its AUC of 0.5 is no sign of forgetting")
    loss = value(evaluation, "loss_holdout")
    if loss is not None and loss > UNIFORM_LOSS:
        yield Flag(
            "absurd PrivLeak",
            f"the mean loss on unseen texts is {loss:.1f} nats per token, more than a uniform guess has"
            f" ({UNIFORM_LOSS})",
        )
    invalid = [document for document in evaluation.documents if document.invalid_reason is not None]
    if invalid:
        yield Flag(
            "absurd PrivLeak",
            f"{len(invalid)} of {len(evaluation.documents)} texts have no finite score and are left out",
        )


def disagreements(log: LoggedMetric, evaluation: Evaluation, reference: float | None) -> Iterator[Flag]:
    """Yields where a log states other scores than its own responses and log-probabilities give.

    ROUGE is compared by the log's own rule, so that a stemmer is no
    disagreement.

    Args:
        log: The log.
        evaluation: The same rescored.
        reference: AUC of the retrained model, for PrivLeak.
    """
    found = _membership(log, evaluation, reference) if log.metric == PRIVACY else _responses(log, evaluation)
    return (Flag("disagrees with its log", reason) for reason in found)


def _responses(log: LoggedMetric, evaluation: Evaluation) -> Iterator[str]:
    own = recompute.by_its_own_rule(log, evaluation)
    wrong = [
        (answer, mine) for answer, mine in zip(log.answers, own, strict=True)
        if answer.rouge_l is not None and not abs(answer.rouge_l - mine) <= ENTRY_TOLERANCE
    ]  # fmt: skip
    if wrong:
        answer, mine = wrong[0]
        yield (
            f"{len(wrong)} of {len(own)} entries state another ROUGE-L than their texts give (entry {answer.index}:"
            f" {answer.rouge_l:.4g} stated, {mine:.4g} recomputed)"
        )
    mean = math.fsum(own) / len(own)
    if log.stated is not None and not abs(log.stated - mean) <= SUMMARY_TOLERANCE:
        yield f"the log states {100 * log.stated:.4g} as the mean, and its responses give {100 * mean:.4g}"


def _membership(log: LoggedMetric, evaluation: Evaluation, reference: float | None) -> Iterator[str]:
    auc, share = value(evaluation, "auc"), value(evaluation, PRIVACY)
    if auc is None or share is None or reference is None:
        return
    if log.stated_auc is not None and not abs(log.stated_auc - auc) <= SUMMARY_TOLERANCE:
        yield f"the log states the AUC {log.stated_auc:.4g}, and its scores give {auc:.4g}"
    if log.stated is not None and not abs(log.stated - share) <= PRIVLEAK_TOLERANCE:
        yield f"the log states PrivLeak {log.stated:.6g}%, and its scores give {share:.4g}%{_implied(log, auc)}"


def _implied(log: LoggedMetric, auc: float) -> str:
    """Returns which reference AUC the stated value would follow from."""
    if log.stated is None or not math.isfinite(log.stated) or log.stated <= -100:
        return ""
    implied = auc / (1 + log.stated / 100)
    return f" (a reference AUC of {implied:.4f} would give it)" if 0 < implied <= 1 else ""


def documents(log: LoggedMetric, found: CorpusMatch | None, lacking: str | None) -> Iterator[Flag]:
    """Yields how a log's documents differ from the corpus's.

    Args:
        log: The log.
        found: The comparison; None where it could not be made.
        lacking: What ``corpus_match.lacking`` gave.
    """
    if found is None:
        if lacking is not None:
            yield Flag("few documents", lacking)
        return
    what = "texts" if log.metric == PRIVACY else "questions" if log.metric != "verbmem_f" else "prompts"
    if found.known < CORPUS_SHARE * found.documents:
        yield Flag("corpus looks wrong", f"{found.known} of {found.documents} {what} are the corpus's")
        return
    if found.same_prompt < CORPUS_SHARE * found.documents:
        yield Flag(
            "other prompts",
            f"{found.same_prompt} of {found.documents} whole prompts are MUSE's; in the others in-context pairs or"
            " spaces differ",
        )
    if found.same_reference is not None and found.same_reference < CORPUS_SHARE * found.known:
        yield Flag("other references", f"{found.same_reference} of {found.known} references are the corpus's")
    if found.documents < found.of_corpus:
        yield Flag("few documents", f"{found.documents} distinct documents, and the corpus has {found.of_corpus}")


def sentences(flags: Sequence[Flag]) -> tuple[str, ...]:
    """Returns flags as remarks of a stored row."""
    return tuple(f"{flag.word[0].upper()}{flag.word[1:]}: {flag.reason}." for flag in flags)
