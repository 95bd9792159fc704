"""How a recipe runs on a machine: precision, memory, checkpoints, through transformers' Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from harness.errors import InputError

MixedPrecision = Literal["no", "bf16", "fp16"]
Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What a recipe leaves to the machine; all of it but the checkpoints may move the last bits of the weights.

    Attributes:
        mixed_precision: Type of the forward pass; weights and updates stay float32.
        gradient_checkpointing: Trades a second forward pass for activations' memory.
        windows_at_once: Forget windows (with as many retain windows) of one
            forward pass, whose gradients are added up to the recipe's batch;
            0 takes the whole batch. A padded last window weighs as much as a
            full one then.
        optimizer: AdamW, its state in 32 or 8 bit, in pages or not.
        checkpoint_every: Steps between checkpoints; 0 keeps none.
    """

    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    windows_at_once: int = 0
    optimizer: Optimizer = "adamw_torch"
    checkpoint_every: int = 0

    def settings(self) -> dict[str, Any]:
        """Returns what departs from the default, for ``hyperparameters`` of a manifest."""
        plain = Execution(checkpoint_every=self.checkpoint_every)
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(plain, field.name)
        }


FIELDS = tuple(field.name for field in dataclasses.fields(Execution))
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "mixed_precision": get_args(MixedPrecision),
    "optimizer": get_args(Optimizer),
    "gradient_checkpointing": ("true", "false"),
}


def execution_from(values: Mapping[str, str]) -> Execution:
    """Returns what the command line's texts describe.

    Args:
        values: Text by name of a field.

    Raises:
        InputError: A value is not accepted, or its library is missing.
    """
    found: dict[str, Any] = {}
    for key, text in values.items():
        if key in _CHOICES:
            if text not in _CHOICES[key]:
                raise InputError(f"{key} is {text!r}; accepted are {', '.join(_CHOICES[key])}.")
            found[key] = text == "true" if key == "gradient_checkpointing" else text
        elif text.isascii() and text.isdigit():
            found[key] = int(text)
        else:
            raise InputError(f"{key} is {text!r}; accepted is a whole number from 0 up.")
    how = Execution(**found)
    if how.optimizer != "adamw_torch" and find_spec("bitsandbytes") is None:
        raise InputError(f"optimizer {how.optimizer} needs bitsandbytes: install it, or use adamw_torch.")
    return how
