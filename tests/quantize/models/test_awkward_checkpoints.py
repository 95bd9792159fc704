"""Checkpoints that are not the usual ones: float16, shards, biases, odd widths, zeros, outliers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.models.dense import block_linears, load_dense, source_weights
from harness.quantize.survival.measure import measure
from harness.records import Checkpoint, LayerSurvival, Proof, QuantizedModel

Maker = Callable[..., Checkpoint]
EVERY_KIND = ["rtn-4bit-g64", "rtn-3bit-row-sym", "rtn-2bit-g7", "bnb-int8", "bnb-nf4", "bnb-fp4"]

THROUGH_LIBRARIES = [
    "hqq-4bit-g32", "quanto-int8-row", "quanto-int4-g128", "torchao-int8-row", "torchao-int3-g32", "gguf-q8_0",
    "gguf-q4_1", "bnb-nf4-dq", "rtn-4bit-g32-mse",
]  # fmt: skip


@pytest.fixture
def llama(tmp_path: Path) -> Maker:
    """Saves a tiny Llama with any config, changed by a function before it is stored."""

    def make(
        change: Callable[[Any], object] = lambda model: None, *, name: str = "model", dtype: str = "bfloat16",
        shard: str = "1GB", **sizes: Any,
    ) -> Checkpoint:  # fmt: skip
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(2)
        usual = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": False}  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**(usual | sizes)))
        with torch.no_grad():
            change(model)
        folder = tmp_path / name
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
        return Checkpoint(path=str(folder), tokenizer_path=str(folder), dtype=dtype, sha256="0" * 64,
                          merged_from_adapter=False)  # fmt: skip

    return make


def _quantize(preset: str, checkpoint: Checkpoint) -> QuantizedModel:
    spec = quantize.resolve(preset)
    backend = quantize.backend_of(spec)
    reason = backend.unavailable_reason(spec, "cpu")
    if reason is not None:
        pytest.skip(reason)
    return backend.quantize(checkpoint, spec, device="cpu")


def _proof(preset: str, checkpoint: Checkpoint) -> Proof:
    proof = _quantize(preset, checkpoint).proof
    assert proof is not None
    return proof


def _biased(model: Any) -> None:
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.copy_(torch.linspace(-1, 1, weight.numel()))


@pytest.mark.parametrize("preset", EVERY_KIND + THROUGH_LIBRARIES)
def test_biases_stay_as_they_are_and_are_told_among_the_dense_modules(preset: str, llama: Maker) -> None:
    checkpoint = llama(_biased, attention_bias=True, mlp_bias=True)
    quantized = _quantize(preset, checkpoint)
    kept = dict(load_dense(checkpoint, device="cpu").named_parameters())
    biases = {name: each for name, each in quantized.model.named_parameters() if name.endswith("bias")}
    assert len(biases) == 14
    assert all(torch.equal(each, kept[name]) for name, each in biases.items())
    assert quantized.proof is not None
    assert "model.layers.*.self_attn.q_proj.bias" in quantized.proof.dense_modules
    assert "model.layers.*.self_attn.q_proj" not in quantized.proof.dense_modules


@pytest.mark.parametrize("preset", EVERY_KIND + THROUGH_LIBRARIES)
def test_a_float16_checkpoint_holds_its_proof(preset: str, llama: Maker) -> None:
    proof = _proof(preset, llama(dtype="float16"))
    assert proof.quantized_layers == 14
    assert 0 < proof.relative_error < 0.4


@pytest.mark.parametrize("preset", EVERY_KIND + THROUGH_LIBRARIES)
def test_a_float32_checkpoint_holds_its_proof(preset: str, llama: Maker) -> None:
    proof = _proof(preset, llama(dtype="float32"))
    assert proof.quantized_layers == 14
    assert 0 < proof.relative_error < 0.4


def test_float16_and_bfloat16_copies_of_the_same_numbers_get_the_same_codes(llama: Maker) -> None:
    def coarse(model: Any) -> None:
        for weight in model.parameters():
            weight.copy_((weight * 256).round() / 256)

    half, brain = (llama(coarse, name=dtype, dtype=dtype) for dtype in ("float16", "bfloat16"))
    for preset in ("rtn-4bit-g64", "bnb-int8"):
        assert _proof(preset, half).codes_sha256 == _proof(preset, brain).codes_sha256


@pytest.mark.parametrize("preset", ["rtn-4bit-g64", "bnb-int8", "bnb-nf4", *THROUGH_LIBRARIES])
def test_shards_are_quantized_like_one_file(preset: str, llama: Maker) -> None:
    shards, whole = llama(name="shards", shard="20KB"), llama(name="whole")
    assert len(list(Path(shards.path).glob("*.safetensors"))) > 2
    assert _proof(preset, shards) == _proof(preset, whole)


def test_a_stray_file_beside_an_index_is_not_read_as_a_source(llama: Maker) -> None:
    from safetensors.torch import save_file

    shards = llama(shard="20KB")
    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(1)}, Path(shards.path) / "zz.safetensors")
    with source_weights(shards) as source:
        assert source["model.layers.0.mlp.up_proj"].shape == (96, 64)
        assert len(list(source)) == len(source) == 21


def _bytes_of(preset: str, rows: int, width: int) -> int:
    """The size of one layer by the definition, from the preset's numbers alone."""
    spec = quantize.resolve(preset)
    codes = math.ceil(rows * width * spec.bits / 8)
    if spec.backend == "bnb":
        # float32 scales, over the flat matrix or one per row.
        return codes + 4 * (rows if spec.group_size is None else math.ceil(rows * width / spec.group_size))
    groups = rows * math.ceil(width / (spec.group_size or width))
    return codes + 2 * groups + (0 if spec.symmetric else math.ceil(groups * spec.bits / 8))


@pytest.mark.parametrize("preset", EVERY_KIND)
def test_bytes_and_bits_of_odd_widths_are_those_of_the_definition(preset: str, llama: Maker) -> None:
    checkpoint = llama(hidden_size=36, intermediate_size=50, num_attention_heads=2)
    shapes = [tuple(each.weight.shape) for each in block_linears(load_dense(checkpoint, device="cpu")).values()]
    proof = _proof(preset, checkpoint)
    assert proof.size_bytes == sum(_bytes_of(preset, *shape) for shape in shapes)
    assert proof.bits_per_weight == 8 * proof.size_bytes / sum(math.prod(shape) for shape in shapes)
    assert proof.group_size == quantize.resolve(preset).group_size


def _zeroed(model: Any) -> None:
    for linear in block_linears(model).values():
        linear.weight.zero_()


@pytest.mark.parametrize("preset", EVERY_KIND + THROUGH_LIBRARIES)
def test_layers_of_zeros_come_back_as_zeros_with_finite_measures(preset: str, llama: Maker) -> None:
    quantized = _quantize(preset, llama(_zeroed))
    assert all(not linear.weight.any() for linear in block_linears(quantized.model).values())
    assert quantized.proof is not None
    assert (quantized.proof.max_levels, quantized.proof.max_abs_error, quantized.proof.relative_error) == (1, 0.0, 0.0)


def test_a_single_outlier_costs_its_own_group_and_no_other(llama: Maker) -> None:
    def outlier(model: Any) -> None:
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 100.0

    usual, spoiled = _quantize("rtn-4bit-g32", llama(name="usual")), _quantize("rtn-4bit-g32", llama(outlier))
    name = "model.layers.0.mlp.up_proj"
    same = usual.layers[name].codes == spoiled.layers[name].codes
    assert bool(same[3, 32:].all())
    assert bool(same[:3].all())
    assert bool(same[4:].all())
    row = block_linears(spoiled.model)[name].weight[3, :32].detach()
    assert float(row[5]) == pytest.approx(100, rel=1e-3)
    assert float(row.abs().sum() - row[5].abs()) == 0


def test_weights_beyond_every_float16_scale_stop_the_backend_in_one_sentence(llama: Maker) -> None:
    def huge(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight[0, 0] = -1e30

    with pytest.raises(QuantizationError, match=r"needs a scale of .* weights this large are no usable model"):
        _quantize("rtn-4bit-g64", llama(huge))


def test_models_without_torch_linears_in_their_blocks_are_refused_by_class() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    with pytest.raises(QuantizationError, match="GPT2LMHeadModel has no list of 2 transformer blocks"):
        block_linears(model)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "mistral", "gemma2", "gpt_neox"])
def test_block_linears_come_in_model_order_and_are_the_model_s_own(
    shape: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    model = load_dense(checkpoint_of(shape), device="cpu")
    modules = dict(model.named_modules())
    found = block_linears(model)
    assert list(found) == [name for name in modules if name in found]
    assert all(modules[name] is linear for name, linear in found.items())
    outside = [name for name, each in modules.items() if isinstance(each, torch.nn.Linear) and name not in found]
    assert outside == ["embed_out" if shape == "gpt_neox" and "embed_out" in modules else "lm_head"]


def _survival(preset: str, new: Checkpoint, old: Checkpoint) -> dict[str, LayerSurvival]:
    return {row.layer: row for row in measure(_quantize(preset, new), _quantize(preset, old), new, old)}


@pytest.mark.parametrize("preset", ["rtn-4bit-g32", "bnb-nf4"])
def test_an_update_of_one_layer_is_measured_there_and_pooled_with_the_untouched(preset: str, llama: Maker) -> None:
    name = "model.layers.1.self_attn.o_proj"

    def move(model: Any) -> None:
        noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(4))
        block_linears(model)[name].weight += 0.05 * noise

    rows = _survival(preset, llama(move, name="new"), llama(name="old"))
    pooled = rows.pop("all layers")
    moved = rows.pop(name)
    assert moved.survival_ratio == pytest.approx(1, abs=0.1)
    # Layers without an update add nothing to either side of the ratio.
    assert pooled.survival_ratio == pytest.approx(moved.survival_ratio)
    assert pooled.cosine == pytest.approx(moved.cosine)
    assert pooled.relative_update < moved.relative_update
    assert pooled.codes_changed == pytest.approx(moved.codes_changed * moved.num_weights / pooled.num_weights)
    assert all((row.survival_ratio, row.cosine, row.codes_changed) == (None, None, 0) for row in rows.values())


def test_survival_does_not_care_how_the_checkpoints_are_stored(llama: Maker) -> None:
    def move(model: Any) -> None:
        for linear in block_linears(model).values():
            linear.weight += 0.01 * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(1))

    old = llama(name="old")
    new, sharded = llama(move, name="new"), llama(move, name="sharded", shard="20KB")
    assert _survival("rtn-4bit-g64", new, old) == _survival("rtn-4bit-g64", sharded, old)


def test_a_target_of_zeros_has_no_relative_update_to_judge_by(llama: Maker) -> None:
    new, old = llama(name="new"), llama(_zeroed, name="old")
    for preset in ("rtn-4bit-g64", "bnb-int8"):
        for row in _survival(preset, new, old).values():
            assert row.survival_ratio is None
            assert row.cosine == pytest.approx(1, abs=0.02)
    # A row-wise grid of zeros has no step to measure the update in.
    assert all(row.update_in_steps is None for row in _survival("bnb-int8", new, old).values())


def test_layers_in_another_order_are_not_compared(llama: Maker) -> None:
    checkpoint = llama()
    first = _quantize("rtn-4bit-g64", checkpoint)
    other = dataclasses.replace(first, layers=dict(reversed(first.layers.items())))
    with pytest.raises(QuantizationError, match="compares two models of one shape"):
        measure(first, other, checkpoint, checkpoint)
