"""The relearning probe of one model: train a fresh adapter on some forget documents, ask about others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError
from harness.provenance import sha256_json
from harness.records import DocumentRecord
from harness.store.relearning import RelearningStep

LEAST_GAP = 0.1
"""VerbMem that must be missing before its return is timed: less is what a few documents' answers scatter by."""

_RECIPE = Path(__file__).resolve().parent / "recipe.yaml"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearningRecipe:
    """How the probe trains and asks.

    Attributes:
        documents: First VerbMem documents that are trained on, prompt and
            continuation; as many that follow are asked about.
        steps: Training steps.
        measure_every: Steps between measurements.
        batch_size: Windows a step.
        window: Tokens per window, at most.
        lora_rank: Of the fresh adapters on all linear modules of every block.
        lora_alpha: Their scale is alpha / rank.
        learning_rate: AdamW's, constant.
        seed: Of the adapters and the order of the windows.
    """

    documents: int
    steps: int
    measure_every: int
    batch_size: int
    window: int
    lora_rank: int
    lora_alpha: float
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Digest of every setting."""
        return sha256_json(dataclasses.asdict(self))


def load_recipe(*, documents: int | None = None, steps: int | None = None) -> RelearningRecipe:
    """Returns the pinned recipe, with another number of documents or steps where they are given.

    Raises:
        InputError: A number is below 1.
    """
    values = yaml.safe_load(_RECIPE.read_text(encoding="utf-8"))
    given = {key: value for key, value in (("documents", documents), ("steps", steps)) if value is not None}
    for key, value in given.items():
        if value < 1:
            raise InputError(f"--{key} is {value}; accepted is a whole number from 1 up.")
    return RelearningRecipe(**(values | given))


def half_step(curve: Sequence[RelearningStep], goal: float) -> tuple[int | None, str | None]:
    """Returns the first measured step at which half of the way to ``goal`` is done, or why there is none.

    Args:
        curve: What the model knew, step 0 first.
        goal: VerbMem of the target under the same quantizer.

    Returns:
        Step and None, or None and the reason.
    """
    start = curve[0].verbmem
    if goal - start < LEAST_GAP:
        return None, f"less than {LEAST_GAP} of VerbMem is missing to its target"
    half = start + (goal - start) / 2
    found = next((point.step for point in curve if point.verbmem >= half), None)
    return (found, None) if found is not None else (None, f"not within {curve[-1].step} steps")


def relearn(
    model: Any, tokenizer: Any, *, task: str, texts: Sequence[str], recipe: RelearningRecipe,
    device: str = "cpu", data_dir: Path | None = None, on_progress: Progress = lambda done, steps: None,
) -> tuple[RelearningStep, ...]:  # fmt: skip
    """Trains a fresh adapter over a model's weights and measures as it goes what the model knows.

    The weights under the adapter stay as they are, rounded as the quantizer
    left them; adapter and arithmetic are float32. The model is changed.

    Args:
        model: Causal language model of transformers with dense weights.
        tokenizer: Its base's tokenizer.
        task: The corpus's VerbMem task.
        texts: The documents that are trained on.
        recipe: How.
        device: ``cpu`` or ``cuda``.
        data_dir: Folder of the corpus in MUSE's local form.
        on_progress: Called with (done, all) after each step.

    Returns:
        What it knew, step 0 first.
    """
    from harness.unlearn import losses
    from harness.unlearn.planned_training import OptimizerSettings, train
    from harness.unlearn.weight_files import with_adapters
    from harness.unlearn.windows import pair_batches, text_windows

    model = model.float()
    curve = [measure(model, tokenizer, 0, task=task, recipe=recipe, device=device, data_dir=data_dir)]
    adapted = with_adapters(
        model, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=0.0, seed=recipe.seed
    )  # fmt: skip
    windows = text_windows(texts, tokenizer, recipe.window)
    batches = pair_batches(
        windows, [], batch_size=recipe.batch_size, epochs=recipe.steps, max_steps=recipe.steps, seed=recipe.seed
    )

    def loss(trained: Any, batch: Any) -> dict[str, Any]:
        logits = trained(input_ids=batch["forget_input_ids"], attention_mask=batch["forget_attention_mask"]).logits
        return {"loss": losses.nll(logits, batch["forget_labels"])}

    def after_step(done: int, steps: int) -> None:
        if done % recipe.measure_every == 0 or done == steps:
            # The adapters sit in the model's own modules: it is asked as it stands.
            adapted.eval()
            curve.append(
                measure(model, tokenizer, done, task=task, recipe=recipe, device=device, data_dir=data_dir)
            )  # fmt: skip
            adapted.train()
        on_progress(done, steps)

    settings = OptimizerSettings(learning_rate=recipe.learning_rate)
    train(adapted, batches, loss, settings, seed=recipe.seed, device=device, on_progress=after_step)
    return tuple(curve)


def measure(
    model: Any, tokenizer: Any, step: int, *, task: str, recipe: RelearningRecipe, device: str, data_dir: Path | None
) -> RelearningStep:
    """Returns what a model knows of the documents that are trained on, and of those that follow them."""
    from harness.score.evaluation import evaluate

    documents = evaluate(
        model, tokenizer, task, data_dir=data_dir, device=device, limit=2 * recipe.documents, seed=recipe.seed
    ).documents
    shown, asked = documents[: recipe.documents], documents[recipe.documents :]
    return RelearningStep(
        step=step,
        verbmem=_mean(asked, "verbmem_f") or 0.0,
        extraction_strength=_mean(asked, "extraction_strength"),
        reference_nll=_mean(asked, "reference_nll"),
        verbmem_shown=_mean(shown, "verbmem_f") or 0.0,
    )


def _mean(documents: Sequence[DocumentRecord], key: str) -> float | None:
    values = [document.scores[key] for document in documents if key in document.scores]
    return math.fsum(values) / len(values) if values else None
