"""AWQ's layout: an independent packer, written from the order of its kernel, against the reader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.formats.awq import AwqFormat, unpack_layer, unpack_words

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}

# What AutoAWQ writes: place i of a word holds column ORDER[i] of its eight.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Packs codes [n, columns] eight to a word."""
    words = []
    for row in codes.tolist():
        line = []
        for start in range(0, len(row), 8):
            word = sum(row[start + ORDER[place]] << (4 * place) for place in range(8))
            line.append(word - (1 << 32) if word >> 31 else word)
        words.append(line)
    return torch.tensor(words, dtype=torch.int32)


def drawn(seed: int, rows: int, width: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, width), generator=source, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (rows, groups), generator=source, dtype=torch.uint8)
    return codes, (torch.rand(rows, groups, generator=source) + 0.01).half(), zeros


def layer(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, Any]:
    return {"qweight": pack(codes.T), "qzeros": pack(zeros.T), "scales": scales.T}


def told(**changes: Any) -> AwqFormat:
    return AwqFormat.from_config(CONFIG | changes)


@settings(max_examples=40, deadline=None)
@given(rows=st.sampled_from([8, 24]), width=st.integers(1, 70), size=st.sampled_from([16, 32, -1]),
       seed=st.integers(0, 999))  # fmt: skip
def test_what_was_packed_comes_back_as_codes_scales_and_zero_points(
    rows: int, width: int, size: int, seed: int
) -> None:
    groups = 1 if size == -1 else -(-width // size)
    codes, scales, zeros = drawn(seed, rows, width, groups)
    got = unpack_layer(layer(codes, scales, zeros), told(group_size=size))
    assert torch.equal(got.codes, codes)
    assert torch.equal(got.zeros, zeros)
    assert torch.equal(got.scales, scales)
    step = width if size == -1 else size
    wide = (codes.float() - zeros.float().repeat_interleave(step, 1)[:, :width]) * scales.float().repeat_interleave(
        step, 1
    )[:, :width]
    assert torch.equal(got.dequantize(), wide.half().float())


def test_a_word_by_hand_comes_out_in_the_order_of_the_columns() -> None:
    # Lowest place first: columns 0, 2, 4, 6, 1, 3, 5, 7.
    word = 0x75316420
    assert unpack_words(torch.tensor([[word]], dtype=torch.int32)).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    # The sign bit belongs to the code of the last place.
    assert unpack_words(torch.tensor([[-1]], dtype=torch.int32)).tolist() == [[15] * 8]


def test_symmetric_files_have_the_middle_code_as_zero_point() -> None:
    codes, scales, zeros = drawn(1, 8, 32, 1)
    tensors = layer(codes, scales, torch.full_like(zeros, 8))
    assert set(tensors["qzeros"].flatten().tolist()) == {0x88888888 - (1 << 32)}
    assert unpack_layer(tensors, told(zero_point=False)).symmetric is True
    assert unpack_layer(layer(codes, scales, zeros), told()).symmetric is False


@pytest.mark.parametrize(
    ("changes", "size", "symmetric"),
    [
        ({}, 32, False),
        ({"zero_point": False}, 32, True),
        ({"group_size": -1}, None, False),
        ({"version": "GEMM"}, 32, False),
    ],
)
def test_the_config_tells_group_and_symmetry(changes: dict[str, Any], size: int | None, symmetric: bool) -> None:
    layout = told(**changes)
    assert (layout.group_size, layout.symmetric) == (size, symmetric)


def test_the_names_of_autoawq_s_own_file_are_understood() -> None:
    layout = AwqFormat.from_config({"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})
    assert (layout.group_size, layout.symmetric) == (64, False)
    # gptqmodel tells symmetry instead of a zero point.
    gptqmodel = {"quant_method": "awq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gemm"}
    assert AwqFormat.from_config(gptqmodel).symmetric is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "AWQ codes of 3 bits can't be unpacked"),
        ({"version": "gemv"}, "in version 'gemv' isn't AWQ's GEMM"),
        ({"quant_method": "gptq"}, "of method 'gptq'"),
        ({"group_size": 0}, "group_size 0 can't be used"),
        ({"group_size": True}, "group_size True can't be used"),
    ],
)
def test_what_the_layout_does_not_cover_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        told(**changes)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_layer_without_one_of_its_tensors_is_refused_by_name(part: str) -> None:
    tensors = layer(*drawn(2, 8, 32, 1))
    del tensors[part]
    with pytest.raises(QuantizationError, match=rf"^proj lacks {part}"):
        unpack_layer(tensors, told(), name="proj")


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    good = layer(*drawn(3, 8, 64, 2))
    with pytest.raises(QuantizationError, match="8 rows of 64 columns, so 4 groups a row"):
        unpack_layer(good, told(group_size=16))
    with pytest.raises(QuantizationError, match="its zero points of"):
        unpack_layer(good | {"qzeros": good["qzeros"][:1]}, told())
    with pytest.raises(QuantizationError, match="a matrix of int32 words is needed"):
        unpack_layer(good | {"qweight": good["qweight"].float()}, told())
