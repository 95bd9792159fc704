"""Unlearns one model by one recipe: base folder in, weights and log out."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.provenance import version_of
from harness.tokenizer import load_tokenizer
from harness.unlearn import losses
from harness.unlearn.execution import Execution
from harness.unlearn.planned_training import OptimizerSettings, Progress, StepLog, train
from harness.unlearn.recipes import Recipe
from harness.unlearn.weight_files import existing_folder, load_dense, with_adapters, write_adapter, write_model
from harness.unlearn.windows import pair_batches, text_windows

LOG_FILE = "training_log.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What unlearning did.

    Attributes:
        trained_parameters: How many numbers were trained.
        forget_windows: Windows of the forget texts.
        retain_windows: Windows of the retain texts, 0 when none were used.
        steps: Losses, gradient norm and learning rate of each step.
        seconds: Wall-clock time of the steps; not in the file, which is the
            same for the same seed.
    """

    recipe: Recipe
    seed: int
    device: str
    trained_parameters: int
    forget_windows: int
    retain_windows: int
    steps: tuple[StepLog, ...]
    versions: Mapping[str, str | None]
    seconds: float

    def save(self, path: Path) -> None:
        """Writes the log as JSON; a number that is not finite becomes null, which JSON can say."""
        value = {key: item for key, item in dataclasses.asdict(self).items() if key not in ("seconds", "steps")}
        value["recipe"] = self.recipe.stated()
        value["steps"] = [
            {
                "step": step.step,
                "losses": {name: _finite(loss) for name, loss in step.losses.items()},
                "grad_norm": _finite(step.grad_norm),
                "learning_rate": step.learning_rate,
            }
            for step in self.steps
        ]
        path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def unlearn(recipe: Recipe, *, base: Path, tokenizer: Path, forget_texts: Sequence[str], retain_texts: Sequence[str],
            out: Path, seed: int = 0, device: str = "cpu", base_name: str = "base",
            execution: Execution | None = None, checkpoints: Path | None = None,
            on_progress: Progress | None = None) -> TrainingLog:  # fmt: skip
    """Unlearns ``forget_texts`` from the model in ``base`` and writes the result to ``out``.

    The arithmetic is float32. A full model is written in the base's 16-bit
    type with its tokenizer; LoRA leaves the base alone and writes the adapter
    (float32). Both come as safetensors, with ``training_log.json`` beside them.

    Args:
        recipe: How.
        base: Folder with one dense model (config.json, safetensors).
        tokenizer: Folder of its tokenizer.
        forget_texts: What to forget.
        retain_texts: What to keep; unused by recipes without a retain loss.
        out: Folder for the weights; new or empty.
        seed: Seed of window order, adapter initialization and dropout.
        device: ``cpu`` or ``cuda``.
        base_name: What the adapter's config calls its base: a submission's
            name or a hub id, never a path.
        execution: How the machine goes about it.
        checkpoints: Folder for checkpoints, to go on from; it must belong to
            these very arguments.
        on_progress: Called after each step with (done, all).

    Raises:
        InputError: No text, a folder without a model that generates, or
            ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder: give a new one for the unlearned weights.")
    window, end = recipe.window, recipe.text_end == "eos"
    existing_folder(tokenizer, "tokenizer")
    model, stored_dtype = load_dense(base, device)
    vocabulary = load_tokenizer(tokenizer, vocabulary=model.get_input_embeddings().num_embeddings)
    forget = text_windows(forget_texts, vocabulary, window, end=end)
    retain = text_windows(retain_texts, vocabulary, window, end=end) if recipe.retain_loss != "none" else []
    if recipe.lora_rank:
        model = with_adapters(
            model, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout, seed=seed
        )
    reference = _reference_model(model, recipe)
    batches = pair_batches(
        forget, retain, batch_size=recipe.batch_size, epochs=recipe.epochs, max_steps=recipe.max_steps, seed=seed
    )
    if recipe.forget_loss == "npo":
        _add_reference_log_probs(model, batches)
    settings = OptimizerSettings(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        update_precision=recipe.update_precision,
    )
    started = time.perf_counter()
    steps = train(
        model, batches, _loss(recipe, reference), settings, seed=seed, device=device, execution=execution,
        checkpoints=checkpoints, on_progress=on_progress,
    )  # fmt: skip
    log = TrainingLog(
        recipe=recipe,
        seed=seed,
        device=device,
        trained_parameters=sum(item.numel() for item in model.parameters() if item.requires_grad),
        forget_windows=len(forget),
        retain_windows=len(retain),
        steps=steps,
        versions={name: version_of(name) for name in ("torch", "transformers", "peft")},
        seconds=time.perf_counter() - started,
    )
    out.mkdir(parents=True, exist_ok=True)
    if recipe.lora_rank:
        write_adapter(model.cpu(), out, base_name)
    else:
        write_model(model.cpu().to(stored_dtype), vocabulary, out)
    log.save(out / LOG_FILE)
    return log


def _reference_model(model: Any, recipe: Recipe) -> Any:
    """Returns what gives the starting model's logits for KLR: a frozen copy; None where adapters can be put aside."""
    if recipe.retain_loss != "klr" or recipe.lora_rank:
        return None
    import copy

    return copy.deepcopy(model).requires_grad_(False).eval()


def _logits(model: Any, batch: Mapping[str, Any], side: str) -> Any:
    return model(input_ids=batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits


def _add_reference_log_probs(model: Any, batches: list[dict[str, Any]]) -> None:
    """Adds ``forget_reference`` to each batch: its windows' log-probabilities under the starting model.

    Each window is computed when it first comes, and windows that never come
    are not: few steps on a large corpus stay few.
    """
    import torch

    device = next(model.parameters()).device
    known: dict[int, Any] = {}
    model.eval()
    for batch in batches:
        numbers = batch["forget_number"].tolist()
        rows = [row for row, number in enumerate(numbers) if number not in known]
        if rows:
            new = {key: value[rows].to(device) for key, value in batch.items() if key.startswith("forget_")}
            with torch.no_grad():
                found = losses.sequence_log_prob(_logits(model, new, "forget"), new["forget_labels"]).cpu()
            known |= {numbers[row]: value for row, value in zip(rows, found, strict=True)}
        batch["forget_reference"] = torch.stack([known[number] for number in numbers])


def _loss(recipe: Recipe, reference: Any) -> Any:
    """Returns the recipe's loss of (model, batch), with its parts for the log."""
    import torch

    def reference_logits(model: Any, batch: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            if reference is not None:
                return _logits(reference, batch, "retain")
            with model.disable_adapter():
                return _logits(model, batch, "retain")

    def loss(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        logits, labels = _logits(model, batch, "forget"), batch["forget_labels"]
        if recipe.forget_loss == "npo":
            forget = losses.npo(losses.sequence_log_prob(logits, labels), batch["forget_reference"], recipe.npo_beta)
        else:
            forget = losses.ga(logits, labels)
        if recipe.retain_loss == "none":
            return {"loss": forget, "forget": forget}
        logits, labels = _logits(model, batch, "retain"), batch["retain_labels"]
        if recipe.retain_loss == "klr":
            retain = losses.klr(logits, reference_logits(model, batch), labels)
        else:
            retain = losses.gdr(logits, labels)
        return {"loss": forget + recipe.retain_weight * retain, "forget": forget, "retain": retain}

    return loss
