"""GGUF blocks taken apart by our own arithmetic, against blocks packed by hand and against gguf-py."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.formats.ggml_blocks import read_blocks
from harness.records import Checkpoint

KINDS = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


def block(kind: str, codes: list[int], scale: float, least: float = 0.0) -> bytes:
    """One block by the format's definition: code i in the low half of byte i, code i + 16 in its high half."""
    head = struct.pack("<e", scale) + (struct.pack("<e", least) if kind.endswith("_1") else b"")
    if kind == "Q8_0":
        return head + struct.pack("<32b", *(code - 128 for code in codes))
    fifth = struct.pack("<I", sum((code >> 4) << place for place, code in enumerate(codes)))
    halves = bytes((codes[place] & 15) | ((codes[place + 16] & 15) << 4) for place in range(16))
    return head + (fifth if kind.startswith("Q5") else b"") + halves


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), rows=st.integers(1, 3), per_row=st.integers(1, 3), seed=st.integers(0, 999))
def test_blocks_packed_by_hand_come_out_as_their_codes_scales_and_minima(
    kind: str, rows: int, per_row: int, seed: int
) -> None:
    bits = int(kind[1])
    source = numpy.random.default_rng(seed)
    codes = source.integers(0, 2**bits, (rows * per_row, 32))
    scales, least = source.uniform(-1, 1, rows * per_row), source.uniform(-1, 1, rows * per_row)
    raw = b"".join(block(kind, codes[i].tolist(), scales[i], least[i]) for i in range(rows * per_row))
    got = read_blocks(numpy.frombuffer(raw, dtype=numpy.uint8), kind, (rows, per_row * 32))
    assert torch.equal(got.codes, torch.from_numpy(codes.reshape(rows, -1)).to(torch.uint8))
    assert torch.equal(got.scales, torch.from_numpy(scales.reshape(rows, -1)).half())
    assert (got.bits, got.group_size) == (bits, 32)
    assert 8 * (got.overhead_bytes + codes.size * bits // 8) == 8 * len(raw)
    if kind.endswith("_1"):
        assert torch.equal(got.shifts, torch.from_numpy(least.reshape(rows, -1)).half())
    else:
        assert got.symmetric is True


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), rows=st.integers(1, 4), per_row=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_library_s_own_blocks_mean_to_us_what_they_mean_to_it(
    kind: str, rows: int, per_row: int, seed: int
) -> None:
    gguf = pytest.importorskip("gguf")
    weight = numpy.random.default_rng(seed).standard_normal((rows, per_row * 32)).astype(numpy.float32)
    kind_there = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(weight, kind_there)
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, kind_there))
    assert torch.equal(read_blocks(blocks, kind, (rows, per_row * 32)).dequantize(), theirs)


@pytest.mark.parametrize(("kind", "size"), [("Q8_0", 34), ("Q5_1", 24), ("Q5_0", 22), ("Q4_1", 20), ("Q4_0", 18)])
def test_bytes_that_are_not_that_many_blocks_are_refused(kind: str, size: int) -> None:
    whole = numpy.zeros(2 * size, dtype=numpy.uint8)
    assert read_blocks(whole, kind, (2, 32)).codes.shape == (2, 32)
    for raw, shape in ((whole[:-1], (2, 32)), (whole, (1, 32)), (whole, (2, 64))):
        with pytest.raises(QuantizationError, match=rf"aren't a {kind} tensor of .*take {size}\."):
            read_blocks(raw, kind, shape)


def test_a_width_that_is_no_multiple_of_the_block_is_refused_by_layer(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2)
    ).bfloat16().save_pretrained(tmp_path)
    checkpoint = Checkpoint(
        path=str(tmp_path), tokenizer_path=str(tmp_path), dtype="bfloat16", sha256="0" * 64, merged_from_adapter=False
    )
    spec = quantize.resolve("gguf-q4_0")
    with pytest.raises(QuantizationError, match=r"can't hold .*down_proj: its rows of 40 weights .* block of 32"):
        quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu")


def test_what_llama_cpp_does_besides_is_remarked(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    pytest.importorskip("gguf")
    spec = quantize.resolve("gguf-q5_1")
    proof = quantize.backend_of(spec).quantize(checkpoint_of("llama"), spec, device="cpu").proof
    assert proof is not None
    assert "embeddings and the output head" in proof.remarks[0]
    assert proof.bits_per_weight == 6.0
