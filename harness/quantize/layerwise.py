"""Quantizing one layer after the other, for backends that look at no activations.

Only one layer at a time exists twice, so a model takes little more memory than
its dense self; where memory does not hold that either, layers are read from
the checkpoint and their codes go to disk.
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
    any_bits: bool = False,
    in_its_dtype: bool = True,
) -> QuantizedModel:
    """Returns the checkpoint with every block linear quantized by ``quantize_weight``, and proved.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        quantize_weight: One layer's work.
        device: Where the model is put.
        remarks: What a reader must know about the backend.
        any_group: Whether the library chooses each layer's group itself.
        any_bits: Whether each layer may have a width of its own.
        in_its_dtype: Whether ``quantize_weight`` gets weights in the
            checkpoint's dtype; in the model's own, float32 on a CPU, if not.

    Raises:
        QuantizationError: A layer can't be quantized, or the proof fails.
    """
    import torch

    from harness.quantize.dense import block_linears, load_dense, replace_weight
    from harness.quantize.proof import prove
    from harness.quantize.streamed import must_stream

    dtype = getattr(torch, checkpoint.dtype) if in_its_dtype else None
    if must_stream(checkpoint, device=device, quantized=True):
        return _quantize_on_disk(
            checkpoint, spec, quantize_weight, device, dtype, tuple(remarks), any_group=any_group, any_bits=any_bits
        )
    started = time.perf_counter()
    model = load_dense(checkpoint, device=device)
    layers: dict[str, ReadBack] = {}
    for name, linear in block_linears(model).items():
        layers[name], weight = quantize_weight(name, linear.weight.detach().to(dtype or linear.weight.dtype))
        replace_weight(linear, weight)
    seconds = time.perf_counter() - started
    return QuantizedModel(
        model=model,
        spec=spec,
        proof=prove(
            model, checkpoint, spec, layers, remarks=tuple(remarks), any_group=any_group, any_bits=any_bits
        ),
        layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in layers.items()},
        quantize_seconds=seconds,
    )  # fmt: skip


def _quantize_on_disk(
    checkpoint: Checkpoint, spec: QuantizerSpec, quantize_weight: QuantizeWeight, device: str, dtype: Any,
    remarks: tuple[str, ...], **allowed: bool,
) -> QuantizedModel:  # fmt: skip
    """Returns a streamed model whose codes are on disk; one layer is in memory."""
    from harness.quantize.dense import block_linears, source_weights
    from harness.quantize.proof import Prover
    from harness.quantize.streamed import LayersOnDisk, streamed_model

    layers, seconds = LayersOnDisk(), 0.0
    model = streamed_model(checkpoint, device=device, layers=layers)
    with source_weights(checkpoint) as source:
        prover = Prover(spec, source, **allowed)
        for name, linear in block_linears(model).items():
            started = time.perf_counter()
            # First as the whole model would hold it.
            weight = source.raw(f"{name}.weight").to(device, linear.weight.dtype)
            layer, dense = quantize_weight(name, weight.to(dtype or linear.weight.dtype))
            seconds += time.perf_counter() - started
            prover.add(name, dense.to(linear.weight.dtype).cpu(), layer)
            layers.put(name, layer)
    proof = prover.proof(model, remarks=remarks)
    return QuantizedModel(
        model=model, spec=spec, proof=proof, layers={}, quantize_seconds=seconds, streamed=True
    )  # fmt: skip
