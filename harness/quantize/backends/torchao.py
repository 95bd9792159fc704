"""torchao's weight-only integers: int8 per row, and 8 to 2 bits in groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.errors import QuantizationError
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

# One bit is left out: torchao 0.18 makes every weight 0 of it.
_NAME = re.compile(r"torchao-int([2-8])-g([1-9]\d{0,5})(-asym)?")

_REMARK = (
    "torchao keeps each code in a byte of its own whatever its width; the bytes counted here are those of packed codes."
)

_INT8 = QuantizerSpec(
    name="torchao-int8-row",
    backend="torchao",
    bits=8,
    group_size=None,
    symmetric=True,
    label="torchao int8, per row, symmetric",
    options={"config": "Int8WeightOnlyConfig"},
)


def _spec(bits: int, group_size: int, symmetric: bool = True) -> QuantizerSpec:
    return QuantizerSpec(
        name=f"torchao-int{bits}-g{group_size}{'' if symmetric else '-asym'}",
        backend="torchao",
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        label=f"torchao int{bits}, group {group_size}, {'symmetric' if symmetric else 'asymmetric'}",
        options={"config": "IntxWeightOnlyConfig"},
    )


def _config(spec: QuantizerSpec) -> Any:
    import torch
    from torchao import quantization

    if spec.group_size is None:
        return quantization.Int8WeightOnlyConfig(version=2)
    kind = quantization.MappingType
    return quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{spec.bits}"),
        granularity=quantization.PerGroup(spec.group_size),
        mapping_type=kind.SYMMETRIC if spec.symmetric else kind.ASYMMETRIC,
    )


def _read(weight: Any, spec: QuantizerSpec) -> ReadBack:
    """Reads a quantized weight: value = (code - zero) * scale, codes from -2**(bits - 1) up."""
    import torch

    from harness.quantize.formats.codes import ReadBack

    middle = 2 ** (spec.bits - 1)
    rows = weight.qdata.shape[0]
    scales = weight.scale.detach().cpu().reshape(rows, -1)
    zeros = weight.zero_point
    stored = (
        None if zeros is None or spec.symmetric else zeros.detach().cpu().reshape(rows, -1).to(torch.int16) + middle
    )
    if spec.symmetric and zeros is not None and bool(zeros.any()):
        raise QuantizationError(f"{spec.name} has zero points beside 0: this is a fault of the backend.")
    # int8 has float32 scales, and is rounded once; the others compute in the weight's own dtype.
    wide = scales.dtype == torch.float32
    return ReadBack(
        codes=(weight.qdata.detach().cpu().to(torch.int16) + middle).to(torch.uint8).contiguous(),
        scales=scales,
        zeros=stored,
        offset=middle,
        bits=spec.bits,
        group_size=spec.group_size,
        computed_in=None if wide else str(scales.dtype).removeprefix("torch."),
        rounded_to=str(weight.dtype).removeprefix("torch.") if wide else None,
        step=float(scales.double().mean()),
    )


class TorchAo:
    """torchao's ``quantize_`` applied to one linear layer after the other."""

    backend = "torchao"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType({1: "torchao's int1 gives all zeros"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns int8 per row, and 8, 4, 3 and 2 bits in groups of 64."""
        return (_INT8, *(_spec(bits, 64) for bits in (8, 4, 3, 2)))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``torchao-int{2..8}-g{N}``, with ``-asym`` where asymmetric, or ``torchao-int8-row``."""
        if name == _INT8.name:
            return _INT8
        told = _NAME.fullmatch(name)
        return _spec(int(told.group(1)), int(told.group(2)), told.group(3) is None) if told else None

    def library_version(self) -> str | None:
        """Returns torchao's version, None where it is not installed."""
        return version_of("torchao")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("torchao",))

    def native(self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str) -> Any:
        """Returns the model with torchao's tensors in its linear layers."""
        from torchao.quantization import quantize_

        from harness.quantize.models.dense import with_layers

        def make_layer(linear: Any) -> Any:
            quantize_(linear, _config(spec))
            return linear

        return with_layers(checkpoint, make_layer, device=device)

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as torchao quantizes it, dequantized.

        Raises:
            QuantizationError: A layer's width is no multiple of the group, or
                the proof fails.
        """
        from harness.quantize.runners.layerwise import quantize_layers

        remarks = (_REMARK,) if spec.bits < 8 else ()
        return quantize_layers(checkpoint, spec, self, device=device, remarks=remarks)

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer as torchao quantizes it, and dequantized by torchao.

        Raises:
            QuantizationError: Its width is no multiple of the group.
        """
        import torch
        from torchao.quantization import quantize_

        if weight.shape[1] % (spec.group_size or 1):
            raise QuantizationError(
                f"{spec.name} can't hold {name}: torchao takes no remainder group, and {spec.group_size} does not "
                f"divide its rows of {weight.shape[1]} weights; choose another group size."
            )
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(linear, _config(spec))
        return _read(linear.weight, spec), linear.weight.dequantize()


BACKEND = TorchAo()
