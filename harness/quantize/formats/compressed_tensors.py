"""compressed-tensors' storage formats of integers, read without the library: packed words and plain int8.

``pack-quantized`` stores a layer as ``weight_packed`` (int32, a stream of codes
along each row), ``weight_scale``, ``weight_shape`` and perhaps
``weight_zero_point`` and ``weight_g_idx``; ``int-quantized`` and
``naive-quantized`` store ``weight`` as int8 with ``weight_scale`` beside it.
llm-compressor writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.codes import ReadBack
from harness.quantize.formats.gptq import unpack_words

KEY = re.compile(r"(?P<module>.+)\.(?P<part>weight_(?:packed|scale|zero_point|shape|g_idx))")
"""Names of the tensors that only a packed layer has, beside a plain layout's ``weight``."""

PACKED, PLAIN = "pack-quantized", ("int-quantized", "naive-quantized")

WIDTHS = (2, 4, 8)
"""Bits per packed code: versions of the library lay other widths out in two ways."""

_STRATEGIES = ("group", "channel", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedFormat:
    """What a checkpoint's config says about its packed layers.

    Attributes:
        bits: Bits per code.
        group_size: Columns that share a scale; None means one row.
        one_scale: Whether the whole matrix has one scale.
        symmetric: Whether 0 has the middle code throughout.
        packed: Whether codes are packed into words.
        rounds_activations: Whether the shipped model also rounds activations
            at run time.
    """

    bits: int
    group_size: int | None
    one_scale: bool
    symmetric: bool
    packed: bool
    rounds_activations: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedFormat:
        """Returns the format that a ``quantization_config`` describes.

        Raises:
            QuantizationError: Another format, groups with other settings, or a
                variant that this reader has no layout for.
        """
        groups = list((config.get("config_groups") or {}).values())
        if not groups or not all(isinstance(each, dict) and isinstance(each.get("weights"), dict) for each in groups):
            raise QuantizationError(
                f"A compressed-tensors config with {len(groups)} config_groups can't be read: each needs `weights`."
            )
        keys = ("num_bits", "type", "symmetric", "group_size", "strategy")
        alike = {(each.get("format"), *(str(each["weights"].get(key)) for key in keys)) for each in groups}
        if len(alike) > 1:
            raise QuantizationError("compressed-tensors config_groups that differ can't be read: layers must be alike.")
        weights = groups[0]["weights"]
        told = str(groups[0].get("format") or config.get("format")).lower()
        bits, kind, size = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("group_size")
        strategy = weights.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
        if told != PACKED and told not in PLAIN:
            raise QuantizationError(
                f"compressed-tensors in format {told!r} can't be read: {PACKED}, {' and '.join(PLAIN)} are."
            )
        if kind != "int" or isinstance(bits, bool) or bits not in (WIDTHS if told == PACKED else range(2, 9)):
            raise QuantizationError(
                f"compressed-tensors codes of {bits!r} bits and type {kind!r} can't be read: integers of "
                f"{', '.join(map(str, WIDTHS))} bits are."
            )
        if strategy not in _STRATEGIES or (strategy == "group" and (not isinstance(size, int) or size < 1)):
            raise QuantizationError(
                f"compressed-tensors scales by {strategy!r} of {size!r} can't be read: {', '.join(_STRATEGIES)} are."
            )
        return cls(
            bits=bits,
            group_size=size if strategy == "group" else None,
            one_scale=strategy == "tensor",
            symmetric=bool(weights.get("symmetric", True)),
            packed=told == PACKED,
            rounds_activations=any(each.get("input_activations") is not None for each in groups),
        )


def unpack_layer(tensors: Mapping[str, Any], layout: CompressedFormat, *, name: str = "layer") -> ReadBack:
    """Returns one linear layer as codes, scales and zero points.

    The dequantized weight is rounded to the dtype of the scales, as the
    library does.

    Args:
        tensors: What the layer is stored as, by the part of the name after
            the module's.
        layout: What the config says.
        name: Module name, for messages.

    Raises:
        QuantizationError: Tensors are missing or don't fit together.

    Source: ``pack_quantized/helpers.py``, ``naive_quantized/base.py`` and
        ``forward_helpers._dequantize`` of compressed-tensors at ac8e2ba.
    """
    import torch

    needed = ["weight_scale", *(["weight_packed", "weight_shape"] if layout.packed else ["weight"])]
    needed += [] if layout.symmetric else ["weight_zero_point"]
    missing = [part for part in needed if part not in tensors]
    if missing:
        raise QuantizationError(f"{name} lacks {', '.join(missing)}: its compressed-tensors format needs it.")
    codes = _packed_codes(tensors, layout.bits, name) if layout.packed else _plain_codes(tensors, layout.bits, name)
    rows, width = codes.shape
    groups = -(-width // (layout.group_size or width))
    scales, scale_bytes = tensors["weight_scale"], None
    if layout.one_scale and scales.numel() == 1:
        scale_bytes = int(scales.element_size())
        scales = scales.reshape(1, 1).expand(rows, 1).contiguous()
    if scales.shape != (rows, groups) or not scales.is_floating_point():
        raise QuantizationError(
            f"{name}.weight_scale is {scales.dtype} of shape {tuple(scales.shape)}, and {rows} rows of {width} columns "
            f"in groups of {layout.group_size or 'one row'} need {(rows, groups)}."
        )
    return ReadBack(
        codes=codes,
        scales=scales,
        scale_bytes=scale_bytes,
        zeros=None if layout.symmetric else _zeros(tensors["weight_zero_point"], layout, rows, groups, name),
        offset=2 ** (layout.bits - 1),
        bits=layout.bits,
        group_size=layout.group_size,
        rounded_to=None if scales.dtype == torch.float32 else str(scales.dtype).removeprefix("torch."),
        group_index=_group_index(tensors.get("weight_g_idx"), width, layout.group_size, name),
        step=float(scales.double().abs().mean()),
    )


def _packed_codes(tensors: Mapping[str, Any], bits: int, name: str) -> Any:
    """Returns the codes of packed rows, cut to the width that ``weight_shape`` says."""
    words, told = tensors["weight_packed"], tensors["weight_shape"].reshape(-1).tolist()
    if len(told) != 2 or words.dim() != 2 or words.shape[0] != told[0] or words.shape[1] != -(-told[1] * bits // 32):
        raise QuantizationError(
            f"{name}.weight_packed has shape {tuple(words.shape)}, and {told} weights of {bits} bits don't fill it."
        )
    return unpack_words(words.T.contiguous(), bits)[: told[1]].T.contiguous()


def _plain_codes(tensors: Mapping[str, Any], bits: int, name: str) -> Any:
    """Returns int8 numbers as codes from 0 on."""
    import torch

    weight, middle = tensors["weight"], 2 ** (bits - 1)
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise QuantizationError(f"{name}.weight is {weight.dtype} of shape {tuple(weight.shape)}, no matrix of int8.")
    shifted = weight.to(torch.int16) + middle
    if int(shifted.min()) < 0 or int(shifted.max()) >= 2 * middle:
        raise QuantizationError(f"{name}.weight holds numbers that {bits} bits can't express.")
    return shifted.to(torch.uint8)


def _zeros(stored: Any, layout: CompressedFormat, rows: int, groups: int, name: str) -> Any:
    """Returns zero points [rows, groups] as codes; they are packed down the columns, or plain int8."""
    import torch

    middle = 2 ** (layout.bits - 1)
    if stored.dtype == torch.int32 and stored.dim() == 2:
        zeros = unpack_words(stored, layout.bits)[:rows].to(torch.int16)
    else:
        zeros = stored.to(torch.int16) + middle
        zeros = zeros.reshape(1, 1).expand(rows, 1) if layout.one_scale and zeros.numel() == 1 else zeros
    if zeros.shape != (rows, groups):
        raise QuantizationError(f"{name}.weight_zero_point has shape {tuple(stored.shape)}, no zero for each scale.")
    return zeros.contiguous()


def _group_index(given: Any, width: int, size: int | None, name: str) -> Any:
    """Returns the group of each column, None where groups are neighbours; -1 stands for no order."""
    import torch

    if given is None or size is None or bool((given == -1).any()):
        return None
    index, neighbours = given.long(), torch.arange(width) // size
    if index.shape != neighbours.shape or not torch.equal(index.sort().values, neighbours):
        raise QuantizationError(f"{name}.weight_g_idx does not share out {width} columns into groups of {size}.")
    return None if torch.equal(index, neighbours) else index
