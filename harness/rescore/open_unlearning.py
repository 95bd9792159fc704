"""Evaluation files of OpenUnlearning: one JSON per model, every metric with its values by document.

Differs from muse_bench, and so from what is scored here: ROUGE with a stemmer,
VerbMem references that are not cut to 128 tokens, the AUC the other way round
(memorized is 1), no text kept beside a membership score, and a reference AUC
of 0.5 where none was given. The first changes nothing here, because ROUGE is
computed again; the rest is said in remarks.

Source: open-unlearning at commit d3d7cf9, src/evals/metrics (memorization.py,
utils.py, privacy.py, mia/) and configs/eval/muse_metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.rescore import files as log_files
from harness.rescore.files import MAX_ANSWER, MAX_ENTRIES, MAX_PROMPT, Place
from harness.rescore.records import SPLITS, LoggedAnswer, LoggedMetric, LoggedModel, LoggedText, by_turns
from harness.score.metrics.formulas import PRIMARY

ROUGE_KEYS: Mapping[str, str] = {
    "verbmem_f": "forget_verbmem_ROUGE", "knowmem_f": "forget_knowmem_ROUGE", "knowmem_r": "retain_knowmem_ROUGE",
}  # fmt: skip
"""What the file calls the metrics that rest on responses."""

MEMBERSHIP = "mia_min_k"
PRIVLEAK = "privleak"
VALUES = "value_by_index"
# What it calls metrics of other benchmarks, whose membership scores go by the same names as MUSE's.
_OF_OTHERS = re.compile(r"\w*_Q_A_\w*|\w+_Truth_Ratio|forget_truth_ratio|forget_quality|model_utility|(?:wmdp|mmlu).*")
_FILES_OF_OTHERS = re.compile(r"(TOFU|WMDP|LMEval)_EVAL\.json", re.IGNORECASE)
SUMMARY = "agg_value"


def read(path: Path) -> LoggedModel:
    """Returns the logs in one evaluation file.

    Args:
        path: The file; its folder names the model, or the folder above where
            that is called ``evals``.

    Raises:
        InputError: The file is malformed, of another benchmark, or holds no metric of MUSE.
    """
    folder = path.resolve().parent
    name = folder.parent.name if folder.name == "evals" else folder.name
    place = Place(f"{name}/{path.name}")
    value, sha256 = log_files.read(path, path.parent, place.file)
    found = log_files.as_object(value, place, "the metrics of an evaluation")
    others = [key[:40] for key in found if _OF_OTHERS.fullmatch(key)]
    if others or _FILES_OF_OTHERS.fullmatch(path.name):
        why = f"it holds {', '.join(map(repr, others[:3]))}" if others else "its name says so"
        raise place.fault(
            f"it is the log of another benchmark, such as TOFU ({why}), and its membership scores are not MUSE's:"
            " give MUSE_EVAL.json"
        )
    metrics, lacking = [], []
    for metric in PRIMARY:
        key = ROUGE_KEYS.get(metric, MEMBERSHIP)
        summary = found.get(PRIVLEAK) if metric == PRIVLEAK else found.get(key)
        if isinstance(found.get(key), dict) and _has_values(found[key], metric):
            metrics.append(_metric(metric, found, sha256, place))
        elif summary is not None or key in found:
            lacking.append(
                f"{metric}: {place.file} has no values by document under {key!r}, so nothing can be recomputed."
            )
    if not metrics:
        known = ", ".join((*ROUGE_KEYS.values(), MEMBERSHIP))
        raise place.fault(
            f"none of MUSE's metrics can be recomputed from it; {known} with {VALUES!r} are read, as OpenUnlearning's"
            f" MUSE evaluation writes them" + (f" ({'; '.join(lacking)})" if lacking else "")
        )
    return LoggedModel(name=name, family="OpenUnlearning", metrics=tuple(metrics), not_recomputed=tuple(lacking))


def _has_values(part: Mapping[str, Any], metric: str) -> bool:
    return all(split in part for split in SPLITS) if metric == PRIVLEAK else VALUES in part


def _metric(metric: str, found: Mapping[str, Any], sha256: str, place: Place) -> LoggedMetric:
    if metric == PRIVLEAK:
        part = found[MEMBERSHIP]
        auc = log_files.number(part, SUMMARY, Place(place.file, MEMBERSHIP))
        return LoggedMetric(
            metric=metric, file=place.file.rpartition("/")[2], sha256=sha256, texts=tuple(_texts(part, place)),
            stated=_privleak(found, place), stated_auc=None if auc is None else 1 - auc,
        )  # fmt: skip
    part = found[ROUGE_KEYS[metric]]
    return LoggedMetric(
        metric=metric, file=place.file.rpartition("/")[2], sha256=sha256, stemmed=True,
        answers=tuple(_answers(part, ROUGE_KEYS[metric], place)),
        stated=log_files.number(part, SUMMARY, Place(place.file, ROUGE_KEYS[metric])),
    )  # fmt: skip


def _privleak(found: Mapping[str, Any], place: Place) -> float | None:
    if found.get(PRIVLEAK) is None:
        return None
    here = Place(place.file, PRIVLEAK)
    return log_files.number(log_files.as_object(found[PRIVLEAK], here, f"'{SUMMARY}'"), SUMMARY, here)


def _by_index(part: Mapping[str, Any], name: str, place: Place) -> Iterator[tuple[int, Mapping[str, Any], Place]]:
    """Yields position, entry and place, by position."""
    here = Place(place.file, name)
    values = log_files.as_object(part.get(VALUES), here, "one entry per document")
    if not values or len(values) > MAX_ENTRIES:
        raise here.fault(f"{VALUES!r} has {len(values)} entries, and 1 to {MAX_ENTRIES} are read")
    for index in values:
        # int() takes other scripts' digits, signs and underscores, under which one document could stand twice.
        if not (index.isascii() and index.isdigit() and len(index) <= 9 and str(int(index)) == index):
            raise here.fault(f"{index[:40]!r} is no position of a document; whole numbers such as '0' are expected")
    for index in sorted(values, key=int):
        entry = place.at(f"'{index}'", name)
        yield int(index), log_files.as_object(values[index], entry, "the scores of one document"), entry


def _answers(part: Mapping[str, Any], name: str, place: Place) -> Iterator[LoggedAnswer]:
    for index, entry, here in _by_index(part, name, place):
        yield LoggedAnswer(
            index=index,
            prompt=log_files.text(entry, "input", here, MAX_PROMPT),
            reference=log_files.text(entry, "ground_truth", here, MAX_ANSWER),
            response=log_files.text(entry, "generation", here, MAX_ANSWER),
            rouge_l=log_files.number(entry, "rougeL_f1", here),
        )


def _texts(part: Mapping[str, Any], place: Place) -> Iterator[LoggedText]:
    splits: dict[str, list[tuple[str | None, dict[str, float]]]] = {}
    for split in SPLITS:
        name = f"{MEMBERSHIP} {split}"
        inner = log_files.as_object(part[split], Place(place.file, name), f"'{VALUES}'")
        splits[split] = []
        for _, entry, here in _by_index(inner, name, place):
            score = log_files.number(entry, "score", here)
            if score is None:
                raise here.fault("'score' is missing, and PrivLeak rests on it")
            splits[split].append((None, {"min_k_40": score}))
    yield from by_turns(splits)
