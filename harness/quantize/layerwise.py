"""Quantizing one layer after the other, for backends that look at no activations.

Only one layer at a time exists twice, so a model takes little more memory than
its dense self; and what becomes of a layer can be told without its model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from harness.quantize.readback import ReadBack
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec


@runtime_checkable
class LayerQuantizer(Protocol):
    """A backend that needs a layer's own weight and nothing else."""

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns what was read back of one layer, and the library's own dequantized weight to hold against it.

        Args:
            spec: One of this backend's.
            name: Full name of the module.
            depth: Number of the model's blocks.
            weight: Tensor [out_features, in_features] in the checkpoint's
                dtype, on the device to quantize on.

        Raises:
            QuantizationError: The layer can't be quantized.
        """
        ...


def quantize_layers(
    checkpoint: Checkpoint,
    spec: QuantizerSpec,
    backend: LayerQuantizer,
    *,
    device: str,
    remarks: Sequence[str] = (),
    any_group: bool = False,
) -> QuantizedModel:
    """Returns the checkpoint with every block linear quantized by ``backend``, and proved.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        backend: What quantizes each layer.
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
    depth = model.config.get_text_config().num_hidden_layers
    layers: dict[str, ReadBack] = {}
    for name, linear in block_linears(model).items():
        layers[name], weight = backend.quantize_layer(spec, name, depth, linear.weight.detach().to(dtype))
        replace_weight(linear, weight)
    seconds = time.perf_counter() - started
    return QuantizedModel(
        model=model,
        spec=spec,
        proof=prove(model, checkpoint, spec, layers, remarks=tuple(remarks), any_group=any_group),
        layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in layers.items()},
        quantize_seconds=seconds,
    )
