"""Writes a submission folder: weights and their manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError
from harness.records import Kind, Role, Submission
from harness.submit.checkpoint.prepare import weights_digest
from harness.unlearn.recipes import Recipe
from harness.unlearn.trainer import TrainingLog

MANIFEST = "submission.yaml"
WEIGHTS = "weights"


def write_submission(folder: Path, *, method: str, corpus: str, kind: Kind, role: Role = "entry",
                     title: str | None = None, target: str | None = None, retrain: str | None = None,
                     base_model: str | None = None, base_revision: str | None = None,
                     hyperparameters: Mapping[str, Any] | None = None, authors: Sequence[str] = (),
                     paper_url: str | None = None, license: str | None = None,
                     notes: str | None = None) -> Submission:  # fmt: skip
    """Writes ``submission.yaml`` for the weights that lie in ``folder/weights``.

    The folder's name becomes the submission's name. Fields that say nothing
    are left out. The arguments are ``records.Submission``'s.

    Returns:
        The submission, with absolute paths and the digest of its weights.

    Raises:
        InputError: There are no weights yet.
        UnsafeSubmissionError: The weights are not safetensors.
    """
    weights = folder.resolve() / WEIGHTS
    if not weights.is_dir():
        raise InputError(f"{folder} has no folder {WEIGHTS!r} to describe: write the weights there first.")
    bare = Submission(
        name=folder.resolve().name,
        title=title or folder.resolve().name,
        method=method,
        corpus=corpus,
        kind=kind,
        role=role,
        target=target,
        retrain=retrain,
        base_model=base_model,
        base_revision=base_revision,
        weights=str(weights),
        revision=None,
        weights_sha256=None,
        folder=str(folder.resolve()),
        hyperparameters=dict(hyperparameters or {}),
        authors=tuple(authors),
        paper_url=paper_url,
        license=license,
        notes=notes,
    )
    submission = dataclasses.replace(bare, weights_sha256=weights_digest(bare))
    _write_manifest(submission, folder / MANIFEST)
    return submission


def write_entry(folder: Path, *, recipe: Recipe, log: TrainingLog, target: str, base_model: str | None = None,
                hyperparameters: Mapping[str, Any] | None = None, **fields: Any) -> Submission:  # fmt: skip
    """Writes the manifest of what ``unlearn`` made of a recipe.

    Args:
        folder: The submission's folder, with the weights in ``weights``.
        recipe: How it was unlearned: gives method, kind and hyperparameters.
        log: What unlearning did: gives seed, steps and trained parameters.
        target: Name of the submission it was unlearned from.
        base_model: What an adapter sits on; the target unless told otherwise.
        hyperparameters: Further ones.
        **fields: The other arguments of ``write_submission``.
    """
    settings = {
        "recipe": recipe.name,
        **recipe.settings(),
        "optimizer": "AdamW, constant learning rate",
        "trainer": "transformers.Trainer",
        "seed": log.seed,
        "steps": len(log.steps),
        "trained_parameters": log.trained_parameters,
        **(hyperparameters or {}),
    }
    lora = bool(recipe.lora_rank)
    return write_submission(
        folder,
        method=recipe.method,
        kind="lora_adapter" if lora else "full_model",
        target=target,
        base_model=(base_model or target) if lora else None,
        hyperparameters=settings,
        **fields,
    )


def _write_manifest(submission: Submission, path: Path) -> None:
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(submission).items()
        if key != "folder" and value not in (None, (), {})
    }
    values["weights"] = WEIGHTS
    _dump(values, path)


def _dump(values: Mapping[str, Any], path: Path) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")


def add_hyperparameters(folder: Path, more: Mapping[str, Any]) -> None:
    """Adds hyperparameters to a manifest that ``write_submission`` wrote, and leaves its other fields as they are."""
    path = folder / MANIFEST
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["hyperparameters"] = {**values.get("hyperparameters", {}), **more}
    _dump(values, path)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the fields of a manifest as written, None where there is none that can be read."""
    try:
        values = yaml.safe_load((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return values if isinstance(values, dict) else None
