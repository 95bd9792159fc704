from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_listing import listing
from quantized_files import write_gptq

from harness.errors import InputError, UnsafeSubmissionError
from harness.quantize.models.dense import load_dense
from harness.records import Checkpoint, Submission
from harness.submit.checkpoint import merge_adapter, prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _tokens() -> torch.Tensor:
    return torch.arange(20)[None]


def _prepare(board: Path, name: str, cache: Path) -> Checkpoint:
    submissions = manifest.load_all(board)
    folder_scan.scan(submissions[name], submissions)
    return prepare.prepare(submissions[name], submissions, cache=cache)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "use_dora": True},
        {"lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}},
    ],
    ids=["lora", "rslora", "dora", "rank-pattern"],
)
def test_a_merged_adapter_computes_what_the_attached_one_does(
    settings: dict[str, Any], add: Writer, board: Path, controls: None, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = adapter_of(**settings)
    add("entry", kind="lora_adapter", base_model="target", weights_from=adapter)
    base = board / "target" / "model"
    attached = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    merged = merge_adapter.merged_model(base, adapter)
    with torch.no_grad():
        expected, without = attached(_tokens()).logits, plain(_tokens()).logits
        got = merged(_tokens()).logits
    assert float((got - expected).abs().max()) < 1e-5
    assert float((expected - without).abs().max()) > 1e-2

    checkpoint = _prepare(board, "entry", tmp_path / "cache")
    assert checkpoint.merged_from_adapter
    assert checkpoint.dtype == "bfloat16"
    stored = load_dense(checkpoint, device="cpu")
    for name, weight in merged.state_dict().items():
        assert torch.equal(stored.state_dict()[name], weight.bfloat16().float()), name


def test_a_merged_checkpoint_is_made_once_and_used_again(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("entry", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    add("copy", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    first = _prepare(board, "entry", tmp_path / "cache")

    def again(*args: Any) -> None:
        raise AssertionError("merged again")

    monkeypatch.setattr(merge_adapter, "merged_model", again)
    assert _prepare(board, "entry", tmp_path / "cache") == first
    assert _prepare(board, "copy", tmp_path / "cache") == first
    assert [path.name[0] for path in (tmp_path / "cache" / "merged").iterdir()] != ["."]
    assert len(list((tmp_path / "cache" / "merged").iterdir())) == 1


def test_another_base_or_adapter_is_another_checkpoint(
    add: Writer, board: Path, controls: None, adapter_of: Callable[..., Path], adapter_folder: Path, tmp_path: Path
) -> None:
    add("one", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    add("two", kind="lora_adapter", base_model="target", weights_from=adapter_of(lora_alpha=32))
    one, two = (_prepare(board, name, tmp_path / "cache") for name in ("one", "two"))
    assert one.path != two.path
    assert one.sha256 != two.sha256


def test_a_merge_that_fails_leaves_nothing_behind(
    adapter_folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def to(self, dtype: object) -> Full:
            return self

        def state_dict(self) -> dict[str, Any]:
            return {}

        def save_pretrained(self, folder: Path) -> None:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError("no space left")

    monkeypatch.setattr(merge_adapter, "merged_model", lambda base, adapter: Full())
    with pytest.raises(OSError, match="no space left"):
        merge_adapter.merge(model_folder, adapter_folder, tmp_path / "merged" / "x", dtype="bfloat16")
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_worker_that_comes_second_takes_the_first_one_s_checkpoint(
    adapter_folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "merged" / "x"
    real = merge_adapter.merged_model

    def slow(base: Path, adapter: Path) -> Any:
        shutil.copytree(model_folder, destination)
        return real(base, adapter)

    monkeypatch.setattr(merge_adapter, "merged_model", slow)
    before = (model_folder / "model.safetensors").read_bytes()
    assert merge_adapter.merge(model_folder, adapter_folder, destination, dtype="bfloat16") == destination
    assert (destination / "model.safetensors").read_bytes() == before
    assert [path.name for path in destination.parent.iterdir()] == ["x"]


def test_a_full_model_stays_where_it_is(
    add: Writer, board: Path, controls: None, model_folder: Path, tmp_path: Path
) -> None:
    folder = add("entry", weights_from=model_folder)
    checkpoint = _prepare(board, "entry", tmp_path / "cache")
    assert checkpoint.path == str(folder / "model")
    assert not checkpoint.merged_from_adapter
    assert checkpoint.sha256 == prepare.weights_digest(manifest.load(folder))
    assert not (tmp_path / "cache").exists()
    model = load_dense(checkpoint, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training


def test_an_entry_is_scored_with_its_target_s_tokenizer(
    add: Writer, board: Path, controls: None, model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = add("entry", weights_from=model_folder)
    (folder / "model" / "tokenizer.json").unlink()
    add("adapter", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    for name in ("entry", "adapter", "target"):
        checkpoint = _prepare(board, name, tmp_path / "cache")
        assert checkpoint.tokenizer_path == str(board / "target" / "model")
        assert prepare.load_tokenizer(checkpoint)("b")["input_ids"] == [2]
    assert _prepare(board, "retrain", tmp_path / "cache").tokenizer_path == str(board / "retrain" / "model")


def test_an_adapter_control_is_scored_with_its_base_s_tokenizer(
    add: Writer, board: Path, controls: None, adapter_folder: Path, tmp_path: Path
) -> None:
    add("tuned", role="target", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    assert _prepare(board, "tuned", tmp_path / "cache").tokenizer_path == str(board / "target" / "model")


@pytest.mark.parametrize("base", [None, "target"])
def test_a_quantized_checkpoint_stays_where_it_is_and_knows_its_16_bit_base(
    base: str | None, add: Writer, board: Path, controls: None, model_folder: Path, tmp_path: Path
) -> None:
    write_gptq(model_folder, tmp_path / "packed")
    add("entry", kind="quantized_checkpoint", weights_from=tmp_path / "packed", base_model=base)
    checkpoint = _prepare(board, "entry", tmp_path / "cache")
    assert checkpoint.path == str(board / "entry" / "model")
    assert checkpoint.tokenizer_path == str(board / "target" / "model")
    assert (checkpoint.dtype, checkpoint.merged_from_adapter) == ("bfloat16", False)
    assert checkpoint.unquantized_path == (None if base is None else str(board / "target" / "model"))
    assert not (tmp_path / "cache").exists()


def test_a_float32_model_is_rounded_once_to_bfloat16(
    add: Writer, board: Path, tmp_path: Path, model_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        for weight in wide.parameters():
            weight *= 1.0001
    shutil.copytree(model_folder, tmp_path / "wide")
    wide.save_pretrained(tmp_path / "wide")
    folder = add("target", role="target", weights_from=tmp_path / "wide")
    checkpoint = _prepare(board, "target", tmp_path / "cache")
    assert checkpoint.dtype == "bfloat16"
    assert Path(checkpoint.path).is_relative_to(tmp_path / "cache")
    assert checkpoint.tokenizer_path == str(folder / "model")
    assert not checkpoint.merged_from_adapter
    stored = load_dense(checkpoint, device="cpu").state_dict()
    assert all(torch.equal(stored[name], weight.bfloat16().float()) for name, weight in wide.state_dict().items())
    assert _prepare(board, "target", tmp_path / "cache") == checkpoint


def test_a_model_that_lacks_weights_is_not_filled_with_random_numbers(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(
        path=str(tmp_path / "model"), tokenizer_path="", dtype="bfloat16", sha256="", merged_from_adapter=False
    )
    with pytest.raises(InputError, match=r"missing model\.norm\.weight"):
        load_dense(checkpoint, device="cpu")


def _hub(monkeypatch: pytest.MonkeyPatch, source: Path) -> list[dict[str, Any]]:
    """Puts a local folder in the place of the hub, and records what is asked for."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def download(**asked: Any) -> str:
        calls.append(asked)
        return str(shutil.copytree(source, asked["cache_dir"] / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, **asked: listing(source))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_hub_weights_are_pinned_filtered_and_scanned_before_they_are_loaded(
    add: Writer, board: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("target", role="target", weights="hf://owner/name", revision=COMMIT)
    calls = _hub(monkeypatch, model_folder)
    checkpoint = _prepare(board, "target", tmp_path / "cache")
    assert calls[0]["repo_id"] == "owner/name"
    assert calls[0]["revision"] == COMMIT
    assert not any("bin" in pattern or pattern in ("*", "*.py") for pattern in calls[0]["allow_patterns"])
    assert Path(checkpoint.path).is_relative_to(tmp_path / "cache")
    assert load_dense(checkpoint, device="cpu") is not None
    assert _prepare(board, "target", tmp_path / "cache") == checkpoint
    assert len(calls) == 1

    config = model_folder / "config.json"
    hostile = tmp_path / "hostile"
    shutil.copytree(model_folder, hostile)
    (hostile / "config.json").write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {}}))
    _hub(monkeypatch, hostile)
    with pytest.raises(UnsafeSubmissionError, match="names code to run"):
        _prepare(board, "target", tmp_path / "other-cache")


def test_an_adapter_on_a_hub_base_is_checked_against_it(
    add: Writer, board: Path, controls: None, model_folder: Path, adapter_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add(
        "entry", kind="lora_adapter", base_model="hf://owner/base", base_revision=COMMIT, weights_from=adapter_folder
    )  # fmt: skip
    _hub(monkeypatch, model_folder)
    assert _prepare(board, "entry", tmp_path / "cache").merged_from_adapter


def test_a_repository_that_can_t_be_had_is_told_in_one_sentence(
    add: Writer, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(name: str, **asked: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "model_info", offline)
    add("target", role="target", weights="hf://owner/name", revision=COMMIT)
    with pytest.raises(InputError, match=r"hf://owner/name at 0123.* can't be downloaded \(OSError\): check name"):
        _prepare(board, "target", tmp_path / "cache")


def test_hub_digests_depend_on_name_and_commit(add: Writer) -> None:
    submission = manifest.load(add("target", role="target", weights="hf://owner/name", revision=COMMIT))
    others = [
        dataclasses.replace(submission, revision=COMMIT[::-1]),
        dataclasses.replace(submission, weights="hf://owner/other"),
    ]
    assert isinstance(submission, Submission)
    assert len({prepare.weights_digest(each) for each in (submission, *others)}) == 3
