"""The reference AUC of a corpus that states none: its retrain control's, measured at 16 bit.

The control's unlimited 16-bit PrivLeak cell is the *reference cell*. Its key
stands in the keys of all cells that are relative to it, so that a plan knows
every key before anything is measured; its value is read from the store when
they are scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.errors import CorpusError
from harness.quantize import resolve
from harness.records import Cell, CellResult, Submission
from harness.score.corpora import catalogue

REFERENCE = resolve("reference")
"""The quantizer of reference cells: 16 bit, as stored."""


def privleak_task(corpus: catalogue.Corpus) -> str | None:
    """Returns the corpus's PrivLeak task; None where it has none or states its reference AUC."""
    if corpus.reference_auc is not None:
        return None
    return next((task for task in corpus.tasks if catalogue.metric_of(task) == "privleak"), None)


def control_of(submission: Submission, submissions: Mapping[str, Submission], corpus: catalogue.Corpus) -> Submission:
    """Returns the retrain control whose AUC a submission's PrivLeak is relative to: a control's is its own.

    Raises:
        CorpusError: There is none, or several and the submission names none of them.
    """
    if submission.role == "retrain":
        return submission
    named = submissions.get(submission.retrain or "")
    controls = [named] if named else [each for each in submissions.values()
                                      if each.role == "retrain" and each.corpus == submission.corpus]  # fmt: skip
    if len(controls) == 1:
        return controls[0]
    found = f"has {len(controls)} ({', '.join(sorted(each.name for each in controls))})" if controls else "has none"
    raise CorpusError(
        f"Corpus {corpus.name!r} states no reference AUC, so PrivLeak of {submission.name} needs one retrain control"
        f" of that corpus, which {found}: add a submission with `role: retrain`, or state 'reference_auc' in"
        f" {corpus.folder / 'corpus.json'}."
    )


def missing(control: str, corpus: catalogue.Corpus, task: str) -> CorpusError:
    """Returns the refusal of PrivLeak cells whose reference cell is neither stored nor about to be scored."""
    return CorpusError(
        f"Corpus {corpus.name!r} states no reference AUC in {corpus.folder / 'corpus.json'}, and the store has no"
        f" finished 16-bit PrivLeak of its retrain control {control}, without --limit, to take it from: run"
        f" `quench run {control} --quantizers {REFERENCE.name} --tasks {task}` with the same data and store first."
    )


def measured(results: Iterable[CellResult], cells: Iterable[Cell]) -> dict[str, float]:
    """Returns the AUC of each reference cell that has finished with one, by its key."""
    keys = {cell.key for cell in cells}
    return {
        result.cell.key: score.value
        for result in results
        if result.cell.key in keys and result.status == "finished"
        for score in result.scores
        if score.metric == "auc" and score.value is not None
    }
