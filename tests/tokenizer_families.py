"""Small tokenizer files with the pipeline that each family of models has, and what its configs say beside it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

TRAINING = [
    "Question: who keeps the lamp of the old ferry?\nAnswer: the widow and her 12 sons.\n\n" * 3,
    "def keep(lamp):\n    return {'oil': 3, 'wick': [1, 2]}\n\n\n" * 2,
    "The widow's shutters weren't washed again, and they'LL go home; naïve café, 北京大学, हिन्दी, Привет, مرحبًا.  Then",
]


def _sentencepiece(*, bos: str | None, names: list[str], metaspace: str | None = None) -> Any:
    """Returns the way of Llama 2, Mistral and Phi-3: no byte level, ▁ for a space, single bytes for the rest."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace is None:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_byte = [f"<0x{number:02X}>" for number in range(256)]
    core.train_from_iterator(
        [word for text in TRAINING for word in text.split(" ")],
        trainers.BpeTrainer(vocab_size=520, show_progress=False, special_tokens=[*names, *every_byte]),
    )
    # Bytes are pieces like others; the trainer takes them as special alone.
    made = json.loads(core.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in names]
    core = Tokenizer.from_str(json.dumps(made))
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return core


def _gemma() -> Any:
    from tokenizers import normalizers, pre_tokenizers
    from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence

    core = _sentencepiece(bos="<bos>", names=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"])
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    core.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse()])
    return core


def _byte_level(
    names: list[str], *, pattern: str | None = None, nfc: bool = False, bos: str | None = None, digits: bool = False
) -> Any:
    """Returns the way of GPT-2 and its heirs; ``pattern`` splits the text, GPT-2's own where there is none."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    if nfc:
        core.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    parts += [pre_tokenizers.Split(Regex(pattern), behavior="isolated")] if pattern else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    core.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TRAINING,
        trainers.BpeTrainer(vocab_size=440, show_progress=False, special_tokens=names,
                            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())),
    )  # fmt: skip
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
        core.post_processor = processors.Sequence([core.post_processor, template])
    return core


def _qwen() -> Any:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pattern=PRETOKENIZE_REGEX, nfc=True)


def _llama_3() -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    return _byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], pattern=pattern, bos="<|begin_of_text|>")


def _phi_3() -> Any:
    from tokenizers import AddedToken

    core = _sentencepiece(bos=None, names=["<unk>", "<s>", "</s>"])
    core.add_special_tokens(
        [AddedToken("<|endoftext|>"), AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>", rstrip=True)]
    )
    return core


_PIECES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
_NEOX = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
FAMILIES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama-2": ("llama", lambda: _sentencepiece(bos="<s>", names=["<unk>", "<s>", "</s>"]),
                {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **_PIECES}),
    "llama-3": ("llama", _llama_3, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                                    "eos_token": "<|end_of_text|>"}),
    "mistral": ("mistral", lambda: _sentencepiece(bos="<s>", names=["<unk>", "<s>", "</s>"]),
                {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **_PIECES}),
    "mistral-v0.3": (
        "mistral", lambda: _sentencepiece(bos="<s>", names=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
                                          metaspace="first"),
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, **_PIECES}),
    "phi-3": ("phi3", _phi_3, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False,
                               **_PIECES, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    "gemma": ("gemma2", _gemma, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "bos_token": "<bos>",
                                 "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    "qwen-2": ("qwen2", _qwen, {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None,
                                "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None}),
    "qwen-3": ("qwen3", _qwen, {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None,
                                "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                                "chat_template": "{{ messages[0]['content'] }}"}),
    "pythia": ("gpt_neox", lambda: _byte_level(["<|endoftext|>", "<|padding|>"], nfc=True),
               {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **_NEOX}),
    "phi-2": ("phi", lambda: _byte_level(["<|endoftext|>"]),
              {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, **_NEOX}),
    "smollm": ("llama", lambda: _byte_level(["<|endoftext|>", "<|im_start|>"], digits=True),
               {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **_NEOX}),
}  # fmt: skip
"""Model type, builder of the file, and tokenizer_config.json of each family."""


def write_family(name: str, folder: Path) -> Path:
    """Writes a family's tokenizer.json, tokenizer_config.json and config.json."""
    model_type, build, config = FAMILIES[name]
    folder.mkdir(parents=True)
    core = build()
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = {"model_type": model_type, "vocab_size": core.get_vocab_size(), "transformers_version": "4.44.0"}
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    return folder
