"""optimum-quanto: int8 per row, int4 and int2 in groups that the library chooses by the width."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.errors import QuantizationError
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

GROUP = 128
"""The library's group where a layer's width is a multiple of it."""

_PRESETS = (
    QuantizerSpec(
        name="quanto-int8-row",
        backend="quanto",
        bits=8,
        group_size=None,
        symmetric=True,
        label="quanto int8, per row, symmetric",
    ),
    *(
        QuantizerSpec(
            name=f"quanto-int{bits}-g{GROUP}",
            backend="quanto",
            bits=bits,
            group_size=GROUP,
            symmetric=False,
            label=f"quanto int{bits}, group {GROUP}, asymmetric",
        )
        for bits in (4, 2)
    ),
)


def _read_int8(weight: Any) -> ReadBack:
    import torch

    from harness.quantize.formats.codes import ReadBack

    codes = weight._data.detach().cpu().to(torch.int16) + 128
    scales = weight._scale.detach().cpu().reshape(-1, 1)
    return ReadBack(
        codes=codes.to(torch.uint8).contiguous(),
        scales=scales.expand(codes.shape[0], 1).contiguous(),
        offset=128,
        bits=8,
        group_size=None,
        computed_in=str(scales.dtype).removeprefix("torch."),
        step=float(scales.double().mean()),
    )


def _read_bits(
    codes: Any, scale: Any, shift: Any, shape: tuple[int, int], spec: QuantizerSpec, size: int | None
) -> ReadBack:
    """Reads an int4 or int2 weight: value = code * scale - shift."""
    from harness.quantize.formats.codes import ReadBack

    rows, width = shape
    scales = scale.detach().cpu().reshape(rows, -1)
    if size is None and width <= GROUP:
        # A row that is one group already.
        size = GROUP
    return ReadBack(
        codes=codes.detach().cpu().reshape(rows, width).contiguous(),
        scales=scales,
        shifts=-shift.detach().cpu().reshape(rows, -1),
        bits=spec.bits,
        group_size=size,
        computed_in=str(scales.dtype).removeprefix("torch."),
        step=float(scales.double().mean()),
    )


def _quantize_int8(layer: Any, kind: Any) -> tuple[ReadBack, Any]:
    from optimum.quanto import quantize_weight

    scale = layer.optimizer(layer.weight, qtype=kind, axis=0)
    made = quantize_weight(layer.weight, qtype=kind, axis=0, scale=scale, optimized=False)
    return _read_int8(made), made.dequantize()


def _quantize_bits(layer: Any, kind: Any, spec: QuantizerSpec) -> tuple[ReadBack, Any]:
    """Quantizes with the library's own steps, but for packing the codes into bytes.

    Unpacking them again would have the library compile a C++ extension.
    """
    import torch
    from optimum.quanto.tensor.qbits import QBitsDequantizer

    size, weight = layer.weight_group_size, layer.weight
    scale, shift = layer.optimizer(weight, qtype=kind, axis=0, group_size=size)
    codes = torch.ops.quanto.quantize_affine(weight, bits=kind.bits, axis=0, group_size=size, scale=scale, shift=shift)
    made = SimpleNamespace(_data=codes, _scale=scale, _shift=shift, qtype=kind, axis=0, shape=weight.shape)
    return _read_bits(codes, scale, shift, tuple(weight.shape), spec, size), QBitsDequantizer.forward(None, made)


class Quanto:
    """quanto's weight quantization with its default optimizers, layer by layer."""

    backend = "quanto"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType(dict.fromkeys((3, 1), "quanto has types of 8, 4 and 2 bits"))

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns int8, int4 and int2: the library has no 3-bit type."""
        return _PRESETS

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the preset of that name: the library chooses groups itself."""
        return next((spec for spec in _PRESETS if spec.name == name), None)

    def library_version(self) -> str | None:
        """Returns optimum-quanto's version, None where it is not installed."""
        return version_of("optimum-quanto")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("optimum-quanto",))

    def native(self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str) -> Any:
        """Returns the model with quanto's own layers.

        Raises:
            QuantizationError: Fewer than 8 bits: unpacking codes would have
                the library compile a C++ extension.
        """
        from optimum.quanto import QLinear, qtypes

        from harness.quantize.models.dense import with_layers

        if spec.bits < 8:
            raise QuantizationError(
                "quanto's kernel for packed codes was not run: the library compiles a C++ extension for it."
            )

        def make_layer(linear: Any) -> Any:
            layer = QLinear.from_module(linear, weights=qtypes[f"qint{spec.bits}"])
            layer.freeze()
            return layer

        return with_layers(checkpoint, make_layer, device=device)

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as quanto quantizes it, dequantized.

        Layers whose width 128 does not divide get the group that the library
        chooses for them; a remark in the proof says how many.

        Raises:
            QuantizationError: The proof fails.
        """
        from harness.quantize.runners.layerwise import quantize_layers

        return quantize_layers(checkpoint, spec, self, device=device, any_group=spec.bits < 8)

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer as quanto quantizes it, and dequantized by quanto."""
        import torch
        from optimum.quanto import QLinear, qtypes

        kind = qtypes[f"qint{spec.bits}"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer = QLinear.from_module(linear, weights=kind)
        return _quantize_int8(layer, kind) if spec.bits == 8 else _quantize_bits(layer, kind, spec)


BACKEND = Quanto()
