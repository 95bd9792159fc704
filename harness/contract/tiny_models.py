"""Tiny random models of the shapes that quantizers must bear, and one to score a corpus with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from harness.records import Checkpoint

WORDS = [f"w{number}" for number in range(93)]
"""Words of the tokenizer that quantizers calibrate with, one token each."""

SHAPES = ("llama", "even128", "even256", "gqa576", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox")
"""Models that ``checkpoint`` makes: `even` ones have rows that groups of 128, or of 256, divide throughout."""


def checkpoint(shape: str, folder: Path) -> Checkpoint:
    """Saves a model in bfloat16 with a tokenizer, and returns what a quantizer is given of it.

    Args:
        shape: One of ``SHAPES``; always the same weights.
        folder: An empty folder.
    """
    import torch

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(7)
    _model(shape).bfloat16().save_pretrained(folder)
    save_tokenizer(folder)
    return Checkpoint(
        path=str(folder), tokenizer_path=str(folder), dtype="bfloat16", sha256="0" * 64, merged_from_adapter=False
    )


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


def calibration_texts() -> tuple[str, ...]:
    """Returns 24 texts of the tokenizer's own words, no two alike."""
    return tuple(" ".join(WORDS[(7 * text + word * word) % 93] for word in range(60)) for text in range(24))


def reader() -> tuple[Any, Any]:
    """Returns a random model and a tokenizer of one token a byte, which reads any text of any corpus."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: token for token, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(7)
    config = hf.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=8192, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return hf.LlamaForCausalLM(config).eval(), fast
