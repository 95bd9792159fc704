"""The head of a GGUF file: whatever it claims is held against what is there."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_files import gguf_bytes, text, write_gguf

from harness.errors import UnsafeSubmissionError
from harness.submit.scan.gguf import _BLOCKS, OTHERS, as_model, block_types, read_header

TENSORS = {"token_embd.weight": ("F32", (4, 8), bytes(128)), "blk.0.ffn_up.weight": ("Q4_0", (2, 64), bytes(72)),
           "blk.0.attn_norm.weight": ("F32", (8,), bytes(32))}  # fmt: skip
METADATA = {"general.architecture": "llama", "llama.block_count": 1, "tokenizer.ggml.tokens": ["a", "bc"]}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def refused(tmp_path: Path, content: bytes) -> str:
    """Returns the one sentence with which a file is refused."""
    with pytest.raises(UnsafeSubmissionError) as error:
        read_header(written(tmp_path, content))
    assert "\n" not in str(error.value)
    return str(error.value)


def head(tensors: int = 1, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def info(name: str = "t", sides: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def test_tensors_are_told_with_type_shape_and_place(tmp_path: Path) -> None:
    path = written(tmp_path, gguf_bytes(TENSORS, METADATA))
    found = read_header(path)
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        "token_embd.weight": ("F32", (4, 8)), "blk.0.ffn_up.weight": ("Q4_0", (2, 64)),
        "blk.0.attn_norm.weight": ("F32", (8,)),
    }  # fmt: skip
    assert [each.end - each.start for each in found.values()] == [128, 72, 32]
    assert all(each.start % 32 == 0 for each in found.values())
    assert max(each.end for each in found.values()) == path.stat().st_size


def test_types_are_counted_inside_the_blocks_alone_and_names_fit_the_check_of_sizes(tmp_path: Path) -> None:
    found = read_header(written(tmp_path, gguf_bytes(TENSORS, METADATA)))
    assert block_types(found) == {"Q4_0": 128}
    assert set(as_model(found)) == {
        "model.embed_tokens.weight", "model.layers.0.mlp.up.weight", "model.layers.0.attn_norm.weight",
    }  # fmt: skip


def test_every_type_that_the_library_knows_has_its_name() -> None:
    gguf = pytest.importorskip("gguf")
    named = {number: kind for number, (kind, _, _) in _BLOCKS.items()} | OTHERS
    assert {each.value: each.name for each in gguf.GGMLQuantizationType}.items() <= named.items()
    assert not set(_BLOCKS) & set(OTHERS)


def test_what_the_library_reads_is_what_we_read(tmp_path: Path, model_folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(model_folder, tmp_path / "file", "Q8_0") / "model.gguf"
    theirs = {
        each.name: (each.tensor_type.name, tuple(reversed(each.shape.tolist())), each.data_offset, each.n_bytes)
        for each in gguf.GGUFReader(path).tensors
    }
    ours = {name: (e.dtype, e.shape, e.start, e.end - e.start) for name, e in read_header(path).items()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "too short for a GGUF file"),
        (b"GGML" + bytes(60), "doesn't begin with GGUF"),
        (head(version=1) + bytes(40), "it has version 1"),
        (head(tensors=0) + bytes(40), "claims 0 tensors and 0 keys"),
        (head(tensors=1 << 60) + bytes(40), "claims 1152921504606846976 tensors"),
        (head(keys=1 << 60) + bytes(40), "and 1152921504606846976 keys"),
        (head() + struct.pack("<Q", 1 << 62) + bytes(40), "a tensor's name has 4611686018427387904 bytes"),
        (head() + struct.pack("<Q", 200) + bytes(40), "it is cut off: a tensor's name takes 200 bytes"),
        (head() + text("t") + struct.pack("<I", 5) + bytes(60), "tensor 't' has 5 dimensions"),
        (head() + text("t") + struct.pack("<I", 0) + bytes(60), "tensor 't' has 0 dimensions"),
        (head() + info(kind=16) + bytes(200), "is of type IQ2_XXS, and accepted are F32"),
        (head() + info(kind=2, sides=(33,)) + bytes(200), "of type Q4_0 has no usable shape"),
        (head() + info(sides=(0,)) + bytes(200), "no usable shape"),
        (head() + info(sides=(1 << 40, 1 << 40)) + bytes(200), "no usable shape"),
        (head() + info(sides=(1 << 31, 1 << 31)) + bytes(200), "its tensors need 18446744073709551"),
        (head() + info(sides=(32,)) + bytes(64), "its tensors need"),
        (head() + info(sides=(32,)) + bytes(400), "its tensors need"),
        (head() + info(offset=1 << 63) + bytes(200), "overlap another tensor's, or leave a gap"),
        (head() + info(offset=7) + bytes(200), "overlap another tensor's, or leave a gap"),
        (head(2) + info() + info() + bytes(400), "tensor 't' stands there twice"),
        (head(2) + info("a") + info("b") + bytes(400), "overlap another tensor's"),
        (head() + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(60), "a tensor's name is not UTF-8"),
    ],
)
def test_a_head_that_claims_what_is_not_there_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<I", 13) + bytes(40), "is of type 13, which the format does not have"),
        (struct.pack("<IQ", 8, 1 << 50) + bytes(40), "has 1125899906842624 bytes, and at most"),
        (struct.pack("<IIQ", 9, 0, 1 << 50) + bytes(40), "is an array of 1125899906842624 items"),
        (struct.pack("<IIQ", 9, 9, 1) + bytes(40), "is an array of 1 items of type 9"),
        (struct.pack("<IIQ", 9, 99, 1) + bytes(40), "of type 99, which is not read"),
        (struct.pack("<IIQ", 9, 0, 1000) + bytes(40), "it is cut off: metadata 'k' takes 1000 bytes"),
        (struct.pack("<IIQ", 9, 8, 3) + bytes(16), "it is cut off"),
    ],
)
def test_metadata_that_claim_more_than_there_is_are_refused(value: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, head(keys=1) + text("k") + value)


@pytest.mark.parametrize("alignment", [0, 1, 33, 1 << 31])
def test_an_alignment_that_is_none_is_refused(alignment: int, tmp_path: Path) -> None:
    content = gguf_bytes(TENSORS, METADATA | {"general.alignment": alignment})
    assert "general.alignment is no power of two" in refused(tmp_path, content)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    twice = head(keys=2) + 2 * (text("k") + struct.pack("<IB", 0, 1)) + info() + bytes(400)
    assert "the key 'k' is given twice" in refused(tmp_path, twice)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 500))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(place: int, byte: int, cut: int, tmp_path: Path) -> None:
    whole = bytearray(gguf_bytes(TENSORS, METADATA))
    whole[place % len(whole)] = byte
    path = written(tmp_path, bytes(whole[: max(0, len(whole) - cut)]))
    with contextlib.suppress(UnsafeSubmissionError):
        assert all(each.end <= path.stat().st_size for each in read_header(path).values())
