"""What makes a prepared checkpoint the one that was meant: tokenizer digests, cache folders, merges, loading."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import InputError
from harness.quantize.models.dense import load_dense
from harness.records import Checkpoint, Submission
from harness.submit.checkpoint import merge_adapter, prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.weight_files import folder_digest, weight_files

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _submission(name: str, **fields: Any) -> Submission:
    return Submission(
        **{
            "name": name, "title": name, "method": "NPO", "corpus": "mini", "kind": "full_model", "role": "target",
            "target": None, "retrain": None, "base_model": None, "base_revision": None, "weights": "hf://o/model",
            "revision": COMMIT, "weights_sha256": None, "folder": "",
        }
        | fields
    )  # fmt: skip


def _by_name(*submissions: Submission) -> dict[str, Submission]:
    return {each.name: each for each in submissions}


@pytest.fixture
def tokenizers(tmp_path: Path) -> Callable[[str, str], Submission]:
    """Makes a local full model whose folder holds nothing but a tokenizer."""

    def make(name: str, text: str) -> Submission:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text, encoding="utf-8")
        return _submission(name, weights=str(tmp_path / name), revision=None)

    return make


def test_an_entry_has_its_target_s_tokenizer_digest_and_not_its_own(
    tokenizers: Callable[[str, str], Submission],
) -> None:
    target, other = tokenizers("target", "{}"), tokenizers("other", "{ }")
    entry = dataclasses.replace(other, name="entry", role="entry", target="target")
    known = _by_name(target, other, entry)
    digests = {name: prepare.tokenizer_digest(each, known) for name, each in known.items()}
    assert digests["entry"] == digests["target"]
    assert digests["other"] != digests["target"]


def test_the_same_tokenizer_in_another_folder_has_the_same_digest(
    tokenizers: Callable[[str, str], Submission],
) -> None:
    one, two = tokenizers("one", "{}"), tokenizers("two", "{}")
    assert prepare.tokenizer_digest(one, {}) == prepare.tokenizer_digest(two, {})


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("special_tokens_map.json", True),
        ("added_tokens.json", True),
        ("tokenizer.model", True),
        ("vocab.json", True),
        ("merges.txt", True),
        ("README.md", False),
        ("config.json", False),
        ("model.safetensors", False),
    ],
)
def test_the_tokenizer_digest_covers_every_tokenizer_file_and_no_other(
    tokenizers: Callable[[str, str], Submission], name: str, moves: bool
) -> None:
    target = tokenizers("target", "{}")
    before = prepare.tokenizer_digest(target, {})
    (Path(target.weights) / name).write_text("changed", encoding="utf-8")
    assert (prepare.tokenizer_digest(target, {}) != before) == moves


def test_a_folder_without_a_tokenizer_has_a_digest_of_its_own(tokenizers: Callable[[str, str], Submission]) -> None:
    target = tokenizers("target", "{}")
    before = prepare.tokenizer_digest(target, {})
    (Path(target.weights) / "tokenizer.json").unlink()
    assert prepare.tokenizer_digest(target, {}) != before


def test_an_adapter_target_passes_its_base_s_tokenizer_on_to_its_entries(
    tokenizers: Callable[[str, str], Submission],
) -> None:
    base = tokenizers("base", "{}")
    tuned = _submission("tuned", kind="lora_adapter", base_model="base", weights="/nowhere", revision=None)
    entry = dataclasses.replace(tokenizers("entry", "[]"), role="entry", target="tuned")
    known = _by_name(base, tuned, entry)
    assert len({prepare.tokenizer_digest(each, known) for each in known.values()}) == 1


def test_the_tokenizer_of_a_hub_repository_is_known_by_name_and_commit_without_a_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def download(**asked: Any) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = _submission("model")
    adapter = _submission(
        "adapter", kind="lora_adapter", base_model="hf://o/model", base_revision=COMMIT, revision=COMMIT[::-1]
    )
    digest = prepare.tokenizer_digest(model, {})
    # The adapter's own repository and commit don't count, its base's do.
    assert prepare.tokenizer_digest(adapter, {}) == digest
    moved = dataclasses.replace(adapter, base_revision=COMMIT[::-1])
    renamed = dataclasses.replace(adapter, base_model="hf://o/other")
    assert len({digest, *(prepare.tokenizer_digest(each, {}) for each in (moved, renamed))}) == 3


def test_the_digest_belongs_to_the_tokenizer_that_prepare_hands_on(
    add: Writer, board: Path, controls: None, model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = add("entry", kind="lora_adapter", base_model="retrain", weights_from=adapter_folder)
    (folder / "model" / "tokenizer.json").write_text("{}", encoding="utf-8")
    (board / "retrain" / "model" / "tokenizer.json").unlink()
    known = manifest.load_all(board)
    prepared = prepare.prepare(known["entry"], known, cache=tmp_path / "cache")
    stand_in = _submission("any", weights=prepared.tokenizer_path, revision=None)
    assert prepare.tokenizer_digest(known["entry"], known) == prepare.tokenizer_digest(stand_in, {})


@pytest.mark.parametrize("base", ["nowhere", "adapter", "quantized"])
def test_a_base_that_is_no_full_model_is_refused_by_its_name(tmp_path: Path, base: str) -> None:
    known = _by_name(
        _submission("entry", kind="lora_adapter", base_model=base, weights=str(tmp_path), revision=None),
        _submission("adapter", kind="lora_adapter", base_model="entry", weights=str(tmp_path), revision=None),
        _submission("quantized", kind="quantized_checkpoint", weights=str(tmp_path), revision=None),
    )
    with pytest.raises(InputError, match=f"entry: its base_model '{base}' is no full_model among the submissions"):
        prepare.prepare(known["entry"], known, cache=tmp_path / "cache")


def test_a_merged_checkpoint_of_a_float32_base_is_stored_in_bfloat16(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    path = board / "target" / "model" / "model.safetensors"
    save_file({name: each.float() for name, each in load_file(path).items()}, path, metadata={"format": "pt"})
    add("entry", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    known = manifest.load_all(board)
    prepared = prepare.prepare(known["entry"], known, cache=tmp_path / "cache")
    assert prepared.dtype == "bfloat16"
    assert {each.dtype for each in load_file(Path(prepared.path) / "model.safetensors").values()} == {torch.bfloat16}
    assert sorted(each.name for each in (tmp_path / "cache").iterdir()) == ["merged", "rounded"]


def test_a_float16_base_keeps_its_dtype_when_an_adapter_is_merged(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    path = board / "target" / "model" / "model.safetensors"
    save_file({name: each.half() for name, each in load_file(path).items()}, path, metadata={"format": "pt"})
    add("entry", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    known = manifest.load_all(board)
    for name, merged in (("target", False), ("entry", True)):
        prepared = prepare.prepare(known[name], known, cache=tmp_path / "cache")
        assert (prepared.dtype, prepared.merged_from_adapter) == ("float16", merged)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": 4, "lora_alpha": 8}, 8 / 4),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 8 / 4**0.5),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"o_proj": 2}}, 8 / 2),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"o_proj": 20}}, 20 / 4),
    ],
    ids=["lora", "rslora", "rank-pattern", "alpha-pattern"],
)
def test_a_merged_weight_is_the_base_plus_the_scaled_product_of_the_factors(
    model_folder: Path, adapter_of: Callable[..., Path], settings: dict[str, Any], factor: float
) -> None:
    adapter = adapter_of(**settings)
    factors = load_file(adapter / "adapter_model.safetensors")
    base = load_file(model_folder / "model.safetensors")
    merged = merge_adapter.merged_model(model_folder, adapter).state_dict()
    module = "model.layers.1.self_attn.o_proj"
    down, up = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    expected = base[f"{module}.weight"].double() + factor * up @ down
    assert torch.allclose(merged[f"{module}.weight"].double(), expected, atol=1e-6)
    for kept in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(merged[kept], base[kept].float())
    assert not any("lora" in name for name in merged)


def test_a_decomposed_adapter_gives_every_row_of_the_merged_weight_its_magnitude(
    model_folder: Path, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "dora"
    shutil.copytree(adapter_of(use_dora=True, target_modules=["up_proj"]), adapter)
    path = adapter / "adapter_model.safetensors"
    factors = load_file(path)
    names = [name for name in factors if name.endswith("lora_magnitude_vector")]
    rows = torch.linspace(0.5, 3.0, 96)
    save_file(factors | {name: rows.clone() for name in names}, path, metadata={"format": "pt"})
    assert len(names) == 2
    merged = merge_adapter.merged_model(model_folder, adapter)
    for layer in merged.model.layers:
        assert torch.allclose(layer.mlp.up_proj.weight.norm(dim=1), rows, atol=1e-4)


def test_merging_leaves_base_and_adapter_untouched(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    before = folder_digest(model_folder), folder_digest(adapter_folder)
    merge_adapter.merge(model_folder, adapter_folder, tmp_path / "merged", dtype="bfloat16")
    assert (folder_digest(model_folder), folder_digest(adapter_folder)) == before


def test_a_merged_checkpoint_passes_the_scan_of_a_full_model(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = merge_adapter.merge(model_folder, adapter_folder, tmp_path / "merged", dtype="bfloat16")
    assert len(folder_scan.scan_folder(folder, adapter=False)) == 21


def test_a_folder_is_written_once_and_its_writer_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[Path] = []

    def write(folder: Path) -> None:
        asked.append(folder)
        (folder / "x").write_text("1", encoding="utf-8")

    destination = tmp_path / "deep" / "er" / "made"
    for _ in range(2):
        assert merge_adapter.write_once(destination, write) == destination
    assert len(asked) == 1
    assert asked[0].parent == destination.parent
    assert [path.name for path in destination.parent.iterdir()] == ["made"]


def _spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> Checkpoint:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return Checkpoint(
        path=str(folder), tokenizer_path=str(folder), dtype="bfloat16", sha256="", merged_from_adapter=False
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.update({"model.layers.7.extra.weight": torch.zeros(2)}), "surplus model.layers.7"),
        (lambda tensors: tensors.pop("lm_head.weight"), "missing lm_head.weight"),
    ],
    ids=["surplus", "missing-head"],
)
def test_weights_that_the_config_does_not_describe_are_not_scored(
    model_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    with pytest.raises(InputError, match=says):
        load_dense(_spoil(folder, change), device="cpu")


def test_another_device_than_the_cpu_gets_the_checkpoint_s_own_dtype(model_folder: Path) -> None:
    checkpoint = Checkpoint(path=str(model_folder), tokenizer_path="", dtype="bfloat16", sha256="",
                            merged_from_adapter=False)  # fmt: skip
    model = load_dense(checkpoint, device="meta")
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.bfloat16, "meta")}


def test_weight_files_are_sorted_and_leave_tokenizer_and_deeper_folders_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.safetensors", "a.safetensors", "config.json", "tokenizer.json", "deep/c.safetensors",
                 "model.safetensors.index.json", "adapter_config.json", "generation_config.json"):  # fmt: skip
        (tmp_path / name).write_text(json.dumps(name), encoding="utf-8")
    assert [path.name for path in weight_files(tmp_path)] == [
        "a.safetensors", "adapter_config.json", "b.safetensors", "config.json", "model.safetensors.index.json",
    ]  # fmt: skip


def test_a_renamed_weight_file_changes_the_digest_and_its_folder_s_name_does_not(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"same")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "two" / "model-1.safetensors")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")
