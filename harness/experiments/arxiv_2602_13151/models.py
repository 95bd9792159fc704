"""The eight models of arXiv 2602.13151 on one corpus: four methods, all parameters or LoRA, trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import quantize
from harness.errors import InputError, UnknownNameError
from harness.quantize import backend_of
from harness.records import QuantizerSpec, Submission
from harness.submit.manifest import load as manifest
from harness.unlearn.execution import Execution
from harness.unlearn.from_target import make_entry
from harness.unlearn.recipes import Recipe, load_recipe

PAPER = "2602.13151"
METHODS = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
CORPORA = ("mini", "books", "news")
QUANTIZERS = ("reference", "bnb-int8", "bnb-fp4", "bnb-nf4", "rtn-8bit-g128", "rtn-4bit-g128", "gptq-4bit-g128-sym")
"""16, 8 and 4 bit; the paper's 4 bit, which it calls round to nearest, is ``bnb-fp4``."""

CONTRAST = "mini-target-plain"
"""The miniature's ordinary target: GA+GDR from it shows what its prepared one adds."""

# The miniature's existing recipes stand in for two of the eight.
_MINI = {"ga_gdr_full": "mini_ga_gdr_full_lr1e-4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model to make.

    Attributes:
        name: Submission's name.
        recipe: How it is unlearned.
        target: Control that it is unlearned from.
        seed: Of its training.
        seed_of: The model that it repeats; None for the first seed.
    """

    name: str
    recipe: Recipe
    target: str
    seed: int
    seed_of: str | None = None


def recipe_name(method: str, parameters: str, corpus: str) -> str:
    """Returns the recipe of a method with ``full`` or ``lora`` on a corpus."""
    if corpus == "mini":
        return _MINI.get(f"{method}_{parameters}", f"mini_{method}_{parameters}")
    return f"paper_{method}_full" if parameters == "full" else f"paper_{method}_lora_{corpus}"


def models(
    corpus: str, target: str, *, seeds: Sequence[int] = (0,), steps: int = 0, contrast: str | None = None
) -> list[Model]:
    """Returns the eight models for each seed, and two from ``contrast`` where it is given.

    Args:
        corpus: One of ``CORPORA``.
        target: Control that they are unlearned from.
        seeds: Of training.
        steps: Stops each training after that many; 0 follows the recipe.
        contrast: Another target.

    Raises:
        UnknownNameError: There are no recipes for that corpus.
    """
    if corpus not in CORPORA:
        raise UnknownNameError("corpus", corpus, CORPORA)
    wanted = [(target, method, "", seeds) for method in METHODS]
    wanted += [(contrast, METHODS[0], "plain-", seeds)] if contrast else []
    found = []
    for base, method, mark, all_seeds in wanted:
        for parameters in ("full", "lora"):
            recipe = load_recipe(recipe_name(method, parameters, corpus), **({"max_steps": steps} if steps else {}))
            stem = f"repro-{corpus}-{mark}{method.replace('_', '-')}-{parameters}"
            for seed in all_seeds:
                name = f"{stem}-s{seed}"
                first = f"{stem}-s{all_seeds[0]}"
                found.append(Model(name=name, recipe=recipe, target=base, seed=seed,
                                   seed_of=None if name == first else first))  # fmt: skip
    return found


def target_of(corpus: str, submissions: Mapping[str, Submission], asked: str | None) -> Submission:
    """Returns the target control of a corpus: the one asked for, or the only one (of the miniature the prepared one).

    Raises:
        UnknownNameError: The one asked for is not there.
        InputError: There is none, or several.
    """
    if asked is not None:
        if asked not in submissions:
            raise UnknownNameError("submission", asked, submissions)
        return submissions[asked]
    found = [one for one in submissions.values() if one.role == "target" and one.corpus == corpus]
    if corpus == "mini":
        found = [one for one in found if one.name != CONTRAST]
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise InputError(
            f"The corpus {corpus} has no single target control here ({names}): add a submission of role target with "
            f"`quench init`, or name one with --target."
        )
    return found[0]


def available(names: Sequence[str], device: str) -> tuple[list[QuantizerSpec], dict[str, str]]:
    """Returns the quantizers that run here, and of the others why not."""
    specs = [quantize.resolve(name) for name in names]
    reasons = {spec.name: backend_of(spec).unavailable_reason(spec, device) for spec in specs}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return [spec for spec in specs if spec.name not in missing], missing


def make(
    wanted: Sequence[Model], submissions: Mapping[str, Submission], out: Path, *, cache: Path, retrain: str | None,
    data_dir: Path | None = None, device: str = "cpu", execution: Execution | None = None,
    on_progress: Callable[[str, int, int], None] = lambda name, done, steps: None,
) -> dict[str, Submission]:  # fmt: skip
    """Trains the models that are not there yet, below ``out/submissions``, and returns all of them by name.

    A model that is there and was made by the same recipe and seed is kept.

    Raises:
        InputError: A folder holds a model of other settings, or training can't begin.
    """
    root = out / "submissions"
    for model in wanted:
        folder = root / model.name
        if (folder / "submission.yaml").is_file():
            _check_same(model, folder)
            continue
        made = make_entry(
            model.recipe, target=model.target, submissions=submissions, out=folder, cache=cache, data_dir=data_dir,
            seed=model.seed, device=device, execution=execution, retrain=retrain,
            on_progress=lambda done, steps, name=model.name: on_progress(name, done, steps),  # type: ignore[misc]
        )  # fmt: skip
        on_progress(made.name, 1, 1)
    return {
        model.name: replace(manifest.load(root / model.name), seed_of=model.seed_of, target=model.target)
        for model in wanted
    }


def _check_same(model: Model, folder: Path) -> None:
    told = manifest.load(folder).hyperparameters
    wanted = {**model.recipe.settings(), "seed": model.seed}
    other = sorted(key for key, value in wanted.items() if told.get(key) != value)
    if other:
        raise InputError(
            f"{folder} holds a model of other settings ({', '.join(other)}): remove it, or give another --out."
        )
