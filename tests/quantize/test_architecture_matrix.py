"""Every architecture of the list through every quantizer: whole, as an adapter, block by block."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_architectures import model_of, save
from typer.testing import CliRunner

from harness import memory, paths
from harness.cli.main import app
from harness.quantize import backend_of, model_cache, resolve
from harness.quantize.models.dense import block_linears
from harness.records import Checkpoint
from harness.store.store import Store
from harness.submit.scan.architectures import MODEL_TYPES
from harness.submit.scan.folder import scan_folder

TASKS = ("muse_mini_verbmem_f", "muse_mini_privleak")
TOKENIZER = paths.content_dir("submissions") / "mini-target-plain" / "weights"
ONE_EACH = (
    "reference", "rtn-4bit-g64", "bnb-nf4", "bnb-int8", "gguf-q4_0", "hqq-4bit-g64", "quanto-int8-row",
    "torchao-int4-g64",
)  # fmt: skip
"""A preset of each backend of the main environment that calibrates on nothing."""


FEW = ("apertus", "gpt_neox", "olmo2", "phi")
LISTED = [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in MODEL_TYPES]


@pytest.mark.parametrize("kind", LISTED)
def test_a_kept_model_and_a_streamed_one_are_the_quantized_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    # As if making it took long.
    monkeypatch.setattr(model_cache, "READ_BYTES_PER_SECOND", 1e15)
    folder = str(save(kind, tmp_path / "model"))
    notes: list[str] = []
    scan_folder(Path(folder), adapter=False, notes=notes)
    assert notes == []
    checkpoint = Checkpoint(path=folder, tokenizer_path=folder, dtype="bfloat16", sha256="0" * 64,
                            merged_from_adapter=False)  # fmt: skip
    spec = resolve("rtn-4bit-g64")
    with memory.streaming("never"):
        made, kept = (
            model_cache.quantize_once(
                checkpoint, spec, device="cpu", calibration=(), cache=tmp_path / "cache", limit=2**30
            )
            for _ in range(2)
        )
    assert (tmp_path / "cache" / model_cache.FOLDER).is_dir()
    with memory.streaming("always"):
        streamed = backend_of(spec).quantize(checkpoint, spec, device="cpu")
    assert made.proof is not None
    assert made.proof.quantized_layers == len(block_linears(made.model))
    assert made.proof == kept.proof == streamed.proof
    first, *others = (_logits(each.model) for each in (made, kept, streamed))
    assert first.isfinite().all()
    assert all(torch.equal(first, other) for other in others)


def _logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 63).reshape(2, 30), use_cache=False).logits


def _board(place: Path, kinds: tuple[str, ...]) -> list[str]:
    """Writes a target, a full entry and an adapter of each architecture; returns the entries' names."""
    names = []
    for kind in kinds:
        target, full, adapter = (f"{kind.replace('_', '-')}-{part}" for part in ("target", "full", "lora"))
        _submit(place, target, role="target")
        save(kind, place / target / "weights", vocab_size=1024)
        _submit(place, full, target=target)
        moved = model_of(kind, vocab_size=1024)
        with torch.no_grad():
            for linear in block_linears(moved).values():
                linear.weight += 0.05 * torch.randn(linear.weight.shape)
        moved.bfloat16().save_pretrained(place / full / "weights")
        _submit(place, adapter, kind="lora_adapter", target=target, base_model=target)
        _save_adapter(kind, place / adapter / "weights")
        for name in (target, full):
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(TOKENIZER / file, place / name / "weights" / file)
        names += [full, adapter]
    return names


def _submit(place: Path, name: str, **fields: str) -> None:
    (place / name).mkdir(parents=True)
    told = {"name": name, "method": "NPO", "corpus": "mini", "kind": "full_model", "role": "entry",
            "weights": "weights", "license": "Apache-2.0"}  # fmt: skip
    (place / name / "submission.yaml").write_text(yaml.safe_dump(told | fields), encoding="utf-8")


def _save_adapter(kind: str, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = model_of(kind, vocab_size=1024)
    names = sorted({name.rpartition(".")[2] for name in block_linears(model)})
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM", bias="none"))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapter.save_pretrained(folder, save_embedding_layers=False)


def _arguments(place: Path, names: list[str], quantizers: list[str], *more: str) -> list[str]:
    return ["run", *names, "--submissions", str(place / "board"), "--store", str(place / "store.duckdb"),
            "--no-controls", "--quantizers", ",".join(quantizers), "--tasks", ",".join(TASKS), "--limit", "1",
            *more]  # fmt: skip


def _check_cells(place: Path, names: list[str], quantizers: list[str]) -> None:
    with Store.open(place / "store.duckdb", read_only=True) as opened:
        cells = opened.cells()
    expected = {(name, quantizer, task) for name in names for quantizer in quantizers for task in TASKS}
    assert {(each.submission.name, each.spec.name, each.cell.task) for each in cells} == expected
    assert [each.reason for each in cells if each.status != "finished"] == []


@pytest.mark.slow
def test_one_other_architecture_finishes_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    names, quantizers = _board(tmp_path / "board", ("gpt_neox",)), ["rtn-4bit-g64"]
    result = CliRunner().invoke(app, _arguments(tmp_path, names, quantizers))
    assert result.exit_code == 0, result.output
    _check_cells(tmp_path, names, quantizers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stream", ["never", "always"])
def test_the_matrix_finishes_through_the_command_line(tmp_path: Path, stream: str) -> None:
    specs = map(resolve, ONE_EACH)
    quantizers = [spec.name for spec in specs if backend_of(spec).unavailable_reason(spec, "cpu") is None]
    assert {"reference", "rtn-4bit-g64", "bnb-nf4"} <= set(quantizers)
    names = _board(tmp_path / "board", MODEL_TYPES)
    if stream == "always":
        # A merged adapter is streamed as a full model is.
        names = [name for name in names if name.endswith("-full")]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *_arguments(tmp_path, names, quantizers, "--stream", stream)],
        capture_output=True, text=True, check=False, env=os.environ | {"QUENCH_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    _check_cells(tmp_path, names, quantizers)
