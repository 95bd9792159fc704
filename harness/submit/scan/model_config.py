"""Checks config.json against its architecture's row and against the weights it describes.

Two questions decide about a key: does it change the numbers, and do we compute
it exactly? transformers keeps a key that an architecture does not know as an
attribute that its code never reads, so it is accepted with a note. What names
code, what transformers' shared code reads of any config, and what another
program computes and this architecture does not, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.submit.scan import quantization_config, rope
from harness.submit.scan.architectures import (
    ARCHITECTURES,
    COMMON,
    DIVIDED,
    FILLED,
    GGUF_TYPES,
    MODEL_TYPES,
    OF_THE_CLASS,
    SHARED,
    ModelConfig,
    name_faults,
)
from harness.submit.scan.safetensors import FLOATS, PACKED, Tensor, read_header
from harness.submit.scan.strict_model import MAX_TOLD, Wrong, faults_of, is_empty, listed, refuse, shown
from harness.submit.strict_parsing import read_json, visible

__all__ = ["MAX_TOLD", "MODEL_TYPES", "Wrong", "check_model", "check_quantization", "read_config"]

_MAX_BYTES = 1024 * 1024
_BEYOND_USE = 10**30
_BNB_BLOCK = 64

# Said wherever they stand, in any JSON file that a library reads: they name code to be fetched and run.
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "code_revision", "auto_class"})

# What others compute and an architecture without the key does not: accepted where it is switched off.
_ELSEWHERE = frozenset({
    "alibi", "attention_multiplier", "attn_logit_softcapping", "embedding_multiplier", "final_logit_softcapping",
    "logit_scale", "logits_scaling", "no_rope_layer_interval", "no_rope_layers", "num_experts", "num_local_experts",
    "qk_layernorm", "query_pre_attn_scalar", "residual_multiplier", "rope_interleaved", "use_qk_norm",
})  # fmt: skip

# What these may say: others of ``SHARED`` may be null alone.
_SWITCHED_OFF: Mapping[str, tuple[bool | None, ...]] = {
    "is_causal": (True,), "use_bidirectional_attention": (None, False),
}  # fmt: skip

# Every older config has them: no note.
_PLAIN = frozenset({"_name_or_path", "_commit_hash", "quantization_config"})
_LEFT_OVER = frozenset({"_name_or_path", "_model_name_or_path", "_commit_hash", "_flash_attn_2_enabled"})


def read_config(path: Path, *, limit: int = _MAX_BYTES) -> dict[str, Any]:
    """Returns a JSON file's mapping.

    Raises:
        UnsafeSubmissionError: It can't be read strictly, is no mapping, or
            names code to run anywhere in it.
    """
    try:
        config = read_json(path, limit=limit)
    except InputError as refused:
        raise refuse(path, str(refused)) from refused
    if not isinstance(config, dict):
        raise refuse(path, "it must be a JSON mapping")
    named = sorted(_CODE_KEYS & set(_keys(config)))
    if named:
        raise refuse(
            path, f"it names code to run ({', '.join(named)}), and only code inside transformers is run: remove it"
        )
    return config


def _keys(value: Any) -> Iterator[str]:
    """Yields every key of a JSON value, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _numbers(member)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_model(
    path: Path, tensors: Mapping[str, Tensor], *, quantization: str | None = None, notes: list[str] | None = None
) -> None:
    """Checks a config.json against its architecture and against the weights it describes.

    Args:
        path: The config.
        tensors: What the weights' headers say.
        quantization: For a quantized checkpoint ``config`` or ``gguf``: where
            it says how the weights are packed.
        notes: Takes one sentence for each file that has keys which are ignored.

    Raises:
        UnsafeSubmissionError: Another architecture, a key that changes numbers
            in a way that is not computed, a quantization config where there
            must be none (or none where there must be one), or sizes that are
            not those of the tensors (a config alone could ask for any amount
            of memory).
    """
    config = read_config(path)
    ignored: list[str] = [] if notes is None else notes
    faults = [Fault(f"{path}: {told}.", file=str(path), field=field, accepted=accepted)
              for told, field, accepted in _model_faults(path, config, tensors, quantization, ignored)]  # fmt: skip
    if faults:
        raise UnsafeSubmissionError(*faults)


def _model_faults(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], quantization: str | None, notes: list[str]
) -> Iterator[Wrong]:
    if quantization == "config":
        settings, packing_fault = quantization_config.stated(path.parent, config, notes)
        if packing_fault:
            yield packing_fault, "quantization_config", None
        yield from _dense_layers(tensors)
        yield from quantization_config.layer_faults(settings, {name: each.shape for name, each in tensors.items()})
    elif config.get("quantization_config") is not None:
        why = "a full_model is 16 bit" if quantization is None else "a GGUF file says itself how it is packed"
        told = f"it describes quantized weights: {why}, so submit what it was made from, or remove it"
        yield told, "quantization_config", None
    for key, value in config.items():
        if any(abs(number) > _BEYOND_USE for number in _numbers(value)):
            yield f"`{visible(key[:80])}` holds a number above {_BEYOND_USE}", key, f"numbers up to {_BEYOND_USE}"
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        accepted = f"one of {', '.join(MODEL_TYPES)}"
        if any(re.search("expert|(?:^|_)moe(?:_|$)", key) for key in _keys(config)):
            why = "it is a mixture of experts, and such models are not read"
            yield f"model_type {shown(kind)} can't be scored: {why}: use {accepted}", "model_type", accepted
            return
        yield f"model_type {shown(kind)} can't be scored: use {accepted}", "model_type", accepted
        yield from _size_faults(config, tensors)
        return
    if quantization == "gguf" and kind not in GGUF_TYPES:
        yield f"GGUF files of {kind} models are not read: those of {', '.join(GGUF_TYPES)} are", "model_type", None
    read = COMMON | ARCHITECTURES[kind]
    wrong_fields = list(faults_of(ModelConfig, {key: value for key, value in config.items() if key in read}))
    yield from wrong_fields
    yield from _key_faults(config, kind, read, notes)
    if quantization is None:
        yield from name_faults(tensors, kind)
    yield from _size_faults(config, tensors)
    if not wrong_fields:
        yield from _relation_faults(config, kind)
        yield from rope.faults(config, kind, notes)


def _key_faults(config: Mapping[str, Any], kind: str, read: frozenset[str], notes: list[str]) -> Iterator[Wrong]:
    """Yields the keys that no field reads and that may still change numbers, and notes the others."""
    unread = [key for key in config if key not in read and key != "model_type"]
    reserved = {key for key in unread if key in SHARED | OF_THE_CLASS or (key[:1] == "_" and key not in _LEFT_OVER)}
    computed = {key for key in reserved & SHARED if any(config[key] is off for off in _SWITCHED_OFF.get(key, (None,)))}
    for key in sorted(reserved - computed)[:MAX_TOLD]:
        why = f"which transformers reads of any config and which is not computed for {kind} models here"
        yield f"`{visible(key[:80])}` is {shown(config[key])}, {why}: remove it", key, None
    for key in sorted(_ELSEWHERE.intersection(unread)):
        value = config[key]
        if not is_empty(value) and not (isinstance(value, int | float) and value in (0, 1) and value is not True):
            yield f"`{key}` is {shown(value)}, and the code of {kind} models does not compute it", key, None
    ignored = sorted(set(unread) - reserved - _PLAIN)
    if ignored:
        notes.append(f"config.json: ignored, since no code of {kind} models reads them: {listed(ignored)}.")


def _relation_faults(config: Mapping[str, Any], kind: str) -> Iterator[Wrong]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads and (kind in DIVIDED or config.get("head_dim") is None):
        yield f"hidden_size {hidden} can't be shared out to num_attention_heads {heads}", "num_attention_heads", None
    if heads % (config.get("num_key_value_heads") or heads):
        told = f"num_attention_heads {heads} can't be shared out to num_key_value_heads {config['num_key_value_heads']}"
        yield told, "num_key_value_heads", None
    padding, rows = config.get("pad_token_id") or 0, config["vocab_size"]
    if not -rows <= padding < rows:
        yield f"`pad_token_id` is {padding}, and the vocabulary has {rows} tokens", "pad_token_id", None
    if (config.get("head_dim") or 0) % 2:
        yield f"`head_dim` is {config['head_dim']}, and rotary positions need an even one", "head_dim", None
    for key, kinds in FILLED.items():
        if kind in kinds and key in config and config[key] is None:
            yield f"`{key}` is None, and {kind} models need a number: give it, or remove the key", key, None
    for key in ARCHITECTURES[kind] & {"layer_types", "no_rope_layers"}:
        if (given := config.get(key)) is not None and len(given) != config["num_hidden_layers"]:
            told = f"{key} has {len(given)} entries, and num_hidden_layers is {config['num_hidden_layers']}"
            yield told, key, None
    for pair in (("dtype", "torch_dtype"), ("sliding_window_pattern", "_sliding_window_pattern")):
        first, second = (config.get(key) for key in pair)
        if None not in (first, second) and first != second:
            yield f"`{pair[0]}` is {shown(first)} and `{pair[1]}` {shown(second)}: keep one", pair[0], None


def check_quantization(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns how a checkpoint says it is packed, checked: ``quantization_config``, or the file beside the config.

    Args:
        path: The config.json.
        config: What it holds.

    Returns:
        The settings; of bitsandbytes' 4-bit files that are here also
        ``block_size``, the weights that share a scale, which no config says.

    Raises:
        UnsafeSubmissionError: There is none, or one that can't be read.
    """
    told, wrong = quantization_config.stated(path.parent, config, [])
    if wrong:
        raise refuse(path, wrong)
    if told["quant_method"] == "bitsandbytes":
        headers = [read_header(each, accepted=PACKED) for each in sorted(path.parent.glob("*.safetensors"))]
        tensors = {name: tensor for header in headers for name, tensor in header.items()}
        scales = {
            name.removesuffix(".absmax"): each for name, each in tensors.items() if name.endswith(".weight.absmax")
        }
        blocks = [2 * math.prod(tensors[weight].shape) / math.prod(each.shape) for weight, each in scales.items()
                  if weight in tensors]  # fmt: skip
        if blocks and max(blocks) != _BNB_BLOCK:
            told["block_size"] = 2 ** math.ceil(math.log2(max(blocks)))
    return told


def _dense_layers(tensors: Mapping[str, Tensor]) -> Iterator[Wrong]:
    dense = [name for name, each in tensors.items() if each.dtype in FLOATS and len(each.shape) == 2
             and re.search(r"(?:^|\.)layers\.\d+\..+\.weight$", name)]  # fmt: skip
    if dense:
        told = f"it leaves {len(dense)} layers of the blocks in 16 bit, first {visible(dense[0][:200])}"
        yield f"{told}: quantize every matrix inside the blocks", None, None


def _layer_numbers(tensors: Mapping[str, Tensor]) -> set[int]:
    told = (re.search(r"(?:^|\.)layers\.(\d{1,6})\.", name) for name in tensors)
    return {int(match.group(1)) for match in told if match}


def _size_faults(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Wrong]:
    """Yields where a config's sizes are not the tensors' own; what it says wrongly is not held against them."""
    sizes = {key: value for key, value in config.items() if type(value) is int and value > 0}
    hidden, wide = sizes.get("hidden_size"), sizes.get("intermediate_size")
    if hidden is not None and "vocab_size" in sizes:
        yield from _embedding_faults(sizes, tensors)
    if "num_hidden_layers" in sizes:
        layers = _layer_numbers(tensors)
        # Counted first: a set of as many numbers as a stranger claims could fill the memory.
        if len(layers) != sizes["num_hidden_layers"] or layers != set(range(len(layers))):
            told = f"num_hidden_layers is {sizes['num_hidden_layers']}, and the weights have {len(layers)} layers"
            yield told, "num_hidden_layers", None
    if hidden is not None and wide is not None:
        # Phi-3 stores two projections in one tensor.
        mlp = (each for name, each in tensors.items() if ".mlp." in name)
        if not {side for each in mlp for side in _sides(each, hidden)} & {wide, 2 * wide}:
            yield f"intermediate_size is {wide}, and no MLP tensor has that width", "intermediate_size", None
    width = max(side for each in tensors.values() for side in each.shape)
    heads = max(sizes.get("num_attention_heads", 1), sizes.get("num_key_value_heads", 1))
    if heads * sizes.get("head_dim", 1) > 4 * width:
        yield "num_attention_heads times head_dim is wider than any tensor", "num_attention_heads", None


def _embedding_faults(sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Iterator[Wrong]:
    embeddings = [
        each.shape for name, each in tensors.items() if re.search(r"(?:embed_tokens|embed_in)\.weight$", name)
    ]
    shape = (sizes["vocab_size"], sizes["hidden_size"])
    if embeddings != [shape]:
        found = embeddings[0] if embeddings else "no"
        told = f"vocab_size and hidden_size make embeddings of shape {shape}, and the weights have {found}"
        yield told, "vocab_size", None


def _sides(tensor: Tensor, hidden: int) -> tuple[int, ...]:
    """Returns a tensor's sides, and for bitsandbytes' column of bytes the side that two codes a byte make of it."""
    column = tensor.dtype == "U8" and len(tensor.shape) == 2 and tensor.shape[1] == 1
    return (*tensor.shape, 2 * tensor.shape[0] // hidden) if column else tensor.shape
