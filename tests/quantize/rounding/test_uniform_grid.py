from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.backends.rtn import Grid, round_to_grid
from harness.quantize.formats.bit_stream import pack
from harness.quantize.proof import most_levels


def _weight(rows: int, width: int, seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _slow_reference(row: list[float], bits: int, symmetric: bool) -> list[float]:
    """One group, number by number, in plain Python: the definition that the tensors must follow."""
    top = 2**bits - 1
    low, high = min([*row, 0.0]), max([*row, 0.0])
    if symmetric:
        high = max(high, -low)
        low = -high
    scale = torch.tensor((high - low) / top).half().item()
    zero = 2 ** (bits - 1) if symmetric else min(max(round(-low / scale), 0), top)
    return [(min(max(round(value / scale) + zero, 0), top) - zero) * scale for value in row]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_group_follows_the_definition_number_by_number(bits: int, symmetric: bool) -> None:
    weight = _weight(6, 44)
    weight[2] = weight[2].abs()
    weight[3] = -weight[3].abs()
    got = round_to_grid(weight, bits=bits, group_size=16, symmetric=symmetric).dequantize()
    for row in range(6):
        for start in (0, 16, 32):
            part = weight[row, start : start + 16].double().tolist()
            assert got[row, start : start + 16].tolist() == pytest.approx(
                _slow_reference(part, bits, symmetric), abs=1e-7
            )


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.one_of(st.none(), st.integers(1, 40)),
    symmetric=st.booleans(),
    width=st.integers(1, 33),
    magnitude=st.integers(-40, 12),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    seed=st.integers(0, 10**6),
)
def test_no_weight_moves_further_than_its_step_allows(
    bits: int, group_size: int | None, symmetric: bool, width: int, magnitude: int, shift: float, seed: int
) -> None:
    weight = (_weight(3, width, seed, 1.0) + shift) * 2.0**magnitude
    grid = round_to_grid(weight, bits=bits, group_size=group_size, symmetric=symmetric)
    size = width if group_size is None else min(group_size, width)
    steps = grid.scales.float().repeat_interleave(size, dim=1)[:, :width]
    # Half a step, and what rounding the scale to float16 took off the grid's far end.
    allowed = steps * (0.5 + 2**bits * 2.0**-11) * 1.0001
    assert bool(((grid.dequantize() - weight).abs() <= allowed).all())
    assert int(grid.codes.max()) < 2**bits
    assert most_levels(grid.dequantize(), group_size=group_size) <= 2**bits
    assert grid.scales.shape == grid.zeros.shape == (3, math.ceil(width / size))


@pytest.mark.parametrize(("width", "group_size", "groups"), [(576, 128, 5), (576, 64, 9), (100, 64, 2), (48, 128, 1)])
def test_a_width_that_is_no_multiple_of_the_group_gets_a_short_last_group(
    width: int, group_size: int, groups: int
) -> None:
    weight = _weight(4, width)
    grid = round_to_grid(weight, bits=4, group_size=group_size, symmetric=False)
    assert grid.scales.shape == (4, groups)
    last = group_size * (groups - 1)
    alone = round_to_grid(weight[:, last:], bits=4, group_size=None, symmetric=False)
    assert torch.equal(grid.codes[:, last:], alone.codes)
    assert torch.equal(grid.dequantize()[:, last:], alone.dequantize())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.25, 0.0123291015625, -3.0e-5, 60000.0])
def test_a_group_of_one_repeated_value_comes_back_exactly(value: float, bits: int, symmetric: bool) -> None:
    value = torch.tensor(value).half().float().item()
    weight = torch.full((2, 10), value)
    assert torch.equal(round_to_grid(weight, bits=bits, group_size=4, symmetric=symmetric).dequantize(), weight)


def test_weights_below_float16_become_multiples_of_its_smallest_number() -> None:
    weight = torch.tensor([[3e-8, -5.9e-8, 1e-30, -0.0]])
    grid = round_to_grid(weight, bits=4, group_size=None, symmetric=False)
    assert grid.scales.item() == 2.0**-24
    assert bool((grid.dequantize() - weight).abs().max() <= 2.0**-25)


def test_tiny_groups_are_not_cut_off_by_a_scale_rounded_down() -> None:
    weight = torch.linspace(0, 15 * 1.4 * 2.0**-24, 16)[None]
    grid = round_to_grid(weight, bits=4, group_size=None, symmetric=False)
    assert float((grid.dequantize() - weight).abs().max()) <= 0.5 * grid.scales.item() * 1.0001


@pytest.mark.parametrize("value", [2e6, 3e38])
def test_weights_too_large_for_float16_scales_are_refused(value: float) -> None:
    weight = torch.tensor([[value, -value, 0.0]])
    with pytest.raises(QuantizationError, match="float16 scales end at 65504"):
        round_to_grid(weight, bits=4, group_size=None, symmetric=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = _weight(2, 8)
    weight[1, 3] = value
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        round_to_grid(weight, bits=4, group_size=4, symmetric=False)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int32)])
def test_what_is_no_floating_matrix_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(QuantizationError, match="non-empty matrix"):
        round_to_grid(weight, bits=4, group_size=4, symmetric=False)


@pytest.mark.parametrize("group_size", [0, -1, 2.0, True])
def test_group_sizes_that_are_none_are_refused(group_size: int) -> None:
    with pytest.raises(QuantizationError, match="Group size"):
        round_to_grid(_weight(2, 8), bits=4, group_size=group_size, symmetric=False)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_model_that_is_on_its_grid_stays_on_it(bits: int) -> None:
    once = round_to_grid(_weight(64, 384, 5), bits=bits, group_size=128, symmetric=False)
    stored = once.dequantize().bfloat16()
    again = round_to_grid(stored, bits=bits, group_size=128, symmetric=False)
    assert float((once.codes != again.codes).float().mean()) < 0.001
    assert float((again.dequantize() - stored.float()).norm() / stored.float().norm()) < 0.003


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "expected"),
    [
        (4, 128, False, 4 + 20 / 128),
        (4, 64, True, 4 + 16 / 64),
        (2, None, False, 2 + 18 / 256),
        (3, 256, False, 3 + 19 / 256),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(
    bits: int, group_size: int | None, symmetric: bool, expected: float
) -> None:
    grid = round_to_grid(_weight(32, 256), bits=bits, group_size=group_size, symmetric=symmetric)
    assert grid.bits_per_weight == pytest.approx(expected)
    assert 8 * grid.size_bytes / grid.codes.numel() == pytest.approx(expected, rel=1e-3)
    written = len(pack(grid.codes, bits)) + 2 * grid.scales.numel()
    written += 0 if symmetric else len(pack(grid.zeros, bits))
    assert grid.size_bytes == written


def test_the_same_weight_gives_the_same_bytes_from_any_16_bit_dtype() -> None:
    weight = _weight(8, 200).bfloat16()
    first = round_to_grid(weight, bits=3, group_size=64, symmetric=True)
    second = round_to_grid(weight.float(), bits=3, group_size=64, symmetric=True)
    assert isinstance(first, Grid)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


def test_finer_grids_make_smaller_errors() -> None:
    weight = _weight(32, 512)

    def error(bits: int, group_size: int | None) -> float:
        return float(
            (round_to_grid(weight, bits=bits, group_size=group_size, symmetric=False).dequantize() - weight).norm()
        )

    by_bits = [error(bits, 128) for bits in range(2, 9)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert error(4, 64) < error(4, 128) < error(4, None)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8), group_size=st.one_of(st.none(), st.integers(1, 40)), symmetric=st.booleans(),
    width=st.integers(1, 33), magnitude=st.integers(-60, 60), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_with_float32_scales_no_weight_moves_further_than_half_a_step(
    bits: int, group_size: int | None, symmetric: bool, width: int, magnitude: int, seed: int
) -> None:
    weight = _weight(3, width, seed, 1.0) * 2.0**magnitude
    grid = round_to_grid(weight, bits=bits, group_size=group_size, symmetric=symmetric, wide_scales=True)
    size = width if group_size is None else min(group_size, width)
    steps = grid.scales.repeat_interleave(size, dim=1)[:, :width]
    # A symmetric grid has no level for the greatest weight: its last one is half a step below.
    assert grid.scales.dtype == torch.float32
    assert bool(((grid.dequantize() - weight).abs() <= 0.5001 * steps).all())
    assert int(grid.codes.max()) < 2**bits


def test_float32_scales_cost_16_bits_more_per_group_and_are_counted() -> None:
    weight = _weight(8, 64)
    narrow = round_to_grid(weight, bits=2, group_size=32, symmetric=False)
    wide = round_to_grid(weight, bits=2, group_size=32, symmetric=False, wide_scales=True)
    assert wide.bits_per_weight - narrow.bits_per_weight == pytest.approx(16 / 32)
    assert wide.size_bytes - narrow.size_bytes == 2 * 16


def test_weights_whose_span_float32_cannot_hold_are_refused_in_one_sentence() -> None:
    weight = torch.tensor([[3e38, -3e38]])
    with pytest.raises(QuantizationError, match="beyond float32"):
        round_to_grid(weight, bits=4, group_size=None, symmetric=False, wide_scales=True)
