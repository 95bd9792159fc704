"""Quantizes one layer after the other, for backends that ignore activations.

Only one layer at a time exists twice, so a model takes little more memory than
its dense self, and what becomes of a layer can be told without its model; where
memory does not hold a model, layers are read from the checkpoint and their
codes go to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from harness.quantize.formats.codes import ReadBack
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec

Quantized = tuple[str, ReadBack, Any]
"""A module's name, and what ``quantize_layer`` returns of its weight."""


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
    any_bits: bool = False,
    in_its_dtype: bool = True,
) -> QuantizedModel:
    """Returns the checkpoint with every block linear quantized by ``backend``, and proved.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        backend: What quantizes each layer.
        device: Where the model is put.
        remarks: What a reader must know about the backend.
        any_group: Whether the library chooses each layer's group itself.
        any_bits: Whether each layer may have a width of its own.
        in_its_dtype: Whether ``backend`` gets weights in the
            checkpoint's dtype; in the model's own, float32 on a CPU, if not.

    Raises:
        QuantizationError: A layer can't be quantized, or the proof fails.
    """
    import torch

    from harness.quantize.models.dense import block_linears, depth_in, load_dense, replace_weight
    from harness.quantize.models.streamed import must_stream
    from harness.quantize.proof import prove

    if must_stream(checkpoint, device=device, quantized=True):
        return stream_layers(
            checkpoint,
            spec,
            lambda model: one_by_one(checkpoint, spec, backend, model, device, in_its_dtype=in_its_dtype),
            device=device,
            remarks=remarks,
            any_group=any_group,
            any_bits=any_bits,
        )
    dtype = getattr(torch, checkpoint.dtype) if in_its_dtype else None
    started = time.perf_counter()
    model = load_dense(checkpoint, device=device)
    layers, depth = dict[str, ReadBack](), depth_in(model.config)
    for name, linear in block_linears(model).items():
        given = linear.weight.detach().to(dtype or linear.weight.dtype)
        layers[name], weight = backend.quantize_layer(spec, name, depth, given)
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


def one_by_one(
    checkpoint: Checkpoint, spec: QuantizerSpec, backend: LayerQuantizer, model: Any, device: str, *,
    in_its_dtype: bool = True,
) -> Iterator[Quantized]:  # fmt: skip
    """Yields the layers of a streamed model quantized, each as it is read from the checkpoint.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        backend: What quantizes each layer.
        model: The streamed model.
        device: Where a layer is quantized.
        in_its_dtype: As of ``quantize_layers``.
    """
    import torch

    from harness.quantize.models.dense import block_linears, depth_of, source_weights

    dtype, depth = getattr(torch, checkpoint.dtype) if in_its_dtype else None, depth_of(checkpoint)
    with source_weights(checkpoint) as source:
        for name, linear in block_linears(model).items():
            # First as the whole model would hold it.
            weight = source.raw(f"{name}.weight").to(device, linear.weight.dtype)
            yield (name, *backend.quantize_layer(spec, name, depth, weight.to(dtype or linear.weight.dtype)))


def stream_layers(
    checkpoint: Checkpoint,
    spec: QuantizerSpec,
    made_of: Callable[[Any], Iterator[Quantized]],
    *,
    device: str,
    remarks: Sequence[str] = (),
    any_group: bool = False,
    any_bits: bool = False,
) -> QuantizedModel:
    """Returns a streamed model whose codes are on disk, and its proof; one layer at a time is in memory.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        made_of: Takes the model, whose block weights are not in memory, and
            yields its quantized layers in model order.
        device: Where the model computes.
        remarks: What a reader must know about the backend.
        any_group: Whether the library chooses each layer's group itself.
        any_bits: Whether each layer may have a width of its own.

    Raises:
        QuantizationError: The model can't be streamed, or the proof fails.
    """
    from harness.quantize.models.dense import block_linears, source_weights
    from harness.quantize.models.streamed import LayersOnDisk, streamed_model
    from harness.quantize.proof import Prover

    layers, seconds = LayersOnDisk(), 0.0
    model = streamed_model(checkpoint, device=device, layers=layers)
    linears = block_linears(model)
    with source_weights(checkpoint) as source:
        prover = Prover(spec, source, any_group=any_group, any_bits=any_bits)
        started = time.perf_counter()
        for name, layer, dense in made_of(model):
            seconds += time.perf_counter() - started
            # Another name than a block's linear layer is what the proof finds fault with in the end.
            dtype = linears[name].weight.dtype if name in linears else dense.dtype
            prover.add(name, dense.to(dtype).cpu(), layer)
            layers.put(name, layer)
            started = time.perf_counter()
    proof = prover.proof(model, remarks=tuple(remarks))
    return QuantizedModel(
        model=model, spec=spec, proof=proof, layers={}, quantize_seconds=seconds, streamed=True
    )  # fmt: skip
