"""bitsandbytes' files: what transformers saves, read without the library and compared with it bit by bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_files import bnb_weights, write_bnb

from harness.errors import QuantizationError
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.formats.bitsandbytes import BnbFormat, unpack_layer
from harness.records import Checkpoint

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
STATE = "weight.quant_state.bitsandbytes__nf4"


def state_of(**told: Any) -> torch.Tensor:
    """A quantization state the way it is saved: JSON in a tensor of bytes."""
    whole = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16"} | told
    return torch.tensor(list(json.dumps(whole).encode()), dtype=torch.uint8)


def four_bit(codes: torch.Tensor, absmax: torch.Tensor, book: torch.Tensor, **told: Any) -> dict[str, torch.Tensor]:
    """A layer packed by hand: the first of two codes in the higher half of a byte."""
    flat = codes.reshape(-1).tolist()
    flat += [0] * (len(flat) % 2)
    stream = torch.tensor([flat[i] << 4 | flat[i + 1] for i in range(0, len(flat), 2)], dtype=torch.uint8)
    return {
        "weight": stream[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": book,
        STATE: state_of(shape=list(codes.shape), **told),
    }


def drawn(seed: int, rows: int, width: int, block: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, width), generator=source, dtype=torch.uint8)
    absmax = torch.rand(-(-rows * width // block), generator=source) + 0.01
    return codes, absmax, torch.randn(16, generator=source).sort().values


def layout(**changes: Any) -> BnbFormat:
    return BnbFormat.from_config(NF4 | changes)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 90), block=st.sampled_from([64, 128]), seed=st.integers(0, 999))
def test_codes_packed_by_hand_come_back_with_their_blocks_across_rows(
    rows: int, width: int, block: int, seed: int
) -> None:
    codes, absmax, book = drawn(seed, rows, width, block)
    got = unpack_layer(four_bit(codes, absmax, book, blocksize=block), layout())
    assert torch.equal(got.codes, codes)
    assert (got.flat, got.group_size, got.symmetric) == (True, block, None)
    wide = absmax.repeat_interleave(block)[: rows * width].view(rows, width)
    assert torch.equal(got.dequantize(), (book[codes.int()] * wide).bfloat16().float())
    assert got.overhead_bytes == 4 * absmax.numel()


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 600), seed=st.integers(0, 999))
def test_nested_scales_are_their_levels_times_the_outer_scale_plus_the_mean(blocks: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    codes, _, book = drawn(seed, 1, 64 * blocks)
    inner = torch.randint(0, 256, (blocks,), generator=source, dtype=torch.uint8)
    outer, levels = torch.rand(-(-blocks // 256), generator=source), torch.randn(256, generator=source)
    tensors = four_bit(codes, inner, book, nested_blocksize=256, nested_offset=0.25, nested_dtype="float32")
    tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": levels}
    got = unpack_layer(tensors, layout())
    assert torch.equal(got.scales, levels[inner.int()] * outer.repeat_interleave(256)[:blocks] + 0.25)
    assert got.overhead_bytes == blocks + 4 * outer.numel() + 4


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 40), seed=st.integers(0, 999))
def test_int8_rows_are_codes_times_the_row_s_largest_over_127(rows: int, width: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-127, 128, (rows, width), generator=source, dtype=torch.int8)
    largest = torch.rand(rows, generator=source) + 0.1
    got = unpack_layer({"weight": numbers, "SCB": largest}, BnbFormat.from_config(INT8))
    assert torch.equal(got.dequantize(), numbers.float() * (largest / 127)[:, None])
    assert (got.bits, got.group_size, got.symmetric) == (8, None, True)


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "nf4-nested", "int8"],
)
@pytest.mark.parametrize("shape", ["llama", "gqa576"])
def test_a_saved_checkpoint_means_to_us_what_it_means_to_the_library(
    shape: str, options: dict[str, Any], checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = write_bnb(Path(checkpoint_of(shape).path), tmp_path / "saved", **options)
    packed = packed_checkpoint.read(folder)
    theirs = dict(bnb_weights(folder))
    assert set(packed.layers) == set(theirs)
    assert len(theirs) == 14
    for name, weight in theirs.items():
        if weight.shape[1] % 64 and options.get("load_in_4bit"):
            # bitsandbytes' AVX-512 code begins a block anew with each row; its other code, and its CUDA code, don't.
            continue
        assert torch.equal(packed.layers[name].dequantize(), weight), name
    assert all(tensor.is_floating_point() for tensor in packed.others.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NF4 | {"load_in_8bit": True}, "one of them"),
        ({"quant_method": "bitsandbytes"}, "one of them"),
        (NF4 | {"bnb_4bit_quant_type": "af4"}, "codes of 'af4' can't be read: nf4 and fp4 are"),
        (NF4 | {"bnb_4bit_quant_storage": "bfloat16"}, "stored as bfloat16"),
    ],
)
def test_what_the_layout_does_not_cover_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        BnbFormat.from_config(config)


def test_the_names_of_both_generations_of_configs_are_understood() -> None:
    assert BnbFormat.from_config({"_load_in_4bit": True}).book == "fp4"
    assert BnbFormat.from_config({"_load_in_8bit": True, "load_in_8bit": True}).bits == 8


@pytest.mark.parametrize("part", ["weight", "weight.absmax", "weight.quant_map", STATE])
def test_a_layer_without_one_of_its_tensors_is_refused_by_name(part: str) -> None:
    tensors = four_bit(*drawn(1, 4, 64))
    del tensors[part]
    with pytest.raises(QuantizationError, match=rf"^proj lacks {part}"):
        unpack_layer(tensors, layout(), name="proj")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(64, 1, dtype=torch.uint8)}, r"has uint8 \[64, 1\] codes, and its state says 256"),
        ({"weight": torch.zeros(128, 1, dtype=torch.int8)}, "has int8"),
        ({"weight.absmax": torch.ones(3)}, "3 scales and 16 levels for 256 weights in blocks of 64"),
        ({"weight.quant_map": torch.ones(17)}, "4 scales and 17 levels"),
        ({"weight.absmax": torch.ones(4, dtype=torch.uint8)}, "lacks weight.nested_absmax"),
        ({STATE: state_of()}, "lacks a usable shape"),
        ({STATE: state_of(shape=[4, 64], blocksize=0)}, "lacks a usable shape, blocksize"),
        ({STATE: state_of(shape=[4, 64], dtype="os.system")}, "lacks a usable shape, blocksize or dtype"),
        ({STATE: state_of(shape=[4, 1 << 40])}, "lacks a usable shape"),
        ({STATE: torch.tensor([123, 34], dtype=torch.uint8)}, "quant_state is no JSON"),
        ({STATE: torch.zeros(5000, dtype=torch.uint8)}, "quant_state has 5000 bytes"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    good = four_bit(*drawn(2, 4, 64))
    assert math.prod(unpack_layer(good, layout()).codes.shape) == 256
    with pytest.raises(QuantizationError, match=message):
        unpack_layer(good | changes, layout(), name="proj")


@pytest.mark.parametrize(
    ("told", "parts", "message"),
    [
        ({}, {}, "state lacks nested_blocksize and nested_offset"),
        ({"nested_blocksize": 256, "nested_offset": True}, {}, "state lacks nested_blocksize"),
        ({"nested_blocksize": 2, "nested_offset": 0.5}, {}, "1 scales for 4 nested ones in blocks of 2"),
        ({"nested_blocksize": 256, "nested_offset": 0.5}, {"weight.nested_quant_map": torch.ones(9)}, "9 levels"),
    ],
)
def test_nested_scales_that_do_not_fit_are_refused(
    told: dict[str, Any], parts: dict[str, torch.Tensor], message: str
) -> None:
    codes, _, book = drawn(3, 4, 64)
    nested = {"weight.nested_absmax": torch.ones(1), "weight.nested_quant_map": torch.ones(256)}
    tensors = four_bit(codes, torch.ones(4, dtype=torch.uint8), book, **told)
    with pytest.raises(QuantizationError, match=message):
        unpack_layer(tensors | nested | parts, layout(), name="proj")


def test_int8_rows_and_codes_that_do_not_belong_together_are_refused() -> None:
    eight = BnbFormat.from_config(INT8)
    numbers = torch.zeros(4, 8, dtype=torch.int8)
    with pytest.raises(QuantizationError, match=r"^proj lacks SCB"):
        unpack_layer({"weight": numbers}, eight, name="proj")
    for tensors in ({"weight": numbers, "SCB": torch.ones(5)}, {"weight": numbers.float(), "SCB": torch.ones(4)}):
        with pytest.raises(QuantizationError, match="belong together"):
            unpack_layer(tensors, eight, name="proj")
