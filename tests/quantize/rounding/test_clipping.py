"""The grid of least squared error: an oracle that tries every range, and what must not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.rounding.uniform_grid import Grid, round_to_clipped_grid, round_to_grid


def _error(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    return (grid.dequantize() - weight).square()


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8), width=st.integers(1, 40), size=st.none() | st.integers(1, 17), symmetric=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_no_group_has_a_larger_error_than_on_its_full_range(
    bits: int, width: int, size: int | None, symmetric: bool, seed: int
) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(seed)) ** 3
    full = round_to_grid(weight, bits=bits, group_size=size, symmetric=symmetric)
    clipped = round_to_clipped_grid(weight, bits=bits, group_size=size, symmetric=symmetric)
    assert clipped.codes.shape == weight.shape
    assert int(clipped.codes.max()) < 2**bits
    assert clipped.size_bytes == full.size_bytes
    step = width if size is None else size
    for old, new in zip(_error(weight, full).split(step, 1), _error(weight, clipped).split(step, 1), strict=True):
        assert bool((new.sum(1) <= old.sum(1) * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_chosen_range_is_the_best_of_all_that_are_tried(bits: int, symmetric: bool) -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(bits))
    got = _error(weight, round_to_clipped_grid(weight, bits=bits, group_size=None, symmetric=symmetric)).sum(1)
    top = 2**bits - 1
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    tried = []
    for percent in range(100, 28, -2):
        share = percent / 100
        scale = ((high - low) / top * share).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low * share / scale).round().clamp(0, top)
        codes = ((weight / scale[:, None]).round() + zero[:, None]).clamp(0, top)
        tried.append((((codes - zero[:, None]) * scale[:, None] - weight) ** 2).sum(1))
    best = torch.stack(tried).amin(0)
    assert torch.allclose(got, best, rtol=1e-3)
    assert bool((got < tried[0]).any())


def test_an_outlier_is_cut_off_where_that_serves_the_others() -> None:
    weight = torch.full((1, 64), 0.1)
    weight[0, ::2] = -0.1
    weight[0, 0] = 0.5
    full = round_to_grid(weight, bits=2, group_size=None, symmetric=False)
    clipped = round_to_clipped_grid(weight, bits=2, group_size=None, symmetric=False)
    assert float(clipped.dequantize()[0, 0]) < 0.35 < float(full.dequantize()[0, 0])
    assert float(_error(weight, clipped).sum()) < 0.5 * float(_error(weight, full).sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_on_a_grid_already_keep_their_codes(bits: int) -> None:
    weight = 0.25 * torch.arange(2**bits).float().repeat(3, 1) - 0.25
    full = round_to_grid(weight, bits=bits, group_size=None, symmetric=False)
    clipped = round_to_clipped_grid(weight, bits=bits, group_size=None, symmetric=False)
    assert torch.equal(clipped.codes, full.codes)
    assert torch.equal(clipped.dequantize(), weight)


def test_a_short_last_group_is_judged_by_its_own_columns_alone() -> None:
    weight = torch.randn(4, 70, generator=torch.Generator().manual_seed(8))
    whole = round_to_clipped_grid(weight, bits=3, group_size=64, symmetric=False)
    alone = round_to_clipped_grid(weight[:, 64:], bits=3, group_size=64, symmetric=False)
    assert torch.equal(whole.codes[:, 64:], alone.codes)
    assert torch.equal(whole.scales[:, 1:], alone.scales)


def test_zeros_and_constants_come_back_exactly() -> None:
    for value in (0.0, 0.5, -1.25):
        weight = torch.full((2, 9), value)
        grid = round_to_clipped_grid(weight, bits=4, group_size=4, symmetric=False)
        assert torch.equal(grid.dequantize(), weight)


def test_what_no_grid_can_hold_is_refused_as_without_clipping() -> None:
    with pytest.raises(QuantizationError, match="holds NaN or infinity"):
        round_to_clipped_grid(torch.tensor([[float("nan")]]), bits=4, group_size=None, symmetric=False)
    with pytest.raises(QuantizationError, match="Codes of 1 bits can't be made"):
        round_to_clipped_grid(torch.ones(1, 1), bits=1, group_size=None, symmetric=False)
