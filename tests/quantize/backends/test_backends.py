"""What every backend must do, tried on every preset that discovery finds."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from harness import quantize
from harness.cli.main import app
from harness.contract.quantizers import (
    check_facts,
    check_names,
    check_only_block_linears_change,
    check_proof,
    check_repeats,
    files_of,
    logits,
)
from harness.errors import InputError, QuantizationError, UnknownNameError
from harness.quantize import calibration
from harness.quantize.models.dense import load_dense, source_weights
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

PRESETS = [spec.name for spec in quantize.presets()]
SHAPES = ("llama", "gqa576")
_made: dict[tuple[str, str], QuantizedModel] = {}

# Their codes are on a scale of their own in every model, and their norms are other ones.
AWQ = ("awq", "autoawq")
K_QUANTS = [spec.name for spec in quantize.presets() if spec.backend == "ggml"]
CALIBRATED = [spec.name for spec in quantize.presets() if calibration.recipe_of(spec) is not None]

# Bits for the scale and the zero point or shift of one group, by backend.
_OVERHEAD: dict[str, Callable[[QuantizerSpec], float]] = {
    "rtn": lambda spec: 16 + spec.bits,
    "bnb": lambda spec: 8 + 32 / 256 if spec.name.endswith("-dq") else 32,
    "hqq": lambda spec: 32,
    "quanto": lambda spec: 16 if spec.bits == 8 else 32,
    "torchao": lambda spec: 32 if spec.group_size is None else 16,
    "gguf": lambda spec: 16 if spec.symmetric else 32,
    # What a super-block of 256 takes beside its codes, for each of its groups.
    "ggml": lambda spec: {6: 9, 5: 16, 4: 16, 3: 7, 2: 10}[spec.bits],
    "gptq": lambda spec: 16 + spec.bits,
    "awq": lambda spec: 16 + spec.bits,
    "autoround": lambda spec: 16 + spec.bits,
    "autogptq": lambda spec: 16 + spec.bits,
    "autoawq": lambda spec: 16 + spec.bits,
}


def _cases(presets: list[str], *, briefly: bool = False) -> list[Any]:
    """Every preset on every shape; slow are those that calibrate and, ``briefly``, every shape but the first."""
    return [
        pytest.param(
            preset,
            shape,
            id=f"{preset}-{shape}",
            marks=[pytest.mark.slow] if preset in CALIBRATED or (briefly and shape != SHAPES[0]) else [],
        )
        for preset in presets
        for shape in (*SHAPES, *(["even256"] if preset in K_QUANTS else []))
    ]


def _refused(spec: QuantizerSpec, shape: str) -> bool:
    """Whether a library has no place for a shape: rows of 192 in one; rows of 160, and 160 of them, in the other."""
    if spec.backend == "ggml":
        return shape != "even256"
    if spec.backend in AWQ:
        return shape == "gqa576" or (spec.group_size == 128 and not shape.startswith("even"))
    return shape == "gqa576" and spec.backend == "torchao" and spec.group_size == 64


@pytest.fixture
def made(
    checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> Callable[..., QuantizedModel]:
    """Quantizes a shape with a preset, once unless ``again``; skips what is not installed here."""

    def make(preset: str, shape: str, again: bool = False) -> QuantizedModel:
        spec, texts = calibration.prepare(quantize.resolve(preset), {"retain": calibration_texts})
        backend = quantize.backend_of(spec)
        reason = backend.unavailable_reason(spec, "cpu")
        if reason is not None:
            pytest.skip(reason)
        if again or (preset, shape) not in _made:
            _made[preset, shape] = backend.quantize(checkpoint_of(shape), spec, device="cpu", calibration=texts)
        return _made[preset, shape]

    return make


def _or_refusal(made: Callable[..., QuantizedModel], preset: str, shape: str) -> QuantizedModel:
    spec = quantize.resolve(preset)
    if not _refused(spec, shape):
        return made(preset, shape)
    with pytest.raises(QuantizationError, match=rf"^{preset} can't hold model\.layers\.0\..*; choose another "):
        made(preset, shape)
    pytest.skip(f"{preset} has no place for this shape and says so")


# The same steps at every shape: a second one is worth minutes in the long run only.
@pytest.mark.parametrize(("preset", "shape"), _cases(PRESETS, briefly=True))
def test_quantizing_leaves_the_checkpoint_alone_and_is_the_same_twice(
    preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint], made: Callable[..., QuantizedModel]
) -> None:
    checkpoint = checkpoint_of(shape)
    before = files_of(checkpoint)
    first = _or_refusal(made, preset, shape)
    assert files_of(checkpoint) == before
    second = made(preset, shape, again=True)
    check_repeats(first, second)


@pytest.fixture(scope="module")
def said_to_run() -> dict[str, bool]:
    """What ``quench backends --json`` says of every preset on this machine."""
    listed = json.loads(CliRunner().invoke(app, ["backends", "--json"]).stdout)["rows"]
    return {row["quantizer"]: row["runs_here"] for row in listed}


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.slow] if name in CALIBRATED else []) for name in PRESETS]
)
def test_a_preset_that_is_said_to_run_here_really_does_and_no_other(
    preset: str,
    said_to_run: dict[str, bool],
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    made: Callable[..., QuantizedModel],
) -> None:
    spec = quantize.resolve(preset)
    # The shapes with rows that groups of 128, or of 256, divide throughout.
    shape = next(shape for shape in ("llama", "even128", "even256") if not _refused(spec, shape))
    if said_to_run[preset]:
        assert bool(logits(made(preset, shape).model).isfinite().all())
        return
    spec, texts = calibration.prepare(spec, {"retain": calibration_texts})
    with pytest.raises((ImportError, QuantizationError)):
        quantize.backend_of(spec).quantize(checkpoint_of(shape), spec, device="cpu", calibration=texts)
    assert quantize.backend_of(spec).unavailable_reason(spec, "cpu") is not None


@pytest.mark.parametrize(("preset", "shape"), _cases([name for name in PRESETS if name != "reference"]))
def test_a_preset_holds_its_proof(preset: str, shape: str, made: Callable[..., QuantizedModel]) -> None:
    quantized = _or_refusal(made, preset, shape)
    spec, proof = quantized.spec, quantized.proof
    check_proof(quantized)
    assert proof is not None
    nominal = spec.bits + _OVERHEAD[spec.backend](spec) / (spec.group_size or 128)
    assert proof.bits_per_weight == pytest.approx(nominal, rel=0.1)
    assert (quantized.layers == {}) == (spec.backend in AWQ)


@pytest.mark.parametrize(("preset", "shape"), _cases([name for name in PRESETS if not name.startswith(AWQ)]))
def test_only_block_linears_change(
    preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint], made: Callable[..., QuantizedModel]
) -> None:
    quantized, original = _or_refusal(made, preset, shape), load_dense(checkpoint_of(shape), device="cpu")
    check_only_block_linears_change(quantized, original, reference=preset == "reference")
    if quantized.proof is not None:
        assert "model.embed_tokens" in quantized.proof.dense_modules
        assert "model.layers.*.input_layernorm" in quantized.proof.dense_modules
        assert ("lm_head" in quantized.proof.dense_modules) == (shape != "gqa576")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["awq-4bit-g64", "autoawq-4bit-g64"])
def test_awq_takes_the_norms_of_the_quantized_checkpoint_and_still_computes_the_same_function(
    preset: str, checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...], tmp_path: Path
) -> None:
    spec, texts = calibration.prepare(quantize.resolve(preset), {"retain": calibration_texts})
    reason = quantize.backend_of(spec).unavailable_reason(spec, "cpu")
    if reason is not None:
        pytest.skip(reason)
    original = load_dense(checkpoint_of("llama"), device="cpu")
    with torch.no_grad():
        for layer in original.model.layers:
            # Some columns see activations a hundred times those of others.
            layer.input_layernorm.weight.copy_(torch.logspace(-1, 1, 128)[torch.randperm(128)])
    original.bfloat16().save_pretrained(tmp_path)
    uneven = dataclasses.replace(checkpoint_of("llama"), path=str(tmp_path))
    quantized = quantize.backend_of(spec).quantize(uneven, spec, device="cpu", calibration=texts)
    original = load_dense(uneven, device="cpu")
    norms = [
        (layer.input_layernorm.weight, other.input_layernorm.weight)
        for layer, other in zip(quantized.model.model.layers, original.model.layers, strict=True)
    ]
    assert all(not torch.equal(new, old) for new, old in norms)
    assert torch.equal(quantized.model.lm_head.weight, original.lm_head.weight)
    exact, close = logits(original), logits(quantized.model)
    with torch.no_grad():
        for new, old in norms:
            new.copy_(old)
    # With the checkpoint's own norms the scales do not cancel.
    assert float((close - exact).norm()) < 0.5 * float((logits(quantized.model) - exact).norm())
    assert quantized.proof is not None
    assert quantized.proof.relative_error < 0.2
    assert "norms" in quantized.proof.remarks[1]


@pytest.mark.parametrize("shape", ["mistral", "qwen2", "qwen3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("preset", ["rtn-4bit-g128", "bnb-int8", "bnb-nf4"])
def test_other_architectures_hold_the_proof_too(preset: str, shape: str, made: Callable[..., QuantizedModel]) -> None:
    quantized = made(preset, shape)
    assert quantized.proof is not None
    assert quantized.proof.quantized_layers == (8 if shape == "gpt_neox" else 14)
    assert not any("embed" in name or "lm_head" in name for name in quantized.layers)
    assert bool(logits(quantized.model).isfinite().all())


FAMILIES = [
    "rtn-{2,3,4,8}bit-g128",
    "rtn-{2,3,4,8}bit-g64",
    "rtn-{2,3,4}bit-g128-mse",
    "hqq-{1,2,3,4,8}bit-g64",
    "quanto-int{2,4}-g128",
    "torchao-int{2,3,4,8}-g32",
    "gguf-q{4,5,8}_0",
    "gguf-q{4,5}_1",
    pytest.param("gptq-{2,3,4,8}bit-g64-sym", marks=pytest.mark.slow),
    pytest.param("gptq-{2,3,4,8}bit-g128-sym", marks=pytest.mark.slow),
    pytest.param("autogptq-{2,3,4,8}bit-g128-sym", marks=pytest.mark.slow),
    pytest.param("autoround-{2,3,4,8}bit-g64-sym", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_falls_as_the_bits_rise(family: str, shape: str, made: Callable[..., QuantizedModel]) -> None:
    reference = logits(made("reference", shape).model)
    start, bits, ending = re.split(r"[{}]", family)
    members = [made(f"{start}{width}{ending}", shape) for width in bits.split(",")]
    weights = [each.proof.relative_error for each in members if each.proof is not None]
    apart = [float((logits(each.model) - reference).norm()) for each in members]
    assert weights == sorted(weights, reverse=True)
    assert apart == sorted(apart, reverse=True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_clipped_range_has_a_smaller_error_than_the_full_one(bits: int, made: Callable[..., QuantizedModel]) -> None:
    clipped, full = made(f"rtn-{bits}bit-g128-mse", "llama").proof, made(f"rtn-{bits}bit-g128", "llama").proof
    assert clipped is not None
    assert full is not None
    assert clipped.relative_error < full.relative_error
    assert clipped.bits_per_weight == full.bits_per_weight


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_float32_scales_are_proved_counted_and_hardly_change_the_codes(
    bits: int, made: Callable[..., QuantizedModel]
) -> None:
    wide, narrow = made(f"rtn-{bits}bit-g64-f32", "llama"), made(f"rtn-{bits}bit-g64", "llama")
    assert wide.proof is not None
    assert narrow.proof is not None
    assert wide.proof.bits_per_weight > narrow.proof.bits_per_weight + 0.2
    assert wide.proof.relative_error == pytest.approx(narrow.proof.relative_error, rel=0.02)
    for name, layer in wide.layers.items():
        assert (layer.codes != narrow.layers[name].codes).double().mean() < 0.05


def test_double_quantization_keeps_the_codes_and_saves_bytes(made: Callable[..., QuantizedModel]) -> None:
    plain, double = made("bnb-nf4", "llama").proof, made("bnb-nf4-dq", "llama").proof
    assert plain is not None
    assert double is not None
    assert double.codes_sha256 == plain.codes_sha256
    assert double.bits_per_weight < plain.bits_per_weight - 0.3
    assert double.relative_error != plain.relative_error


def test_quanto_says_which_layers_have_a_group_of_the_library_s_own(made: Callable[..., QuantizedModel]) -> None:
    proof = made("quanto-int4-g128", "gqa576").proof
    assert proof is not None
    assert proof.remarks[0].startswith("2 of 14 layers are quantized in groups of 32; 12 of 14 layers are quantized in")


def test_packed_codes_are_what_torchao_s_bytes_are_counted_by(made: Callable[..., QuantizedModel]) -> None:
    proof = made("torchao-int2-g64", "llama").proof
    assert proof is not None
    assert proof.bits_per_weight == pytest.approx(2.25)
    assert "a byte of its own" in proof.remarks[0]


def test_bitsandbytes_gives_the_weights_that_its_own_layers_hold(
    checkpoint_of: Callable[[str], Checkpoint], made: Callable[..., QuantizedModel]
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    checkpoint = checkpoint_of("llama")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    own = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=torch.bfloat16, device_map="cpu", quantization_config=config
    ).eval()
    ours = made("bnb-nf4", "llama").model
    with torch.no_grad():
        hidden = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))
        theirs = own.model.layers[0].mlp.gate_proj(hidden)
        own_way = ours.model.layers[0].mlp.gate_proj(hidden)
    # The library's CPU kernel rounds on the way; other codes would be off by a tenth.
    assert float((own_way - theirs.float()).norm() / own_way.norm()) < 5e-3


def test_int8_says_what_it_leaves_out_and_keeps_quiet(
    made: Callable[..., QuantizedModel], capfd: pytest.CaptureFixture[str]
) -> None:
    quantized = made("bnb-int8", "llama")
    assert quantized.proof is not None
    assert "outlier columns" in quantized.proof.remarks[0]
    logits(quantized.model)
    captured = capfd.readouterr()
    assert "MatMul8bitLt" not in captured.out + captured.err


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize.backends import bnb

    monkeypatch.setattr(bnb, "find_spec", lambda name: None)
    reason = bnb.BACKEND.unavailable_reason(quantize.resolve("bnb-nf4"), "cpu")
    assert reason is not None
    assert "pip install 'quench-bench[score]'" in reason
    assert reason.endswith(".")


def test_a_checkpoint_whose_files_lack_weights_is_refused(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = Path(checkpoint_of("llama").path)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    broken = dataclasses.replace(checkpoint_of("llama"), path=str(tmp_path))
    with pytest.raises(InputError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_dense(broken, device="cpu")


def test_source_weights_are_found_in_shards_and_under_names_without_the_first_part(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = checkpoint_of("llama")
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    model.model.save_pretrained(tmp_path / "body")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("shards", "body"):
        with source_weights(dataclasses.replace(checkpoint, path=str(tmp_path / folder))) as source:
            weight = source["model.layers.0.mlp.up_proj"]
            assert torch.equal(weight, model.model.layers[0].mlp.up_proj.weight.float())
            with pytest.raises(QuantizationError, match=r"no tensor model\.nothing\.weight"):
                source["model.nothing"]


def test_listing_presets_loads_no_numerical_library() -> None:
    code = (
        "import sys; from harness import quantize; quantize.presets(); quantize.survival;"
        "bad = {'torch', 'transformers', 'numpy', 'bitsandbytes'} & set(sys.modules); assert not bad, bad"
    )
    code = code.replace("quantize.survival;", "import harness.quantize.survival.measure;")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_preset_resolves_to_itself_and_names_are_unique() -> None:
    assert len(set(PRESETS)) == len(PRESETS)
    assert PRESETS[0] == "reference"
    for name in {spec.backend for spec in quantize.presets()}:
        check_names(name)
        check_facts(name)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("groups", ["g1", "g32", "g4096", "row"])
@pytest.mark.parametrize("ending", ["", "-sym"])
def test_any_full_rtn_name_is_understood(bits: int, groups: str, ending: str) -> None:
    spec = quantize.resolve(f"rtn-{bits}bit-{groups}{ending}")
    assert spec.name == f"rtn-{bits}bit-{groups}{ending}"
    assert spec.bits == bits
    assert spec.group_size == (None if groups == "row" else int(groups[1:]))
    assert spec.symmetric == (ending == "-sym")
    assert ("symmetric" if spec.symmetric else "asymmetric") in spec.label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtn-4bit", "names no single quantizer.*choose rtn-4bit-g128, rtn-4bit-g64 or rtn-4bit-g128-mse"),
        (
            "4bit",
            "names no single quantizer.*bnb-nf4, bnb-fp4, bnb-nf4-dq, gguf-q4_k, gguf-q4_1.*rtn-4bit-g128, ",
        ),
        ("int8", "names no single quantizer.*bnb-int8, .*quanto-int8-row, rtn-8bit-g128"),
        ("nf4", "choose bnb-nf4 or bnb-nf4-dq"),
        ("RTN-4bit-g128", "did you mean rtn-4bit-g128"),
        ("rtn-4bit-g", "choose rtn-4bit-g128, rtn-4bit-g64 or rtn-4bit-g128-mse"),
        ("rtn-4bit-g0", "did you mean"),
        ("rtn-1bit-g64", "did you mean"),
        ("rtn-9bit-g64", "did you mean"),
        ("gptq", "choose autogptq-8bit-g128-sym, .*gptq-8bit-g128-sym, gptq-8bit-g64-sym"),
        ("squeezellm", "known: autoawq-4bit"),
        ("", "known: autoawq-4bit"),
    ],
)
def test_a_name_that_is_not_exact_is_refused_with_the_choices(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        quantize.resolve(name)


def test_a_spec_of_an_absent_backend_is_refused() -> None:
    spec = dataclasses.replace(quantize.resolve("reference"), backend="hqqq")
    with pytest.raises(UnknownNameError, match="no quantization backend named 'hqqq'"):
        quantize.backend_of(spec)
