"""Round to nearest, our own: the plainest quantizer, without calibration and without a library."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.quantize.libraries import install_line, missing_reason
from harness.quantize.rounding.uniform_grid import Grid, round_to_clipped_grid, round_to_grid
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

__all__ = ["BACKEND", "Grid", "RoundToNearest", "round_to_grid"]

PARTS: Mapping[str, str] = {
    "ends": "the first and the last block",
    "attn": "attention",
    "down": "down projections",
}
"""What may be wider: word in the name, and what it stands for."""

_MIXED_NAME = re.compile(r"rtn-mixed-([2-8])bit-g([1-9]\d{0,5})-([3-8])bit((?:-(?:ends|attn|down))+)")
_ATTENTION = re.compile(r"\.(self_attn|self_attention|attention|attn)\.")
_DOWN = ("down_proj", "dense_4h_to_h", "fc2")


def parse_mixed(name: str) -> QuantizerSpec | None:
    """Returns the spec of ``rtn-mixed-3bit-g64-8bit-ends-down``: 3 bits, and 8 in the parts named.

    Parts come in the order of ``PARTS``, each once, so that one way to
    quantize has one name. ``bits`` of the spec are those of the rest.
    """
    told = _MIXED_NAME.fullmatch(name)
    if told is None:
        return None
    bits, group, wide = int(told.group(1)), int(told.group(2)), int(told.group(3))
    parts = told.group(4).removeprefix("-").split("-")
    if wide <= bits or parts != [part for part in PARTS if part in parts]:
        return None
    where = " and ".join(PARTS[part] for part in parts)
    return QuantizerSpec(
        name=name,
        backend="rtn",
        bits=bits,
        group_size=group,
        symmetric=False,
        label=f"RTN {bits}-bit, but {wide}-bit in {where}; group {group}, asymmetric",
        options={"wide_bits": wide, "wide_parts": parts},
    )


def bits_of(spec: QuantizerSpec, module: str, depth: int) -> int:
    """Returns the width of one module's codes.

    Args:
        spec: Mixed or not.
        module: Full name, e.g. ``model.layers.0.mlp.down_proj``.
        depth: Number of blocks.
    """
    parts = spec.options.get("wide_parts", ())
    block = re.search(r"\.(\d+)\.", module)
    ends = block is not None and int(block.group(1)) in (0, depth - 1)
    is_wide = (
        ("ends" in parts and ends)
        or ("attn" in parts and _ATTENTION.search(module) is not None)
        or ("down" in parts and module.endswith(_DOWN))
    )
    return int(spec.options["wide_bits"]) if is_wide else spec.bits


def width_remark(widths: Mapping[str, int]) -> str:
    """Returns what a proof says of the widths found, by module name."""
    found = sorted(Counter(widths.values()).items())
    return "; ".join(f"{count} of {len(widths)} layers have {bits} bits" for bits, count in found) + "."


# Part of every cell's key: raise it when any code could come out differently.
_VERSION = "1"

_NAME = re.compile(r"rtn-([2-8])bit-(?:g([1-9]\d{0,5})|row)(-sym)?(-mse|-f32)?")


_ENDINGS = MappingProxyType({
    "": ("", {}),
    "-mse": (", range of least squared error", {"clip": "mse"}),
    "-f32": (", float32 scales", {"scales": "float32"}),
})  # fmt: skip


def _spec(bits: int, group_size: int | None, symmetric: bool, ending: str = "") -> QuantizerSpec:
    more, options = _ENDINGS[ending]
    groups = "row" if group_size is None else f"g{group_size}"
    told = "per row" if group_size is None else f"group {group_size}"
    return QuantizerSpec(
        name=f"rtn-{bits}bit-{groups}{'-sym' if symmetric else ''}{ending}",
        backend="rtn",
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        label=f"RTN {bits}-bit, {told}, {'symmetric' if symmetric else 'asymmetric'}{more}",
        options=options,
    )


class RoundToNearest:
    """Round-to-nearest at 2 to 8 bits, any group size or per row, asymmetric or symmetric, clipped or not."""

    backend = "rtn"
    deterministic = True
    install = install_line("score")
    impossible = MappingProxyType({1: "its two levels would be the ends of each group, far from most weights"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3 and 2 bits in groups of 128 and 64, asymmetric; clipped where clipping gains something."""
        plain = tuple(_spec(bits, group, False) for bits in (8, 4, 3, 2) for group in (128, 64))
        return (*plain, *(_spec(bits, 128, False, "-mse") for bits in (4, 3, 2)))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``rtn-{2..8}bit-g{N}`` or ``-row``, then ``-sym``, then ``-mse`` or ``-f32``.

        Two widths in one model have names such as ``rtn-mixed-3bit-g64-8bit-ends-down``.
        """
        told = _NAME.fullmatch(name)
        if told is None:
            return parse_mixed(name)
        bits, group, symmetric, ending = told.groups()
        return _spec(int(bits), int(group) if group else None, symmetric is not None, ending or "")

    def library_version(self) -> str | None:
        """Returns the version of our own rounding."""
        return _VERSION

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: torch or transformers is not installed."""
        return missing_reason(spec.name, ("torch", "transformers"), extra="score")

    def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
        """Returns one layer rounded, and what its codes and scales say.

        Raises:
            QuantizationError: The layer can't be rounded.
        """
        from harness.quantize.formats.codes import ReadBack

        rounded: Callable[..., Grid] = round_to_grid
        if spec.options.get("clip") == "mse":
            rounded = round_to_clipped_grid
        elif spec.options.get("scales") == "float32":
            rounded = partial(round_to_grid, wide_scales=True)
        bits = bits_of(spec, name, depth)
        grid = rounded(weight.cpu(), bits=bits, group_size=spec.group_size, symmetric=bool(spec.symmetric))
        read = ReadBack(
            codes=grid.codes,
            scales=grid.scales,
            zeros=None if grid.symmetric else grid.zeros,
            offset=2 ** (bits - 1),
            bits=bits,
            group_size=spec.group_size,
            step=grid.step,
        )
        return read, read.dequantize()

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint rounded layer by layer.

        Raises:
            QuantizationError: A layer can't be rounded, or the proof fails.
        """
        from harness.quantize.models.dense import block_linears, depth_in
        from harness.quantize.runners.layerwise import quantize_layers

        mixed = "wide_parts" in spec.options
        # Rounded from the weights as they are: a few of a 16-bit model's may be wider.
        made = quantize_layers(checkpoint, spec, self, device=device, any_bits=mixed, in_its_dtype=False)
        if not mixed or made.proof is None:
            return made
        names, depth = block_linears(made.model), depth_in(made.model.config)
        told = width_remark({name: bits_of(spec, name, depth) for name in names})
        return replace(made, proof=replace(made.proof, remarks=(told, *made.proof.remarks)))


BACKEND = RoundToNearest()
