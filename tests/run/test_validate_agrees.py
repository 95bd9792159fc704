"""What `validate` accepts, `run` finishes, and what it refuses, `run` refuses: hundreds of changed folders."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from quantized_files import write_gptq
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from harness import paths
from harness.cli.main import app

SHIPPED = paths.content_dir("submissions")
TARGET, RETRAIN = "mini-target-plain", "mini-retrain"
TASK = "muse_mini_verbmem_f"
Change = Callable[[Path], object]


def _said(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        told = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(told | changes), encoding="utf-8")

    return change


def _packed(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        _said("config.json", quantization_config=told | changes)(folder)

    return change


def _with(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def _tensors(file: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        edit(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


def _settings(file: str, values: Mapping[str, tuple[Any, ...]]) -> list[Change]:
    return [_said(file, **{key: value}) for key, told in values.items() for value in told]


LEFT_OVER: list[Change] = [
    _with("trainer_state.json", b'{"loss": NaN}'), _with("all_results.json", b"[1]"), _with("README.md", b"# It"),
    _with("optimizer.pt", b"PK\x03\x04"), _with("run.py", b"import os"), _with("notes.txt", b"Unlearned."),
    _with("generation_config.json", b'{"do_sample": false}'), _with("quantize_config.json", b'{"bits": 4}'),
]  # fmt: skip
MODEL: list[Change] = _settings("config.json", {
    "is_llama_config": (True,), "rope_interleaved": (False, True), "unsloth_fixed": (True,),
    "quantization_config": (None,), "neftune_noise_alpha": (5, None), "layer_types": (None, False, []),
    "mtp_layer_types": (None, 0), "num_labels": (2, 10 ** 9), "id2label": ({"0": "a"}, {"x": "a"}),
    "attention_dropout": (0.0, None, "a"), "head_dim": (None, 7), "mlp_bias": (False, 0), "use_cache": (True, False),
    "torch_dtype": ("bfloat16", "float64"), "pad_token_id": (None, 0, -1, 10 ** 6),
    "rope_scaling": (None, {"type": "su", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
    "pretraining_tp": (1, None),
    "rope_parameters": (None, {"rope_type": "default", "rope_theta": 10000.0}, {"rope_type": "yarn"}),
    "hidden_act": ("silu", "my_act"), "is_causal": (True, None), "to_dict": (None,), "sliding_window": (None, 16),
    "num_hidden_layers": (9,), "use_bidirectional_attention": (False, True), "_attn_implementation": ("eager",),
    "tie_word_embeddings": (False, True), "vocab_size": (7,), "auto_map": ({"AutoModel": "x.Y"},),
    "temperature": (0.5,), "model_type": ("llama", "mistral", "mamba", "gpt_neox"),
    "per_layer_config": (None, {"0": {}}), "output_attentions": (False, True), "architectures": (None, ["X"]),
    "initializer_range": (0.02, 1), "logit_scale": (1.0, 2.0),
})  # fmt: skip
MODEL += [
    lambda folder: shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors"),
    _tensors("model.safetensors", lambda t: t.update({"gpt_neox.layers.0.attention.bias": torch.ones(1).bool()})),
    _tensors("model.safetensors", lambda t: t.popitem()),
    _tensors("model.safetensors", lambda t: t.update({"more": torch.ones(1)})),
    _tensors("model.safetensors", lambda t: next(iter(t.values())).view(-1)[:1].fill_(float("nan"))),
    _with("adapter_config.json", b'{"peft_type": "LORA"}'),
]
ADAPTER: list[Change] = _settings("adapter_config.json", {
    "auto_mapping": ({"base_model_class": "LlamaForCausalLM"},), "task_type": (None, "SEQ_CLS"),
    "lora_alpha": (-16, 0, 8.5), "exclude_modules": (["lm_head"], ["q_proj"]),
    "init_lora_weights": ("eva", "pissa", False), "r": (4.0, 0, 10 ** 6), "eva_config": ({"rho": 2.0},),
    "unsloth_version": ("1",), "use_rslora": (True, 1), "use_dora": (False, True), "bias": ("none", "all", "some"),
    "modules_to_save": (None, ["lm_head"]), "target_modules": ("all-linear", ["q_proj"], "("),
    "layers_to_transform": (None, 0), "lora_dropout": (0.1, 2), "rank_pattern": ({}, {"q_proj": 1}),
    "fan_in_fan_out": (True,), "base_model_name_or_path": ("outputs/checkpoint-500", "w/target", "owner/other"),
    "a_later_field": (None, 1), "alpha_pattern": ({"q_proj": 3}, {"(": 3}), "peft_type": ("IA3",),
    "trainable_token_indices": (None, [1]), "megatron_config": (None, {"a": 1}),
    "layer_replication": (None, [[0, 1]]),
})  # fmt: skip
PACKED: list[Change] = [_packed(**{key: value}) for key, told in {
    "sym": (True, "yes"), "desc_act": (False, None), "meta": ({"a": 1}, None), "damp_percent": (0.1,), "bits": (8, 5),
    "dynamic": ({"-:lm_head": {}}, {"-:.*down.*": {}}), "checkpoint_format": ("gptq", "marlin"),
    "format": ("gptq",), "provider": ("auto-round",), "data_type": ("int", "fp"), "a_new_switch": (False, True),
    "group_size": (32, 64, 0), "quant_method": ("gptq", "awq", "exl2"), "lm_head": (False,), "dataset": ("wikitext2",),
    "true_sequential": (True,), "static_groups": (False,), "use_exllama": (True,), "pack_dtype": ("int32", "int16"),
}.items() for value in told]  # fmt: skip
KINDS: Mapping[str, list[Change]] = {
    "full_model": MODEL + LEFT_OVER, "lora_adapter": ADAPTER + LEFT_OVER, "quantized_checkpoint": PACKED + LEFT_OVER,
}  # fmt: skip


def _board(folder: Path, count: int) -> list[str]:
    """Writes controls, each change alone and random pairs of them; returns the entries' names."""
    for name in (TARGET, RETRAIN):
        shutil.copytree(SHIPPED / name, folder / name)
    sound = {
        "full_model": SHIPPED / "mini-npo-gdr-full" / "weights",
        "lora_adapter": SHIPPED / "mini-npo-gdr-lora" / "weights",
        "quantized_checkpoint": write_gptq(SHIPPED / TARGET / "weights", folder.parent / "packed"),
    }
    changes = [(kind, (change,)) for kind, all_of in KINDS.items() for change in all_of]
    chosen = random.Random(7)
    while len(changes) < count:
        kind = chosen.choice(sorted(KINDS))
        changes.append((kind, tuple(chosen.sample(KINDS[kind], 2))))
    for number, (kind, several) in enumerate(changes):
        entry = folder / f"entry-{number:03}"
        shutil.copytree(sound[kind], entry / "weights")
        # Cells of equal files would be one cell.
        own = {"revision": entry.name} if kind == "lora_adapter" else {"_name_or_path": entry.name}
        for change in (_said("adapter_config.json" if kind == "lora_adapter" else "config.json", **own), *several):
            change(entry / "weights")
        fields = {"name": entry.name, "method": "NPO", "corpus": "mini", "kind": kind, "weights": "weights",
                  "target": TARGET, "retrain": RETRAIN}  # fmt: skip
        if kind == "lora_adapter":
            fields["base_model"] = TARGET
        (entry / "submission.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return [f"entry-{number:03}" for number in range(len(changes))]


@pytest.mark.slow
def test_what_is_accepted_finishes_and_what_is_refused_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    board, store = tmp_path / "board", tmp_path / "store.duckdb"
    board.mkdir()
    names = _board(board, 300)

    def quench(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return json.loads(done.stdout)["rows"]

    told = {row["submission"]: row for row in quench("validate", *(str(board / name) for name in names))}
    CliRunner().invoke(app, ["run", *names, "--submissions", str(board), "--quantizers", "reference", "--tasks", TASK,
                             "--limit", "1", "--no-controls", "--store", str(store)])  # fmt: skip
    ended = {row["submission"]: row for row in quench("show", "--cells", "--store", str(store))}
    accepted = {name for name, row in told.items() if row["valid"]}
    finished = {name for name, row in ended.items() if row["status"] == "finished"}
    differing = {name: (told[name]["faults"], ended.get(name, {}).get("reason")) for name in accepted ^ finished}
    assert differing == {}
    assert min(len(accepted), len(names) - len(accepted)) >= 100
    for name in accepted:
        assert set(told[name]["notes"]) <= set(ended[name]["remarks"])
