from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.formats import bit_stream

_CODES = st.integers(1, 8).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
)


@given(_CODES)
def test_unpacking_what_was_packed_gives_the_same_codes(case: tuple[int, list[int]]) -> None:
    bits, values = case
    codes = torch.tensor(values, dtype=torch.uint8)
    stream = bit_stream.pack(codes, bits)
    assert len(stream) == bit_stream.packed_size(len(values), bits)
    assert torch.equal(bit_stream.unpack(stream, bits, (len(values),)), codes)


@given(_CODES)
def test_the_stream_is_the_codes_laid_end_to_end_lowest_bit_first(case: tuple[int, list[int]]) -> None:
    bits, values = case
    whole = sum(value << (bits * position) for position, value in enumerate(values))
    expected = whole.to_bytes(bit_stream.packed_size(len(values), bits), "little")
    assert bit_stream.pack(torch.tensor(values, dtype=torch.uint8), bits) == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_chunks_join_without_a_seam(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 2**bits, (5, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    whole = bit_stream.pack(codes, bits)
    monkeypatch.setattr(bit_stream, "_CHUNK", 8)
    assert bit_stream.pack(codes, bits) == whole


@pytest.mark.parametrize(("bits", "code"), [(1, 2), (2, 4), (3, 8), (4, 255), (7, 128)])
def test_a_code_that_does_not_fit_is_refused(bits: int, code: int) -> None:
    with pytest.raises(QuantizationError, match=f"Code {code} doesn't fit into {bits} bits"):
        bit_stream.pack(torch.tensor([0, code], dtype=torch.uint8), bits)


def test_a_stream_of_the_wrong_length_is_refused() -> None:
    stream = bit_stream.pack(torch.zeros(9, dtype=torch.uint8), 3)
    with pytest.raises(QuantizationError, match="4 bytes aren't 12 codes of 3 bits: those take 5 bytes"):
        bit_stream.unpack(stream, 3, (12,))


@pytest.mark.parametrize("bits", [0, 9, -4, True, 4.0, "4"])
def test_widths_outside_one_to_eight_are_refused(bits: object) -> None:
    with pytest.raises(QuantizationError, match="use a whole number from 1 to 8"):
        bit_stream.check_bits(bits)  # type: ignore[arg-type]


def test_a_grid_of_one_bit_is_refused_and_packing_one_is_not() -> None:
    bit_stream.check_bits(1)
    with pytest.raises(QuantizationError, match="Codes of 1 bits can't be made: use a whole number from 2 to 8"):
        bit_stream.check_bits(1, least=2)
