"""A model comes whole from its files, or not at all: nothing keeps an initial value on any path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_architectures
import torch
from safetensors.torch import load_file, save_file

from harness import memory, model_files, quantize, shards
from harness.contract.fixtures import checkpoint_of
from harness.contract.tiny_models import SHAPES
from harness.errors import InputError
from harness.quantize.models.dense import load_dense, source_weights
from harness.quantize.models.streamed import streamed_model
from harness.records import Checkpoint
from harness.submit.checkpoint import merge_adapter
from harness.submit.scan.architectures import MODEL_TYPES
from harness.unlearn import weight_files as unlearn_files

__all__ = ["checkpoint_of"]

NORM = "model.layers.1.input_layernorm.weight"
Change = Callable[[dict[str, torch.Tensor]], object]


@contextmanager
def poison() -> Iterator[None]:
    """Fills with NaN whatever torch allocates or initialises without being given its numbers."""

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *given, **named: filled(make(*given, **named))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided"):
            patch.setattr(torch, name, poisoned(getattr(torch, name)))
        for name in ("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "zeros_", "ones_",
                     "constant_"):  # fmt: skip
            patch.setattr(torch.nn.init, name, lambda tensor, *given, **named: filled(tensor))
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, lambda tensor, *given, **named: filled(tensor))
        yield


def adapter_for(folder: Path, base: Path) -> Path:
    """Writes a LoRA adapter on the first matrix of each block."""
    tensors = shards.stored_tensors(base)
    name = next(name for name in ("q_proj", "qkv_proj", "query_key_value", "c_attn")
                if any(f".{name}." in key for key in tensors))  # fmt: skip
    factors = {}
    for key, tensor in tensors.items():
        if key.endswith(f".{name}.weight"):
            module = "base_model.model." + key.removesuffix(".weight")
            rows, columns = tensor.shape()
            factors[f"{module}.lora_A.weight"] = torch.full((2, columns), 0.01)
            factors[f"{module}.lora_B.weight"] = torch.full((rows, 2), 0.01)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
              "target_modules": [name]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def rounded(checkpoint: Checkpoint, folder: Path, *, by_tensor: bool) -> dict[str, torch.Tensor]:
    folder.mkdir()
    with memory.streaming("always" if by_tensor else "never"):
        merge_adapter.write_rounded(Path(checkpoint.path), folder, "float16")
    return load_file(folder / "model.safetensors")


def merged(checkpoint: Checkpoint, folder: Path, *, by_tensor: bool) -> dict[str, torch.Tensor]:
    base = Path(checkpoint.path)
    adapter = adapter_for(folder.with_name("adapter"), base)
    with memory.streaming("always" if by_tensor else "never"):
        return load_file(merge_adapter.merge(base, adapter, folder, dtype="bfloat16") / "model.safetensors")


def streamed(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    model = streamed_model(checkpoint, device="cpu")
    logits = model(torch.tensor([[3, 1, 4, 1, 5]])).logits
    outside = {name: tensor for name, tensor in model.named_parameters() if not tensor.is_meta}
    return {**outside, "logits": logits.detach()}


def backend(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    spec = quantize.resolve(name)
    if reason := quantize.backend_of(spec).unavailable_reason(spec, "cpu"):
        pytest.skip(reason)
    return dict(quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu").model.named_parameters())


def source(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    with source_weights(checkpoint) as weights:
        return dict(weights)


PATHS: dict[str, Callable[[Checkpoint, Path], dict[str, torch.Tensor]]] = {
    "dense": lambda one, folder: load_dense(one, device="cpu").state_dict(),
    "streamed": lambda one, folder: streamed(one),
    "source": lambda one, folder: source(one),
    "rounded": lambda one, folder: rounded(one, folder, by_tensor=False),
    "rounded by tensor": lambda one, folder: rounded(one, folder, by_tensor=True),
    "merged": lambda one, folder: merged(one, folder, by_tensor=False),
    "merged by tensor": lambda one, folder: merged(one, folder, by_tensor=True),
    "unlearn": lambda one, folder: unlearn_files.load_dense(Path(one.path), "cpu")[0].state_dict(),
    "rtn": lambda one, folder: backend(one, "rtn-4bit-g32"),
    "bitsandbytes": lambda one, folder: backend(one, "bnb-nf4"),
    "int8": lambda one, folder: backend(one, "bnb-int8"),
    "hqq": lambda one, folder: backend(one, "hqq-4bit-g64"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.startswith("even")])
def test_no_tensor_keeps_an_initial_value(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, shape: str, path: str
) -> None:
    assert not_finite(checkpoint_of(shape), path, tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_no_tensor_of_any_architecture_keeps_an_initial_value(tmp_path: Path, kind: str, path: str) -> None:
    folder = str(tiny_architectures.save(kind, tmp_path / "model"))
    checkpoint = Checkpoint(path=folder, tokenizer_path=folder, dtype="bfloat16", sha256=kind,
                            merged_from_adapter=False)  # fmt: skip
    assert not_finite(checkpoint, path, tmp_path / "out") == []


def not_finite(checkpoint: Checkpoint, path: str, folder: Path) -> list[str]:
    with poison():
        tensors = PATHS[path](checkpoint, folder)
    assert len(tensors) > 2
    return [name for name, tensor in tensors.items()
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())]  # fmt: skip


def test_the_poison_reaches_a_model_that_is_initialised(
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint_of("llama").path)
    with poison():
        model = AutoModelForCausalLM.from_config(config)
    assert all(bool(parameter.isnan().all()) for parameter in model.parameters() if parameter.dim() == 2)


def spoiled(source: str, folder: Path, change: Change, **config: Any) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(told))
    return folder


REFUSED: dict[str, tuple[str, Change, str]] = {
    "missing": ("llama", lambda tensors: tensors.pop(NORM), f"missing {NORM}"),
    "missing head": ("llama", lambda tensors: tensors.pop("lm_head.weight"), "missing lm_head.weight"),
    "misnamed": (
        "llama", lambda tensors: tensors.update({"model.layers.1.norm.weight": tensors.pop(NORM)}),
        f"missing {NORM}; surplus model.layers.1.norm.weight",
    ),
    "surplus": ("llama", lambda tensors: tensors.update({"x": torch.ones(2)}), "surplus x"),
    "of another shape": ("llama", lambda tensors: tensors.update({NORM: torch.ones(5)}), f"of another shape {NORM}"),
    "missing bias": (
        "gpt_neox", lambda tensors: tensors.pop("gpt_neox.final_layer_norm.bias"), "missing gpt_neox.final_layer_norm",
    ),
    "no embedding": (
        "gqa576", lambda tensors: tensors.pop("model.embed_tokens.weight"), "missing .*embed_tokens.weight"
    ),
    "two heads": (
        "gqa576", lambda tensors: tensors.update({"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}),
        "config.json ties .* set tie_word_embeddings to false",
    ),
    "named twice": (
        "gpt_neox", lambda tensors: tensors.update({"lm_head.weight": tensors["embed_out.weight"].clone()}),
        "surplus (embed_out|lm_head).weight",
    ),
    "many": (
        "llama", lambda tensors: [tensors.pop(name) for name in list(tensors) if ".mlp." in name],
        "missing (model[^,]*, ){4}model[^,]* and 1 more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize("fault", REFUSED)
def test_files_that_are_not_what_the_config_describes_are_refused_in_one_sentence(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, fault: str, by_tensor: bool
) -> None:
    shape, change, says = REFUSED[fault]
    folder = spoiled(checkpoint_of(shape).path, tmp_path / "spoiled", change)
    with pytest.raises(InputError, match=says) as refused:
        rounded(Checkpoint(path=str(folder), tokenizer_path="", dtype="bfloat16", sha256="", merged_from_adapter=False),
                tmp_path / "out", by_tensor=by_tensor)  # fmt: skip
    assert "\n" not in str(refused.value)


ACCEPTED: dict[str, tuple[str, Change]] = {
    "old buffers": ("llama", lambda tensors: tensors.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})),
    "masks of Pythia": ("gpt_neox", lambda tensors: tensors.update(
        {"gpt_neox.layers.0.attention.bias": torch.ones(1), "gpt_neox.layers.0.attention.masked_bias": torch.ones(1)})),
    "a second copy of a tied head": ("gqa576", lambda tensors: tensors.update(
        {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})),
    "a tied head alone": ("gqa576", lambda tensors: tensors.update(
        {"lm_head.weight": tensors.pop("model.embed_tokens.weight")})),
}  # fmt: skip


@pytest.mark.parametrize("harmless", ACCEPTED)
def test_what_is_harmless_loads_with_the_same_numbers_on_each_path(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, harmless: str
) -> None:
    shape, change = ACCEPTED[harmless]
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    wanted = load_dense(checkpoint_of(shape), device="cpu")(ids).logits
    folder = spoiled(checkpoint_of(shape).path, tmp_path / "harmless", change)
    checkpoint = Checkpoint(path=str(folder), tokenizer_path="", dtype="bfloat16", sha256="", merged_from_adapter=False)
    assert torch.equal(load_dense(checkpoint, device="cpu")(ids).logits, wanted)
    assert torch.equal(streamed_model(checkpoint, device="cpu")(ids).logits, wanted)


@pytest.mark.parametrize("by_tensor", [False, True])
def test_a_number_that_16_bit_can_not_hold_is_refused(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, by_tensor: bool
) -> None:
    folder = spoiled(checkpoint_of("llama").path, tmp_path / "large", lambda tensors: tensors[NORM].fill_(7e4))
    checkpoint = Checkpoint(path=str(folder), tokenizer_path="", dtype="float32", sha256="", merged_from_adapter=False)
    with pytest.raises(InputError, match=rf"{NORM} holds a number that float16 can't hold"):
        rounded(checkpoint, tmp_path / "out", by_tensor=by_tensor)


def test_an_adapter_beside_a_full_model_is_refused(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    folder = spoiled(checkpoint_of("llama").path, tmp_path / "both", lambda tensors: None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="a full model and an adapter"):
        model_files.load(folder, dtype=torch.float32)


def test_a_float32_weight_too_large_for_the_model_s_16_bit_is_refused_at_the_load(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM] = torch.full_like(tensors[NORM], 3.4e38, dtype=torch.float32)

    folder = spoiled(checkpoint_of("llama").path, tmp_path / "large", enlarge)
    assert model_files.load(folder, dtype=torch.float32) is not None
    with pytest.raises(InputError, match=rf"{NORM} holds a number that bfloat16 can't hold"):
        model_files.load(folder, dtype=torch.bfloat16)
