"""GPTQ's storage format, read without any library: packed codes, zero points, act-order.

Each linear layer is stored as ``qweight`` (int32, codes along the rows),
``qzeros`` (int32, zero points along the columns), ``scales`` and, where columns
were reordered, ``g_idx``. AutoGPTQ, gptqmodel and AutoRound write it, and so do
gptqmodel's plain rounding and its v2 variant, which differ in one constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.codes import ReadBack

WORD = 32
"""Bits of the integers that codes are packed into."""

WIDTHS = (2, 3, 4, 8)
"""Bits per code that the format has a layout for."""


# AutoRound's own name stands for the second variant.
_LAYOUTS = {
    "gptq": "gptq", "auto_gptq": "gptq", "auto_round:gptq": "gptq", "auto_round:auto_gptq": "gptq",
    "gptq_v2": "gptq_v2", "auto_round": "gptq_v2", "auto_round:gptq_v2": "gptq_v2", "auto_round:auto_round": "gptq_v2",
}  # fmt: skip


def stated(config: Mapping[str, Any], *names: str, default: Any) -> Any:
    """Returns what a config says under names that mean the same: text in small letters, AutoRound's words as GPTQ's.

    Raises:
        QuantizationError: Two of them contradict each other.
    """
    told = {name: config[name] for name in names if not (config.get(name) in (None, "") or config[name] is False)}
    values = {
        _LAYOUTS.get(value.lower(), value.lower()) if isinstance(value, str) else value for value in told.values()
    }
    if len(values) > 1:
        said = " and ".join(f"{name} {value!r}" for name, value in told.items())
        raise QuantizationError(f"The quantization_config says {said}, which contradict each other: keep one.")
    return values.pop() if values else default


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqFormat:
    """What a checkpoint's config says about its packed layers.

    Attributes:
        bits: Bits per code.
        group_size: Columns that share a scale; None means all of a row.
        symmetric: Whether the config calls it symmetric.
        reordered: Whether columns were quantized in another order (act-order).
        zero_is_stored_less_one: The v1 convention; v2 stores zero points as
            they are.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    reordered: bool
    zero_is_stored_less_one: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GptqFormat:
        """Returns the format that a ``quantization_config`` describes.

        Raises:
            QuantizationError: It describes another format, or a variant that
                this reader has no layout for.
        """
        method = str(config.get("quant_method", "gptq")).lower()
        packing = str(stated(config, "packing_format", "checkpoint_format", "format", default="gptq"))
        if method not in ("gptq", "auto-round", "intel/auto-round") or packing not in _LAYOUTS.values():
            raise QuantizationError(
                f"A checkpoint of method {method!r} in format {packing!r} isn't GPTQ's: "
                "formats gptq and gptq_v2 are read."
            )
        bits, group = config.get("bits"), config.get("group_size", -1)
        if bits not in WIDTHS or isinstance(bits, bool):
            raise QuantizationError(
                f"GPTQ codes of {bits!r} bits can't be unpacked: "
                f"layouts of {', '.join(map(str, WIDTHS))} bits are read."
            )
        if isinstance(group, bool) or not isinstance(group, int) or (group < 1 and group != -1):
            raise QuantizationError(
                f"GPTQ's group_size {group!r} can't be used: it is a positive number, or -1 per row."
            )
        word = str(config.get("pack_dtype") or "int32").rsplit(".", 1)[-1]
        if word != "int32":
            raise QuantizationError(f"GPTQ codes packed into {word} can't be unpacked: only int32 words are read.")
        return cls(
            bits=bits,
            group_size=None if group == -1 else group,
            symmetric=bool(config.get("sym", True)),
            reordered=bool(config.get("desc_act", False)),
            zero_is_stored_less_one=packing == "gptq",
        )


def unpack_words(words: Any, bits: int) -> Any:
    """Returns the codes that were packed along the first axis of ``words``.

    One column is one stream of bits, lowest first; codes of 3 bits run on from
    one word into the next, 32 of them in three words.

    Args:
        words: torch.int32 [n, columns].
        bits: Bits per code.

    Returns:
        torch.uint8 [n * 32 / bits, columns].

    Raises:
        QuantizationError: The words can't hold a whole number of codes.
    """
    import torch

    if words.dim() != 2 or words.dtype != torch.int32:
        raise QuantizationError(
            f"Packed codes of type {words.dtype} and shape {tuple(words.shape)} can't be unpacked: "
            "a matrix of int32 words is needed."
        )
    count, columns = words.shape
    if count * WORD % bits:
        raise QuantizationError(f"{count} words of {WORD} bits don't hold a whole number of codes of {bits} bits.")
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
        codes = (words[:, None] >> shifts[:, None]) & (2**bits - 1)
        return codes.to(torch.uint8).reshape(-1, columns)
    single = ((words[:, None] >> torch.arange(WORD, dtype=torch.int32)[:, None]) & 1).to(torch.uint8)
    single = single.reshape(-1, bits, columns)
    return (single << torch.arange(bits, dtype=torch.uint8)[:, None]).sum(dim=1, dtype=torch.uint8)


def _group_index(given: Any, width: int, layout: GptqFormat, name: str) -> Any:
    """Returns the group of each column, None where groups are simply neighbours.

    Raises:
        QuantizationError: ``g_idx`` spreads columns over groups in a way that
            no group size explains.
    """
    import torch

    if given is None or layout.group_size is None:
        return None
    index = given.detach().cpu().long()
    size = layout.group_size
    neighbours = torch.arange(width) // size
    if index.shape != neighbours.shape or not torch.equal(index.sort().values, neighbours):
        raise QuantizationError(
            f"{name}.g_idx does not share out {width} columns into groups of {size}: this checkpoint is damaged, or "
            "its config is another one's."
        )
    return None if torch.equal(index, neighbours) else index


def unpack_layer(tensors: Mapping[str, Any], layout: GptqFormat, *, name: str = "layer") -> ReadBack:
    """Returns one linear layer as codes, scales and zero points.

    The dequantized weight is rounded to the dtype of the scales, as the
    libraries that run this format do.

    Args:
        tensors: ``qweight`` [in * bits / 32, out], ``qzeros``
            [groups, out * bits / 32], ``scales`` [groups, out] and perhaps
            ``g_idx`` [in].
        layout: What the config says.
        name: Module name, for messages.

    Raises:
        QuantizationError: Tensors are missing or don't fit together.

    Source: AutoGPTQ's ``qlinear_cuda_old.py`` (``pack``, ``forward``) and
        gptqmodel's ``convert_gptq_v1_to_v2_format`` for the constant between
        the variants.
    Differs from the reference: a v1 zero point that was stored as -1 is read
        as ``2**bits``, as AutoGPTQ's kernels do, not wrapped around to 0.
    """
    import torch

    missing = [key for key in ("qweight", "qzeros", "scales") if key not in tensors]
    if missing:
        raise QuantizationError(f"{name} lacks {', '.join(missing)}: a GPTQ layer has qweight, qzeros and scales.")
    codes = unpack_words(tensors["qweight"].detach().cpu(), layout.bits).T.contiguous()
    scales = tensors["scales"].detach().cpu().T.contiguous()
    rows, width = codes.shape
    groups = -(-width // (layout.group_size or width))
    if scales.shape != (rows, groups):
        raise QuantizationError(
            f"{name}.scales are for {scales.shape[1]} groups of {scales.shape[0]} rows, and {rows} rows of {width} "
            f"columns in groups of {layout.group_size or 'one row'} have {groups}."
        )
    zeros = unpack_words(tensors["qzeros"].detach().cpu().T.contiguous(), layout.bits)
    # The last word may be part empty where the rows don't fill it.
    zeros = zeros[:rows].to(torch.int16) + int(layout.zero_is_stored_less_one)
    if zeros.shape != scales.shape:
        raise QuantizationError(f"{name}.qzeros have shape {tuple(zeros.shape)}, and its scales {tuple(scales.shape)}.")
    return ReadBack(
        codes=codes,
        scales=scales,
        zeros=zeros,
        bits=layout.bits,
        group_size=layout.group_size,
        rounded_to=None if scales.dtype == torch.float32 else str(scales.dtype).removeprefix("torch."),
        group_index=_group_index(tensors.get("g_idx"), width, layout, name),
        step=float(scales.double().abs().mean()),
    )
