"""Quantizing one layer after the other, for backends that look at no activations.

Only one layer at a time exists twice, so a model takes little more memory than
its dense self.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.quantize.readback import ReadBack
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec

QuantizeWeight = Callable[[str, Any], tuple[ReadBack, Any]]
"""Takes a module name and its weight in the checkpoint's dtype; returns what was read back and the library's own
dequantized weight, which the proof holds against each other."""


def quantize_layers(
    checkpoint: Checkpoint,
    spec: QuantizerSpec,
    quantize_weight: QuantizeWeight,
    *,
    device: str,
    remarks: Sequence[str] = (),
    any_group: bool = False,
) -> QuantizedModel:
    """Returns the checkpoint with every block linear quantized by ``quantize_weight``, and proved.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        quantize_weight: One layer's work.
        device: Where the model is put.
        remarks: What a reader must know about the backend.
        any_group: Whether the library chooses each layer's group itself.

    Raises:
        QuantizationError: A layer can't be quantized, or the proof fails.
    """
    import torch

    from harness.quantize.dense import block_linears, load_dense, replace_weight
    from harness.quantize.proof import prove

    started = time.perf_counter()
    model = load_dense(checkpoint, device=device)
    dtype = getattr(torch, checkpoint.dtype)
    layers: dict[str, ReadBack] = {}
    for name, linear in block_linears(model).items():
        layers[name], weight = quantize_weight(name, linear.weight.detach().to(dtype))
        replace_weight(linear, weight)
    seconds = time.perf_counter() - started
    return QuantizedModel(
        model=model,
        spec=spec,
        proof=prove(model, checkpoint, spec, layers, remarks=tuple(remarks), any_group=any_group),
        layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in layers.items()},
        quantize_seconds=seconds,
    )
