"""What `quench run` would load, tried without weights: each model's tensors by name and shape, and the tokenizer."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness import model_files, tokenizer
from harness.errors import Fault, QuenchError, first_line
from harness.records import Submission
from harness.submit.checkpoint import hub
from harness.submit.scan.model_config import read_config
from harness.submit.weight_files import HUB

_UNTRIED = "the tensors' names and the tokenizer are unchecked: that needs `pip install 'quench[score]'`."


def rehearse(
    submission: Submission, submissions: Mapping[str, Submission], *, cache: Path
) -> tuple[list[Fault], list[str]]:
    """Tries what scoring a submission would load: its own model, its base, its target and the tokenizer.

    Args:
        submission: The one to be scored, scanned without faults.
        submissions: All, to find base and target in.
        cache: Quench's cache; of repositories on a hub their previews are used.

    Returns:
        Faults, and notes: what could not be tried and why.
    """
    if any(importlib.util.find_spec(library) is None for library in ("torch", "transformers")):
        return [], [f"{submission.name}: {_UNTRIED}"]
    faults: list[Fault] = []
    target = submissions.get(submission.target or "")
    parts = [submission] if target is None else [submission, target]
    for folder in dict.fromkeys(place for part in parts for place in _dense_models(part, submissions, cache)):
        faults += _model_faults(folder, _state(folder))
    owned = _tokenizer_folder(target or submission, submissions, cache)
    if owned is not None:
        faults += _tokenizer_faults(owned, _state(owned))
    return faults, []


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Returns what changes when a file of a folder does: controls are tried once for all that need them."""
    return tuple(sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in folder.iterdir()))


@functools.lru_cache(maxsize=64)
def _model_faults(folder: Path, state: object) -> list[Fault]:
    faults: list[Fault] = []
    with _noting(faults, folder):
        model_files.check(model_files.skeleton(folder), folder)
    return faults


@functools.lru_cache(maxsize=64)
def _tokenizer_faults(folder: Path, state: object) -> list[Fault]:
    faults: list[Fault] = []
    with _noting(faults, folder):
        rows = read_config(folder / "config.json").get("vocab_size")
        tokenizer.load_tokenizer(folder, vocabulary=rows if isinstance(rows, int) else None)
    return faults


@contextmanager
def _noting(faults: list[Fault], folder: Path) -> Iterator[None]:
    try:
        yield
    except QuenchError as refused:
        faults.append(Fault(str(refused), file=str(folder)))
    # Whatever transformers finds wrong here ends a run too.
    except Exception as error:
        why = f"{folder}: transformers can't make a model of config.json: {first_line(error)[:200]}"
        faults.append(Fault(why, file=str(folder)))


def _here(reference: str, revision: str | None, cache: Path) -> Path | None:
    """Returns the folder of a local reference, or of a repository's download or preview."""
    if reference.startswith(HUB):
        return hub.local_folder(reference, revision or "", cache)
    return Path(reference)


def _base(part: Submission, submissions: Mapping[str, Submission], cache: Path) -> Path | None:
    base = submissions.get(part.base_model or "")
    if base is not None:
        return _here(base.weights, base.revision, cache)
    named = part.base_model or ""
    return _here(named, part.base_revision, cache) if named.startswith(HUB) else None


def _dense_models(part: Submission, submissions: Mapping[str, Submission], cache: Path) -> Iterator[Path]:
    """Yields the folders of the 16-bit models that a submission is, or is made from."""
    own = _here(part.weights, part.revision, cache) if part.kind == "full_model" else None
    yield from (folder for folder in (own, _base(part, submissions, cache)) if folder is not None)


def _tokenizer_folder(owner: Submission, submissions: Mapping[str, Submission], cache: Path) -> Path | None:
    if owner.kind == "lora_adapter":
        return _base(owner, submissions, cache)
    return _here(owner.weights, owner.revision, cache)
