"""Survival of an update measured piece by piece: two blocks are in memory, whatever the size of the models.

Own rounding goes layer by layer; libraries, which want a model, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import memory
from harness.errors import QuantizationError
from harness.quantize import backend_of, rtn, survival
from harness.quantize.calibration import recipe_of
from harness.quantize.carving import Stack, carved, stack_of
from harness.quantize.survival import ALL_LAYERS, Sums
from harness.records import Checkpoint, LayerSurvival, QuantizerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateShape:
    """What one layer's update is, before any quantizer.

    Attributes:
        norm: Frobenius norm of dW.
        effective_rank: (sum s^2)^2 / sum s^4 over dW's singular values s: r
            for r equal ones; None where dW is zero, and over all layers.
    """

    norm: float
    effective_rank: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalRow:
    """One layer's update and what a quantizer leaves of it.

    Attributes:
        survived: As it is stored with a cell.
        norm_ratio: Norm of dQ over norm of dW; None where dW is zero.
    """

    survived: LayerSurvival
    norm_ratio: float | None
    shape: UpdateShape


def streams(spec: QuantizerSpec) -> bool:
    """Returns whether a quantizer gives a block alone the codes that it gives it within its model."""
    return recipe_of(spec) is None and spec.backend != "reference"


def rows_of(sums: Mapping[str, Sums], shapes: Mapping[str, UpdateShape]) -> tuple[SurvivalRow, ...]:
    """Returns the rows of all layers pooled (first) and of each, as ``survival.measure`` orders them."""
    if not sums:
        return ()
    pooled = Sums()
    for one in sums.values():
        pooled.add(one)
    whole = UpdateShape(norm=sum(shape.norm**2 for shape in shapes.values()) ** 0.5, effective_rank=None)
    return (
        SurvivalRow(survived=pooled.show(ALL_LAYERS), norm_ratio=pooled.norm_ratio(), shape=whole),
        *(
            SurvivalRow(survived=one.show(name), norm_ratio=one.norm_ratio(), shape=shapes[name])
            for name, one in sums.items()
        ),
    )


def update_shape(update: Any) -> UpdateShape:
    """Returns norm and effective rank of a matrix, from its Gram matrix: no singular value is computed."""
    square = float(update.double().square().sum())
    if square == 0:
        return UpdateShape(norm=0.0, effective_rank=None)
    # Scaled to norm 1 first: fourth powers of small updates leave float32's range.
    scaled = update.float() / square**0.5
    gram = scaled @ scaled.T if scaled.shape[0] <= scaled.shape[1] else scaled.T @ scaled
    return UpdateShape(norm=square**0.5, effective_rank=1.0 / float(gram.double().square().sum()))


def shapes_of(unlearned: Checkpoint, target: Checkpoint, layers: Iterable[str]) -> dict[str, UpdateShape]:
    """Returns the shape of each layer's update; one layer is in memory at a time."""
    from harness.quantize.dense import source_weights

    with source_weights(unlearned) as new, source_weights(target) as old:
        return {name: update_shape(new[name] - old[name]) for name in layers}


def stream(
    unlearned: Checkpoint, target: Checkpoint, specs: Sequence[QuantizerSpec], *, device: str = "cpu",
    on_block: Callable[[int, int], None] = lambda done, blocks: None,
) -> dict[str, tuple[SurvivalRow, ...]]:  # fmt: skip
    """Returns the survival of an update under several quantizers, by quantizer's name.

    The figures are those of ``survival.measure`` on whole models.

    Args:
        unlearned: The unlearned model.
        target: What it was unlearned from.
        specs: Quantizers that ``streams`` is true of.
        device: Where a block is quantized.
        on_block: Told (done, blocks) after each block.

    Raises:
        QuantizationError: The two models have different shapes, a quantizer
            needs whole models, or a backend fails.
    """
    whole = [spec.name for spec in specs if not streams(spec)]
    if whole:
        raise QuantizationError(f"{', '.join(whole)} can't be measured block by block: give whole models.")
    stack = stack_of(unlearned)
    if stack != stack_of(target):
        raise QuantizationError(
            "Survival compares two models of one shape, and these have different blocks: name the target that the "
            "model was unlearned from."
        )
    sums: dict[str, dict[str, Sums]] = {spec.name: {} for spec in specs}
    shapes: dict[str, UpdateShape] = {}
    alone = [spec for spec in specs if spec.backend == rtn.BACKEND.backend]
    by_block = [spec for spec in specs if spec not in alone]
    for block in range(stack.depth):
        names = [stack.name_in_model(name, block) for name in stack.layers]
        for spec in alone:
            sums[spec.name] |= {name: _measure_layer(unlearned, target, spec, name, stack.depth) for name in names}
        if by_block:
            # A block is small, and the codes of its layers are compared in memory.
            with (
                memory.streaming("never"), carved(unlearned, stack, block) as new, carved(target, stack, block) as old
            ):  # fmt: skip
                for spec in by_block:
                    _measure_block(new, old, spec, device, stack, block, sums[spec.name])
        shapes |= shapes_of(unlearned, target, names)
        on_block(block + 1, stack.depth)
    return {name: rows_of(found, shapes) for name, found in sums.items()}


def _measure_layer(unlearned: Checkpoint, target: Checkpoint, spec: QuantizerSpec, name: str, depth: int) -> Sums:
    """Returns the sums of one layer, whose two weights alone are read."""
    from harness.quantize.dense import source_weights
    from harness.records import QuantizedLayer

    with source_weights(unlearned) as new, source_weights(target) as old:
        before, after = old[name], new[name]
    if before.shape != after.shape:
        raise QuantizationError(
            f"{name} is {tuple(after.shape)} in one model and {tuple(before.shape)} in the other, and survival "
            "compares two models of one shape: name the target that the model was unlearned from."
        )
    read = [rtn.BACKEND.read_layer(spec, name, depth, weight) for weight in (before, after)]
    return survival.of_layer(
        before,
        after,
        read[0].dequantize(),
        read[1].dequantize(),
        *(QuantizedLayer(codes=one.codes, step=one.step) for one in read),
    )


def _measure_block(
    new: Checkpoint, old: Checkpoint, spec: QuantizerSpec, device: str, stack: Stack, block: int, into: dict[str, Sums]
) -> None:
    import gc

    backend = backend_of(spec)
    found = survival.layer_sums(
        backend.quantize(new, spec, device=device), backend.quantize(old, spec, device=device), new, old
    )
    if not found:
        raise QuantizationError(f"{spec.name} hands on no codes, so what survives can't be read back.")
    into |= {stack.name_in_model(name, block): one for name, one in found.items()}
    gc.collect()
