"""K-quants taken apart by our own arithmetic, against blocks packed by hand and against gguf-py."""

from __future__ import annotations

import struct

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_files import random_blocks

from harness.errors import QuantizationError
from harness.quantize.formats.ggml_k_blocks import TYPES, read_blocks

BYTES_PER_WEIGHT = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}


def six_bit_pairs(scales: list[int], minima: list[int]) -> bytes:
    """Twelve bytes by the format's definition: four low ones whole, the upper four split over two places."""
    first = bytes(scales[i] | (scales[i + 4] >> 4) << 6 for i in range(4))
    second = bytes(minima[i] | (minima[i + 4] >> 4) << 6 for i in range(4))
    return first + second + bytes((scales[i + 4] & 15) | (minima[i + 4] & 15) << 4 for i in range(4))


def q4_k(codes: list[int], scales: list[int], minima: list[int], scale: float, least: float) -> bytes:
    """Sixty-four codes in 32 bytes: the first 32 in the low halves, the next in the high ones."""
    body = b"".join(
        bytes(codes[start + i] | codes[start + 32 + i] << 4 for i in range(32)) for start in range(0, 256, 64)
    )
    return struct.pack("<ee", scale, least) + six_bit_pairs(scales, minima) + body


def q6_k(codes: list[int], factors: list[int], scale: float) -> bytes:
    low, high = bytearray(128), bytearray(64)
    for place, code in enumerate(codes):
        half, inside = divmod(place, 128)
        low[half * 64 + inside % 64] |= (code & 15) << 4 * (inside // 64)
        high[half * 32 + inside % 32] |= (code >> 4) << 2 * (inside // 32)
    return bytes(low) + bytes(high) + struct.pack("<16b", *factors) + struct.pack("<e", scale)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), rows=st.integers(1, 3), per_row=st.integers(1, 2))
def test_a_q4_k_block_packed_by_hand_comes_out_as_codes_scales_and_minima(seed: int, rows: int, per_row: int) -> None:
    source = numpy.random.default_rng(seed)
    count = rows * per_row
    codes, scales = source.integers(0, 16, (count, 256)), source.integers(0, 64, (count, 8))
    minima, halves = source.integers(0, 64, (count, 8)), source.uniform(-1, 1, (count, 2)).astype(numpy.float16)
    raw = b"".join(
        q4_k(codes[i].tolist(), scales[i].tolist(), minima[i].tolist(), *halves[i].tolist()) for i in range(count)
    )
    got = read_blocks(numpy.frombuffer(raw, dtype=numpy.uint8), "Q4_K", (rows, per_row * 256))
    assert torch.equal(got.codes, torch.from_numpy(codes.reshape(rows, -1)).to(torch.uint8))
    wide = halves.astype(numpy.float32)
    assert numpy.array_equal(got.scales.numpy().reshape(count, 8), wide[:, :1] * scales.astype(numpy.float32))
    assert numpy.array_equal(got.shifts.numpy().reshape(count, 8), -(wide[:, 1:] * minima.astype(numpy.float32)))
    assert got.symmetric is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999))
def test_a_q6_k_block_packed_by_hand_comes_out_as_signed_factors_around_the_middle_code(seed: int) -> None:
    source = numpy.random.default_rng(seed)
    codes, factors = source.integers(0, 64, 256), source.integers(-128, 128, 16)
    raw = numpy.frombuffer(q6_k(codes.tolist(), factors.tolist(), 0.125), dtype=numpy.uint8)
    got = read_blocks(raw, "Q6_K", (1, 256))
    assert got.codes.reshape(-1).tolist() == codes.tolist()
    assert got.scales.reshape(-1).tolist() == (0.125 * factors).tolist()
    assert got.symmetric is True
    assert torch.equal(got.dequantize()[0, :16], (got.codes[0, :16].float() - 32) * 0.125 * float(factors[0]))


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(TYPES)), rows=st.integers(1, 4), per_row=st.integers(1, 3), seed=st.integers(0, 999))
def test_any_bytes_mean_to_us_what_they_mean_to_gguf_py(kind: str, rows: int, per_row: int, seed: int) -> None:
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(kind, (rows, per_row * 256), numpy.random.default_rng(seed))
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    got = read_blocks(raw, kind, (rows, per_row * 256))
    assert numpy.array_equal(got.dequantize().numpy(), theirs)
    bits, group, size = TYPES[kind]
    assert (got.bits, got.group_size) == (bits, group)
    assert int(got.codes.max()) < 2**bits
    assert (size, 256) == tuple(reversed(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]))


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_bits_per_weight_are_those_of_the_stored_bytes(kind: str) -> None:
    raw = random_blocks(kind, (3, 512), numpy.random.default_rng(1))
    got = read_blocks(raw, kind, (3, 512))
    size = got.overhead_bytes + got.codes.numel() * got.bits // 8
    assert size == raw.size
    assert 8 * size / got.codes.numel() == BYTES_PER_WEIGHT[kind]


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_bytes_that_are_not_that_many_super_blocks_are_refused(kind: str) -> None:
    raw = random_blocks(kind, (2, 256), numpy.random.default_rng(2))
    for given_, shape in ((raw.reshape(-1)[:-1], (2, 256)), (raw, (1, 256)), (raw, (4, 128)), (raw, (2, 512))):
        with pytest.raises(QuantizationError, match=rf"aren't a {kind} tensor of .* super-blocks of 256"):
            read_blocks(given_, kind, shape)
