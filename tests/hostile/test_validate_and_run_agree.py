"""What `quench validate` accepts, a run scores; what it refuses, no run scores: over folders changed at random."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import paths
from harness.errors import InputError
from harness.quantize import resolve
from harness.records import CellResult
from harness.run import job as job_runner
from harness.run.plan import planner
from harness.submit import validate
from harness.submit.manifest import load as manifest

SHIPPED = paths.content_dir("submissions")
CONTROLS = ("mini-target-4bit", "mini-retrain")
ENTRIES = ("mini-npo-gdr-full", "mini-npo-gdr-lora")
TASK = "muse_mini_knowmem_f"

Change = Callable[[Path, random.Random], object]
"""Changes the weights folder of an entry."""


def json_file(folder: Path) -> Path:
    return folder / ("adapter_config.json" if "lora" in folder.parent.name else "config.json")


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def put(name: str, values: list[Any]) -> Change:
    """Sets a field of the entry's config to one of some values."""

    def change(folder: Path, draw: random.Random) -> None:
        path = json_file(folder)
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: draw.choice(values)}))

    return change


def drop_a_field(folder: Path, draw: random.Random) -> None:
    path = json_file(folder)
    fields = json.loads(path.read_text())
    fields.pop(draw.choice(sorted(fields)))
    path.write_text(json.dumps(fields))


def file(name: str, text: str) -> Change:
    return lambda folder, draw: (folder / name).write_text(text)


def tensors(change: Callable[[dict[str, torch.Tensor], str, random.Random], object]) -> Change:
    """Changes the stored tensors; ``change`` gets one of their names."""

    def changed(folder: Path, draw: random.Random) -> None:
        stored = load_file(weights_of(folder))
        change(stored, draw.choice(sorted(stored)), draw)
        save_file(stored, weights_of(folder), metadata={"format": "pt"})

    return changed


def renamed(stored: dict[str, torch.Tensor], name: str, draw: random.Random) -> None:
    stored[name.replace("weight", draw.choice(["weights", "bias", "weight_"]))] = stored.pop(name)


def in_dtype(stored: dict[str, torch.Tensor], name: str, draw: random.Random) -> None:
    dtype = draw.choice([torch.float16, torch.float32, torch.bfloat16])
    stored.update({key: tensor.to(dtype) for key, tensor in stored.items()})


def one_number(stored: dict[str, torch.Tensor], name: str, draw: random.Random) -> None:
    stored[name].view(-1)[0] = draw.choice([0.5, -1.0, float("nan"), 3e38])


def sharded(folder: Path, draw: random.Random) -> None:
    stored = load_file(weights_of(folder))
    stem = weights_of(folder).stem
    weights_of(folder).unlink()
    names = sorted(stored)
    parts = {f"{stem}-00001-of-00002.safetensors": names[::2], f"{stem}-00002-of-00002.safetensors": names[1::2]}
    for part, inside in parts.items():
        save_file({name: stored[name] for name in inside}, folder / part, metadata={"format": "pt"})
    where = {name: part for part, inside in parts.items() for name in inside}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


CHANGES: dict[str, Change] = {
    # Nothing of these changes a number, or it is computed exactly.
    "unknown field": put("made_by_a_trainer", [True, 1, "text", None, {"a": [1]}]),
    "unsloth": put("unsloth_fixed", [True, False]),
    "name": put("_name_or_path", ["a/b", "", "models/x"]),
    "version": put("transformers_version", ["4.30.0", "5.24.0"]),
    "alpha": put("lora_alpha", [0, -16, 8.5, 32, 1e5]),
    "rslora": put("use_rslora", [True, False]),
    "dropout": put("lora_dropout", [0.0, 0.1]),
    "base name": put("base_model_name_or_path", ["models/mistral-7b", None, "x"]),
    "initialisation": put("init_lora_weights", [True, "gaussian", "eva", "pissa", "olora"]),
    "task type": put("task_type", [None, "CAUSAL_LM", "SEQ_CLS"]),
    "auto mapping": put("auto_mapping", [None, {"base_model_class": "LlamaForCausalLM"}]),
    "leftover": file("trainer_state.json", '{"loss": NaN}'),
    "list": file("labels.json", "[1, 2]"),
    "notes": file("README.md", "# A model"),
    "dtype": tensors(in_dtype),
    "number": tensors(one_number),
    "shards": sharded,
    "copy": lambda folder, draw: shutil.copy(weights_of(folder), folder / "consolidated.safetensors"),
    # These change the model, or its config no longer describes the files.
    "field lost": drop_a_field,
    "rank": put("r", [4, 8, 16, "8"]),
    "modules": put("target_modules", [["q_proj"], ["no_such"], "all-linear", r".*_proj", []]),
    "layers": put("layers_to_transform", [None, [0], 1, [0, 1, 2, 3], [9]]),
    "dora": put("use_dora", [True, False]),
    "bias": put("bias", ["none", "all"]),
    "saved modules": put("modules_to_save", [None, ["lm_head"]]),
    "architecture": put("model_type", ["llama", "mistral", "qwen2", "mixtral", "no_such"]),
    "layers of the model": put("num_hidden_layers", [3, 4, 5]),
    "width": put("hidden_size", [64, 128]),
    "heads": put("num_attention_heads", [2, 4, 8]),
    "rope": put("rope_parameters", [{"rope_theta": 5e5, "rope_type": "default"}, {"rope_type": "su"}, None]),
    "rope scaling": put("rope_scaling", [None, {"type": "su", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}]),
    "tied": put("tie_word_embeddings", [True, False]),
    "quantization": put("quantization_config", [None, {}, {"quant_method": "fp8"}]),
    "code": put("auto_map", [{"AutoModel": "x.Y"}]),
    "vocabulary": put("vocab_size", [1024, 1000]),
    "tensor lost": tensors(lambda stored, name, draw: stored.pop(name)),
    "tensor renamed": tensors(renamed),
    "tensor added": tensors(
        lambda stored, name, draw: stored.update({draw.choice(["x", f"{name}.more"]): torch.ones(3)})
    ),
    "old buffer": tensors(
        lambda stored, name, draw: stored.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    ),
    "tensor cut": tensors(lambda stored, name, draw: stored.update({name: stored[name][:1].clone()})),
    "pickle": file("optimizer.pt", "x"),
    "adapter beside": file("adapter_config.json", "{}"),
    "config lost": lambda folder, draw: json_file(folder).unlink(),
}  # fmt: skip


def outcome(board: Path, name: str, cache: Path) -> tuple[list[str], str | None]:
    """Returns what validate says of an entry, and why its 16-bit cell does not finish, None where it does."""
    (faults,) = validate.faults_of([board / name])
    submissions = manifest.load_all(board)
    rows: list[CellResult] = []
    try:
        plan = planner.plan(
            submissions, names=[name], quantizers=[resolve("reference")], tasks=[TASK], limit=1, controls=False,
        )  # fmt: skip
        (job,) = plan.jobs
        job_runner.run_job(job, submissions, job_runner.Settings(cache=str(cache)), emit=rows.append)
    except InputError as refused:
        return [str(fault) for fault in faults], str(refused)
    return [str(fault) for fault in faults], rows[0].reason


def changed_folders(tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Compares validate and run over ``count`` changed entries; returns how many both accept and refuse."""
    board, draw, counted = tmp_path / "submissions", random.Random(seed), Counter[str]()
    for name in CONTROLS:
        shutil.copytree(SHIPPED / name, board / name)
    disagreements = []
    for number in range(count):
        entry = ENTRIES[number % len(ENTRIES)]
        shutil.copytree(SHIPPED / entry, board / entry)
        text = (board / entry / "submission.yaml").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith("weights_sha256")]
        (board / entry / "submission.yaml").write_text("\n".join(lines), encoding="utf-8")
        names = draw.sample(sorted(CHANGES), draw.choice([1, 1, 2]))
        # A folder without its config has nothing left to change.
        for name in sorted(names, key="config lost".__eq__):
            CHANGES[name](board / entry / "weights", draw)
        faults, reason = outcome(board, entry, tmp_path / "cache")
        if bool(faults) != (reason is not None):
            disagreements.append((number, entry, names, faults, reason))
        counted["refused" if faults else "accepted"] += 1
        shutil.rmtree(board / entry)
    assert disagreements == []
    return counted


def test_validate_and_run_agree(tmp_path: Path) -> None:
    assert set(changed_folders(tmp_path, 24, seed=1)) == {"accepted", "refused"}


@pytest.mark.slow
def test_validate_and_run_agree_over_three_hundred_folders(tmp_path: Path) -> None:
    counted = changed_folders(tmp_path, 300, seed=2)
    assert counted["accepted"] >= 100
    assert counted["refused"] >= 100
