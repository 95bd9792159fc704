"""Adapters against the base that the manifest names, and the merge against the arithmetic that LoRA stands for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_listing import listing
from safetensors.torch import load_file

from harness.errors import UnsafeSubmissionError
from harness.submit.checkpoint import merge_adapter, prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.weight_files import folder_digest

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

_FORMS: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 8},
    "rslora": {"lora_alpha": 8, "use_rslora": True},
    "dora": {"lora_alpha": 8, "use_dora": True},
    "rank pattern": {"lora_alpha": 16, "rank_pattern": {"v_proj": 2}},
    "alpha pattern": {"lora_alpha": 16, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3, "q_proj": 5}},
}


def _by_hand(base: dict[str, torch.Tensor], adapter: Path) -> dict[str, torch.Tensor]:
    """Returns the base's weights plus the scaled product of the factors, rows brought to DoRA's magnitudes."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    factors = load_file(adapter / "adapter_model.safetensors")
    merged = dict(base)
    for name in [each for each in factors if each.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        down, up = factors[name].double(), factors[name.replace("lora_A", "lora_B")].double()
        last = module.rsplit(".", 1)[-1]
        alpha = config["alpha_pattern"].get(last, config["lora_alpha"])
        scale = alpha / (math.sqrt(down.shape[0]) if config["use_rslora"] else down.shape[0])
        weight = base[f"{module}.weight"].double() + scale * up @ down
        magnitude = factors.get(name.replace("lora_A.weight", "lora_magnitude_vector"))
        if magnitude is not None:
            weight = weight * (magnitude.double() / weight.norm(dim=1))[:, None]
        merged[f"{module}.weight"] = weight
    return merged


@pytest.mark.parametrize("form", _FORMS)
def test_a_merge_is_peft_s_and_the_arithmetic_s(form: str, model_folder: Path, adapter_of: Callable[..., Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"]} | _FORMS[form]
    adapter = adapter_of(**settings)
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    theirs = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    ours = merge_adapter.merged_model(model_folder, adapter).state_dict()
    by_hand = _by_hand(before, adapter)
    assert ours.keys() == theirs.keys() == by_hand.keys()
    for name, weight in ours.items():
        assert float((weight - theirs[name]).abs().max()) <= 1e-6, name
        assert float((weight - by_hand[name]).abs().max()) <= 1e-6, name
    changed = {name.split(".")[-2] for name, weight in ours.items() if not torch.equal(weight, before[name])}
    assert changed == {"q_proj", "v_proj", "down_proj"}


def _naming(adapter: Path, folder: Path, **changes: Any) -> Path:
    """Returns a copy of an adapter whose config says something else."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def _on_hub(add: Writer, weights: Path, **fields: Any) -> None:
    add(
        "entry", kind="lora_adapter", base_model="hf://owner/base", base_revision=COMMIT, weights_from=weights, **fields
    )


def _scan(board: Path, name: str = "entry") -> None:
    submissions = manifest.load_all(board)
    folder_scan.scan(submissions[name], submissions)


@pytest.mark.parametrize("named", ["owner/base", "Owner/Base", "/models/other/base", "../other/base", "base", None])
def test_the_base_s_own_name_and_local_folders_are_no_mismatch(
    named: str | None, add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    _on_hub(add, _naming(adapter_folder, tmp_path / "a", base_model_name_or_path=named))
    _scan(board)


def test_an_adapter_of_another_base_is_refused(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    _on_hub(add, _naming(adapter_folder, tmp_path / "a", base_model_name_or_path="owner/chat"))
    with pytest.raises(UnsafeSubmissionError) as refused:
        _scan(board)
    (fault,) = refused.value.faults
    assert (
        "`base_model_name_or_path` is 'owner/chat', and `base_model` in submission.yaml leads to 'owner/base'" in fault
    )
    assert getattr(fault, "field", None) == "base_model_name_or_path"


def test_a_base_that_is_a_submission_on_the_hub_is_compared_and_one_that_lies_here_is_not(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    add("far", role="target", weights="hf://owner/base", revision=COMMIT)
    weights = _naming(adapter_folder, tmp_path / "a", base_model_name_or_path="owner/chat")
    add("entry", kind="lora_adapter", base_model="far", weights_from=weights)
    add("near", kind="lora_adapter", base_model="target", weights_from=weights)
    with pytest.raises(UnsafeSubmissionError, match="leads to 'owner/base'"):
        _scan(board)
    _scan(board, "near")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model_folder: Path, adapter_folder: Path, tmp_path: Path) -> Path:
    """A hub of ``owner/base`` and of ``owner/entry``, an adapter of ``owner/chat``; returns the latter's folder."""
    import huggingface_hub

    adapter = _naming(adapter_folder, tmp_path / "on-hub", base_model_name_or_path="owner/chat")
    places = {"owner/base": model_folder, "owner/entry": adapter}

    def snapshot_download(*, repo_id: str, revision: str, cache_dir: Path, allow_patterns: list[str]) -> Path:
        return Path(shutil.copytree(places[repo_id], cache_dir / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, **asked: listing(places[name]))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return adapter


def test_an_adapter_on_the_hub_is_held_against_its_base_once_it_is_here(
    hub: Path, add: Writer, board: Path, controls: None, tmp_path: Path
) -> None:
    add("entry", kind="lora_adapter", base_model="hf://owner/base", base_revision=COMMIT, weights="hf://owner/entry",
        revision=COMMIT)  # fmt: skip
    submissions = manifest.load_all(board)
    folder_scan.scan(submissions["entry"], submissions)
    with pytest.raises(UnsafeSubmissionError, match="leads to 'owner/base'"):
        prepare.prepare(submissions["entry"], submissions, cache=tmp_path / "cache")


def test_the_digests_of_what_was_downloaded_are_told(
    hub: Path, add: Writer, board: Path, controls: None, adapter_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    _on_hub(add, adapter_folder, base_sha256=folder_digest(model_folder))
    submissions = manifest.load_all(board)
    assert prepare.downloaded(submissions["entry"], submissions, cache=tmp_path / "cache") == {}
    prepare.prepare(submissions["entry"], submissions, cache=tmp_path / "cache")
    told = prepare.downloaded(submissions["entry"], submissions, cache=tmp_path / "cache")
    assert told == {f"hf://owner/base@{COMMIT}": folder_digest(model_folder)}


def test_a_base_on_the_hub_with_another_digest_is_refused_once_it_is_here(
    hub: Path, add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    _on_hub(add, adapter_folder, base_sha256="0" * 64)
    submissions = manifest.load_all(board)
    with pytest.raises(
        UnsafeSubmissionError, match=r"entry: the digest of its base_model's files is \w{64} and `base_"
    ):
        prepare.prepare(submissions["entry"], submissions, cache=tmp_path / "cache")


def test_a_base_beside_the_submission_is_held_against_its_digest(
    add: Writer, board: Path, controls: None, adapter_folder: Path, model_folder: Path
) -> None:
    digest = folder_digest(model_folder)
    add("entry", kind="lora_adapter", base_model="target", weights_from=adapter_folder, base_sha256=digest)
    add("other", kind="lora_adapter", base_model="target", weights_from=adapter_folder, base_sha256=digest[::-1])
    _scan(board)
    with pytest.raises(UnsafeSubmissionError, match=f"files is {digest} and `base_sha256` .* says {digest[::-1]}"):
        _scan(board, "other")


def test_modules_kept_whole_are_refused_by_name(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    _on_hub(add, _naming(adapter_folder, tmp_path / "a", modules_to_save=["lm_head"]))
    with pytest.raises(UnsafeSubmissionError, match=r"`modules_to_save` is \['lm_head'\], and accepted is nothing"):
        _scan(board)
