"""Finding the logs of past evaluations below the paths that a user gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.errors import InputError
from harness.rescore import muse_bench, open_unlearning
from harness.rescore.records import LoggedModel
from harness.score.metrics.formulas import PRIMARY

EVALUATION_FILE = "*_EVAL.json"
"""Evaluation files of OpenUnlearning."""


def find(paths: Iterable[Path]) -> tuple[LoggedModel, ...]:
    """Returns the models that files and folders hold, each once, read and checked.

    Args:
        paths: Each the folder of one model, a folder of many, or an evaluation
            file of OpenUnlearning.

    Raises:
        InputError: A path holds no log, or a log is malformed; the sentence
            names file and entry.
    """
    found: dict[Path, LoggedModel] = {}
    for path in paths:
        for place, model in _models(path):
            found.setdefault(place, model)
    return tuple(found.values())


def _models(path: Path) -> Iterator[tuple[Path, LoggedModel]]:
    if path.is_file():
        yield path.resolve(), open_unlearning.read(path)
        return
    if not path.is_dir():
        raise InputError(f"There is no file or folder {path}: name the logs of a past evaluation.")
    own = _logs_in(path)
    folders = [path] if own else [child for child in sorted(path.iterdir()) if child.is_dir() and _logs_in(child)]
    if not folders:
        raise InputError(
            f"{path} holds no log: give a folder with {{{','.join(PRIMARY)}}}/log.json as muse_bench writes it, a"
            f" folder of such folders, or an evaluation file of OpenUnlearning ({EVALUATION_FILE})."
        )
    tables = muse_bench.tables_in(path.resolve().parent if own else path)
    for folder in folders:
        if muse_bench.metrics_in(folder):
            yield folder.resolve(), muse_bench.read(folder, tables)
        for file in _evaluations(folder):
            yield file.resolve(), open_unlearning.read(file)


def _evaluations(folder: Path) -> list[Path]:
    """Returns the evaluation files of one model: MUSE's where there are several."""
    found = [*sorted(folder.glob(EVALUATION_FILE)), *sorted(folder.glob(f"evals/{EVALUATION_FILE}"))]
    return [file for file in found if file.name == "MUSE_EVAL.json"] or found


def _logs_in(folder: Path) -> bool:
    return bool(muse_bench.metrics_in(folder) or _evaluations(folder))
