"""Flags of an entry whose weights, manifest or answers contradict its claims. Pure; moves no score.

A flag is a word with its reason. Decisive ones leave an entry without a
rank; the others are for a reader to judge, because honest work can look the
same. Its constants are in ``thresholds``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from harness.publish.board import Flag
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.fingerprints import Traces
from harness.publish.ranking.judging import copy_of
from harness.publish.ranking.measurements import Measurements
from harness.publish.statistics import quantities
from harness.publish.thresholds import (
    DEGENERATE_GATE,
    FAR_UPDATE,
    FEW_DOCUMENTS,
    FORGET_METRICS,
    NO_UPDATE,
    ONE_ANSWER,
    REFUSALS,
    SAME_ANSWERS,
)
from harness.quantize.survival.measure import summarize
from harness.records import CellResult, Submission
from harness.score.metrics.formulas import METRICS, PRIMARY

QUESTIONS = "knowmem_f"
"""Metric whose answers are short and differ from question to question."""


def flags(found: Measurements, controls: Controls, entry: Submission, traces: Traces) -> tuple[Flag, ...]:
    """Returns what a reader must know of an entry, decisive flags first; empty for one known from logs alone.

    Args:
        found: The cells that count, with their documents.
        controls: The board's controls.
        entry: The submission.
        traces: What all submissions of the board left behind.
    """
    if found.from_logs(entry.name):
        return ()
    told = [
        *_control_again(found, controls, entry), *_same_weights(entry, traces), *_no_update(found, entry, traces),
    ]  # fmt: skip
    if not any(flag.decisive for flag in told):
        told += _near_duplicate(entry, traces)
    told += [*_other_base(found, entry), *_far_away(found, entry), *_mixed(found, entry), *_answers(found, entry)]
    return tuple(sorted(told, key=lambda flag: not flag.decisive))


def _control_again(found: Measurements, controls: Controls, entry: Submission) -> Iterator[Flag]:
    reason = copy_of(found, controls, entry)
    if reason is not None:
        yield Flag("answers of a control", reason, decisive=True)


def _same_weights(entry: Submission, traces: Traces) -> Iterator[Flag]:
    other = traces.same_weights(entry)
    if other is not None:
        reason = f"its weights have the same digest as those of {other}, which was there before: the same model again"
        yield Flag("same weights", reason, decisive=True)


def _no_update(found: Measurements, entry: Submission, traces: Traces) -> Iterator[Flag]:
    norm = _update_norm(found, entry)
    if norm is None or norm >= NO_UPDATE:
        return
    share = traces.shared_answers(entry.name).get(entry.target or "")
    said = f"the norm of its update is {norm:.1g} of its target's weights', which rounding to 16 bit can make"
    if share is None:
        yield Flag("no update", said)
    elif share < SAME_ANSWERS:
        yield Flag("no update", f"{said}, yet answers differ: that little does it, or other layers changed")
    else:
        reason = f"{said}, and it gives the target's answer to {share:.0%} of the documents: nothing was changed"
        yield Flag("no update", reason, decisive=True)


def _near_duplicate(entry: Submission, traces: Traces) -> Iterator[Flag]:
    shares, norms = traces.shared_answers(entry.name), traces.same_norms(entry.name)
    alike = [
        (other in norms, shares.get(other, 0.0), other)
        for other in traces.before(entry.name)
        if other in norms or shares.get(other, 0.0) >= SAME_ANSWERS
    ]
    if not alike:
        return
    same, share, other = max(alike, key=lambda one: one[:2])
    answers = f"gives the answers of {other}, which was there before, to {share:.0%} of the documents"
    if not same:
        yield Flag("near-duplicate", f"at 16 bit it {answers}")
    elif share < SAME_ANSWERS:
        yield Flag("near-duplicate", f"in every layer its update is as large, to three digits, as that of {other}")
    else:
        reason = f"in every layer its update is as large, to three digits, as that of {other}, and at 16 bit it"
        yield Flag("near-duplicate", f"{reason} {answers}", decisive=True)


def _other_base(found: Measurements, entry: Submission) -> Iterator[Flag]:
    base, target = entry.base_model, found.submissions.get(entry.target or "")
    if entry.kind != "lora_adapter" or base is None or base == entry.target:
        return
    known = found.submissions.get(base)
    if known is not None and known.role == "retrain":
        reason = f"its adapter sits on {base}, a model that never knew what is to be forgotten"
        yield Flag("other base", reason, decisive=True)
    elif not base.startswith("hf://"):
        yield Flag("other base", f"its adapter sits on {base}, and it is compared with {entry.target} as its target")
    elif target is not None and target.weights.startswith("hf://"):
        # A hub base can be held against a target on the hub alone: of a local one only a digest of files is known.
        own, others = f"{base} at {entry.base_revision}", f"{target.weights} at {target.revision}"
        if own != others:
            yield Flag("other base", f"its adapter sits on {own}, and its target {target.name} is {others}")


def _far_away(found: Measurements, entry: Submission) -> Iterator[Flag]:
    norm = _update_norm(found, entry)
    if norm is not None and norm > FAR_UPDATE:
        reason = f"the norm of its update is {norm:.2f} of its target's weights': it may not come from {entry.target}"
        yield Flag("far from its target", reason)


def _mixed(found: Measurements, entry: Submission) -> Iterator[Flag]:
    for name in dict.fromkeys((entry.name, entry.target, found.retrain_of(entry))):
        for what, values in _stated(found, name).items() if name is not None else ():
            if len(values) > 1:
                whose = "its" if name == entry.name else f"its control {name}'s"
                said = " and ".join(value[:12] for value in sorted(values))
                reason = f"{whose} cells were made from weights with different {what} ({said}): run all of them again"
                yield Flag("mixed weights", reason, decisive=name == entry.name)


def _stated(found: Measurements, name: str) -> Mapping[str, set[str]]:
    """Returns what the manifests behind a submission's counting cells state of its weights, where they do."""
    cells = [found.cell(name, spec.name, metric) for spec in found.quantizers for metric in PRIMARY]
    manifests = [cell.submission for cell in cells if cell is not None]
    fields = {
        "digests": "weights_sha256",
        "commits": "revision",
        "bases": "base_model",
        "base commits": "base_revision",
    }
    return {
        what: {value for manifest in manifests if (value := getattr(manifest, field)) is not None}
        for what, field in fields.items()
    }


def _answers(found: Measurements, entry: Submission) -> Iterator[Flag]:
    cell = _widest(found, entry, QUESTIONS)
    answers = [] if cell is None else [_plain(document.response) for document in cell.documents]
    if len(answers) >= FEW_DOCUMENTS:
        most, number = Counter(answers).most_common(1)[0]
        if number >= ONE_ANSWER * len(answers):
            said = "with one same answer" if most else "with nothing"
            yield Flag("one answer", f"it answers {number} of {len(answers)} KnowMem questions {said}")
        refused = sum(answer.startswith(REFUSALS) for answer in answers)
        if refused >= ONE_ANSWER * len(answers):
            yield Flag("refusals", f"it refuses {refused} of {len(answers)} KnowMem questions or says it does not know")
    for metric in FORGET_METRICS:
        cell = _widest(found, entry, metric)
        share = None if cell is None else quantities.stored_value(cell, "degenerate")
        if share is not None and share > DEGENERATE_GATE:
            label = METRICS[metric].label
            yield Flag("degenerate", f"{share:.0%} of its {label} answers are empty or repeat themselves")


def _plain(answer: str) -> str:
    return " ".join(answer.replace("\u2019", "'").lower().split())


def _widest(found: Measurements, entry: Submission, metric: str) -> CellResult | None:
    cells = (found.cell(entry.name, spec.name, metric) for spec in found.quantizers)
    return next((cell for cell in cells if cell is not None), None)


def _update_norm(found: Measurements, entry: Submission) -> float | None:
    """Returns the norm of an entry's update over that of its target's weights, in all linear layers of the blocks."""
    cells = (found.cell(entry.name, spec.name, metric) for spec in found.quantizers for metric in PRIMARY)
    pooled = (summarize(cell.survival) for cell in cells if cell is not None)
    return next((layer.relative_update for layer in pooled if layer is not None), None)
