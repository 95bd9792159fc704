"""Survival of an update with one layer of both models in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.errors import QuantizationError
from harness.quantize import backend_of
from harness.quantize.runners.layerwise import LayerQuantizer
from harness.quantize.survival import measure as survival_measure
from harness.quantize.survival.effective_rank import effective_rank
from harness.quantize.survival.measure import Sums
from harness.records import Checkpoint, LayerSurvival, QuantizedLayer, QuantizerSpec


def streams(spec: QuantizerSpec) -> bool:
    """Returns whether a quantizer gives a layer alone the codes that it gives it within its model."""
    return isinstance(backend_of(spec), LayerQuantizer)


def stream(
    unlearned: Checkpoint, target: Checkpoint, specs: Sequence[QuantizerSpec], *, device: str = "cpu",
    on_layer: Callable[[int, int], None] = lambda done, layers: None,
) -> dict[str, tuple[LayerSurvival, ...]]:  # fmt: skip
    """Returns the survival of an update under several quantizers, by quantizer's name.

    The figures are those of ``measure`` on whole models.

    Args:
        unlearned: The unlearned model.
        target: What it was unlearned from.
        specs: Quantizers that ``streams`` is true of.
        device: Where a layer is quantized.
        on_layer: Told (done, layers) after each layer.

    Raises:
        QuantizationError: The two models have different shapes, a quantizer
            needs whole models, a backend fails, or its codes don't say what
            it dequantizes.
    """
    whole = [spec.name for spec in specs if not streams(spec)]
    if whole:
        raise QuantizationError(f"{', '.join(whole)} can't be measured layer by layer: give whole models.")
    shapes, depth = layers_of(unlearned)
    if (shapes, depth) != layers_of(target):
        raise QuantizationError(
            "Survival compares two models of one shape, and these have different blocks: name the target that the "
            "model was unlearned from."
        )
    sums: dict[str, dict[str, Sums]] = {spec.name: {} for spec in specs}
    ranks: dict[str, float | None] = {}
    for done, (name, shape) in enumerate(shapes.items(), start=1):
        before, after = (_weight(checkpoint, name, shape) for checkpoint in (target, unlearned))
        for spec in specs:
            sums[spec.name][name] = _measure_layer(before, after, spec, name, depth, device)
        ranks[name] = effective_rank(after.float() - before.float())
        on_layer(done, len(shapes))
    return {name: survival_measure.rows_of(found, ranks) for name, found in sums.items()}


def layers_of(checkpoint: Checkpoint) -> tuple[dict[str, tuple[int, ...]], int]:
    """Returns the shapes of a checkpoint's block linears by name, and its number of blocks; no weight is loaded.

    Raises:
        QuantizationError: There is no causal language model of its config, or
            its blocks can't be told.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from harness.quantize.models.dense import block_linears, depth_in

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise QuantizationError(
            f"A model of type {config.model_type} generates no text, so nothing of it is scored: "
            "use a causal language model."
        ) from error
    shapes = {name: tuple(linear.weight.shape) for name, linear in block_linears(model).items()}
    return shapes, depth_in(config)


def _weight(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Any:
    """Returns one layer's weight in the checkpoint's dtype."""
    import torch

    from harness.quantize.models.dense import source_weights

    # Opened anew for each layer: pages of a file that stays open count as this program's memory.
    with source_weights(checkpoint) as source:
        weight = source.raw(f"{name}.weight").to(getattr(torch, checkpoint.dtype))
    if tuple(weight.shape) != shape:
        raise QuantizationError(
            f"{checkpoint.path}: {name} has the shape {tuple(weight.shape)}, and config.json says {shape}: weights and "
            "config don't belong together."
        )
    return weight


def _measure_layer(before: Any, after: Any, spec: QuantizerSpec, name: str, depth: int, device: str) -> Sums:
    from harness.quantize.proof import check_codes

    backend = backend_of(spec)
    assert isinstance(backend, LayerQuantizer)  # `streams` has looked
    weights, layers = [], []
    for weight in (before, after):
        read, made = backend.quantize_layer(spec, name, depth, weight.to(device))
        weights.append(made.detach().cpu())
        check_codes(spec, name, weights[-1].float(), read)
        layers.append(QuantizedLayer(codes=read.codes, step=read.step))
    return survival_measure.of_layer(before.float(), after.float(), *weights, *layers)
