"""Two widths in one model: names, which module has which, and what the proof says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import quantize
from harness.errors import UnknownNameError
from harness.quantize.backends import rtn
from harness.quantize.survival.layer_by_layer import stream
from harness.quantize.survival.measure import measure
from harness.records import Checkpoint, QuantizedModel

NAME = "rtn-mixed-3bit-g64-8bit-ends-down"


def _quantize(name: str, checkpoint: Checkpoint) -> QuantizedModel:
    spec = quantize.resolve(name)
    return quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu")


def test_the_name_says_it_all_and_so_does_the_label() -> None:
    spec = quantize.resolve(NAME)
    assert (spec.backend, spec.bits, spec.group_size, spec.symmetric) == ("rtn", 3, 64, False)
    assert spec.label == (
        "RTN 3-bit, but 8-bit in the first and the last block and down projections; group 64, asymmetric"
    )
    assert spec.options == {"wide_bits": 8, "wide_parts": ["ends", "down"]}


@pytest.mark.parametrize(
    "name",
    [
        "rtn-mixed-3bit-g64", "rtn-mixed-3bit-g64-8bit", "rtn-mixed-3bit-g64-8bit-down-ends",
        "rtn-mixed-3bit-g64-8bit-ends-ends", "rtn-mixed-4bit-g64-4bit-ends", "rtn-mixed-8bit-g64-3bit-ends",
        "rtn-mixed-3bit-row-8bit-ends", "rtn-mixed-3bit-g64-8bit-head",
    ],
)  # fmt: skip
def test_one_way_to_quantize_has_one_name_and_others_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError):
        quantize.resolve(name)


@pytest.mark.parametrize(
    ("module", "bits"),
    [
        ("model.layers.0.self_attn.q_proj", 8),
        ("model.layers.3.mlp.up_proj", 8),
        ("model.layers.1.mlp.down_proj", 8),
        ("model.layers.1.mlp.up_proj", 3),
        ("model.layers.2.self_attn.o_proj", 3),
        ("gpt_neox.layers.1.mlp.dense_4h_to_h", 8),
    ],
)
def test_a_module_s_width_follows_from_its_name(module: str, bits: int) -> None:
    assert rtn.bits_of(quantize.resolve(NAME), module, 4) == bits


@pytest.mark.parametrize("module", ["model.layers.1.self_attn.k_proj", "gpt_neox.layers.1.attention.dense"])
def test_attention_is_known_by_its_module(module: str) -> None:
    spec = quantize.resolve("rtn-mixed-2bit-g32-4bit-attn")
    assert rtn.bits_of(spec, module, 4) == 4
    assert rtn.bits_of(spec, "model.layers.1.mlp.up_proj", 4) == 2
    assert rtn.bits_of(quantize.resolve("rtn-5bit-g32"), module, 4) == 5


def test_codes_and_proof_have_both_widths(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    made = _quantize("rtn-mixed-3bit-g64-8bit-down", checkpoint_of("llama"))
    for name, layer in made.layers.items():
        top = int(layer.codes.max())
        assert (7 < top <= 255) if name.endswith("down_proj") else top <= 7
    assert made.proof is not None
    assert made.proof.remarks == ("12 of 14 layers have 3 bits; 2 of 14 layers have 8 bits.",)
    assert 8 < made.proof.max_levels <= 256


def test_its_size_and_error_lie_between_those_of_its_two_widths(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    proofs = [
        _quantize(name, checkpoint_of("llama")).proof
        for name in ("rtn-3bit-g64", "rtn-mixed-3bit-g64-8bit-down", "rtn-8bit-g64")
    ]
    sizes = [proof.bits_per_weight for proof in proofs if proof]
    errors = [proof.relative_error for proof in proofs if proof]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert len(set(sizes)) == len(set(errors)) == 3


def test_its_survival_is_measured_with_each_layer_s_own_width(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    old = checkpoint_of("llama")
    found = stream(old, old, [quantize.resolve(NAME)])[NAME]
    assert found == measure(_quantize(NAME, old), _quantize(NAME, old), old, old)
