"""Trains through transformers' ``Trainer`` on batches that are laid out beforehand.

Which windows meet in which step is decided by the caller, as a list of
batches: so random phases, re-dealt quiz sheets and forget/retain pairs stay
plain, seeded Python, while optimizer, schedule, clipping and logging are the
library's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness.unlearn.execution import Execution

Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch], Mapping[str, Any]]
Progress = Callable[[int, int], None]

# What the parts of a loss are called among the Trainer's own entries.
_PART = "part/"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        weight_decay: Applied to matrices, never to norms and biases.
        warmup_share: Share of the steps over which the rate rises from 0.
        schedule: ``constant`` after warm-up, or ``cosine`` down to 5 percent.
        max_grad_norm: Gradients are clipped to this norm.
        update_precision: ``bfloat16`` rounds every trained parameter to
            bfloat16 after each step, as training without a float32 copy does:
            steps below the spacing of a weight are lost.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_share: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float = 1.0
    update_precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """One optimizer step: ``losses`` holds ``loss`` and its parts, by name."""

    step: int
    losses: Mapping[str, float]
    grad_norm: float
    learning_rate: float


def _arguments(
    folder: str, settings: OptimizerSettings, steps: int, seed: int, device: str, execution: Execution
) -> Any:
    from transformers import TrainingArguments

    cosine = settings.schedule == "cosine"
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        optim=execution.optimizer,
        bf16=execution.mixed_precision == "bf16",
        fp16=execution.mixed_precision == "fp16",
        activation_checkpointing=execution.gradient_checkpointing,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type="cosine_with_min_lr" if cosine else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": 0.05} if cosine else {},
        warmup_steps=round(settings.warmup_share * steps),
        use_cpu=device == "cpu",
        seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if execution.checkpoint_every else "no",
        save_steps=execution.checkpoint_every or steps,
        # The newest may be half written when a run is killed: the one before it is kept.
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


@cache
def _trainer_class() -> type[Any]:
    """Returns the Trainer subclass; made on first use because transformers is imported late."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class RoundToBfloat16(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(parameter.to(torch.bfloat16))

    class ReportProgress(TrainerCallback):  # type: ignore[misc]
        def __init__(self, report: Progress) -> None:
            self.report = report

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.report(state.global_step, state.max_steps)

    class PlannedTrainer(Trainer):  # type: ignore[misc]
        def __init__(
            self, *, loss: Loss, settings: OptimizerSettings, execution: Execution, on_progress: Progress | None,
            **rest: Any,
        ):  # fmt: skip
            super().__init__(data_collator=lambda items: items[0], **rest)
            self.remove_callback(PrinterCallback)
            self.loss, self.windows = loss, execution.windows_at_once
            self.parts: dict[str, Any] = {}
            if settings.update_precision == "bfloat16":
                self.add_callback(RoundToBfloat16())
            if on_progress is not None:
                self.add_callback(ReportProgress(on_progress))

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(
                train_dataset if train_dataset is not None else self.train_dataset
            )

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            parts = self.loss(model, inputs)
            self.parts = {name: value.detach() for name, value in parts.items()}
            return parts["loss"]

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            rows = len(next(iter(inputs.values())))
            if not self.windows or rows <= self.windows:
                return super().training_step(model, inputs, num_items_in_batch)
            model.train()
            whole: dict[str, Any] = {}
            for start in range(0, rows, self.windows):
                piece = {key: value[start : start + self.windows] for key, value in inputs.items()}
                share = len(next(iter(piece.values()))) / rows
                piece = self._prepare_inputs(piece)
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, piece)
                self.accelerator.backward(loss * share)
                whole = {name: whole.get(name, 0.0) + share * value for name, value in self.parts.items()}
            self.parts = whole
            return whole["loss"]

        def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
            # Among the Trainer's entries the parts go into its checkpoints, and come back on resuming.
            if "grad_norm" in logs:
                logs |= {f"{_PART}{name}": float(value) for name, value in self.parts.items()}
            super().log(logs, *rest, **more)

    return PlannedTrainer


def train(model: Any, batches: Sequence[Batch], loss: Loss, settings: OptimizerSettings, *, seed: int,
          device: str = "cpu", execution: Execution | None = None, checkpoints: Path | None = None,
          on_progress: Progress | None = None) -> tuple[StepLog, ...]:  # fmt: skip
    """Trains ``model`` in place, one optimizer step per batch, in the given order.

    Args:
        model: transformers or peft model in float32.
        batches: What each step sees: tensors by name, moved to the device.
        loss: From model and batch to ``loss`` and the parts worth logging.
        settings: Optimizer and schedule.
        seed: Seed of everything random inside the Trainer (dropout).
        device: ``cpu`` or ``cuda``.
        execution: How the machine goes about it.
        checkpoints: Folder for what ``execution.checkpoint_every`` asks for;
            training goes on from the newest whole one that lies there.
        on_progress: Called after each step with (done, all).

    Returns:
        One record per step; a loss that is not finite is kept as it came.
    """
    how = execution or Execution()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_class()(
            model=model,
            args=_arguments(str(checkpoints or folder), settings, len(batches), seed, device, how),
            train_dataset=batches,
            loss=loss,
            settings=settings,
            execution=how,
            on_progress=on_progress,
        )
        trainer.train(resume_from_checkpoint=_newest_whole(checkpoints))
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return tuple(
        StepLog(
            step=index,
            losses=_parts(entry),
            grad_norm=float(entry["grad_norm"]),
            learning_rate=float(entry["learning_rate"]),
        )
        for index, entry in enumerate(entries, start=1)
    )


def _parts(entry: Mapping[str, float]) -> dict[str, float]:
    """Returns the parts of a step's loss, the loss itself first: checkpoints keep no order."""
    found = {name.removeprefix(_PART): float(value) for name, value in entry.items() if name.startswith(_PART)}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "loss", name))}


def _newest_whole(checkpoints: Path | None) -> str | None:
    """Returns the newest checkpoint that was written to its end; None where there is none."""
    found: dict[int, str] = {}
    for state in checkpoints.glob("checkpoint-*/trainer_state.json") if checkpoints else ():
        try:
            # It is written last, so a checkpoint that has a readable one has everything.
            found[int(json.loads(state.read_text(encoding="utf-8"))["global_step"])] = str(state.parent)
        except (OSError, ValueError, KeyError):
            continue
    return found[max(found)] if found else None
