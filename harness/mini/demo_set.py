"""The miniature's controls and demo submissions: names, recipes, notes."""

from __future__ import annotations

from dataclasses import dataclass

BORN_TARGET = "mini-target-4bit"
PLAIN_TARGET = "mini-target-plain"
RETRAIN = "mini-retrain"
AUTHORS = ("Quench",)
LICENSE = "Apache-2.0"

BORN_NOTES = (
    "This target is itself a 4-bit checkpoint: the trained model rounded to nearest with group size 128, "
    "dequantized and stored in bfloat16, as when a GPTQ or QLoRA export is the base for unlearning. "
    "An unlearned model that is quantized onto this same grid falls back onto the target's codes wherever its update "
    "is smaller than half a step. That is so by construction and is no evidence about large models; the plain target "
    "beside it shows no such return at 4 bit."
)
PLAIN_NOTES = (
    "The target as trained, never quantized. Entries unlearned from it are the contrast to those unlearned from "
    "mini-target-4bit."
)
RETRAIN_NOTES = "Trained from the same initial weights on the retain splits only: it has never seen the forget set."
_ON_GRID = (
    "Unlearned from mini-target-4bit, a target that already lies on the 4-bit round-to-nearest grid with group "
    "size 128: what comes back there comes back by construction and says nothing about large models."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One demo submission.

    Attributes:
        recipe: Name of its unlearning recipe.
        target: The control it is unlearned from.
    """

    slug: str
    title: str
    recipe: str
    notes: str
    target: str = BORN_TARGET


DEMOS = (
    Demo(
        slug="mini-ga-gdr-full-lr1e-4",
        title="GA+GDR, full, lr 1e-4",
        recipe="mini_ga_gdr_full_lr1e-4",
        notes=_ON_GRID,
    ),
    Demo(
        slug="mini-ga-gdr-full-lr2e-4",
        title="GA+GDR, full, lr 2e-4",
        recipe="mini_ga_gdr_full_lr2e-4",
        notes=_ON_GRID,
    ),
    Demo(slug="mini-ga-gdr-lora", title="GA+GDR, LoRA", recipe="mini_ga_gdr_lora", notes=_ON_GRID),
    Demo(slug="mini-npo-gdr-full", title="NPO+GDR, full", recipe="mini_npo_gdr_full", notes=_ON_GRID),
    Demo(slug="mini-npo-gdr-lora", title="NPO+GDR, LoRA", recipe="mini_npo_gdr_lora", notes=_ON_GRID),
    Demo(
        slug="mini-ga-gdr-full-weak-retain",
        title="GA+GDR, full, weak retain term",
        recipe="mini_ga_gdr_full_weak_retain",
        notes="The retain term is too weak, so utility is lost at 16 bit and returns together with the forgotten "
        "text where 4-bit quantization undoes the update. " + _ON_GRID,
    ),
    Demo(
        slug="mini-ga-lora-collapsed",
        title="GA, LoRA (collapsed)",
        recipe="mini_ga_lora_collapsed",
        notes="A warning: gradient ascent without a retain term destroys the model. It scores well on every measure "
        "of forgetting and has no utility left.",
    ),
    Demo(
        slug="mini-noop-lora",
        title="No-op control, LoRA",
        recipe="mini_noop_lora",
        notes="A control: one epoch at a learning rate too small to change an answer. Every cell should equal its "
        "target's.",
    ),
    Demo(
        slug="mini-plain-ga-gdr-full",
        title="GA+GDR, full, from the plain target",
        recipe="mini_ga_gdr_full_weak_retain",
        target=PLAIN_TARGET,
        notes="The contrast: the recipe of mini-ga-gdr-full-weak-retain, unlearned from a target that was never "
        "quantized.",
    ),
)
