"""A merge and a rounding that read one tensor at a time write the weights that whole models would give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness import memory, shards
from harness.errors import InputError
from harness.submit.checkpoint import merge_adapter
from harness.submit.scan import folder as folder_scan

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True, "lora_alpha": 7},
    "weight-decomposed": {"use_dora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3.5}},
    "one module in one layer": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
}


def _weights(folder: Path) -> dict[str, Any]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


def _merged(base: Path, adapter: Path, place: Path, mode: memory.Streaming, dtype: str = "bfloat16") -> Path:
    with memory.streaming(mode):
        return merge_adapter.merge(base, adapter, place / mode, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_of_adapter_gives_the_weights_of_the_whole_merge(
    form: str, model_folder: Path, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(**FORMS[form])
    whole = _weights(_merged(model_folder, adapter, tmp_path, "never"))
    assert _same(_weights(_merged(model_folder, adapter, tmp_path, "always")), whole)
    assert not _same(whole, _weights(model_folder))


def test_a_float16_merge_is_rounded_to_float16(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    whole, streamed = (
        _weights(_merged(model_folder, adapter_folder, tmp_path, mode, "float16")) for mode in ("never", "always")
    )
    assert _same(whole, streamed)
    assert {value.dtype for value in streamed.values()} == {torch.float16}


def test_a_merge_into_shards_can_be_scanned_and_loaded(
    model_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _merged(model_folder, adapter_folder, tmp_path, "never")
    monkeypatch.setattr(shards.ShardWriter.__init__, "__kwdefaults__", {"shard_bytes": 20_000})
    streamed = _merged(model_folder, adapter_folder, tmp_path, "always")
    assert len(list(streamed.glob("model-*-of-*.safetensors"))) > 3
    folder_scan.scan_folder(streamed, adapter=False)
    loaded = [AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, streamed)]
    assert {one.dtype for one in loaded} == {torch.bfloat16}
    assert _same(loaded[0].state_dict(), loaded[1].state_dict())


def test_no_whole_model_is_made(
    model_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_adapter, "merged_model", lambda base, adapter: pytest.fail("a whole model"))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("a whole model"))
    folder = _merged(model_folder, adapter_folder, tmp_path, "always")
    assert (folder / "model.safetensors").is_file()


def test_an_adapter_of_another_shape_is_named_and_nothing_is_left_behind(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((adapter_folder / "adapter_config.json").read_bytes())
    factors = load_file(adapter_folder / "adapter_model.safetensors")
    narrow = {name: value[:, :3].contiguous() for name, value in factors.items()}
    save_file(narrow, broken / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"down_proj has factors of shapes \(4, 3\) and \(64, 3\)"):
        _merged(model_folder, broken, tmp_path / "merged", "always")
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_rounded_copy_has_the_weights_of_the_whole_one(model_folder: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    folders: dict[memory.Streaming, Path] = {"never": tmp_path / "whole", "always": tmp_path / "by-tensor"}
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=noise)
    model.save_pretrained(wide)
    for mode, folder in folders.items():
        folder.mkdir()
        with memory.streaming(mode):
            merge_adapter.write_rounded(wide, folder, "bfloat16")
    assert _same(*(_weights(folder) for folder in folders.values()))
    assert {value.dtype for value in _weights(folders["always"]).values()} == {torch.bfloat16}
