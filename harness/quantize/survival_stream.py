"""Survival of an update measured piece by piece: two blocks are in memory, whatever the size of the models.

Own rounding goes layer by layer; libraries, which want a model, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness import memory
from harness.errors import QuantizationError
from harness.quantize import backend_of, rtn, survival
from harness.quantize.calibration import recipe_of
from harness.quantize.carving import Stack, carved, stack_of
from harness.quantize.survival import Sums
from harness.quantize.update_rank import ranks_of
from harness.records import Checkpoint, LayerSurvival, QuantizerSpec


def streams(spec: QuantizerSpec) -> bool:
    """Returns whether a quantizer gives a block alone the codes that it gives it within its model."""
    return recipe_of(spec) is None and spec.backend != "reference"


def stream(
    unlearned: Checkpoint, target: Checkpoint, specs: Sequence[QuantizerSpec], *, device: str = "cpu",
    on_block: Callable[[int, int], None] = lambda done, blocks: None,
) -> dict[str, tuple[LayerSurvival, ...]]:  # fmt: skip
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
    ranks: dict[str, float | None] = {}
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
        ranks |= ranks_of(unlearned, target, names)
        on_block(block + 1, stack.depth)
    return {name: survival.rows_of(found, ranks) for name, found in sums.items()}


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
