"""K-quants made with llama.cpp's library: where it is looked for, what comes out, and what is refused."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.backends import ggml
from harness.quantize.formats import ggml_k_blocks
from harness.records import Checkpoint, QuantizedModel

KINDS = tuple(sorted(ggml_k_blocks.TYPES))
BITS_PER_WEIGHT = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}

needs_llama_cpp = pytest.mark.skipif(
    ggml.BACKEND.unavailable_reason(ggml.BACKEND.presets()[0], "cpu") is not None,
    reason="llama.cpp's libggml-base or gguf-py is not installed (QUENCH_GGML may name the library)",
)


@pytest.fixture
def made(checkpoint_of: Callable[[str], Checkpoint]) -> Callable[[str], QuantizedModel]:
    def make(kind: str) -> QuantizedModel:
        spec = quantize.resolve(f"gguf-{kind.lower()}")
        return quantize.backend_of(spec).quantize(checkpoint_of("even256"), spec, device="cpu")

    return make


class Library:
    """Stands where libggml-base would: it writes the blocks it is given, and says how many bytes it wrote."""

    def __init__(self, blocks: bytes, written: int) -> None:
        self.blocks, self.written, self.asked = blocks, written, list[tuple[Any, ...]]()

    def ggml_quantize_chunk(self, *asked: Any) -> int:
        self.asked.append(asked)
        ctypes.memmove(asked[2], self.blocks, len(self.blocks))
        return self.written


def test_every_k_quant_that_is_read_can_be_made() -> None:
    presets = ggml.BACKEND.presets()
    assert {spec.options["type"] for spec in presets} == set(ggml_k_blocks.TYPES)
    for spec in presets:
        bits, group, _ = ggml_k_blocks.TYPES[spec.options["type"]]
        assert (spec.bits, spec.group_size) == (bits, group)
        assert quantize.resolve(spec.name) == spec


def test_without_llama_cpp_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv(ggml.LIBRARY_VARIABLE, "/nowhere/libggml-base.so")
    spec = quantize.resolve("gguf-q4_k")
    assert ggml.BACKEND.library_version() is None
    assert ggml.BACKEND.unavailable_reason(spec, "cpu") == (
        "gguf-q4_k needs llama.cpp's libggml-base, not found here: install llama.cpp or set QUENCH_GGML to the "
        "library's path."
    )


def test_a_library_without_the_function_is_not_taken_for_llama_cpp_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ggml.LIBRARY_VARIABLE, "libc.so.6")
    assert ggml.load_library() is None


def test_the_library_is_looked_for_beside_llama_quantize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.touch()
    monkeypatch.delenv(ggml.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "llama-quantize" else None)
    places = list(ggml._places())
    assert str(tmp_path / "lib" / "libggml-base.so") in places
    assert places.index("libggml-base.so") < places.index(str(tmp_path / "bin" / "libggml-base.so"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_goes_in_row_by_row_and_its_blocks_come_back(kind: str) -> None:
    size = ggml_k_blocks.TYPES[kind][2]
    blocks = bytes(number % 251 for number in range(3 * 2 * size))
    library = Library(blocks, len(blocks))
    weight = torch.arange(3 * 512, dtype=torch.bfloat16).reshape(3, 512)
    got = ggml._quantized(library, 12, kind, weight)
    assert got.shape == (3, 2 * size)
    assert got.tobytes() == blocks
    number, source, _, start, rows, width, importance = library.asked[0]
    assert (number, start, rows, width, importance) == (12, 0, 3, 512, None)
    assert source


def test_a_library_that_writes_another_number_of_bytes_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"wrote 7 bytes instead of 144 for Q4_K"):
        ggml._quantized(Library(b"", 7), 12, "Q4_K", torch.zeros(1, 256))


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_what_llama_cpp_makes_is_proved_and_has_the_format_s_bits(
    kind: str, made: Callable[[str], QuantizedModel]
) -> None:
    first, second = made(kind), made(kind)
    assert first.proof is not None
    assert first.proof == second.proof
    assert first.proof.bits_per_weight == pytest.approx(BITS_PER_WEIGHT[kind])
    assert first.proof.quantized_layers == first.proof.linear_layers
    assert any("--pure" in remark for remark in first.proof.remarks)


@needs_llama_cpp
def test_the_error_of_k_quants_falls_as_their_bits_rise(made: Callable[[str], QuantizedModel]) -> None:
    proofs = [made(kind).proof for kind in KINDS]
    errors = [proof.relative_error for proof in proofs if proof is not None]
    assert len(errors) == len(KINDS)
    assert errors == sorted(errors, reverse=True)


@needs_llama_cpp
@pytest.mark.parametrize("shape", ["llama", "gqa576"])
def test_rows_that_super_blocks_do_not_divide_are_refused_by_name(
    shape: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    spec = quantize.resolve("gguf-q4_k")
    with pytest.raises(QuantizationError, match=r"gguf-q4_k can't hold model\.layers\.0\..*; choose another "):
        quantize.backend_of(spec).quantize(checkpoint_of(shape), spec, device="cpu")
