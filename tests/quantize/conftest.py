"""Tiny random models of the shapes that quantizers must bear, saved as bfloat16."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import Checkpoint


def _model(shape: str) -> Any:
    import transformers as hf

    small = {"vocab_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}
    if shape == "llama":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=128, intermediate_size=192, num_attention_heads=4, tie_word_embeddings=False, **small
            )
        )
    if shape in ("even128", "even256"):
        width = int(shape[4:])
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(hidden_size=width, intermediate_size=256, num_attention_heads=4, **small),
        )
    if shape == "gqa576":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=576,
                intermediate_size=160,
                num_attention_heads=9,
                num_key_value_heads=3,
                tie_word_embeddings=True,
                **small,
            )
        )
    common = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, **small)
    if shape == "gpt_neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**common))
    grouped = common | {"num_key_value_heads": 2, "head_dim": 16}
    config = {
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
        "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM),
    }[shape]
    return config[1](config[0](**grouped))


WORDS = [f"w{number}" for number in range(93)]


def save_tokenizer(folder: Path) -> None:
    """Saves a tokenizer of one token a word, for backends that calibrate."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: token for token, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def calibration_texts() -> tuple[str, ...]:
    """Texts of the tokenizer's own words, no two alike."""
    return tuple(" ".join(WORDS[(7 * text + word * word) % 93] for word in range(60)) for text in range(24))


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Builds (once) the checkpoint of a model shape."""
    made: dict[str, Checkpoint] = {}

    def build(shape: str) -> Checkpoint:
        if shape not in made:
            import torch

            logging.getLogger("transformers").setLevel(logging.ERROR)
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(shape)
            _model(shape).bfloat16().save_pretrained(folder)
            save_tokenizer(folder)
            made[shape] = Checkpoint(
                path=str(folder),
                tokenizer_path=str(folder),
                dtype="bfloat16",
                sha256="0" * 64,
                merged_from_adapter=False,
            )
        return made[shape]

    return build


@pytest.fixture
def moved(tmp_path: Path) -> Callable[[Checkpoint, float], Checkpoint]:
    """Copies a checkpoint with ``size`` times noise added to every block linear: an update."""

    def move(checkpoint: Checkpoint, size: float) -> Checkpoint:
        import torch

        from harness.quantize.dense import block_linears, load_dense

        model = load_dense(checkpoint, device="cpu")
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for linear in block_linears(model).values():
                linear.weight += size * torch.randn(linear.weight.shape, generator=noise)
        folder = tmp_path / f"moved-{size}"
        model.bfloat16().save_pretrained(folder)
        return Checkpoint(
            path=str(folder), tokenizer_path=str(folder), dtype="bfloat16", sha256="1" * 64, merged_from_adapter=False
        )

    return move
