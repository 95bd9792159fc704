"""What an adapter's config may say without changing a number, and what its base's name says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import save, save_file

from harness.errors import UnsafeSubmissionError
from harness.submit.scan.adapter_config import check_adapter
from harness.submit.scan.adapter_fields import read_adapter
from harness.submit.scan.file_types import check_file
from harness.submit.scan.safetensors import read_header, same_numbers
from harness.submit.weight_files import names_hub

_LEAST = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}


def _read(folder: Path, **changes: Any) -> tuple[list[str], list[str]]:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(_LEAST | changes), encoding="utf-8")
    _, faults, notes = read_adapter(path)
    return [str(fault).removeprefix(f"{path}: ") for fault in faults], notes


@pytest.mark.parametrize(("changes", "noted"), [
    ({"auto_mapping": {"base_model_class": "LlamaForCausalLM"}}, ["auto_mapping"]),
    ({"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"}, ["eva_config"]),
    ({"unsloth_version": "2026.1", "fan_in_fan_out": True}, ["fan_in_fan_out", "unsloth_version"]),
    ({"runtime_config": {"ephemeral_gpu_offload": False}, "a_later_field": None}, ["a_later_field", "runtime_config"]),
    ({"inference_mode": True, "peft_version": "0.21.2", "revision": "main", "qalora_group_size": 16}, []),
])  # fmt: skip
def test_what_changes_no_number_is_noted(changes: dict[str, Any], noted: list[str], tmp_path: Path) -> None:
    faults, notes = _read(tmp_path, **changes)
    assert faults == []
    told = f"adapter_config.json: ignored, since they change no number of the merged model: {', '.join(noted)}."
    assert notes == ([told] if noted else [])


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "`layers_to_transform` belongs to a list"),
    ({"target_modules": "(q_proj"}, "`target_modules` is '(q_proj', and accepted is a list of module names"),
    ({"alpha_pattern": {f"(a|b){n}": 1 for n in range(257)}}, "`alpha_pattern` is {'(a|b)0'"),
    ({"a_later_field": 1}, "`a_later_field` is no field of peft 0.3 to 0.21, so nobody knows what it does"),
    ({"modules_to_save": ["lm_head"]}, "`modules_to_save` is ['lm_head'], and accepted is nothing: modules that"),
    ({"init_lora_weights": "olora"}, "`init_lora_weights` is 'olora', and accepted is true, false, gaussian"),
])  # fmt: skip
def test_what_may_change_a_number_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (fault,), _ = _read(tmp_path, **changes)
    assert fault.startswith(sentence)


def test_notes_reach_the_caller_of_the_check(tmp_path: Path) -> None:
    _read(tmp_path, auto_mapping={"a": 1})
    factors = {f"base_model.model.model.layers.0.q_proj.lora_{part}.weight": torch.ones(shape)
               for part, shape in (("A", (2, 4)), ("B", (4, 2)))}  # fmt: skip
    save_file(factors, tmp_path / "adapter_model.safetensors")
    tensors, notes = read_header(tmp_path / "adapter_model.safetensors"), list[str]()
    check_adapter(tmp_path / "adapter_config.json", tensors, None, notes=notes)
    assert len(notes) == 1
    _read(tmp_path, bias="all")
    save_file(factors | {"base_model.model.model.layers.0.q_proj.bias": torch.ones(4)}, tmp_path / "b.safetensors")
    with pytest.raises(
        UnsafeSubmissionError, match=r"`bias` is 'all', and there is .*q_proj.bias: trained biases can't"
    ):
        check_adapter(tmp_path / "adapter_config.json", read_header(tmp_path / "b.safetensors"), None)


@pytest.mark.parametrize(("name", "on_hub"), [
    ("meta-llama/Llama-2-7b-hf", True), ("owner/model", True), ("Qwen/Qwen3-8B-Base", True), ("gpt2", False),
    ("models/mistral-7b", False), ("outputs/checkpoint-500", False), ("w/target", False), ("me/checkpoint-12", False),
    ("./models/x", False), ("/data/x", False), ("saves/llama", False), ("C:/x", False), ("a/b/c", False),
    ("pretrained_models/llama", False), ("out/final", False), ("modelscope/llama", True), ("outlier/llama", True),
])  # fmt: skip
def test_a_folder_of_two_parts_is_no_repository(name: str, on_hub: bool) -> None:
    assert names_hub(name) is on_hub


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 23117, 35615])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    short = len(save({"a": torch.ones(1)}, metadata={"x": ""})) - 12
    content = save({"a": torch.ones(1)}, metadata={"x": "y" * (length - short)})
    while int.from_bytes(content[:8], "little") > length:
        short += 1
        content = save({"a": torch.ones(1)}, metadata={"x": "y" * (length - short)})
    # safetensors fills headers up to eight bytes.
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + content[-4:])
    check_file(path, may_be_gguf=False)
    assert list(read_header(path)) == ["a"]


_FLOATS = some.lists(some.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(numbers=_FLOATS, wide=some.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
       narrow=some.sampled_from([torch.float32, torch.bfloat16, torch.float16]))  # fmt: skip
def test_a_copy_in_another_dtype_holds_the_same_numbers(
    numbers: list[float], wide: torch.dtype, narrow: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = torch.tensor(numbers).to(wide)
    other = one.to(narrow)
    if not (one.isfinite().all() and other.isfinite().all()):
        return
    folder = tmp_path_factory.getbasetemp()
    save_file({"a": one}, folder / "one.safetensors")
    save_file({"a": other}, folder / "other.safetensors")
    save_file({"a": other * 2 + 1}, folder / "third.safetensors")
    first, second, third = (read_header(folder / f"{name}.safetensors")["a"] for name in ("one", "other", "third"))
    assert same_numbers(first, second)
    assert same_numbers(second, first)
    assert same_numbers(second, third) == torch.equal(other, other * 2 + 1)
