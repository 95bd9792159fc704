"""GGUF's plain types, taken apart by our own arithmetic: blocks of 32 weights with one scale each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import QuantizationError

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

BLOCK = 32

TYPES = {"Q8_0": (8, True), "Q5_1": (5, False), "Q5_0": (5, True), "Q4_1": (4, False), "Q4_0": (4, True)}
"""Bits and symmetry by GGML type."""


def _halves(raw: Any) -> Any:
    """Returns the low and then the high halves of packed bytes [blocks, 16] as codes [blocks, 32]."""
    import numpy

    return numpy.concatenate([raw & 15, raw >> 4], axis=1)


def read_blocks(blocks: Any, kind: str, shape: tuple[int, int]) -> ReadBack:
    """Returns one tensor of a GGUF file as codes, scales and shifts.

    A block is a float16 scale, for the types ``_1`` a float16 minimum, for
    5 bits a word with the fifth bits, and then the codes.

    Args:
        blocks: numpy.uint8 array of whole blocks, in any shape.
        kind: GGML type, e.g. ``Q4_0``.
        shape: Rows and columns of the weight.

    Raises:
        QuantizationError: The bytes are not that many blocks.

    Source: ``block_q4_0`` to ``block_q8_0`` in ggml's ``ggml-common.h``.
    """
    import numpy
    import torch

    from harness.quantize.formats.codes import ReadBack

    bits, symmetric = TYPES[kind]
    head, rows = (2 if symmetric else 4), shape[0]
    size = head + (4 if bits == 5 else 0) + (BLOCK if bits == 8 else BLOCK // 2)
    if blocks.size % size or blocks.size // size * BLOCK != shape[0] * shape[1]:
        raise QuantizationError(
            f"{blocks.size} bytes aren't a {kind} tensor of {shape[0]} x {shape[1]}: its blocks of {BLOCK} take {size}."
        )
    raw = numpy.ascontiguousarray(blocks).reshape(-1, size)
    numbers = raw[:, :head].copy().view(numpy.float16).astype(numpy.float32)
    codes: Any
    if bits == 8:
        codes = (raw[:, head:].view(numpy.int8).astype(numpy.int16) + 128).astype(numpy.uint8)
    else:
        codes = _halves(raw[:, size - BLOCK // 2 :])
    if bits == 5:
        fifth = numpy.unpackbits(raw[:, head : head + 4], axis=1, bitorder="little")
        codes |= fifth << 4
    scales = torch.from_numpy(numbers[:, 0].reshape(rows, -1).copy()).half()
    return ReadBack(
        codes=torch.from_numpy(codes.reshape(shape).copy()),
        scales=scales,
        offset=2 ** (bits - 1) if symmetric else 0,
        shifts=None if symmetric else torch.from_numpy(numbers[:, 1].reshape(rows, -1).copy()).half(),
        bits=bits,
        group_size=BLOCK,
        step=float(scales.double().abs().mean()),
    )
