"""HQQ (half-quadratic quantization): 8 to 1 bit, no calibration, fractional zero points."""

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

_NAME = re.compile(r"hqq-([84321])bit-g([1-9]\d{0,4})")


def _spec(bits: int, group_size: int) -> QuantizerSpec:
    return QuantizerSpec(
        name=f"hqq-{bits}bit-g{group_size}",
        backend="hqq",
        bits=bits,
        group_size=group_size,
        symmetric=False,
        label=f"HQQ {bits}-bit, group {group_size}, asymmetric",
        options={"axis": 1},
    )


def _read(layer: Any, spec: QuantizerSpec) -> ReadBack:
    """Reads an HQQLinear: value = (code - zero) * scale, groups along the flat matrix."""
    import torch

    from harness.quantize.formats.codes import ReadBack

    rows, width = layer.meta["shape"]
    # 3-bit codes are padded to a whole number of words.
    codes = layer.unpack(dtype=torch.uint8)[: rows * width // spec.group_size]
    scales = layer.meta["scale"].detach().cpu().view(-1)
    return ReadBack(
        codes=codes.detach().cpu().reshape(rows, width).contiguous(),
        scales=scales,
        zeros=layer.meta["zero"].detach().cpu().view(-1),
        bits=spec.bits,
        group_size=spec.group_size,
        flat=True,
        computed_in=str(layer.compute_dtype).removeprefix("torch."),
        step=float(scales.double().mean()),
    )


class Hqq:
    """HQQ's own layers, made one by one with scales and zero points in the checkpoint's dtype."""

    backend = "hqq"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType[int, str]({})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3, 2 and 1 bits in the library's default group of 64."""
        return tuple(_spec(bits, 64) for bits in (8, 4, 3, 2, 1))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``hqq-{8,4,3,2,1}bit-g{N}``, N a multiple of 8 as the library wants."""
        told = _NAME.fullmatch(name)
        if told is None or int(told.group(2)) % 8:
            return None
        return _spec(int(told.group(1)), int(told.group(2)))

    def library_version(self) -> str | None:
        """Returns hqq's version, None where it is not installed."""
        return version_of("hqq")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("hqq",))

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as HQQ quantizes it, dequantized.

        Raises:
            QuantizationError: A layer doesn't divide into groups the way the
                library packs them, or the proof fails.
        """
        from harness.quantize.runners.layerwise import quantize_layers

        return quantize_layers(checkpoint, spec, self, device=device)

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer as HQQ quantizes it, and dequantized by HQQ.

        Raises:
            QuantizationError: It doesn't divide into groups the way the
                library packs them.
        """
        import torch
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        _check_shape(spec, name, *weight.shape)
        config = BaseQuantizeConfig(nbits=spec.bits, group_size=spec.group_size, axis=spec.options["axis"])
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer = HQQLinear(linear, config, compute_dtype=weight.dtype, device=str(weight.device))
        return _read(layer, spec), layer.dequantize()

    def native(self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str) -> Any:
        """Returns the model with HQQ's own layers, which dequantize on every pass."""
        import torch
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        from harness.quantize.models.dense import with_layers

        config = BaseQuantizeConfig(nbits=spec.bits, group_size=spec.group_size, axis=spec.options["axis"])
        dtype = getattr(torch, checkpoint.dtype)
        return with_layers(
            checkpoint,
            lambda linear: HQQLinear(linear, config, compute_dtype=dtype, device=str(linear.weight.device)),
            device=device,
        )


def _check_shape(spec: QuantizerSpec, name: str, rows: int, width: int) -> None:
    """Refuses layers that the library fails on, before it does so with a shape error.

    Codes of 4, 2 and 1 bit are packed 2, 4 and 8 groups together.
    """
    size = spec.group_size or width
    together = {4: 2, 2: 4, 1: 8}.get(spec.bits, 1)
    if rows * width % size or rows * width // size % together:
        raise QuantizationError(
            f"{spec.name} can't hold {name}: its {rows} x {width} weights aren't a multiple of "
            f"{size} weights times {together} groups, which hqq packs together; choose another group size."
        )


BACKEND = Hqq()
