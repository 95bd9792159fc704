"""GPTQ's layout: an independent packer, written with whole numbers, against the reader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.formats.gptq import GptqFormat, unpack_layer, unpack_words

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False,
          "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False}  # fmt: skip


def pack_column(codes: list[int], bits: int) -> list[int]:
    """Packs one column into signed 32-bit words by plain arithmetic on one large number."""
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs codes [n, columns] along the first axis."""
    columns = [pack_column([int(code) for code in column], bits) for column in codes.T]
    return torch.tensor(columns, dtype=torch.int32).T.contiguous()


def layer(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, *, less: int = 1,
    index: torch.Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Stores codes [out, in], scales and zeros [out, groups] the way a GPTQ file does."""
    stored = (zeros.long() - less) % 2**bits
    tensors = {"qweight": pack(codes.T, bits), "qzeros": pack(stored, bits).T.contiguous(), "scales": scales.T}
    return tensors if index is None else tensors | {"g_idx": index.int()}


def told(**changes: Any) -> GptqFormat:
    return GptqFormat.from_config(CONFIG | changes)


def drawn(seed: int, rows: int, width: int, groups: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, width), generator=source, dtype=torch.uint8)
    zeros = torch.randint(1, 2**bits, (rows, groups), generator=source, dtype=torch.uint8)
    return codes, (torch.rand(rows, groups, generator=source) + 0.01).half(), zeros


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]), rows=st.sampled_from([32, 64]), blocks=st.integers(1, 3),
    size=st.sampled_from([16, 32, 64, -1]), variant=st.sampled_from(["gptq", "gptq_v2"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_what_was_packed_comes_back_as_codes_scales_and_zero_points(
    bits: int, rows: int, blocks: int, size: int, variant: str, seed: int
) -> None:
    width = 32 * blocks
    groups = 1 if size == -1 else -(-width // size)
    codes, scales, zeros = drawn(seed, rows, width, groups, bits)
    tensors = layer(codes, scales, zeros, bits, less=int(variant == "gptq"))
    got = unpack_layer(tensors, told(bits=bits, group_size=size, checkpoint_format=variant))
    assert torch.equal(got.codes, codes)
    assert torch.equal(got.zeros, zeros.to(torch.int16))
    assert torch.equal(got.scales, scales)
    assert got.group_index is None
    assert got.group_size == (None if size == -1 else size)
    step = width if size == -1 else size
    for row, column in ((0, 0), (rows - 1, width - 1), (rows // 2, width // 2)):
        group = column // step
        value = (int(codes[row, column]) - int(zeros[row, group])) * float(scales[row, group])
        assert float(got.dequantize()[row, column]) == float(torch.tensor(value).half())


@settings(max_examples=20, deadline=None)
@given(bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 999))
def test_columns_in_another_order_keep_the_scale_of_their_own_group(bits: int, seed: int) -> None:
    codes, scales, zeros = drawn(seed, 32, 96, 3, bits)
    index = (torch.arange(96) // 32)[torch.randperm(96, generator=torch.Generator().manual_seed(seed))]
    got = unpack_layer(layer(codes, scales, zeros, bits, index=index), told(bits=bits, desc_act=True))
    assert torch.equal(got.group_index, index)
    expected = (codes.float() - zeros.float()[:, index]) * scales.float()[:, index]
    assert torch.equal(got.dequantize(), expected.half().float())
    # The order itself takes four bytes a column.
    plain = unpack_layer(layer(codes, scales, zeros, bits), told(bits=bits))
    assert got.overhead_bytes == plain.overhead_bytes + 4 * 96


def test_three_bit_codes_run_on_from_word_to_word() -> None:
    codes = torch.tensor([[place % 8] for place in range(32)], dtype=torch.uint8)
    words = pack(codes, 3)
    assert words.shape == (3, 1)
    assert torch.equal(unpack_words(words, 3), codes)
    # The eleventh code lies across the first two words.
    assert int(words[0, 0]) >> 30 & 3 == int(codes[10]) & 3
    assert int(words[1, 0]) & 1 == int(codes[10]) >> 2


@pytest.mark.parametrize(
    ("bits", "word", "zero"), [(4, 0x77777777, 8), (2, 0x55555555, 2), (8, 0x7F7F7F7F, 128)]
)  # fmt: skip
def test_the_words_of_symmetric_files_stand_for_the_middle_code(bits: int, word: int, zero: int) -> None:
    codes, scales, _ = drawn(1, 32, 32, 1, bits)
    tensors = layer(codes, scales, torch.full((32, 1), zero), bits)
    assert set(tensors["qzeros"].flatten().tolist()) == {word}
    got = unpack_layer(tensors, told(bits=bits))
    assert got.symmetric is True
    assert set(got.zeros.flatten().tolist()) == {zero}


def test_a_zero_point_below_the_first_code_is_read_as_the_kernels_read_it() -> None:
    codes, scales, zeros = drawn(2, 32, 32, 1, 4)
    tensors = layer(codes, scales, torch.zeros_like(zeros), 4)
    assert set(tensors["qzeros"].flatten().tolist()) == {-1}
    assert set(unpack_layer(tensors, told()).zeros.flatten().tolist()) == {16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_rounded_to_the_type_of_the_scales(dtype: torch.dtype) -> None:
    codes, scales, zeros = drawn(3, 32, 64, 2, 4)
    scales = (scales.float() * 1.0007).to(dtype)
    got = unpack_layer(layer(codes, scales, zeros, 4), told())
    exact = (codes.float() - zeros.float().repeat_interleave(32, 1)) * scales.float().repeat_interleave(32, 1)
    assert torch.equal(got.dequantize(), exact.to(dtype).float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "codes of 5 bits can't be unpacked"),
        ({"bits": None}, "codes of None bits"),
        ({"bits": True}, "codes of True bits"),
        ({"bits": "4"}, "codes of '4' bits"),
        ({"group_size": 0}, "group_size 0 can't be used"),
        ({"group_size": -2}, "group_size -2 can't be used"),
        ({"group_size": "128"}, "group_size '128' can't be used"),
        ({"pack_dtype": "int16"}, "packed into int16"),
        ({"checkpoint_format": "marlin"}, "in format 'marlin' isn't GPTQ's"),
        ({"quant_method": "awq"}, "of method 'awq'"),
    ],
)
def test_what_the_layout_does_not_cover_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        told(**changes)


@pytest.mark.parametrize(
    ("changes", "first"),
    [({}, True), ({"checkpoint_format": "gptq_v2"}, False), ({"checkpoint_format": None}, True),
     ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, True),
     ({"checkpoint_format": None, "format": "gptq_v2"}, False), ({"format": "gptq"}, True)],
)  # fmt: skip
def test_the_variant_of_the_zero_points_is_told_by_the_config(changes: dict[str, Any], first: bool) -> None:
    assert told(**changes).zero_is_stored_less_one is first
    assert told(group_size=-1).group_size is None
    assert told(sym=False).symmetric is False
    assert told(pack_dtype="torch.int32").bits == 4


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_layer_without_one_of_its_tensors_is_refused_by_name(part: str) -> None:
    tensors = layer(*drawn(4, 32, 32, 1, 4), 4)
    del tensors[part]
    with pytest.raises(QuantizationError, match=rf"^proj lacks {part}"):
        unpack_layer(tensors, told(), name="proj")


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    codes, scales, zeros = drawn(5, 32, 64, 2, 4)
    good = layer(codes, scales, zeros, 4)
    with pytest.raises(QuantizationError, match="32 rows of 64 columns in groups of 16 have 4"):
        unpack_layer(good, told(group_size=16))
    with pytest.raises(QuantizationError, match="qzeros have shape"):
        unpack_layer(good | {"qzeros": good["qzeros"][:1]}, told())
    with pytest.raises(QuantizationError, match="a matrix of int32 words is needed"):
        unpack_layer(good | {"qweight": good["qweight"].long()}, told())
    with pytest.raises(QuantizationError, match="don't hold a whole number of codes of 3 bits"):
        unpack_words(good["qweight"][:2], 3)


@pytest.mark.parametrize(
    "index", [torch.zeros(64), torch.arange(64) // 16, torch.arange(64) // 32 - 1, torch.arange(32) // 32]
)
def test_a_column_order_that_makes_other_groups_is_refused(index: torch.Tensor) -> None:
    tensors = layer(*drawn(6, 32, 64, 2, 4), 4, index=index)
    with pytest.raises(QuantizationError, match=r"proj\.g_idx does not share out 64 columns into groups of 32"):
        unpack_layer(tensors, told(), name="proj")
