"""Every way to merge gives the same bytes: whole models, one tensor at a time, and peft's own merge_and_unload."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from harness import memory
from harness.errors import UnsafeSubmissionError
from harness.submit.checkpoint import merge_adapter
from harness.submit.scan.folder import read_tensors, scan_folder

_SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_ATTENTION = ["q_proj", "down_proj", "dense"]

BASES: dict[str, dict[str, Any]] = {
    "head of its own": {"tied": False},
    "head of its own, float16": {"tied": False, "dtype": torch.float16},
    "head of its own, float32, shards": {"tied": False, "dtype": torch.float32, "max_shard_size": "8KB"},
    "head of its own, GPT-NeoX": {"tied": False, "kind": "gpt_neox"},
    "tied": {"tied": True},
    "tied, Gemma": {"tied": True, "kind": "gemma"},
    "tied, head stored too": {"tied": True, "stored": True},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": _ATTENTION},
    "rank-stabilized": {"target_modules": _ATTENTION, "use_rslora": True, "lora_alpha": -7},
    "weight-decomposed": {"target_modules": _ATTENTION, "use_dora": True},
    "head": {"target_modules": [*_ATTENTION, "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "embed_in", *_ATTENTION]},
    "both, weight-decomposed": {"target_modules": ["lm_head", "embed_tokens", "embed_in"], "use_dora": True},
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            form = BASES[name]
            torch.manual_seed(4)
            config = AutoConfig.for_model(form.get("kind", "llama"), **_SIZES, tie_word_embeddings=form["tied"])
            folder = made[name] = tmp_path_factory.mktemp("base")
            model = AutoModelForCausalLM.from_config(config).to(form.get("dtype", torch.bfloat16))
            model.save_pretrained(folder, max_shard_size=form.get("max_shard_size", "1GB"))
            if form.get("stored"):
                tensors = load_file(folder / "model.safetensors")
                tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
                save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return made[name]

    return build


def _adapter(base: Path, folder: Path, **settings: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, **settings))
        noise = torch.Generator().manual_seed(5)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.data += 0.1 * torch.randn(weight.shape, generator=noise)
        adapted.save_pretrained(folder)
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def _by_peft(base: Path, adapter: Path, folder: Path, dtype: str) -> Path:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


# Every base and every adapter; all pairs in `make test-all`.
PAIRS = [
    pytest.param(base, form, marks=() if (row + column) % 4 == 0 else pytest.mark.slow)
    for row, base in enumerate(BASES) for column, form in enumerate(ADAPTERS)
]  # fmt: skip


@pytest.mark.parametrize(("base_name", "form"), PAIRS)
def test_all_ways_give_the_same_bytes_or_the_same_refusal(
    base_name: str, form: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of(base_name)
    adapter = _adapter(base, tmp_path / "adapter", **ADAPTERS[form])
    dtype = str(BASES[base_name].get("dtype", torch.bfloat16)).removeprefix("torch.")
    modes: tuple[memory.Streaming, ...] = ("never", "always")
    if BASES[base_name]["tied"] and form not in ("plain", "rank-stabilized", "weight-decomposed"):
        for mode in modes:
            with (
                memory.streaming(mode),
                pytest.raises(UnsafeSubmissionError, match="head and embedding are one matrix"),
            ):
                merge_adapter.merge(base, adapter, tmp_path / mode, dtype=dtype)
        return
    scan_folder(adapter, adapter=True, base=read_tensors(base, "model"))
    theirs = _weights(_by_peft(base, adapter, tmp_path / "peft", dtype))
    for mode in modes:
        with memory.streaming(mode):
            ours = _weights(merge_adapter.merge(base, adapter, tmp_path / mode, dtype=dtype))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert not all(torch.equal(value, theirs[name]) for name, value in _weights(base).items() if name in theirs)


def test_a_copy_of_the_base_s_head_beside_the_factors_must_be_the_base_s(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of("head of its own")
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    factors, name = load_file(adapter / "adapter_model.safetensors"), "base_model.model.lm_head.base_layer.weight"
    assert name in factors
    for stored in (factors[name].bfloat16(), factors[name].float()):
        save_file(factors | {name: stored}, adapter / "adapter_model.safetensors")
        scan_folder(adapter, adapter=True, base=read_tensors(base, "model"))
    save_file(factors | {name: factors[name] * 1.01}, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsafeSubmissionError, match="neither a factor of LoRA nor a copy of a weight of the base"):
        scan_folder(adapter, adapter=True, base=read_tensors(base, "model"))


def test_a_tied_base_whose_file_stores_another_head_is_refused(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("head of its own")
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": True}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsafeSubmissionError, match="ties lm_head to the embedding, and the file of the model stores"):
        merge_adapter.merge(other, adapter, tmp_path / "merged", dtype="bfloat16")
