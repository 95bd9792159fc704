"""Adapters with the configs that public projects write: each is merged as peft merges it, or refused with its sentence.

``adapter_configs.json`` has for each the base, the config, and where it is refused the sentence. Weights are made here.
"""

from __future__ import annotations

import dataclasses
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
from harness.submit.checkpoint.merge_adapter import merge
from harness.submit.scan.folder import read_tensors, scan_folder

ZOO: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "adapter_configs.json").read_text(encoding="utf-8")
)
ACCEPTED = [name for name, entry in ZOO.items() if "refused" not in entry]
REFUSED = [name for name, entry in ZOO.items() if "refused" in entry]
_BASES = {"llama": ("llama", False), "tied": ("llama", True), "gpt_neox": ("gpt_neox", False)}
_SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (kind, tied) in _BASES.items():
        torch.manual_seed(2)
        config = AutoConfig.for_model(kind, **_SIZES, tie_word_embeddings=tied)
        made[name] = tmp_path_factory.mktemp("base")
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(made[name])
    return made


@pytest.fixture
def made(bases: dict[str, Path], tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Makes one adapter of the zoo; returns the folders of its base and of itself."""

    def build(name: str) -> tuple[Path, Path]:
        entry = ZOO[name]
        base, folder = bases[entry["base"]], tmp_path / "adapter"
        fields = {field.name for field in dataclasses.fields(LoraConfig)}
        if "refused" in entry:
            fields = {"r", "target_modules"}
        settings = {key: value for key, value in entry["config"].items() if key in fields} | entry.get("made", {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            adapted = get_peft_model(model, LoraConfig(**(settings | {"init_lora_weights": True})))
            noise = torch.Generator().manual_seed(5)
            for parameter_name, weight in adapted.named_parameters():
                if "lora_" in parameter_name:
                    weight.data += 0.1 * torch.randn(weight.shape, generator=noise)
            adapted.save_pretrained(folder)
        if "names" in entry:
            factors = load_file(folder / "adapter_model.safetensors")
            renamed = {key.replace(".weight", f"{entry['names']}.weight"): value for key, value in factors.items()}
            save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(entry["config"]), encoding="utf-8")
        return base, folder

    return build


def _weights(folder: Path) -> dict[str, Any]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def test_the_zoo_is_large_enough() -> None:
    assert len(ACCEPTED) >= 20
    assert len(REFUSED) >= 10


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_adapter_is_merged_as_peft_merges_it(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, adapter = made(name)
    scan_folder(adapter, adapter=True, base=read_tensors(base, "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(tmp_path / "peft")
    with memory.streaming("never" if ACCEPTED.index(name) % 2 else "always"):
        ours = _weights(merge(base, adapter, tmp_path / "ours", dtype="bfloat16"))
    theirs, before = _weights(tmp_path / "peft"), _weights(base)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert any(not torch.equal(ours[key], before[key]) for key in ours)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_adapter_has_its_own_sentence(name: str, made: Callable[[str], tuple[Path, Path]]) -> None:
    base, adapter = made(name)
    with pytest.raises(UnsafeSubmissionError, match=ZOO[name]["refused"]) as refused:
        scan_folder(adapter, adapter=True, base=read_tensors(base, "model"))
    for fault in refused.value.faults:
        assert fault.endswith(".")
        assert "Error" not in fault
