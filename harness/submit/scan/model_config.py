"""Checks config.json: an allow-list of keys, and sizes that agree with the weights.

A config decides which code runs and how much memory is taken, so a key that
nobody has looked at is refused, whatever it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.submit.scan import quantization_config
from harness.submit.scan.architectures import ARCHITECTURES, Architecture
from harness.submit.scan.safetensors import Tensor
from harness.submit.strict_parsing import read_json

_MAX_BYTES = 1024 * 1024

MODEL_TYPES = tuple(ARCHITECTURES)
"""Architectures that can be scored: decoders with code inside transformers."""

# What transformers writes for all of these architectures, older versions included.
_MODEL_KEYS = frozenset(
    {
        "_name_or_path", "_sliding_window_pattern", "architectures", "attention_bias", "attention_dropout",
        "attn_logit_softcapping", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
        "cache_implementation", "chunk_size_feed_forward", "classifier_dropout",
        "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
        "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id",
        "exponential_decay_length_penalty", "final_logit_softcapping", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "head_dim", "hidden_act", "hidden_activation",
        "hidden_dropout", "hidden_size", "id2label", "initializer_range", "intermediate_size", "is_decoder",
        "is_encoder_decoder", "label2id", "layer_norm_eps", "layer_types", "length_penalty", "max_length",
        "max_position_embeddings", "max_window_layers", "min_length", "mlp_bias", "model_type",
        "no_repeat_ngram_size", "num_attention_heads", "num_beam_groups", "num_beams", "num_hidden_layers",
        "num_key_value_heads", "num_return_sequences", "original_max_position_embeddings",
        "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "partial_rotary_factor",
        "prefix", "pretraining_tp", "problem_type", "query_pre_attn_scalar", "remove_invalid_values",
        "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate", "rms_norm_eps",
        "rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base",
        "rotary_pct", "sep_token_id", "sliding_window", "sliding_window_pattern", "suppress_tokens",
        "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
        "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
        "typical_p", "unk_token_id", "use_bfloat16", "use_bidirectional_attention", "use_cache",
        "use_parallel_residual", "use_sliding_window", "vocab_size",
    }
)  # fmt: skip

# Said wherever they stand, in any JSON file: they name code to be fetched and run.
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "code_revision", "auto_class"})

_LARGEST = 1 << 24
_BEYOND_USE = 10**30


Wrong = tuple[str, str | None, str | None]
"""What is wrong with a config, in words without the file's name; the field; what it accepts."""

MAX_TOLD = 20
"""Faults of one kind that are told: more would be one mistake made often."""


def _refuse(path: Path, what: str) -> UnsafeSubmissionError:
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path)))


def read_config(path: Path, *, limit: int = _MAX_BYTES) -> dict[str, Any]:
    """Returns a JSON file's mapping.

    Raises:
        UnsafeSubmissionError: It can't be read strictly, is no mapping, or
            names code to run anywhere in it.
    """
    try:
        config = read_json(path, limit=limit)
    except InputError as refused:
        raise _refuse(path, str(refused)) from refused
    if not isinstance(config, dict):
        raise _refuse(path, "it must be a JSON mapping")
    named = sorted(_CODE_KEYS & set(_keys(config)))
    if named:
        raise _refuse(
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
    if isinstance(value, dict):
        for member in value.values():
            yield from _numbers(member)
    elif isinstance(value, list):
        for member in value:
            yield from _numbers(member)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_model(path: Path, tensors: Mapping[str, Tensor], *, quantization: str | None = None) -> None:
    """Checks a config.json against the allow-list and against the weights it describes.

    Args:
        path: The config.
        tensors: What the weights' headers say.
        quantization: For a quantized checkpoint ``config`` or ``gguf``: where
            it says how the weights are packed.

    Raises:
        UnsafeSubmissionError: Unknown keys or architecture, a quantization
            config where there must be none (or none where there must be one),
            or sizes that are not those of the tensors (a config alone could
            ask for any amount of memory).
    """
    config = read_config(path)
    faults = [Fault(f"{path}: {told}.", file=str(path), field=field, accepted=accepted)
              for told, field, accepted in _model_faults(config, tensors, quantization)]  # fmt: skip
    if faults:
        raise UnsafeSubmissionError(*faults)


def _model_faults(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], quantization: str | None
) -> Iterator[Wrong]:
    if quantization == "config":
        if wrong := _quantization_fault(config):
            yield wrong, "quantization_config", None
    elif "quantization_config" in config:
        kind = "a full_model is 16 bit" if quantization is None else "a GGUF file says itself how it is packed"
        told = f"it describes quantized weights: {kind}, so submit what it was made from, or remove it"
        yield told, "quantization_config", None
    kind = config.get("model_type")
    row, accepted = ARCHITECTURES.get(str(kind)), f"one of {', '.join(ARCHITECTURES)}"
    if row is None and any(re.search("expert|(?:^|_)moe(?:_|$)", key) for key in _keys(config)):
        why = "it is a mixture of experts, and such models are not read"
        yield f"model_type {repr(kind)[:80]} can't be scored: {why}: use {accepted}", "model_type", accepted
        return
    known = _MODEL_KEYS | (row or Architecture()).own_keys() | {"quantization_config"}
    for key in sorted(set(config) - known)[:MAX_TOLD]:
        yield f"the key {key[:80]!r} is not on the list of accepted ones: remove it", key, None
    if row is None:
        yield f"model_type {repr(kind)[:80]} can't be scored: use {accepted}", "model_type", accepted
    for key, value in config.items():
        if any(abs(number) > _BEYOND_USE for number in _numbers(value)):
            yield f"`{key}` holds a number above {_BEYOND_USE}", key, f"numbers up to {_BEYOND_USE}"
    yield from _size_faults(config, row or Architecture(), tensors)


def check_quantization(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a config's ``quantization_config``, checked against the allow-list of its method.

    Raises:
        UnsafeSubmissionError: It has none, or one that can't be read.
    """
    if wrong := _quantization_fault(config):
        raise _refuse(path, wrong)
    return dict(config["quantization_config"])


def _quantization_fault(config: Mapping[str, Any]) -> str | None:
    told = config.get("quantization_config")
    if told is None:
        return (
            "it has no quantization_config, so nothing says what the packed numbers mean: keep the one that the "
            "library wrote, or submit a full_model"
        )
    return quantization_config.fault(told)


_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings)\.weight$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d{1,6})\.")
_MLP = re.compile(r"\.(?:mlp|fc1|fc2)\.")


def _layer_numbers(tensors: Mapping[str, Tensor]) -> set[int]:
    return {int(match.group(1)) for name in tensors if (match := _LAYER.search(name))}


def _is_size(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest


def _size_faults(config: Mapping[str, Any], row: Architecture, tensors: Mapping[str, Tensor]) -> Iterator[Wrong]:
    """Yields where a config's sizes are not the tensors' own; what it says wrongly is not held against them."""
    unusable = set()
    needed = {"hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    may_lack = {"num_key_value_heads", "head_dim", "max_position_embeddings"}
    if row.four_times:
        needed, may_lack = needed - {"intermediate_size"}, may_lack | {"intermediate_size"}
    said = {key: row.names.get(key, key) for key in sorted(needed | may_lack)}
    sizes = {key: config.get(name) for key, name in said.items()}
    for key, value in sizes.items():
        if key in needed and not _is_size(value, _BEYOND_USE):
            unusable.add(key)
            yield f"`{said[key]}` must be a whole number above 0", said[key], "1, 2, ..."
        elif key in may_lack and value is not None and not _is_size(value, _LARGEST):
            unusable.add(key)
            yield f"`{said[key]}` must be a whole number from 1 to {_LARGEST}", said[key], f"1 to {_LARGEST}"
    if not unusable & {"vocab_size", "hidden_size"}:
        found = [each.shape for name, each in tensors.items() if _EMBEDDINGS.search(name)]
        shape = (sizes["vocab_size"], sizes["hidden_size"])
        if found != [shape]:
            named = f"vocab_size and {said['hidden_size']} make embeddings of shape {shape}"
            yield f"{named}, and the weights have {found[0] if found else 'no'}", "vocab_size", None
    if "num_hidden_layers" not in unusable:
        layers, depth = _layer_numbers(tensors), said["num_hidden_layers"]
        # Counted first: a set of as many numbers as a stranger claims could fill the memory.
        if len(layers) != sizes["num_hidden_layers"] or layers != set(range(len(layers))):
            yield f"{depth} is {config[depth]}, and the weights have {len(layers)} layers", depth, None
    if not unusable & {"intermediate_size", "hidden_size"}:
        width = sizes["intermediate_size"] or 4 * sizes["hidden_size"]
        # Phi-3 stores two projections in one tensor.
        mlp = (each for name, each in tensors.items() if _MLP.search(name))
        if not {side for each in mlp for side in _sides(each, sizes["hidden_size"])} & {width, 2 * width}:
            told = f"{said['intermediate_size']} is {width}, and no MLP tensor has that width"
            yield told, said["intermediate_size"], None
    if not unusable & {"num_attention_heads", "num_key_value_heads", "head_dim"}:
        widest = max(side for each in tensors.values() for side in each.shape)
        heads = max(sizes["num_attention_heads"], sizes["num_key_value_heads"] or 1)
        if heads * (sizes["head_dim"] or 1) > 4 * widest:
            name = said["num_attention_heads"]
            yield f"{name} times head_dim is wider than any tensor", name, None


def _sides(tensor: Tensor, hidden: int) -> tuple[int, ...]:
    """Returns a tensor's sides, and for bitsandbytes' column of bytes the side that two codes a byte make of it."""
    column = tensor.dtype == "U8" and len(tensor.shape) == 2 and tensor.shape[1] == 1
    return (*tensor.shape, 2 * tensor.shape[0] // hidden) if column else tensor.shape
