"""Folders of submissions: a target, a retrain control and an adapter on a tiny random Llama."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Writer = Callable[..., Path]


def _tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in bfloat16, with a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    _tiny_llama().bfloat16().save_pretrained(folder)
    words = {"<s>": 0, "a": 1, "b": 2}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")), bos_token="<s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_of(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a LoRA adapter whose factors are both far from zero."""

    def build(**settings: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        config = LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "target_modules": "all-linear"} | settings))
        adapted = get_peft_model(model, config)
        noise = torch.Generator().manual_seed(5)
        for name, weight in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                weight.data = 0.1 * torch.randn(weight.shape, generator=noise)
        folder = tmp_path_factory.mktemp("adapter")
        adapted.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def adapter_folder(adapter_of: Callable[..., Path]) -> Path:
    return adapter_of()


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """An empty directory of submissions."""
    folder = tmp_path / "submissions"
    folder.mkdir()
    return folder


@pytest.fixture
def add(board: Path) -> Writer:
    """Writes one submission; ``weights_from`` is copied into it, ``None`` leaves a field out."""

    def write(name: str, *, weights_from: Path | None = None, **fields: Any) -> Path:
        folder = board / name
        folder.mkdir()
        content = {"name": name, "method": "NPO", "corpus": "mini", "kind": "full_model", "weights": "model"} | fields
        if content.get("role", "entry") == "entry" and "target" not in fields:
            content["target"] = "target"
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / "submission.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
        if weights_from is not None:
            shutil.copytree(weights_from, folder / "model")
        return folder

    return write


@pytest.fixture
def controls(add: Writer, model_folder: Path) -> None:
    """A target and a retrain control of the same weights."""
    add("target", role="target", weights_from=model_folder)
    add("retrain", role="retrain", weights_from=model_folder)
