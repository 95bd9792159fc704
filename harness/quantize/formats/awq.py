"""AWQ's storage format (GEMM), read without any library: eight codes a word, interleaved.

Each linear layer is stored as ``qweight`` [in, out / 8] and ``qzeros``
[groups, out / 8], both int32 with eight 4-bit codes in the order that AWQ's
kernel wants them, and ``scales`` [groups, out]. AutoAWQ and gptqmodel write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.codes import ReadBack
from harness.quantize.formats.gptq import stated

BITS = 4

PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, within its eight, of the code in each place of a word, from the lowest place up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqFormat:
    """What a checkpoint's config says about its packed layers.

    Attributes:
        group_size: Columns that share a scale; None means all of a row.
        symmetric: Whether zero points are the middle code throughout.
    """

    group_size: int | None
    symmetric: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AwqFormat:
        """Returns the format that a ``quantization_config`` describes.

        Raises:
            QuantizationError: It describes another format, or a variant that
                this reader has no layout for.
        """
        method = str(config.get("quant_method", "awq")).lower()
        version = stated(config, "version", "checkpoint_format", "format", default="gemm")
        if method != "awq" or version != "gemm":
            raise QuantizationError(
                f"A checkpoint of method {method!r} in version {version!r} isn't AWQ's GEMM format, which is the one "
                "that is read: save it with version GEMM."
            )
        bits = stated(config, "bits", "w_bit", default=BITS)
        if bits != BITS:
            raise QuantizationError(f"AWQ codes of {bits!r} bits can't be unpacked: the GEMM layout has 4 bits.")
        group = stated(config, "group_size", "q_group_size", default=128)
        if isinstance(group, bool) or not isinstance(group, int) or (group < 1 and group != -1):
            raise QuantizationError(
                f"AWQ's group_size {group!r} can't be used: it is a positive number, or -1 per row."
            )
        zero_point = config.get("zero_point", not config.get("sym", False))
        return cls(group_size=None if group == -1 else group, symmetric=not zero_point)


def unpack_words(words: Any) -> Any:
    """Returns the codes of ``words``, put back into the order of the columns.

    Args:
        words: torch.int32 [n, columns / 8].

    Returns:
        torch.uint8 [n, columns].

    Raises:
        QuantizationError: It is no matrix of int32 words.
    """
    import torch

    if words.dim() != 2 or words.dtype != torch.int32:
        raise QuantizationError(
            f"Packed codes of type {words.dtype} and shape {tuple(words.shape)} can't be unpacked: "
            "a matrix of int32 words is needed."
        )
    places = (words[:, :, None] >> torch.arange(0, 32, BITS, dtype=torch.int32)) & (2**BITS - 1)
    in_order = torch.empty_like(places, dtype=torch.uint8)
    in_order[:, :, list(PACK_ORDER)] = places.to(torch.uint8)
    return in_order.reshape(words.shape[0], -1)


def unpack_layer(tensors: Mapping[str, Any], layout: AwqFormat, *, name: str = "layer") -> ReadBack:
    """Returns one linear layer as codes, scales and zero points.

    The dequantized weight is rounded to the dtype of the scales, as the
    libraries that run this format do. Norms and neighbouring layers are
    rescaled by AWQ, so these codes fit the other tensors of the same
    checkpoint and no others.

    Args:
        tensors: ``qweight`` [in, out / 8], ``qzeros`` [groups, out / 8] and
            ``scales`` [groups, out].
        layout: What the config says.
        name: Module name, for messages.

    Raises:
        QuantizationError: Tensors are missing or don't fit together.

    Source: AutoAWQ's ``packing_utils.py`` and ``WQLinear_GEMM.from_linear``.
    """
    import torch

    missing = [key for key in ("qweight", "qzeros", "scales") if key not in tensors]
    if missing:
        raise QuantizationError(f"{name} lacks {', '.join(missing)}: an AWQ layer has qweight, qzeros and scales.")
    codes = unpack_words(tensors["qweight"].detach().cpu()).T.contiguous()
    zeros = unpack_words(tensors["qzeros"].detach().cpu()).T.contiguous()
    scales = tensors["scales"].detach().cpu().T.contiguous()
    rows, width = codes.shape
    groups = -(-width // (layout.group_size or width))
    if not scales.shape == zeros.shape == (rows, groups):
        raise QuantizationError(
            f"{name} has {codes.shape[0]} rows of {width} columns, so {groups} groups a row; its scales are of shape "
            f"{tuple(scales.shape)} and its zero points of {tuple(zeros.shape)}."
        )
    return ReadBack(
        codes=codes,
        scales=scales,
        zeros=zeros,
        bits=BITS,
        group_size=layout.group_size,
        rounded_to=None if scales.dtype == torch.float32 else str(scales.dtype).removeprefix("torch."),
        step=float(scales.double().abs().mean()),
    )
