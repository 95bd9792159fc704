"""Round to nearest with scales that are powers of two: dequantizing is a shift of the exponent."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.quantize.libraries import missing_reason
from harness.records import Checkpoint, QuantizedLayer, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

_NAME = re.compile(r"pow2-([348])bit-g([1-9]\d{0,4})")


def _spec(bits: int, group_size: int) -> QuantizerSpec:
    return QuantizerSpec(
        name=f"pow2-{bits}bit-g{group_size}",
        backend="pow2",
        bits=bits,
        group_size=group_size,
        symmetric=True,
        label=f"Powers of two {bits}-bit, group {group_size}, symmetric",
    )


def _rounded(weight: Any, spec: QuantizerSpec) -> ReadBack:
    """Returns a layer's codes and scales, a power of two for each group; the last group of a row may be shorter."""
    import torch

    from harness.quantize.formats.codes import ReadBack

    rows, width = weight.shape
    size = min(spec.group_size or width, width)
    padded = torch.nn.functional.pad(weight.float(), (0, -width % size))
    groups = padded.reshape(rows, -1, size)
    top = 2 ** (spec.bits - 1) - 1
    largest = groups.abs().amax(dim=2).clamp(min=2.0**-20)
    scales = torch.exp2(torch.ceil(torch.log2(largest / top)))
    codes = (groups / scales[..., None]).round().clamp(-top - 1, top) + top + 1
    return ReadBack(
        codes=codes.reshape(rows, -1)[:, :width].to(torch.uint8).contiguous(),
        scales=scales.half(),
        offset=top + 1,
        bits=spec.bits,
        group_size=spec.group_size,
        step=float(scales.double().mean()),
    )


class PowersOfTwo:
    """Symmetric rounding at 8, 4 and 3 bits, any group size."""

    backend = "pow2"
    deterministic = True
    install = "pip install quench-example"
    impossible: Mapping[int, str] = {2: "half of its range is lost to the scale", 1: "it has no two levels around 0"}

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4 and 3 bits in groups of 64."""
        return tuple(_spec(bits, 64) for bits in (8, 4, 3))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``pow2-{8,4,3}bit-g{N}``."""
        told = _NAME.fullmatch(name)
        return None if told is None else _spec(int(told.group(1)), int(told.group(2)))

    def library_version(self) -> str | None:
        """Returns None: no library quantizes, and the package's own version is in the key by itself."""
        return None

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: torch or transformers is not installed."""
        return missing_reason(spec.name, ("torch", "transformers"), extra="score")

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint rounded layer by layer, and proved."""
        from harness.quantize.models.dense import block_linears, load_dense, replace_weight
        from harness.quantize.proof import prove

        started = time.perf_counter()
        model = load_dense(checkpoint, device=device)
        layers: dict[str, ReadBack] = {}
        for name, linear in block_linears(model).items():
            layers[name] = _rounded(linear.weight.detach().cpu(), spec)
            replace_weight(linear, layers[name].dequantize())
        return QuantizedModel(
            model=model,
            spec=spec,
            proof=prove(model, checkpoint, spec, layers),
            layers={name: QuantizedLayer(codes=layer.codes, step=layer.step) for name, layer in layers.items()},
            quantize_seconds=time.perf_counter() - started,
        )


BACKEND = PowersOfTwo()
