"""bitsandbytes' storage format, read without the library: 4-bit code books, their nested scales, and int8 rows.

transformers saves a 4-bit layer as ``weight`` (two codes a byte),
``weight.absmax``, ``weight.quant_map`` and ``weight.quant_state.bitsandbytes__nf4``
(JSON as bytes), with ``weight.nested_absmax`` and ``weight.nested_quant_map`` where
the scales are themselves in 8 bit; an int8 layer as ``weight`` and ``SCB``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.codes import ReadBack

KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)"
    r"|SCB|weight_format)"
)
"""Names of the tensors that only a packed layer has, beside its ``weight``."""

_BOOKS = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__"
_DTYPES = ("bfloat16", "float16", "float32")
_MOST_STATE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BnbFormat:
    """What a checkpoint's config says about its packed layers.

    Attributes:
        bits: 4 or 8.
        book: ``nf4`` or ``fp4``; None for int8.
    """

    bits: int
    book: str | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BnbFormat:
        """Returns the format that a ``quantization_config`` describes.

        Raises:
            QuantizationError: Neither or both widths, another code book, or
                codes stored in other than bytes.
        """
        four, eight = (bool(config.get(f"load_in_{n}bit") or config.get(f"_load_in_{n}bit")) for n in (4, 8))
        if four == eight:
            raise QuantizationError("A bitsandbytes config must say load_in_4bit or load_in_8bit, and one of them.")
        if eight:
            return cls(bits=8, book=None)
        book = str(config.get("bnb_4bit_quant_type", "fp4")).lower()
        storage = str(config.get("bnb_4bit_quant_storage") or "uint8").rsplit(".", 1)[-1]
        if book not in _BOOKS:
            raise QuantizationError(f"bitsandbytes codes of {book!r} can't be read: {' and '.join(_BOOKS)} are.")
        if storage != "uint8":
            raise QuantizationError(f"bitsandbytes codes stored as {storage} can't be read: save them as uint8.")
        return cls(bits=4, book=book)


def nested_scales(codes: Any, scales: Any, book: Any, *, block: int, offset: Any) -> tuple[Any, int]:
    """Returns the block scales that an 8-bit code book stands for, and the bytes that they take.

    Args:
        codes: torch.uint8 [blocks].
        scales: torch.float32, one for each ``block`` of ``codes``.
        book: torch.float32 [256], levels by code.
        block: Codes that share a scale.
        offset: Mean of the block scales, which was taken off before.
    """
    wide = scales.repeat_interleave(block)[: codes.numel()]
    return book[codes.int()] * wide + offset, codes.numel() + 4 * scales.numel() + 4


def read_4bit(
    stream: Any, scales: Any, book: Any, *, shape: tuple[int, ...], block: int, dtype: str, scale_bytes: int | None
) -> ReadBack:
    """Returns a 4-bit weight: two codes a byte, the higher half first, one scale per block of the flat matrix.

    Args:
        stream: torch.uint8 of any shape.
        scales: torch.float32 [blocks].
        book: torch.float32 [16], levels by code.
        shape: Rows and columns.
        block: Weights that share a scale.
        dtype: What the library rounds dequantized weights to.
        scale_bytes: Bytes of the scales where they are nested.
    """
    import torch

    flat = stream.reshape(-1)
    codes = torch.stack([flat >> 4, flat & 15], dim=1).view(-1)[: math.prod(shape)]
    return ReadBack(
        codes=codes.view(shape).contiguous(), scales=scales, scale_bytes=scale_bytes, book=book, bits=4,
        group_size=block, flat=True, rounded_to=dtype,
    )  # fmt: skip


def read_int8(codes: Any, row_scales: Any) -> ReadBack:
    """Returns a row-wise int8 weight: value = code * row scale / 127.

    Args:
        codes: torch.int8 [out_features, in_features].
        row_scales: torch.float32 [out_features], the largest size in each row.
    """
    import torch

    scales = row_scales.float()[:, None] / 127
    return ReadBack(
        codes=(codes.to(torch.int16) + 128).to(torch.uint8), scales=scales, offset=128, bits=8, group_size=None,
        step=float(scales.double().mean()),
    )  # fmt: skip


def unpack_layer(tensors: Mapping[str, Any], layout: BnbFormat, *, name: str = "layer") -> ReadBack:
    """Returns one linear layer as codes, scales and code book.

    Args:
        tensors: What the layer is stored as, by the part of the name after
            the module's.
        layout: What the config says.
        name: Module name, for messages.

    Raises:
        QuantizationError: Tensors are missing, of another type, or don't fit
            together.

    Source: ``QuantState.from_dict`` and ``dequantize_4bit`` in bitsandbytes'
        ``functional.py``; ``Linear8bitLt._save_to_state_dict``.
    """
    import torch

    if layout.bits == 8:
        _need(tensors, ("weight", "SCB"), name)
        codes, rows = tensors["weight"], tensors["SCB"]
        if codes.dtype != torch.int8 or codes.dim() != 2 or rows.shape != codes.shape[:1]:
            raise QuantizationError(
                f"{name} has {_told(codes)} codes and {_told(rows)} row scales: int8 [rows, columns] and [rows] belong "
                "together."
            )
        return read_int8(codes, rows)
    _need(tensors, ("weight", "weight.absmax", "weight.quant_map", f"{_STATE}{layout.book}"), name)
    state = _state(tensors[f"{_STATE}{layout.book}"], name)
    shape, block, stream = tuple(state["shape"]), state["blocksize"], tensors["weight"]
    if stream.dtype != torch.uint8 or 2 * stream.numel() != math.prod(shape) + math.prod(shape) % 2:
        raise QuantizationError(f"{name} has {_told(stream)} codes, and its state says {math.prod(shape)} of 4 bits.")
    absmax, book = tensors["weight.absmax"].reshape(-1), tensors["weight.quant_map"].float()
    scale_bytes = None
    if absmax.dtype == torch.uint8:
        absmax, scale_bytes = _from_nested(tensors, state, absmax, name)
    if absmax.numel() != -(-math.prod(shape) // block) or book.numel() != 16:
        raise QuantizationError(
            f"{name} has {absmax.numel()} scales and {book.numel()} levels for {math.prod(shape)} weights in blocks of "
            f"{block}: a scale for each block and 16 levels are needed."
        )
    return read_4bit(
        stream, absmax.float(), book, shape=shape, block=block, dtype=state["dtype"], scale_bytes=scale_bytes
    )


def _from_nested(tensors: Mapping[str, Any], state: Mapping[str, Any], codes: Any, name: str) -> tuple[Any, int]:
    _need(tensors, ("weight.nested_absmax", "weight.nested_quant_map"), name)
    scales, book = tensors["weight.nested_absmax"].float(), tensors["weight.nested_quant_map"].float()
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if block is None or not _count(block) or not isinstance(offset, int | float) or isinstance(offset, bool):
        raise QuantizationError(f"{name}'s state lacks nested_blocksize and nested_offset, and its scales are nested.")
    if scales.numel() != -(-codes.numel() // block) or book.numel() != 256:
        raise QuantizationError(
            f"{name} has {scales.numel()} scales for {codes.numel()} nested ones in blocks of {block}, and "
            f"{book.numel()} levels: one for each block and 256 levels are needed."
        )
    import torch

    return nested_scales(codes, scales, book, block=block, offset=torch.tensor(float(offset)))


def _state(stored: Any, name: str) -> dict[str, Any]:
    """Returns the quantization state, checked: JSON in the bytes of a tensor."""
    if stored.numel() > _MOST_STATE:
        raise QuantizationError(f"{name}'s quant_state has {stored.numel()} bytes, and at most {_MOST_STATE} are read.")
    try:
        state = json.loads(bytes(stored.reshape(-1).tolist()))
    except ValueError as error:
        raise QuantizationError(f"{name}'s quant_state is no JSON: save the checkpoint anew.") from error
    shape = state.get("shape") if isinstance(state, dict) else None
    usable = isinstance(shape, list) and len(shape) == 2 and all(map(_count, shape)) and _count(state.get("blocksize"))
    if not usable or state.get("dtype") not in _DTYPES:
        raise QuantizationError(f"{name}'s quant_state lacks a usable shape, blocksize or dtype: save it anew.")
    return dict(state)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32


def _need(tensors: Mapping[str, Any], parts: tuple[str, ...], name: str) -> None:
    missing = [part for part in parts if part not in tensors]
    if missing:
        raise QuantizationError(f"{name} lacks {', '.join(missing)}: a bitsandbytes layer of its width needs it.")


def _told(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
