"""Unlearning recipes: every choice that makes an unlearned model, under a name.

A recipe is one YAML file in ``recipes/``. The general ones follow MUSE's
hyperparameters, those named ``paper_*`` arXiv 2602.13151's; those named
``mini_*`` are made for the miniature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from harness.errors import InputError, UnknownNameError, one_line
from harness.provenance import sha256_json

RECIPES = Path(__file__).resolve().parent / "recipes"

ForgetLoss = Literal["ga", "npo"]
RetainLoss = Literal["none", "gdr", "klr"]
Precision = Literal["float32", "bfloat16"]
TextEnd = Literal["eos", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to unlearn.

    Attributes:
        name: File name without its ending.
        forget_loss: ``ga`` or ``npo``.
        retain_loss: ``gdr``, ``klr`` or ``none``.
        retain_weight: Factor of the retain loss ("lambda").
        npo_beta: Inverse temperature of NPO.
        lora_rank: Rank of adapters on all seven linear modules of a block;
            0 trains every parameter.
        lora_alpha: Scale of the adapters (alpha / rank).
        lora_dropout: Dropout before the adapters.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's, on matrices.
        max_grad_norm: Gradients are clipped to this norm.
        epochs: Passes over the forget windows.
        max_steps: Stops after this many steps; 0 means after ``epochs``.
        batch_size: Forget windows a step; as many retain windows come along.
        window: Tokens per window, at most.
        text_end: What follows each text: the tokenizer's end token, or
            ``none`` for texts that are cut out of longer ones.
        update_precision: ``float32``, or ``bfloat16``: every trained parameter
            is rounded to bfloat16 after each step.
        source: Where the settings come from; has no part in the training.
    """

    name: str
    forget_loss: ForgetLoss
    retain_loss: RetainLoss = "none"
    retain_weight: float = 1.0
    npo_beta: float = 0.1
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 4
    window: int = 2048
    text_end: TextEnd = "eos"
    update_precision: Precision = "float32"
    source: str = ""

    @property
    def method(self) -> str:
        """The method as the field names it, e.g. ``NPO+GDR``."""
        losses = [self.forget_loss] if self.retain_loss == "none" else [self.forget_loss, self.retain_loss]
        return "+".join(losses).upper()

    @property
    def parameters(self) -> str:
        """``full`` or ``LoRA``: what is trained."""
        return "LoRA" if self.lora_rank else "full"

    @property
    def digest(self) -> str:
        """Digest of every setting that moves a weight."""
        return sha256_json({key: value for key, value in self.stated().items() if key not in _TEXTS})

    def stated(self) -> dict[str, Any]:
        """Returns all settings but those that came later and are left at what was done before them."""
        unset = {key for key, default in _LATER.items() if getattr(self, key) == default}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in unset}

    def settings(self) -> dict[str, Any]:
        """Returns the settings that had a part in it, for ``hyperparameters`` of a manifest."""
        unused = {"name"}
        if self.retain_loss == "none":
            unused.add("retain_weight")
        if self.forget_loss != "npo":
            unused.add("npo_beta")
        if not self.lora_rank:
            unused |= {"lora_rank", "lora_alpha", "lora_dropout"}
        if not self.max_steps:
            unused.add("max_steps")
        return {key: value for key, value in self.stated().items() if key not in unused}


_TEXTS = ("name", "source")
# Left out at their defaults: logs, manifests and digests from before them stay as they are.
_LATER: Mapping[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Recipe) if field.name in ("source", "text_end")
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "forget_loss": get_args(ForgetLoss),
    "retain_loss": get_args(RetainLoss),
    "update_precision": get_args(Precision),
    "text_end": get_args(TextEnd),
}
_FIELDS: Mapping[str, str] = {
    field.name: str(field.type) for field in dataclasses.fields(Recipe) if field.name != "name"
}
_POSITIVE = ("npo_beta", "lora_alpha", "learning_rate", "max_grad_norm", "epochs", "batch_size")


def _accepted() -> str:
    parts = [f"{key} ({'|'.join(_CHOICES[key]) if key in _CHOICES else kind})" for key, kind in _FIELDS.items()]
    return ", ".join(parts)


def _number(value: Any, kind: str) -> int | float | None:
    """Returns ``value`` as the kind of number wanted, None when it is none."""
    if isinstance(value, str):
        # YAML 1.1 reads 1e-5, which has no point, as text.
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if kind == "int":
        return int(value) if float(value).is_integer() else None
    return float(value)


def _check(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values in their field's own type.

    Raises:
        InputError: An unknown key, a wrong type or a value out of range.
    """
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _FIELDS:
            raise InputError(f"{where}: there is no setting {key!r}; accepted are {_accepted()}.")
        if key in _CHOICES:
            if value not in _CHOICES[key]:
                raise InputError(f"{where}: {key} is {value!r}; accepted are {', '.join(_CHOICES[key])}.")
            checked[key] = value
            continue
        if key in _TEXTS:
            if not isinstance(value, str):
                raise InputError(f"{where}: {key} is {value!r}, which is no text: put it in quotation marks.")
            checked[key] = value
            continue
        number = _number(value, _FIELDS[key])
        if number is None:
            wanted = "a whole number" if _FIELDS[key] == "int" else "a number"
            raise InputError(f"{where}: {key} is {value!r}, which is not {wanted}; accepted are {_accepted()}.")
        if number < 0 or (number == 0 and key in _POSITIVE):
            raise InputError(f"{where}: {key} is {number}; it must be {'above' if key in _POSITIVE else 'at least'} 0.")
        checked[key] = number
    if "window" in checked and checked["window"] < 2:
        raise InputError(f"{where}: window is {checked['window']}; a window needs at least 2 tokens.")
    if checked.get("lora_dropout", 0.0) >= 1.0:
        raise InputError(f"{where}: lora_dropout is {checked['lora_dropout']}; it must be below 1.")
    return checked


@cache
def recipe_names() -> tuple[str, ...]:
    """Returns the names of all recipes, sorted."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"The recipe {path} can't be read ({one_line(error)}): give a YAML.") from None
    if not isinstance(values, dict) or "forget_loss" not in values:
        raise InputError(f"The recipe {path} must be a mapping with forget_loss; accepted are {_accepted()}.")
    return {str(key): value for key, value in values.items()}


def load_recipe(name: str, /, **overrides: Any) -> Recipe:
    """Returns the recipe of that name with some settings replaced.

    Args:
        name: One of ``recipe_names()``, or the path of a YAML file of one's own.
        **overrides: Fields of ``Recipe`` except ``name``.

    Raises:
        UnknownNameError: No recipe has that name.
        InputError: The file is no mapping, or it or an override names no
            setting or has the wrong type.
    """
    path = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not name.endswith(".yaml") and name not in recipe_names():
        raise UnknownNameError("recipe", name, recipe_names())
    values = _read(path)
    name = path.stem
    checked = _check(f"recipe {name}", values) | _check(f"recipe {name}, override", overrides)
    return Recipe(name=name, **checked)
