"""compressed-tensors' layouts: an independent packer, written from the format's definition, against the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_files import words
from safetensors.torch import save_file

from harness.errors import QuantizationError
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.formats.compressed_tensors import CompressedFormat, unpack_layer

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def config_of(form: str = "pack-quantized", activations: Any = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS | weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def told(form: str = "pack-quantized", **weights: Any) -> CompressedFormat:
    return CompressedFormat.from_config(config_of(form, **weights))


def drawn(
    seed: int, rows: int, width: int, groups: int, bits: int = 4, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signed numbers, scales and signed zero points."""
    source = torch.Generator().manual_seed(seed)
    middle = 2 ** (bits - 1)
    numbers = torch.randint(-middle, middle, (rows, width), generator=source, dtype=torch.int8)
    zeros = torch.randint(-middle, middle, (rows, groups), generator=source, dtype=torch.int8)
    return numbers, (torch.rand(rows, groups, generator=source) + 0.01).to(dtype), zeros


def packed(numbers: torch.Tensor, scales: torch.Tensor, bits: int, zeros: torch.Tensor | None = None) -> dict[str, Any]:
    """A layer: numbers moved to 0 and up, a stream along each row; zero points a stream down each column."""
    middle = 2 ** (bits - 1)
    layer = {
        "weight_packed": words((numbers.int() + middle).T, bits).T.contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(numbers.shape),
    }
    return layer if zeros is None else layer | {"weight_zero_point": words(zeros.int() + middle, bits)}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 70),
    bits=st.sampled_from([2, 4, 8]),
    size=st.sampled_from([8, 32]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 999),
)
def test_symmetric_numbers_come_back_and_mean_number_times_scale(
    rows: int, width: int, bits: int, size: int, dtype: torch.dtype, seed: int
) -> None:
    groups = -(-width // size)
    numbers, scales, _ = drawn(seed, rows, width, groups, bits, dtype)
    got = unpack_layer(packed(numbers, scales, bits), told(num_bits=bits, group_size=size))
    assert torch.equal(got.codes.int(), numbers.int() + 2 ** (bits - 1))
    wide = scales.repeat_interleave(size, 1)[:, :width]
    # What the library computes, in the scales' own dtype.
    assert torch.equal(got.dequantize(), (numbers.to(dtype) * wide).float())
    assert (got.symmetric, got.group_size) == (True, size)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 70), bits=st.sampled_from([2, 4, 8]), whole=st.booleans(),
       plain=st.booleans(), seed=st.integers(0, 999))  # fmt: skip
def test_zero_points_come_back_packed_or_plain(
    rows: int, width: int, bits: int, whole: bool, plain: bool, seed: int
) -> None:
    groups = 1 if whole else -(-width // 16)
    numbers, scales, zeros = drawn(seed, rows, width, groups, bits, torch.float16)
    layout = told(num_bits=bits, symmetric=False, **({"strategy": "channel"} if whole else {"group_size": 16}))
    tensors = packed(numbers, scales, bits, zeros)
    if plain:
        tensors["weight_zero_point"] = zeros
    got = unpack_layer(tensors, layout)
    assert torch.equal(got.zeros.int(), zeros.int() + 2 ** (bits - 1))
    step = width if whole else 16
    wide = [each.repeat_interleave(step, 1)[:, :width] for each in (zeros, scales)]
    assert torch.equal(got.dequantize(), ((numbers.half() - wide[0].half()) * wide[1]).float())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 40), form=st.sampled_from(["int-quantized", "naive-quantized"]),
       strategy=st.sampled_from(["channel", "tensor"]), seed=st.integers(0, 999))  # fmt: skip
def test_plain_int8_comes_back_with_a_scale_per_row_or_one_for_all(
    rows: int, width: int, form: str, strategy: str, seed: int
) -> None:
    numbers, scales, _ = drawn(seed, rows, width, 1, 8)
    scales = scales if strategy == "channel" else scales[:1, 0]
    got = unpack_layer({"weight": numbers, "weight_scale": scales}, told(form, num_bits=8, strategy=strategy))
    assert torch.equal(got.dequantize(), (numbers.bfloat16() * scales).float())
    assert (got.bits, got.group_size, got.symmetric) == (8, None, True)
    assert got.overhead_bytes == 2 * scales.numel()


def test_an_order_of_the_columns_is_kept_and_minus_one_means_none() -> None:
    numbers, scales, _ = drawn(1, 4, 64, 2)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2)) // 32
    tensors = packed(numbers, scales, 4)
    got = unpack_layer(tensors | {"weight_g_idx": order.int()}, told(actorder="group"))
    assert torch.equal(got.dequantize(), (numbers.bfloat16() * scales[:, order]).float())
    for index in (torch.full((64,), -1), torch.arange(64) // 32):
        assert unpack_layer(tensors | {"weight_g_idx": index.int()}, told()).group_index is None
    with pytest.raises(QuantizationError, match="weight_g_idx does not share out 64 columns into groups of 32"):
        unpack_layer(tensors | {"weight_g_idx": torch.zeros(64, dtype=torch.int32)}, told(), name="proj")


def test_a_row_by_hand_is_one_stream_of_codes_lowest_first() -> None:
    # -8 is code 0, so the numbers -8, -7, ... make a word that counts up.
    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    tensors = {"weight_packed": word, "weight_scale": torch.ones(1, 1), "weight_shape": torch.tensor([1, 8])}
    got = unpack_layer(tensors, told(strategy="channel", group_size=None))
    assert got.dequantize().tolist() == [[-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (4, 32, False)),
        ({"strategy": "channel"}, (4, None, False)),
        ({"strategy": None, "group_size": None}, (4, None, True)),
        ({"strategy": None, "group_size": -1}, (4, None, False)),
        ({"strategy": None}, (4, 32, False)),
        ({"strategy": "tensor", "group_size": None}, (4, None, True)),
    ],
)
def test_the_config_tells_what_shares_a_scale(changes: dict[str, Any], expected: tuple[int, int | None, bool]) -> None:
    layout = told(**changes)
    assert (layout.bits, layout.group_size, layout.one_scale) == expected


def test_rounded_activations_are_told() -> None:
    with_them = CompressedFormat.from_config(config_of("int-quantized", {"num_bits": 8}, num_bits=8))
    assert with_them.rounds_activations
    assert not told().rounds_activations


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("float-quantized"), "in format 'float-quantized' can't be read: pack-quantized, int-quantized"),
        (config_of(type="float"), "of 4 bits and type 'float'"),
        (config_of(num_bits=3), "of 3 bits"),
        (config_of(num_bits=True), "of True bits"),
        (config_of(strategy="block"), "by 'block' of 32"),
        (config_of(group_size=0), "by 'group' of 0"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "with 0 config_groups"),
        (config_of() | {"config_groups": {"a": {"weights": WEIGHTS}, "b": {}}}, "with 2 config_groups"),
        (config_of() | {"config_groups": {"a": ["Linear"]}}, "with 1 config_groups"),
    ],
)
def test_what_the_layout_does_not_cover_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        CompressedFormat.from_config(config)


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"])
def test_a_layer_without_one_of_its_tensors_is_refused_by_name(part: str) -> None:
    numbers, scales, zeros = drawn(3, 8, 64, 2)
    tensors = packed(numbers, scales, 4, zeros)
    del tensors[part]
    with pytest.raises(QuantizationError, match=rf"^proj lacks {part}"):
        unpack_layer(tensors, told(symmetric=False), name="proj")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_packed": torch.zeros(8, 7, dtype=torch.int32)}, r"weight_packed has shape \(8, 7\), and \[8, 64\]"),
        ({"weight_shape": torch.tensor([8])}, r"and \[8\] weights of 4 bits don't fill it"),
        ({"weight_shape": torch.tensor([8, 72])}, r"\[8, 72\] weights"),
        ({"weight_scale": torch.ones(8, 3)}, r"8 rows of 64 columns in groups of 32 need \(8, 2\)"),
        ({"weight_scale": torch.ones(8, 2, dtype=torch.int8)}, "weight_scale is torch.int8"),
        ({"weight_zero_point": torch.zeros(1, 3, dtype=torch.int32)}, "no zero for each scale"),
        ({"weight_packed": torch.zeros(8, 8)}, "a matrix of int32 words is needed"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    numbers, scales, zeros = drawn(4, 8, 64, 2)
    tensors = packed(numbers, scales, 4, zeros) | changes
    with pytest.raises(QuantizationError, match=message):
        unpack_layer(tensors, told(symmetric=False), name="proj")


def test_plain_numbers_that_are_none_of_the_width_are_refused() -> None:
    scales = torch.ones(2, 1)
    layout = told("naive-quantized", strategy="channel")
    with pytest.raises(QuantizationError, match="numbers that 4 bits can't express"):
        unpack_layer({"weight": torch.full((2, 4), 8, dtype=torch.int8), "weight_scale": scales}, layout)
    with pytest.raises(QuantizationError, match="no matrix of int8"):
        unpack_layer({"weight": torch.ones(2, 4), "weight_scale": scales}, layout)


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
def test_a_folder_is_taken_apart_by_its_config(form: str, tmp_path: Path) -> None:
    numbers, scales, _ = drawn(5, 8, 64, 1, 8)
    config = config_of(form, num_bits=8, strategy="channel", group_size=None)
    parts = packed(numbers, scales, 8) if form == "pack-quantized" else {"weight": numbers, "weight_scale": scales}
    norm = torch.linspace(0, 1, 8)
    save_file({**{f"model.layers.0.mlp.up_proj.{name}": tensor for name, tensor in parts.items()},
               "model.norm.weight": norm}, tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}), encoding="utf-8")
    got = packed_checkpoint.read(tmp_path)
    assert list(got.layers) == ["model.layers.0.mlp.up_proj"]
    assert torch.equal(got.layers["model.layers.0.mlp.up_proj"].dequantize(), (numbers.bfloat16() * scales).float())
    assert list(got.others) == ["model.norm.weight"]
