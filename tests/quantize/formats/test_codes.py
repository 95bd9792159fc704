"""The arithmetic that the proof does itself: codes, zero points, code books and scales into weights and bytes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.quantize.formats.codes import ReadBack
from harness.quantize.rounding.uniform_grid import round_to_grid


def _random(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.integers(1, 12),
    size=st.none() | st.integers(1, 15),
    levels=st.sampled_from(["zeros", "float zeros", "offset", "book"]),
    flat=st.booleans(),
    seed=st.integers(0, 999),
)
def test_each_weight_is_its_level_times_the_scale_of_its_group(
    rows: int, width: int, size: int | None, levels: str, flat: bool, seed: int
) -> None:
    if flat and size is None:
        size = width
    per_row = 1 if size is None else math.ceil(width / size)
    shape = (math.ceil(rows * width / (size or width)),) if flat else (rows, per_row)
    codes = _random(seed, 16, rows, width)
    scales = 2.0 ** -_random(seed + 1, 9, *shape).float()
    zeros = _random(seed + 2, 16, *shape)
    fields: dict[str, Any] = {
        "zeros": {"zeros": zeros},
        "float zeros": {"zeros": zeros.float() + 0.5},
        "offset": {"offset": 8},
        "book": {"book": torch.arange(16.0) ** 2},
    }[levels]
    got = ReadBack(codes=codes, scales=scales, bits=4, group_size=size, flat=flat, **fields).dequantize()
    assert got.dtype == torch.float32
    for row in range(rows):
        for column in range(width):
            place: Any = (row * width + column) // (size or width) if flat else (row, column // (size or width))
            code = int(codes[row, column])
            level = {
                "zeros": code - float(zeros[place]),
                "float zeros": code - float(zeros[place]) - 0.5,
                "offset": code - 8.0,
                "book": code**2.0,
            }[levels]
            assert float(got[row, column]) == level * float(scales[place])


@pytest.mark.parametrize(("bits", "size", "symmetric"), [(2, 5, False), (3, None, True), (4, 16, True), (8, 7, False)])
def test_a_grid_and_its_read_back_are_the_same_weight_of_the_same_size(
    bits: int, size: int | None, symmetric: bool
) -> None:
    weight = torch.randn(6, 33, generator=torch.Generator().manual_seed(9))
    grid = round_to_grid(weight, bits=bits, group_size=size, symmetric=symmetric)
    layer = ReadBack(codes=grid.codes, scales=grid.scales, zeros=None if symmetric else grid.zeros,
                     offset=2 ** (bits - 1), bits=bits, group_size=size)  # fmt: skip
    assert torch.equal(layer.dequantize(), grid.dequantize())
    assert layer.overhead_bytes + math.ceil(grid.codes.numel() * bits / 8) == grid.size_bytes


@pytest.mark.parametrize(
    ("scales", "zeros", "bits", "expected"),
    [
        (torch.float16, None, 4, 12),
        (torch.float32, None, 4, 24),
        (torch.float16, torch.uint8, 4, 12 + 3),
        (torch.float16, torch.uint8, 3, 12 + 3),
        (torch.float16, torch.uint8, 8, 12 + 6),
        (torch.float32, torch.float16, 2, 24 + 12),
    ],
)
def test_overhead_counts_what_is_stored_and_packs_whole_zero_points(
    scales: torch.dtype, zeros: torch.dtype | None, bits: int, expected: int
) -> None:
    layer = ReadBack(
        codes=torch.zeros(3, 8, dtype=torch.uint8), scales=torch.ones(3, 2, dtype=scales), bits=bits, group_size=4,
        zeros=None if zeros is None else torch.zeros(3, 2, dtype=zeros),
    )  # fmt: skip
    assert layer.overhead_bytes == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_a_backend_rounds_are_rounded_the_same_way(dtype: str) -> None:
    layer = {"codes": torch.ones(1, 1, dtype=torch.uint8), "scales": torch.tensor([[1 + 2.0**-12]]), "bits": 4,
             "group_size": None}  # fmt: skip
    assert ReadBack(**layer).dequantize().item() == 1 + 2.0**-12
    assert ReadBack(**layer, rounded_to=dtype).dequantize().item() == 1.0


@given(step=st.floats(1e-4, 1.0), bits=st.integers(2, 8))
def test_a_symmetric_grid_is_centred_on_zero_and_its_codes_on_their_middle(step: float, bits: int) -> None:
    reach = 2 ** (bits - 1) - 1
    weight = step * torch.arange(-reach, reach + 1).float()[None]
    grid = round_to_grid(weight, bits=bits, group_size=None, symmetric=True)
    mirrored = round_to_grid(-weight, bits=bits, group_size=None, symmetric=True)
    assert int(grid.zeros) == 2 ** (bits - 1) == int(grid.codes[0, reach])
    assert torch.equal(grid.scales, mirrored.scales)
    assert float(grid.dequantize()[0, reach]) == 0.0


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_asymmetric_grid_always_holds_zero_exactly(bits: int) -> None:
    for low, high in ((0.5, 2.0), (-2.0, -0.5), (-0.1, 3.0)):
        weight = torch.linspace(low, high, 40)[None]
        grid = round_to_grid(torch.cat([weight, torch.zeros(1, 1)], dim=1), bits=bits, group_size=None, symmetric=False)
        assert grid.dequantize()[0, -1] == 0.0
        assert int(grid.codes[0, -1]) == int(grid.zeros)


def test_the_order_of_groups_in_memory_does_not_matter() -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    straight = round_to_grid(weight.T.contiguous(), bits=4, group_size=5, symmetric=False)
    turned = round_to_grid(weight.T, bits=4, group_size=5, symmetric=False)
    assert torch.equal(straight.codes, turned.codes)
    assert torch.equal(straight.dequantize(), turned.dequantize())
    assert turned.codes.is_contiguous()


def test_a_shift_is_added_after_scaling_and_counted() -> None:
    layer = ReadBack(
        codes=torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), scales=torch.tensor([[0.5, 2.0]]).half(), bits=2,
        group_size=2, shifts=torch.tensor([[10.0, -1.0]]).half(),
    )  # fmt: skip
    assert layer.dequantize().tolist() == [[10.0, 10.5, 3.0, 5.0]]
    assert layer.overhead_bytes == 4 + 4
    assert layer.symmetric is None


def test_arithmetic_in_16_bit_rounds_after_each_operation() -> None:
    fields: dict[str, Any] = {
        "codes": torch.tensor([[129]], dtype=torch.uint8), "scales": torch.tensor([[1.0]]).bfloat16(), "bits": 8,
        "group_size": None, "zeros": torch.tensor([[0.3]]).bfloat16(),
    }  # fmt: skip
    exact = ReadBack(**fields).dequantize().item()
    rounded = ReadBack(**fields, computed_in="bfloat16").dequantize().item()
    assert exact == pytest.approx(128.7, abs=1e-3)
    # Above 128 bfloat16 holds whole numbers only.
    assert rounded == 129.0
    shifted = ReadBack(**fields, computed_in="bfloat16", shifts=torch.tensor([[0.25]]).bfloat16())
    assert shifted.dequantize().item() == 129.0


def test_columns_take_the_scale_and_zero_point_of_the_group_that_they_name() -> None:
    layer = ReadBack(
        codes=torch.tensor([[1, 1, 1, 1]], dtype=torch.uint8), scales=torch.tensor([[1.0, 10.0]]), bits=4, group_size=2,
        zeros=torch.tensor([[0, 3]], dtype=torch.uint8), group_index=torch.tensor([1, 0, 0, 1]),
    )  # fmt: skip
    assert layer.dequantize().tolist() == [[-20.0, 1.0, 1.0, -20.0]]
    assert layer.overhead_bytes == 8 + 1 + 4 * 4


def test_bytes_of_scales_that_are_stored_quantized_are_told_and_not_measured() -> None:
    layer = ReadBack(codes=torch.zeros(2, 4, dtype=torch.uint8), scales=torch.ones(2, 1), bits=4, group_size=None)
    assert layer.overhead_bytes == 8
    assert dataclasses.replace(layer, scale_bytes=3).overhead_bytes == 3


@pytest.mark.parametrize(
    ("fields", "symmetric"),
    [
        ({"offset": 8}, True),
        ({"offset": 0}, False),
        ({"zeros": torch.full((1, 2), 8)}, True),
        ({"zeros": torch.tensor([[8, 7]])}, False),
        ({"zeros": torch.full((1, 2), 8.0)}, True),
        ({"book": torch.arange(16.0)}, None),
        ({"shifts": torch.zeros(1, 2)}, None),
    ],
)
def test_symmetry_is_found_in_the_zero_points(fields: dict[str, Any], symmetric: bool | None) -> None:
    layer = ReadBack(
        codes=torch.zeros(1, 4, dtype=torch.uint8), scales=torch.ones(1, 2), bits=4, group_size=2, **fields
    )
    assert layer.symmetric is symmetric
