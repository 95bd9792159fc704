"""Not the first fault of a file, but each: who mends a submission should have to come once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UnsafeSubmissionError
from harness.submit.scan import folder as folder_scan


def _faults(folder: Path, *, adapter: bool = False) -> list[str]:
    with pytest.raises(UnsafeSubmissionError) as caught:
        folder_scan.scan_folder(folder, adapter=adapter)
    return [str(fault).removeprefix(str(folder)) for fault in caught.value.faults]


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def copied(adapter_of: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    return lambda **told: Path(shutil.copytree(adapter_of(**told), tmp_path / "adapter"))


def test_every_fault_of_a_config_is_told_with_its_field(model: Path) -> None:
    _change(model / "config.json", model_type="mamba", mood="good", vocab_size=7, num_hidden_layers=9, head_dim=-1)
    with pytest.raises(UnsafeSubmissionError) as caught:
        folder_scan.scan_folder(model, adapter=False)
    fields = [getattr(fault, "field", None) for fault in caught.value.faults]
    assert fields == ["model_type", "vocab_size", "num_hidden_layers"]
    _change(model / "config.json", model_type="llama")
    with pytest.raises(UnsafeSubmissionError) as caught:
        folder_scan.scan_folder(model, adapter=False)
    assert [fault.field for fault in caught.value.faults] == ["head_dim", "vocab_size", "num_hidden_layers"]


def test_a_size_that_is_no_number_does_not_hide_the_others(model: Path) -> None:
    _change(model / "config.json", hidden_size="wide", num_hidden_layers=9)
    told = _faults(model)
    assert len(told) == 2
    assert "`hidden_size` is 'wide', and accepted is a whole number above 0" in told[0]
    assert "num_hidden_layers is 9" in told[1]


def test_every_fault_of_an_adapter_is_told(copied: Callable[..., Path]) -> None:
    folder = copied()
    _change(folder / "adapter_config.json", r=10**6, bias="some", modules_to_save=["lm_head"], mood=1)
    told = "\n".join(_faults(folder, adapter=True))
    for field in ("`r` is", "`bias` is", "`modules_to_save` is", "`mood` is no field"):
        assert field in told


def test_every_tensor_that_holds_no_number_is_named_up_to_a_limit(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    wrong = sorted(tensors)[:3]
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan")) for name in wrong}, path)
    told = _faults(model)
    assert len(told) == 3
    assert all(any(repr(name) in each for each in told) for name in wrong)
    save_file({name: torch.full_like(tensor, float("inf")) for name, tensor in tensors.items()}, path)
    told = _faults(model)
    assert len(told) == 21
    assert "1 more tensors have faults like these" in told[-1]


def test_every_wrong_entry_of_a_header_is_told(tmp_path: Path) -> None:
    header = json.dumps({
        "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 12]},
    }).encode()  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    told = "\n".join(_faults(tmp_path))
    assert "'a' is stored as 'F64'" in told
    assert "'b' spans 4 bytes" in told


@pytest.mark.parametrize("name", ["o_proj", "self_attn.o_proj", "layers.1.self_attn.o_proj"])
def test_a_module_s_rank_is_the_one_that_the_pattern_gives_it(copied: Callable[..., Path], name: str) -> None:
    folder = copied(r=4, rank_pattern={name: 2})
    assert folder_scan.scan_folder(folder, adapter=True)
    # Both ranks occur in the config still, but at the wrong modules.
    _change(folder / "adapter_config.json", rank_pattern={"q_proj": 2})
    assert any("o_proj has factors" in each and "not of the rank" in each for each in _faults(folder, adapter=True))


def test_magnitudes_of_another_number_than_the_rows_are_refused(copied: Callable[..., Path]) -> None:
    folder = copied(use_dora=True, target_modules=["up_proj"])
    path = folder / "adapter_model.safetensors"
    factors = load_file(path)
    wrong = next(name for name in factors if name.endswith("lora_magnitude_vector"))
    save_file(factors | {wrong: torch.ones(5)}, path, metadata={"format": "pt"})
    told = _faults(folder, adapter=True)
    assert len(told) == 1
    assert "magnitudes of shape (5,), and 96 rows need one each" in told[0]
