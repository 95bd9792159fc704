"""K-quants, taken apart by our own arithmetic: super-blocks of 256 weights whose scales are themselves in 4 or 6 bits.

A super-block has one float16 scale (and for three types one float16 for the
minima), small integers that multiply it for each 16 or 32 weights, and codes.
"""

from __future__ import annotations

from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.codes import ReadBack

SUPER_BLOCK = 256

TYPES = {"Q2_K": (2, 16, 84), "Q3_K": (3, 16, 110), "Q4_K": (4, 32, 144), "Q5_K": (5, 32, 176), "Q6_K": (6, 16, 210)}
"""Bits per code, weights that share a scale, and bytes of a super-block, by GGML type."""

_SHIFTED = frozenset({"Q2_K", "Q4_K", "Q5_K"})


def read_blocks(blocks: Any, kind: str, shape: tuple[int, int]) -> ReadBack:
    """Returns one tensor of a K-quant type as codes, scales and shifts.

    ``scales`` and ``shifts`` are the float32 products that ggml computes with;
    ``scale_bytes`` are the bytes they are stored in.

    Args:
        blocks: numpy.uint8 array of whole super-blocks, in any shape.
        kind: GGML type, e.g. ``Q4_K``.
        shape: Rows and columns of the weight.

    Raises:
        QuantizationError: The bytes are not that many super-blocks.

    Source: ``block_q2_K`` to ``block_q6_K`` in ggml's ``ggml-common.h`` and
        ``dequantize_row_q*_K`` in ``ggml-quants.c``.
    """
    import numpy
    import torch

    bits, group, size = TYPES[kind]
    rows, width = shape
    if width % SUPER_BLOCK or blocks.size != rows * width // SUPER_BLOCK * size:
        raise QuantizationError(
            f"{blocks.size} bytes aren't a {kind} tensor of {rows} x {width}: its super-blocks of {SUPER_BLOCK} take "
            f"{size}."
        )
    raw = numpy.ascontiguousarray(blocks).reshape(-1, size)
    codes, scales, shifts = _PARTS[kind](raw)
    steps = torch.from_numpy(scales.reshape(rows, -1).copy())
    return ReadBack(
        codes=torch.from_numpy(codes.reshape(shape).copy()),
        scales=steps,
        shifts=None if shifts is None else torch.from_numpy(-shifts.reshape(rows, -1)),
        offset=0 if kind in _SHIFTED else 2 ** (bits - 1),
        bits=bits,
        group_size=group,
        scale_bytes=raw.shape[0] * (size - SUPER_BLOCK * bits // 8),
        step=float(steps.double().abs().mean()),
    )


def _half(raw: Any, start: int) -> Any:
    """Returns the float16 at byte ``start`` of each block as float32 [blocks, 1]."""
    import numpy

    return raw[:, start : start + 2].copy().view(numpy.float16).astype(numpy.float32)


def _planes(raw: Any, run: int, bits: int) -> Any:
    """Returns codes of ``bits`` bits, of which byte i of each ``run`` bytes holds the i-th of every plane in turn."""
    import numpy

    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)
    parts = (raw.reshape(raw.shape[0], -1, 1, run) >> shifts[:, None]) & numpy.uint8(2**bits - 1)
    return parts.reshape(raw.shape[0], -1)


def _six_bit_pairs(raw: Any) -> tuple[Any, Any]:
    """Returns the eight 6-bit scales and eight 6-bit minima that 12 bytes hold."""
    import numpy

    first, second, high = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = numpy.concatenate([first & 63, (high & 15) | (first >> 6 << 4)], axis=1)
    minima = numpy.concatenate([second & 63, (high >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def _q2_k(raw: Any) -> tuple[Any, Any, Any]:
    packed = raw[:, :16]
    return _planes(raw[:, 16:80], 32, 2), _half(raw, 80) * (packed & 15), _half(raw, 82) * (packed >> 4)


def _q3_k(raw: Any) -> tuple[Any, Any, Any]:
    import numpy

    codes = _planes(raw[:, 32:96], 32, 2) | _planes(raw[:, :32], 32, 1) << 2
    low = numpy.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=1)
    factors = (low | _planes(raw[:, 104:108], 4, 2) << 4).astype(numpy.int8) - numpy.int8(32)
    return codes, _half(raw, 108) * factors, None


def _q4_k(raw: Any) -> tuple[Any, Any, Any]:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    return _planes(raw[:, 16:144], 32, 4), _half(raw, 0) * scales, _half(raw, 2) * minima


def _q5_k(raw: Any) -> tuple[Any, Any, Any]:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    codes = _planes(raw[:, 48:176], 32, 4) | _planes(raw[:, 16:48], 32, 1) << 4
    return codes, _half(raw, 0) * scales, _half(raw, 2) * minima


def _q6_k(raw: Any) -> tuple[Any, Any, Any]:
    import numpy

    codes = _planes(raw[:, :128], 64, 4) | _planes(raw[:, 128:192], 32, 2) << 4
    return codes, _half(raw, 208) * raw[:, 192:208].view(numpy.int8), None


_PARTS = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
