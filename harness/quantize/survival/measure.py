"""How much of an unlearning update survives quantization, for each layer and for all layers.

W_t are the target's and W_u the unlearned model's 16-bit weights, Q(W) their
quantized ones: dW = W_u - W_t went in, dQ = Q(W_u) - Q(W_t) came out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.survival.effective_rank import ranks_of
from harness.records import Checkpoint, LayerSurvival, QuantizedLayer, QuantizedModel

ALL_LAYERS = "all layers"
"""Name of the row over all layers, pooled from exact sums."""

NOISE_LIMIT = 0.25
"""Largest standard error with which a survival ratio still says something."""

ROWS = 256
"""Rows of a layer that are in double precision at a time."""

LEAST_UPDATE = 1e-4
"""Least norm of dW over that of W_t: about a tenth of what rounding to bfloat16 does to W_t itself."""


@dataclass(slots=True)
class Sums:
    """Sums over weights; everything that is shown is made of them, so they pool exactly."""

    weights: int = 0
    codes_changed: int = 0
    steps: float = 0.0
    absolute_update: float = 0.0
    has_step: bool = True
    target: float = 0.0
    update: float = 0.0
    kept: float = 0.0
    inner: float = 0.0
    # Per row r: <dQ,dW>_r^2, <dQ,dW>_r <dW,dW>_r, <dW,dW>_r^2.
    inner_inner: float = 0.0
    inner_update: float = 0.0
    update_update: float = 0.0
    # Sum of step * abs(dW)^3: the variance of <dQ, dW> when codes flip by chance.
    chance: float = 0.0

    def add(self, other: Sums) -> None:
        """Adds another layer's sums."""
        for name in self.__slots__:
            if name != "has_step":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.has_step = self.has_step and other.has_step

    def ratio_error(self) -> float:
        """Returns the standard error of the survival ratio.

        The larger of two: what the rows' scatter shows, and what chance alone
        would give. A weight that lies anywhere in its cell crosses the
        boundary with probability abs(dW) / step and then moves by a step;
        where no crossing is to be expected, rows that all show none have no
        scatter and yet say nothing.
        """
        ratio = self.inner / self.update
        spread = self.inner_inner - 2 * ratio * self.inner_update + ratio**2 * self.update_update
        return float(max(spread, self.chance, 0.0) ** 0.5 / self.update)

    def show(self, layer: str, effective_rank: float | None = None) -> LayerSurvival:
        """Returns the sums as a record, with the rank of the update where it is one layer's."""
        relative = (self.update / self.target) ** 0.5 if self.target > 0 else 0.0
        telling = relative >= LEAST_UPDATE and self.ratio_error() <= NOISE_LIMIT
        both = self.update > 0 and self.kept > 0
        return LayerSurvival(
            layer=layer,
            codes_changed=self.codes_changed / self.weights,
            update_in_steps=self.absolute_update / self.steps if self.has_step and self.steps > 0 else None,
            relative_update=relative,
            survival_ratio=self.inner / self.update if telling else None,
            cosine=self.inner / (self.update * self.kept) ** 0.5 if both else None,
            num_weights=self.weights,
            update_norm=self.update**0.5,
            norm_ratio=(self.kept / self.update) ** 0.5 if self.update > 0 else None,
            effective_rank=effective_rank,
        )


def _sums(update: Any, kept: Any, target: Any, changed: Any, step: float | None, width: float) -> Sums:
    """Returns the sums over some rows of a layer; ``width`` is what a flipped code moves a weight by."""
    update, kept = update.double(), kept.double()
    inner, square = (kept * update).sum(dim=1), update.square().sum(dim=1)
    return Sums(
        weights=update.numel(),
        codes_changed=int(changed.sum()),
        steps=(step or 0.0) * update.numel(),
        absolute_update=float(update.abs().sum()),
        has_step=step is not None,
        target=float(target.double().square().sum()),
        update=float(square.sum()),
        kept=float(kept.square().sum()),
        inner=float(inner.sum()),
        inner_inner=float(inner.square().sum()),
        inner_update=float((inner * square).sum()),
        update_update=float(square.square().sum()),
        chance=width * float(update.abs().pow(3).sum()),
    )


def of_layer(before: Any, after: Any, old: Any, new: Any, old_layer: QuantizedLayer, new_layer: QuantizedLayer) -> Sums:
    """Returns one layer's sums from its weights, quantized ones and codes, some rows at a time."""
    import torch

    pieces = [slice(start, start + ROWS) for start in range(0, before.shape[0], ROWS)]
    step = old_layer.step
    if step is not None:
        width = step
    else:
        # Errors spread evenly over cells of one width have that width / sqrt(12) as root mean square.
        squares = sum(float((old[rows].float() - before[rows]).double().square().sum()) for rows in pieces)
        width = (12 * squares / before.numel()) ** 0.5
    sums = Sums()
    with torch.no_grad():
        for rows in pieces:
            sums.add(
                _sums(
                    after[rows] - before[rows],
                    new[rows].float() - old[rows].float(),
                    before[rows],
                    new_layer.codes[rows] != old_layer.codes[rows],
                    step,
                    width,
                )
            )
    return sums


def measure(
    unlearned: QuantizedModel, target: QuantizedModel, unlearned_checkpoint: Checkpoint, target_checkpoint: Checkpoint
) -> tuple[LayerSurvival, ...]:
    """Returns the survival of the update over all layers (first, named ``ALL_LAYERS``) and in each.

    The first row pools the layers' sums, so its ratio is <dQ, dW> / <dW, dW>
    over all quantized weights; it is not the mean of the others. Empty for the
    16-bit reference, where everything survives.

    ``survival_ratio`` is None where the update is negligible: below
    ``LEAST_UPDATE``, or so far below the step that the ratio's standard error
    exceeds ``NOISE_LIMIT``.
    Codes are compared, not dequantized values: a block scale moves with every
    update and would count all of its block as changed.

    Raises:
        QuantizationError: The two models don't have the same layers, or were
            not quantized the same way.

    Source: metrics.md's survival diagnosis; cf. Zhang et al., "Catastrophic
        Failure of LLM Unlearning via Quantization" (ICLR 2025), section 5, for
        why updates below the step vanish.
    """
    found = layer_sums(unlearned, target, unlearned_checkpoint, target_checkpoint)
    return rows_of(found, ranks_of(unlearned_checkpoint, target_checkpoint, found))


def rows_of(sums: Mapping[str, Sums], ranks: Mapping[str, float | None]) -> tuple[LayerSurvival, ...]:
    """Returns the rows of all layers pooled (first) and of each, from sums and effective ranks by layer."""
    if not sums:
        return ()
    pooled = Sums()
    for one in sums.values():
        pooled.add(one)
    return (pooled.show(ALL_LAYERS), *(one.show(name, ranks[name]) for name, one in sums.items()))


def layer_sums(
    unlearned: QuantizedModel, target: QuantizedModel, unlearned_checkpoint: Checkpoint, target_checkpoint: Checkpoint
) -> dict[str, Sums]:
    """Returns what ``measure`` shows, before it is shown: the sums of each layer by name.

    Raises:
        QuantizationError: As ``measure``.
    """
    from harness.quantize.models.dense import block_linears, source_weights

    if unlearned.spec.name != target.spec.name or list(unlearned.layers) != list(target.layers):
        raise QuantizationError(
            f"Survival compares two models of one shape under one quantizer, not {unlearned.spec.name} with "
            f"{len(unlearned.layers)} layers and {target.spec.name} with {len(target.layers)} layers."
        )
    if not unlearned.layers:
        return {}
    new, old = block_linears(unlearned.model), block_linears(target.model)
    found: dict[str, Sums] = {}
    with source_weights(unlearned_checkpoint) as new_source, source_weights(target_checkpoint) as old_source:
        for name, layer in unlearned.layers.items():
            found[name] = of_layer(
                old_source[name],
                new_source[name],
                old[name].weight.detach().cpu(),
                new[name].weight.detach().cpu(),
                target.layers[name],
                layer,
            )
    return found


def summarize(layers: Sequence[LayerSurvival]) -> LayerSurvival | None:
    """Returns the row over all layers that ``measure`` put among ``layers``; None where it is not there."""
    return next((layer for layer in layers if layer.layer == ALL_LAYERS), None)


INTERCEPT, SLOPE = 6.73, 13.18
"""Of log-odds = INTERCEPT - SLOPE * ratio, fitted by benchmarks/survival_prediction.py on the miniature's grid."""


def chance_of_return(survival_ratio: float | None) -> float | None:
    """Returns the likelihood that quantization brings VerbMem back (verdict ``reverts``), 0 to 1.

    Fitted on the miniature's 128 cells of entries that had forgotten, half of
    them at 4 bits: it knows one architecture of a million parameters and one
    corpus, and takes the entry to have forgotten at 16 bit.

    Args:
        survival_ratio: Over all layers; taken as 0 below 0 and as 1 above 1,
            where the update is there with noise on top.

    Returns:
        None where there is no ratio: the update is negligible.
    """
    if survival_ratio is None:
        return None
    return 1.0 / (1.0 + math.exp(SLOPE * min(max(survival_ratio, 0.0), 1.0) - INTERCEPT))
