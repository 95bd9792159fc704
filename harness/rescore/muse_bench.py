"""Logs of ``muse_bench`` and its forks: a folder per model, a JSON list per metric.

``NAME/{verbmem_f,knowmem_f,knowmem_r}/log.json`` hold the responses and
``NAME/privleak/log.json`` the scored texts; the summaries ``agg.json`` and
``auc.json`` stand beside them, and a CSV table of all models may stand beside
the folders.

Source: ``muse_bench`` at commit fcd6651 (eval.py, metrics/) and its fork
FailureLLMUnlearning at 10131ae.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.rescore import files as log_files
from harness.rescore.files import MAX_ANSWER, MAX_PROMPT, Place
from harness.rescore.records import SPLITS, LoggedAnswer, LoggedMetric, LoggedModel, LoggedText, by_turns
from harness.score.metrics.formulas import MIN_K_PERCENTS, PRIMARY

SCORES: Mapping[str, str] = {
    **{f"Min-{percent}%": f"min_k_{percent}" for percent in MIN_K_PERCENTS}, "PPL": "loss",
}  # fmt: skip
"""Keys of a text in ``privleak/log.json`` and what they are called here; ``PPL`` is a mean loss, not a perplexity."""

Tables = Mapping[str, Mapping[str, float]]
"""What CSV tables state: by model and metric, as displayed (times 100)."""

_MEMBERSHIP = "Min-40%"
_LARGEST_TABLE = 2**20


def metrics_in(folder: Path) -> list[str]:
    """Returns the metrics that a folder has logs of; none where it is no model's folder."""
    return [metric for metric in PRIMARY if (folder / metric / "log.json").is_file()]


def read(folder: Path, tables: Tables) -> LoggedModel:
    """Returns the logs of one model's folder.

    Args:
        folder: Folder with ``METRIC/log.json`` for at least one metric.
        tables: What tables beside the folders state.

    Raises:
        InputError: A log is malformed.
    """
    name = folder.resolve().name
    stated = tables.get(name, {})
    metrics = [_with_stated(_metric(folder, name, metric), stated.get(metric)) for metric in metrics_in(folder)]
    return LoggedModel(name=name, family="muse_bench", metrics=tuple(metrics))


def _metric(folder: Path, name: str, metric: str) -> LoggedMetric:
    file = f"{metric}/log.json"
    place = Place(f"{name}/{file}")
    value, sha256 = log_files.read(folder / file, folder, place.file)
    if metric == "privleak":
        auc = _summary(folder, name, "privleak/auc.json", f"forget_holdout_{_MEMBERSHIP}")
        return LoggedMetric(metric=metric, file=file, sha256=sha256, texts=tuple(_texts(value, place)), stated_auc=auc)
    stated = _summary(folder, name, f"{metric}/agg.json", "mean_rougeL")
    return LoggedMetric(metric=metric, file=file, sha256=sha256, answers=tuple(_answers(value, place)), stated=stated)


def _answers(value: Any, place: Place) -> Iterator[LoggedAnswer]:
    for index, item in enumerate(log_files.as_list(value, place, "responses")):
        here = place.at(index)
        entry = log_files.as_object(item, here, "'prompt', 'gt' and 'response'")
        yield LoggedAnswer(
            index=index,
            prompt=log_files.text(entry, "prompt", here, MAX_PROMPT),
            reference=log_files.text(entry, "gt", here, MAX_ANSWER),
            response=log_files.text(entry, "response", here, MAX_ANSWER),
            rouge_l=log_files.number(entry, "rougeL", here),
        )


def _texts(value: Any, place: Place) -> Iterator[LoggedText]:
    splits = log_files.as_object(value, place, "'forget' and 'holdout'")
    read = {
        split: [
            _text(item, place.at(position, split))
            for position, item in enumerate(log_files.as_list(splits.get(split), Place(place.file, split), "texts"))
        ]
        for split in SPLITS
    }
    yield from by_turns(read)


def _text(item: Any, here: Place) -> tuple[str | None, dict[str, float]]:
    entry = log_files.as_object(item, here, f"'text' and '{_MEMBERSHIP}'")
    found = {name: log_files.number(entry, key, here) for key, name in SCORES.items()}
    if entry.get(_MEMBERSHIP) is None:
        raise here.fault(f"'{_MEMBERSHIP}' is missing, and PrivLeak rests on it")
    scores = {name: value for name, value in found.items() if value is not None}
    return log_files.text(entry, "text", here, MAX_PROMPT), scores


def _summary(folder: Path, name: str, file: str, key: str) -> float | None:
    if not (folder / file).is_file():
        return None
    place = Place(f"{name}/{file}")
    value, _ = log_files.read(folder / file, folder, place.file)
    return log_files.number(log_files.as_object(value, place, f"'{key}'"), key, place)


def tables_in(folder: Path) -> Tables:
    """Returns what the CSV tables in a folder state of models; those that are no such tables state nothing."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*.csv")):
        try:
            if path.stat().st_size > _LARGEST_TABLE:
                continue
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error):
            # Any table may lie beside logs; one that can't be read is none of muse_bench's.
            continue
        for row in rows:
            if row.get("name"):
                found.setdefault(str(row["name"]), {}).update(_stated(row))
    return found


def _stated(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric in PRIMARY:
        try:
            yield metric, float(row.get(metric) or "")
        except (TypeError, ValueError):
            continue


def _with_stated(log: LoggedMetric, displayed: float | None) -> LoggedMetric:
    """Returns a log with the table's value where the log has no summary of its own."""
    if displayed is None or log.stated is not None:
        return log
    return replace(log, stated=displayed if log.metric == "privleak" else displayed / 100)
