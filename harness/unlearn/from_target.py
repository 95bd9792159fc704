"""From a target control to a submission folder, as `quench unlearn` does it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import InputError, UnknownNameError
from harness.provenance import sha256_json
from harness.records import Submission
from harness.score.corpora import catalogue
from harness.submit.checkpoint import prepare
from harness.submit.manifest.load import NAME
from harness.unlearn.execution import FIELDS, Execution, execution_from
from harness.unlearn.loss_curve import write_curve
from harness.unlearn.planned_training import Progress
from harness.unlearn.recipes import Recipe, load_recipe
from harness.unlearn.submission_folder import WEIGHTS, write_entry
from harness.unlearn.trainer import unlearn

CHECKPOINTS = ".checkpoints-"
"""What the name of the folder begins with in which an unfinished entry keeps its checkpoints."""

AUTO = "auto"
"""The rank that leaves the choice to a search."""

ALPHA_PER_RANK = 2.0
"""alpha / rank in a search from a recipe without adapters: what the recipes that have them use."""

_LORA = {"r": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout"}


def recipe_from_options(
    name: str, *, lora: str | None, full: bool, settings: Sequence[str], rank: str | None = None
) -> tuple[Recipe, Execution]:
    """Returns the recipe that the command line's options describe, and how the machine is to go about it.

    Args:
        name: Name of a recipe.
        lora: ``r=8,alpha=16[,dropout=0.05]``; None leaves the recipe's own choice.
        full: Whether to train all parameters, whatever the recipe says.
        settings: ``key=value`` for any other setting, of ``Recipe`` or ``Execution``.
        rank: Rank of the adapters, as ``r`` of ``lora``.

    Raises:
        InputError: An option is malformed, contradicts another, or names no setting.
    """
    values = _given(lora, full, settings, rank)
    how = execution_from({key: values.pop(key) for key in FIELDS if key in values})
    recipe = load_recipe(name, **values)
    if lora is not None and "lora_rank" not in values and not recipe.lora_rank:
        raise InputError("--lora names no rank, and the recipe trains all parameters: add r=8, for example.")
    return recipe, how


def asks_for_search(*, lora: str | None, full: bool, settings: Sequence[str], rank: str | None) -> bool:
    """Returns whether the options leave the rank to a search.

    Raises:
        InputError: An option is malformed or contradicts another.
    """
    return _given(lora, full, settings, rank).get("lora_rank") == AUTO


def recipes_by_rank(
    name: str, ranks: Sequence[int], *, lora: str | None, full: bool, settings: Sequence[str], rank: str | None
) -> tuple[dict[int, Recipe], Execution]:
    """Returns what ``recipe_from_options`` does, with one recipe for each rank that a search may try.

    They differ in nothing but the rank and, unless alpha is given, in an alpha
    that keeps the adapters' scale alpha / rank: the recipe's own, or
    ``ALPHA_PER_RANK`` where the recipe has no adapters.

    Raises:
        InputError: As ``recipe_from_options``.
    """
    values = _given(lora, full, settings, rank)
    del values["lora_rank"]
    how = execution_from({key: values.pop(key) for key in FIELDS if key in values})
    own = load_recipe(name, **values)
    scale = own.lora_alpha / own.lora_rank if own.lora_rank else ALPHA_PER_RANK
    return {each: load_recipe(name, **{"lora_alpha": scale * each, **values, "lora_rank": each}) for each in ranks}, how


def _given(lora: str | None, full: bool, settings: Sequence[str], rank: str | None) -> dict[str, Any]:
    """Returns the text of every setting that the options give, by its name."""
    for option, used in (("--lora", lora is not None), ("--rank", rank is not None)):
        if used and full:
            raise InputError(f"{option} and --full exclude each other: give one of them.")
    given = [_pair(setting, "--set") for setting in settings]
    for part in (lora or "").split(",") if lora is not None else ():
        key, value = _pair(part, "--lora")
        if key not in _LORA:
            raise InputError(f"--lora: there is no {key!r}; accepted are {', '.join(_LORA)}, e.g. r=8,alpha=16.")
        given.append((_LORA[key], value))
    if rank is not None:
        given.append(("lora_rank", _pair(f"rank={rank}", "--rank")[1]))
    if full:
        given.append(("lora_rank", "0"))
    values: dict[str, Any] = {}
    for key, value in given:
        if values.setdefault(key, value) != value:
            raise InputError(f"{key} is given as {values[key]} and as {value}: give it once.")
    return values


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise InputError(f"{option}: {text!r} is not of the form key=value.")
    return key.strip(), value.strip()


def make_entry(
    recipe: Recipe, *, target: str, submissions: Mapping[str, Submission], out: Path, cache: Path,
    data_dir: Path | None = None, seed: int = 0, device: str = "cpu", execution: Execution | None = None,
    retrain: str | None = None, on_progress: Progress | None = None,
) -> Submission:  # fmt: skip
    """Unlearns a target by a recipe and writes the submission folder ``out``.

    Forget texts are the corpus's ``raw/forget``, retain texts its ``raw/retain1``.
    With ``execution.checkpoint_every`` a run that was cut off goes on where its
    last checkpoint lies, and ends with the weights of an unbroken one.

    Args:
        recipe: How.
        target: Name of a control of role ``target``.
        submissions: All submissions by name.
        out: New folder; its name becomes the submission's.
        cache: Folder for merged checkpoints.
        data_dir: Folder of the corpus in MUSE's local form.
        seed: Seed of everything random.
        device: ``cpu`` or ``cuda``.
        execution: How the machine goes about it.
        retrain: Name of the retrain control that the manifest names.
        on_progress: Called after each step with (done, all).

    Returns:
        The new submission.

    Raises:
        InputError: ``target`` is no target control, ``out`` is not empty or
            has a name that no submission can have, or data are missing.
    """
    if target not in submissions:
        raise UnknownNameError("submission", target, submissions)
    control = submissions[target]
    if control.role != "target":
        raise InputError(f"--target: {target} has the role {control.role!r}: name a control whose role is target.")
    if control.kind == "quantized_checkpoint":
        raise InputError(f"--target: {target} is quantized, and its weights can't be trained: name a 16-bit target.")
    if not re.fullmatch(NAME, out.resolve().name):
        raise InputError(f"--out: {out.name!r} can't name a submission: use a-z, 0-9 and '-' only, at most 64 of them.")
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(CHECKPOINTS) for path in out.iterdir())):
        raise InputError(f"--out: {out} is not empty: give a new folder.")
    how = execution or Execution()
    corpus = catalogue.load_corpus(control.corpus, data_dir=data_dir)
    forget = [document["text"] for document in catalogue.load_split(corpus, "raw", "forget")]
    keeps = recipe.retain_loss != "none"
    retain = [document["text"] for document in catalogue.load_split(corpus, "raw", "retain1")] if keeps else []
    checkpoint = prepare.prepare(control, submissions, cache=cache)
    made_of = [recipe.digest, how.settings(), seed, device, checkpoint.sha256, forget, retain]
    kept = out / f"{CHECKPOINTS}{sha256_json(made_of)[:16]}"
    if out.exists() and any(path != kept for path in out.iterdir()):
        raise InputError(f"--out: {out} holds the checkpoints of another run: go on with that one's options, or "
                         "give a new folder.")  # fmt: skip
    log = unlearn(
        recipe, base=Path(checkpoint.path), tokenizer=Path(checkpoint.tokenizer_path), forget_texts=forget,
        retain_texts=retain, out=out / WEIGHTS, seed=seed, device=device, base_name=target, execution=how,
        checkpoints=kept if how.checkpoint_every else None, on_progress=on_progress,
    )  # fmt: skip
    shutil.rmtree(kept, ignore_errors=True)
    title = f"{recipe.method}, {recipe.parameters}"
    write_curve(log, out)
    made = write_entry(
        out, recipe=recipe, log=log, target=target, corpus=control.corpus, title=title, retrain=retrain,
        hyperparameters=how.settings(),
    )  # fmt: skip
    return replace(made, folder=str(out.resolve()))
