"""Checkpoints that came quantized: what they are called, what their proof says, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_files import GPTQ_CONFIG, levels, rounded, write_bnb, write_dense, write_gguf, write_gptq
from safetensors.torch import load_file, save_file

from harness import quantize
from harness.errors import InputError, QuantizationError, UnknownNameError
from harness.quantize.backends.submitted import BACKEND
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.models.dense import block_linears
from harness.quantize.submitted_spec import spec_of
from harness.records import Checkpoint, Proof, QuantizedModel

COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "strategy": "group"}}},
}  # fmt: skip


def scored(folder: Path, *, base: Path | None = None, config: dict[str, Any] | None = None) -> QuantizedModel:
    """What the backend makes of a folder, by the specification of its own config."""
    told = config or json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    checkpoint = Checkpoint(
        path=str(folder), tokenizer_path=str(folder), dtype="bfloat16", sha256="0" * 64, merged_from_adapter=False,
        unquantized_path=None if base is None else str(base),
    )  # fmt: skip
    return BACKEND.quantize(checkpoint, spec_of(told), device="cpu")


def proof_of(*arguments: Any, **options: Any) -> Proof:
    proof = scored(*arguments, **options).proof
    assert proof is not None
    return proof


@pytest.fixture
def source(checkpoint_of: Callable[[str], Checkpoint]) -> Path:
    return Path(checkpoint_of("llama").path)


@pytest.mark.parametrize(
    ("config", "name", "label", "bits"),
    [
        (GPTQ_CONFIG, "submitted-gptq-4bit-g32-sym", "as submitted: GPTQ 4-bit, group 32, symmetric", 4),
        (GPTQ_CONFIG | {"group_size": -1, "sym": False, "desc_act": True, "bits": 3},
         "submitted-gptq-3bit-row-act", "as submitted: GPTQ 3-bit, per row, asymmetric, act-order", 3),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 2, "group_size": 64},
         "submitted-autoround-2bit-g64-sym", "as submitted: AutoRound 2-bit, group 64, symmetric", 2),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 64,
          "sym": True}, "submitted-awq-4bit-g64-sym", "as submitted: AWQ 4-bit, group 64, symmetric", 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
         "submitted-awq-4bit-g128", "as submitted: AWQ 4-bit, group 128, asymmetric", 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
         "submitted-bnb-nf4", "as submitted: bitsandbytes NF4, block 64", 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True},
         "submitted-bnb-int8", "as submitted: bitsandbytes LLM.int8, per row, symmetric", 8),
        (COMPRESSED, "submitted-compressed-tensors-4bit-g128-sym",
         "as submitted: compressed-tensors 4-bit, group 128, symmetric", 4),
        ({"quant_method": "gguf", "types": {"Q8_0": 64}}, "submitted-gguf-q8_0",
         "as submitted: GGUF Q8_0, block 32, symmetric", 8),
        ({"quant_method": "gguf", "types": {"Q6_K": 5, "Q4_K": 64}}, "submitted-gguf-q4_k-q6_k",
         "as submitted: GGUF Q4_K + Q6_K, block 32, symmetric and asymmetric", 4),
        ({"quant_method": "gguf", "types": {"Q4_K": 4, "Q4_0": 4, "Q6_K": 7}}, "submitted-gguf-q6_k-q4_0-q4_k",
         "as submitted: GGUF Q6_K + Q4_0 + Q4_K, block 16, symmetric and asymmetric", 4),
    ],
)  # fmt: skip
def test_a_specification_is_read_from_the_file_s_own_config(
    config: dict[str, Any], name: str, label: str, bits: int
) -> None:
    spec = spec_of(config)
    assert (spec.name, spec.label, spec.bits, spec.backend) == (name, label, bits, "submitted")
    assert json.loads(json.dumps(dataclasses.asdict(spec))) == dataclasses.asdict(spec)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "exl2"}, "method 'exl2'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "in version 'gemv'"),
        ({"quant_method": "gguf", "types": {"F16": 4, "Q4_0": 4}}, "layers are of type F16 can't be scored"),
        ({"quant_method": "gguf", "types": {}}, "of type none"),
    ],
)
def test_a_config_that_no_reader_knows_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        spec_of(config)


def test_it_is_no_quantizer_that_anybody_can_ask_for() -> None:
    assert BACKEND.presets() == ()
    with pytest.raises(UnknownNameError):
        quantize.resolve("submitted-gptq-4bit-g32-sym")
    assert quantize.backend_of(spec_of(GPTQ_CONFIG)) is BACKEND


def test_a_gguf_file_needs_its_library_and_the_others_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from harness.quantize import libraries

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries.metadata, "version", absent)
    told = BACKEND.unavailable_reason(spec_of({"quant_method": "gguf", "types": {"Q8_0": 1}}), "cpu")
    assert told == "submitted-gguf-q8_0 needs gguf, not installed here: run pip install 'quench-bench[quantizers]'."
    assert BACKEND.unavailable_reason(spec_of(GPTQ_CONFIG), "cpu") is None
    assert BACKEND.library_version() is None


def test_a_gptq_file_is_scored_as_its_levels_with_every_other_tensor_its_own(source: Path, tmp_path: Path) -> None:
    made = scored(write_gptq(source, tmp_path / "packed"))
    dense = load_file(source / "model.safetensors")
    for name, linear in block_linears(made.model).items():
        assert torch.equal(linear.weight, levels(*rounded(dense[f"{name}.weight"]))), name
    assert torch.equal(made.model.model.norm.weight, dense["model.norm.weight"].float())
    assert not hasattr(made.model.config, "quantization_config")
    assert made.layers == {}
    proof = made.proof
    assert proof is not None
    assert (proof.linear_layers, proof.quantized_layers, proof.parameter_share) == (14, 14, 1.0)
    # Four bits, a float16 scale and four bits of zero point for each 32 weights.
    assert proof.bits_per_weight == 4 + 20 / 32
    assert (proof.group_size, proof.symmetric) == (32, True)
    assert 8 < proof.max_levels <= 16


def test_errors_are_known_only_where_the_16_bit_model_is(source: Path, tmp_path: Path) -> None:
    folder = write_gptq(source, tmp_path / "packed")
    alone, beside = proof_of(folder), proof_of(folder, base=source)
    assert (alone.max_abs_error, alone.mean_abs_error, alone.relative_error) == (None, None, None)
    assert "are not known (`base_model` would name them)" in alone.remarks[0]
    dense = load_file(source / "model.safetensors")
    errors = [levels(*rounded(weight)) - weight.float() for name, weight in dense.items() if "_proj" in name]
    everything = torch.cat([error.reshape(-1) for error in errors]).double()
    assert beside.mean_abs_error == pytest.approx(float(everything.abs().mean()))
    assert beside.max_abs_error == float(everything.abs().max())
    assert 0 < (beside.relative_error or 0) < 0.3
    assert beside.remarks == ()
    assert alone.codes_sha256 == beside.codes_sha256


def test_errors_against_the_levels_themselves_are_none(source: Path, tmp_path: Path) -> None:
    folder = write_gptq(source, tmp_path / "packed")
    proof = proof_of(folder, base=write_dense(source, tmp_path / "dense"))
    assert (proof.max_abs_error, proof.mean_abs_error, proof.relative_error) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("options", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_a_bitsandbytes_file_is_proved(options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    proof = proof_of(write_bnb(source, tmp_path / "packed", **options), base=source)
    assert proof.quantized_layers == 14
    if options.get("load_in_8bit"):
        assert (proof.symmetric, proof.group_size) == (True, None)
        assert any("LLM.int8 also rounds activations" in remark for remark in proof.remarks)
    else:
        assert (proof.symmetric, proof.bits_per_weight, proof.max_levels) == (None, 4.5, 16)


def test_a_gguf_file_s_embeddings_and_head_are_taken_quantized_and_remarked(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = write_gguf(source, tmp_path / "packed")
    made = scored(folder, config={"quant_method": "gguf", "types": {"Q4_0": 1}})
    dense = load_file(source / "model.safetensors")
    assert torch.equal(made.model.lm_head.weight, levels(*rounded(dense["lm_head.weight"])))
    assert made.proof is not None
    assert "Also quantized, outside the blocks: lm_head, model.embed_tokens." in made.proof.remarks
    assert (made.proof.bits_per_weight, made.proof.linear_layers) == (4.5, 14)


def test_layers_of_another_width_are_told_and_proved_at_their_own(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import transformers as hf

    torch.manual_seed(1)
    small = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    hf.LlamaForCausalLM(hf.LlamaConfig(hidden_size=256, intermediate_size=512, **small)).save_pretrained(tmp_path)
    kinds = {"v_proj": "Q6_K", "down_proj": "Q6_K"}
    folder = write_gguf(tmp_path, tmp_path / "packed", pick=lambda name: kinds.get(name.split(".")[-2]))
    proof = proof_of(folder, config={"quant_method": "gguf", "types": {"Q4_0": 6, "Q6_K": 2}})
    assert "Of 14 layers 4 in 6 bits; the others in 4." in proof.remarks
    assert any("4 of 14 layers are quantized in groups of 16: as submitted." in remark for remark in proof.remarks)
    weights = {"Q4_0": 2 * (3 * 256 * 256 + 2 * 512 * 256), "Q6_K": 2 * (256 * 256 + 256 * 512)}
    size = weights["Q4_0"] * 4.5 / 8 + weights["Q6_K"] * 6.5625 / 8
    assert proof.size_bytes == size
    assert proof.quantized_layers == 14


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


LAYER = "model.layers.1.mlp.up_proj"


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{LAYER}.{part}" if part else "model.norm.weight"]

    return change


def _dense_layer(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"{LAYER}.{part}"]
    tensors[f"{LAYER}.weight"] = torch.zeros(192, 128, dtype=torch.bfloat16)


def _put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("scales"), rf"{LAYER} lacks scales"),
        (_without(""), r"missing model\.norm\.weight"),
        (_dense_layer, rf"1 of 14 linear layers stay dense, the first is {LAYER}; .*a fault of the submitted files"),
        (_put(f"{LAYER}.qweight", torch.zeros(3, 192, dtype=torch.int32)), rf"{LAYER}"),
        (_put(f"{LAYER}.scales", torch.ones(7, dtype=torch.float16)), rf"{LAYER}'s packed tensors don't fit together"),
        (_put(f"{LAYER}.scales", torch.full((4, 192), float("nan")).half()), rf"{LAYER}\.weight .* no finite numbers"),
        (_put(f"{LAYER}.qzeros", torch.zeros(4, 24, dtype=torch.int32)), "0 is not the middle code of every group"),
        (_put("model.norm.weight", torch.ones(7)), r"don't belong together"),
        (_put("model.norm.weight", torch.ones(128, dtype=torch.int32)), r"model\.norm\.weight .* no finite numbers"),
        (_put("model.more.weight", torch.ones(7)), r"surplus model\.more\.weight"),
    ],
)
def test_files_that_are_not_what_they_claim_are_refused_in_one_sentence(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, source: Path, tmp_path: Path
) -> None:
    folder = _changed(write_gptq(source, tmp_path / "packed"), change)
    with pytest.raises((InputError, QuantizationError), match=message) as refused:
        scored(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"bits": 8}, "scales are for 6 groups"),
        ({"bits": 2}, "scales are for 6 groups"),
        ({"group_size": 64}, "scales are for 6 groups"),
        ({"sym": False}, "0 has the middle code in every group"),
        ({"checkpoint_format": "gptq_v2"}, "0 is not the middle code of every group"),
    ],
)
def test_a_config_that_lies_about_its_codes_is_found_out(
    claim: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match=message):
        scored(write_gptq(source, tmp_path / "packed", **claim))


def test_a_bias_of_zeros_where_the_model_has_none_is_left_out(source: Path, tmp_path: Path) -> None:
    folder = _changed(write_gptq(source, tmp_path / "packed"), _put(f"{LAYER}.bias", torch.zeros(192)))
    assert scored(folder).proof is not None
    with pytest.raises(InputError, match=rf"surplus {LAYER}\.bias"):
        scored(_changed(folder, _put(f"{LAYER}.bias", torch.ones(192))))


def test_a_base_of_another_shape_is_no_base(
    source: Path, tmp_path: Path, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    folder = write_gptq(source, tmp_path / "packed")
    with pytest.raises(QuantizationError, match="they are not of one model, so name the right `base_model` or none"):
        scored(folder, base=Path(checkpoint_of("gqa576").path))


def test_an_awq_file_is_measured_after_its_scales_are_taken_out(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    write_gptq(source, folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "_proj" not in name}
    columns = 2.0 ** torch.randint(-2, 3, (256,), generator=torch.Generator().manual_seed(1))
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj" in name:
            codes, scales = rounded(weight.float() * columns[: weight.shape[1]])
            module = name.removesuffix(".weight")
            tensors[f"{module}.qweight"] = _awq_words(codes.T)
            tensors[f"{module}.qzeros"] = _awq_words(torch.full(scales.T.shape, 8))
            tensors[f"{module}.scales"] = scales.T.contiguous().half()
    save_file(tensors, folder / "model.safetensors")
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": False, "version": "gemm"}
    proof = proof_of(folder, base=source, config=config) if _told(folder, config) else None
    assert proof is not None
    assert 0 < (proof.relative_error or 1) < 0.25
    assert proof.remarks == (
        "AWQ folds scales into other layers: the error is measured after taking row and column scales out.",
    )


def _told(folder: Path, config: dict[str, Any]) -> bool:
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": config}), encoding="utf-8")
    return packed_checkpoint.quantization_config(folder) == config


def _awq_words(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes a word in the order of AWQ's kernel."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    eights = codes.long().reshape(codes.shape[0], -1, 8)[:, :, order]
    packed = (eights << (4 * torch.arange(8))).sum(2)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def test_the_same_codes_in_another_file_have_the_same_digest(source: Path, tmp_path: Path) -> None:
    first = write_gptq(source, tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    assert proof_of(first).codes_sha256 == proof_of(tmp_path / "second").codes_sha256
