"""GGUF files as a whole: names and row order of llama.cpp put back into transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_files import interleaved, is_block_linear, levels, rounded, write_gguf
from safetensors.torch import load_file

from harness.errors import QuantizationError
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.formats import gguf as packed_gguf
from harness.records import Checkpoint

gguf = pytest.importorskip("gguf")


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 6), half=st.integers(1, 8), width=st.integers(1, 5))
def test_rows_of_queries_and_keys_come_back_into_transformers_order(heads: int, half: int, width: int) -> None:
    rows = numpy.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    assert numpy.array_equal(packed_gguf.in_transformers_order(interleaved(rows, heads), heads), rows)


def test_rows_that_are_no_whole_heads_are_refused() -> None:
    with pytest.raises(QuantizationError, match="6 rows of queries or keys can't be shared out to 2 heads"):
        packed_gguf.in_transformers_order(numpy.zeros((6, 2)), 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.11.attn_q.weight", ("model.layers.11.self_attn.q_proj", "weight")),
        ("blk.0.attn_q.bias", ("model.layers.0.self_attn.q_proj", "bias")),
        ("blk.0.attn_k_norm.weight", ("model.layers.0.self_attn.k_norm", "weight")),
        ("blk.3.ffn_norm.weight", ("model.layers.3.post_attention_layernorm", "weight")),
        ("token_embd.weight", ("model.embed_tokens", "weight")),
        ("output.weight", ("lm_head", "weight")),
        ("output_norm.weight", ("model.norm", "weight")),
        ("blk.0.output.weight", None),
        ("attn_q.weight", None),
        ("blk.0.ffn_gate_exps.weight", None),
        ("blk.x.attn_q.weight", None),
        ("blk.0.attn_q.scale", None),
    ],
)
def test_names_are_those_of_transformers_or_of_nothing(name: str, expected: tuple[str, str] | None) -> None:
    assert packed_gguf.module_name(name) == expected


@pytest.mark.parametrize("arch", ["LLAMA", "QWEN2", "QWEN3"])
def test_names_agree_with_gguf_py_s_own_table(arch: str) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], 2)
    modules = ["model.embed_tokens", "model.norm", "lm_head", *(
        f"model.layers.1.{part}" for part in (
            "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))]  # fmt: skip
    modules += ["model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm"] if arch == "QWEN3" else []
    for module in modules:
        theirs = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        assert packed_gguf.module_name(theirs) == (module, "weight")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("shape", ["llama", "gqa576"])
def test_every_weight_comes_back_where_transformers_has_it(
    shape: str, kind: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    source = Path(checkpoint_of(shape).path)
    packed = packed_checkpoint.read(write_gguf(source, tmp_path / "file", kind))
    bits = int(kind[1])
    dense = load_file(source / "model.safetensors")
    assert {f"{name}.weight" for name in packed.layers} | set(packed.others) == set(dense)
    for name, weight in dense.items():
        if weight.dim() == 1:
            assert torch.equal(packed.others[name], weight.float())
        else:
            layer = packed.layers[name.removesuffix(".weight")]
            assert torch.equal(layer.dequantize(), levels(*rounded(weight, bits), bits)), name


def test_types_may_differ_from_tensor_to_tensor(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(1)
    small = {"vocab_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf.LlamaForCausalLM(hf.LlamaConfig(hidden_size=256, intermediate_size=512, **small)).save_pretrained(tmp_path)
    kinds = {"q_proj": "Q4_K", "k_proj": "Q6_K", "down_proj": "Q2_K", "up_proj": "Q5_K", "gate_proj": "Q3_K"}
    folder = write_gguf(tmp_path, tmp_path / "file", pick=lambda name: kinds.get(name.split(".")[-2]))
    packed = packed_checkpoint.read(folder)
    found = {name.rpartition(".")[2]: layer.bits for name, layer in packed.layers.items()}
    assert found == {"q_proj": 4, "k_proj": 6, "down_proj": 2, "up_proj": 5, "gate_proj": 3, "v_proj": 4, "o_proj": 4,
                     "embed_tokens": 4, "lm_head": 4}  # fmt: skip
    reader = gguf.GGUFReader(folder / "model.gguf")
    for tensor in reader.tensors:
        told = packed_gguf.module_name(tensor.name)
        assert told is not None
        if told[0] in packed.layers and "q_proj" not in told[0] and "k_proj" not in told[0]:
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert numpy.array_equal(packed.layers[told[0]].dequantize().numpy(), theirs), tensor.name


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, {"general.architecture": "gemma3"}, "is of architecture 'gemma3' and config.json of 'llama'"),
        ({"model_type": "gemma2"}, {}, "of 'gemma2': GGUF files of llama, mistral, qwen2, qwen3 are read"),
        ({"num_attention_heads": 8}, {}, "has head_count 4, and config.json says 8"),
        ({"num_key_value_heads": 2}, {}, "has head_count_kv 4, and config.json says 2"),
    ],
)
def test_a_file_of_another_shape_than_its_config_is_refused(
    changes: dict[str, Any], more: dict[str, Any], message: str, checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = write_gguf(Path(checkpoint_of("llama").path), tmp_path / "file", **more)
    _config(folder, **changes)
    with pytest.raises(QuantizationError, match=message):
        packed_checkpoint.read(folder)


def test_a_file_that_the_library_can_not_read_is_refused_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML" + bytes(64))
    with pytest.raises(QuantizationError, match=r"model\.gguf can't be read as a GGUF file, gguf-py says: GGUF magic"):
        packed_gguf.read(path, {"model_type": "llama"})


def test_tensors_that_no_such_model_has_and_types_without_a_reader_are_refused(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantized_files

    names = quantized_files._NAMES | {"mlp.up_proj": "ffn_up_exps"}
    source = Path(checkpoint_of("llama").path)
    with monkeypatch.context() as patch:
        patch.setattr(quantized_files, "_NAMES", names)
        folder = write_gguf(source, tmp_path / "file")
    with pytest.raises(QuantizationError, match=r"holds 'blk\.0\.ffn_up_exps\.weight', which no Llama"):
        packed_checkpoint.read(folder)
    with pytest.raises(QuantizationError, match="of type IQ2_XS can't be read: Q8_0, Q5_1"):
        packed_gguf.read_layer(numpy.zeros(74, dtype=numpy.uint8), "IQ2_XS", (1, 256))


def test_no_layer_of_the_blocks_is_left_out(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    source = Path(checkpoint_of("llama").path)
    packed = packed_checkpoint.read(write_gguf(source, tmp_path / "file"))
    wanted = {name for name in load_file(source / "model.safetensors") if is_block_linear(name)}
    assert wanted <= {f"{name}.weight" for name in packed.layers}
    assert packed.config == {"quant_method": "gguf"}
