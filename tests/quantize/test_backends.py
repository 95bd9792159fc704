"""What every backend must do, tried on every preset that discovery finds."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import quantize
from harness.errors import QuantizationError, UnknownNameError
from harness.quantize.dense import block_linears, load_dense, source_weights
from harness.records import Checkpoint, QuantizedModel

PRESETS = [spec.name for spec in quantize.presets()]
SHAPES = ("llama", "gqa576")
_made: dict[tuple[str, str], QuantizedModel] = {}

# Bits for the scale and the zero point of one group, by backend.
_OVERHEAD = {"rtn": lambda spec: 16 + spec.bits, "bnb": lambda spec: 32}


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(checkpoint.path).iterdir()}


def _quantized(preset: str, checkpoint: Checkpoint) -> QuantizedModel:
    key = (preset, checkpoint.path)
    if key not in _made:
        spec = quantize.resolve(preset)
        backend = quantize.backend_of(spec)
        reason = backend.unavailable_reason(spec, "cpu")
        if reason is not None:
            pytest.skip(reason)
        _made[key] = backend.quantize(checkpoint, spec, device="cpu")
    return _made[key]


def _logits(model: object) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_quantizing_leaves_the_checkpoint_alone_and_is_the_same_twice(
    preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    checkpoint = checkpoint_of(shape)
    before = _files(checkpoint)
    first = _quantized(preset, checkpoint)
    spec = quantize.resolve(preset)
    second = quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu")
    assert _files(checkpoint) == before
    assert first.proof == second.proof
    assert torch.equal(_logits(first.model), _logits(second.model))
    assert bool(_logits(first.model).isfinite().all())
    assert not first.model.training


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "reference"])
def test_a_preset_holds_its_proof(preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    checkpoint = checkpoint_of(shape)
    quantized = _quantized(preset, checkpoint)
    spec, proof = quantized.spec, quantized.proof
    assert proof is not None
    assert proof.linear_layers == proof.quantized_layers == len(quantized.layers) == 14
    assert proof.parameter_share == 1.0
    assert proof.max_levels > (32 if spec.bits == 8 else 2 ** (spec.bits - 1))
    assert proof.max_levels <= 2**spec.bits
    assert proof.group_size == spec.group_size
    assert 0 < proof.relative_error < 0.6
    assert proof.max_abs_error > 0
    weights = sum(layer.codes.numel() for layer in quantized.layers.values())
    assert proof.bits_per_weight == pytest.approx(8 * proof.size_bytes / weights)
    nominal = spec.bits + _OVERHEAD[spec.backend](spec) / (spec.group_size or 128)
    assert proof.bits_per_weight == pytest.approx(nominal, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_only_block_linears_change(preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    checkpoint = checkpoint_of(shape)
    quantized, original = _quantized(preset, checkpoint), load_dense(checkpoint, device="cpu")
    linears = {f"{name}.weight" for name in block_linears(original)}
    parameters = dict(quantized.model.named_parameters())
    for name, weight in original.named_parameters():
        same = torch.equal(weight, parameters[name])
        assert same == (name not in linears or preset == "reference"), name
    if quantized.proof is not None:
        assert "model.embed_tokens" in quantized.proof.dense_modules
        assert "model.layers.*.input_layernorm" in quantized.proof.dense_modules
        assert ("lm_head" in quantized.proof.dense_modules) == (shape == "llama")


@pytest.mark.parametrize("shape", ["mistral", "qwen2", "qwen3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("preset", ["rtn-4bit-g128", "bnb-int8", "bnb-nf4"])
def test_other_architectures_hold_the_proof_too(
    preset: str, shape: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    quantized = _quantized(preset, checkpoint_of(shape))
    assert quantized.proof is not None
    assert quantized.proof.quantized_layers == (8 if shape == "gpt_neox" else 14)
    assert not any("embed" in name or "lm_head" in name for name in quantized.layers)
    assert bool(_logits(quantized.model).isfinite().all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", ["g128", "g64"])
def test_the_error_falls_as_the_bits_rise(group: str, shape: str, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    checkpoint = checkpoint_of(shape)
    reference = _logits(_quantized("reference", checkpoint).model)
    made = [_quantized(f"rtn-{bits}bit-{group}", checkpoint) for bits in (2, 3, 4, 8)]
    weights = [each.proof.relative_error for each in made if each.proof is not None]
    logits = [float((_logits(each.model) - reference).norm()) for each in made]
    assert weights == sorted(weights, reverse=True)
    assert logits == sorted(logits, reverse=True)


def test_bitsandbytes_gives_the_weights_that_its_own_layers_hold(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    checkpoint = checkpoint_of("llama")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    own = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=torch.bfloat16, device_map="cpu", quantization_config=config
    ).eval()
    ours = _quantized("bnb-nf4", checkpoint).model
    with torch.no_grad():
        hidden = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))
        theirs = own.model.layers[0].mlp.gate_proj(hidden)
        own_way = ours.model.layers[0].mlp.gate_proj(hidden)
    # The library's CPU kernel rounds on the way; other codes would be off by a tenth.
    assert float((own_way - theirs.float()).norm() / own_way.norm()) < 5e-3


def test_int8_says_what_it_leaves_out_and_keeps_quiet(
    checkpoint_of: Callable[[str], Checkpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    quantized = _quantized("bnb-int8", checkpoint_of("llama"))
    assert quantized.proof is not None
    assert "outlier columns" in quantized.proof.remarks[0]
    _logits(quantized.model)
    captured = capfd.readouterr()
    assert "MatMul8bitLt" not in captured.out + captured.err


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize import bnb

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
    with pytest.raises(QuantizationError, match=r"1 tensors, first model\.layers\.1\.mlp\.up_proj\.weight"):
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
    code = code.replace("quantize.survival;", "import harness.quantize.survival;")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_preset_resolves_to_itself_and_names_are_unique() -> None:
    assert len(set(PRESETS)) == len(PRESETS)
    assert PRESETS[0] == "reference"
    for spec in quantize.presets():
        assert quantize.resolve(spec.name) == spec
        assert quantize.backend_of(spec).parse(spec.name) == spec
        assert quantize.discover()[spec.backend] is quantize.backend_of(spec)


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
        ("rtn-4bit", "names no single quantizer.*choose rtn-4bit-g128 or rtn-4bit-g64"),
        ("4bit", "names no single quantizer.*bnb-nf4, bnb-fp4, rtn-4bit-g128 or rtn-4bit-g64"),
        ("int8", "names no single quantizer.*bnb-int8, rtn-8bit-g128"),
        ("nf4", "did you mean bnb-nf4"),
        ("RTN-4bit-g128", "did you mean rtn-4bit-g128"),
        ("rtn-4bit-g", "choose rtn-4bit-g128 or rtn-4bit-g64"),
        ("rtn-4bit-g0", "did you mean"),
        ("rtn-1bit-g64", "did you mean"),
        ("rtn-9bit-g64", "did you mean"),
        ("gptq", "known: bnb-fp4"),
        ("", "known: bnb-fp4"),
    ],
)
def test_a_name_that_is_not_exact_is_refused_with_the_choices(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        quantize.resolve(name)


def test_a_spec_of_an_absent_backend_is_refused() -> None:
    spec = dataclasses.replace(quantize.resolve("reference"), backend="hqqq")
    with pytest.raises(UnknownNameError, match="no quantization backend named 'hqqq'"):
        quantize.backend_of(spec)
