"""Packs codes into a bit stream: the bytes that a model's codes really take.

Codes of 1 to 8 bits are laid end to end, lowest bit first, with no padding
between them; only the last byte may be part empty. So ``packed_size`` is the
smallest whole number of bytes that holds the codes, whatever the bit width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.errors import QuantizationError

MIN_BITS, MAX_BITS = 1, 8

# A multiple of 8 codes fills whole bytes at every width, so chunks can be joined.
_CHUNK = 1 << 22


def check_bits(bits: int, *, least: int = MIN_BITS) -> None:
    """Refuses a bit width that no code here can have.

    Raises:
        QuantizationError: ``bits`` is not a whole number from ``least`` to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= MAX_BITS:
        raise QuantizationError(f"Codes of {bits!r} bits can't be made: use a whole number from {least} to {MAX_BITS}.")


def packed_size(count: int, bits: int) -> int:
    """Returns the bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack_chunks(codes: Any, bits: int) -> Iterator[bytes]:
    """Yields the bit stream of ``codes`` piece by piece, in bounded memory.

    Args:
        codes: torch.uint8 tensor of any shape, read in row-major order.
        bits: Width of one code, 1 to 8.

    Raises:
        QuantizationError: A code doesn't fit into ``bits`` bits.
    """
    import numpy

    check_bits(bits)
    flat = codes.contiguous().view(-1).numpy()
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        largest = int(chunk.max())
        if largest >= 1 << bits:
            raise QuantizationError(
                f"Code {largest} doesn't fit into {bits} bits: codes run from 0 to {(1 << bits) - 1}."
            )
        if bits == MAX_BITS:
            yield chunk.tobytes()
        else:
            single = numpy.unpackbits(chunk[:, None], axis=1, count=bits, bitorder="little")
            yield numpy.packbits(single.reshape(-1), bitorder="little").tobytes()


def pack(codes: Any, bits: int) -> bytes:
    """Returns ``codes`` as one bit stream of ``packed_size`` bytes.

    Raises:
        QuantizationError: A code doesn't fit into ``bits`` bits.
    """
    return b"".join(pack_chunks(codes, bits))


def unpack(stream: bytes, bits: int, shape: tuple[int, ...]) -> Any:
    """Returns the torch.uint8 codes of ``shape`` that ``pack`` laid into ``stream``.

    Raises:
        QuantizationError: The stream is too short or too long for ``shape``.
    """
    import math

    import numpy
    import torch

    check_bits(bits)
    count = math.prod(shape)
    if len(stream) != packed_size(count, bits):
        raise QuantizationError(
            f"{len(stream)} bytes aren't {count} codes of {bits} bits: those take {packed_size(count, bits)} bytes."
        )
    single = numpy.unpackbits(numpy.frombuffer(stream, dtype=numpy.uint8), count=count * bits, bitorder="little")
    codes = numpy.packbits(single.reshape(count, bits), axis=1, bitorder="little")
    return torch.from_numpy(codes.reshape(shape))
