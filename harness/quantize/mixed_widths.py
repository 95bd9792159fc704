"""Round to nearest with two widths in one model: some modules in more bits than the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from harness.records import QuantizerSpec

PARTS: Mapping[str, str] = {
    "ends": "the first and the last block",
    "attn": "attention",
    "down": "down projections",
}
"""What may be wider: word in the name, and what it stands for."""

_NAME = re.compile(r"rtn-mixed-([2-8])bit-g([1-9]\d{0,5})-([3-8])bit((?:-(?:ends|attn|down))+)")
_ATTENTION = re.compile(r"\.(self_attn|self_attention|attention|attn)\.")
_DOWN = ("down_proj", "dense_4h_to_h", "fc2")


def parse(name: str) -> QuantizerSpec | None:
    """Returns the spec of ``rtn-mixed-3bit-g64-8bit-ends-down``: 3 bits, and 8 in the parts named.

    Parts stand in the order of ``PARTS``, each once, so that one way to
    quantize has one name. ``bits`` of the spec are those of the rest.
    """
    told = _NAME.fullmatch(name)
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


def remark(widths: Mapping[str, int]) -> str:
    """Returns what a proof says of the widths found, by module name."""
    found = sorted(Counter(widths.values()).items())
    return "; ".join(f"{count} of {len(widths)} layers have {bits} bits" for bits, count in found) + "."
