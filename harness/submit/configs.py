"""What a config.json and an adapter_config.json may say: an allow-list, key by key.

A config decides which code runs and how much memory is taken, so a key that
nobody has looked at is refused, whatever it means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import Fault, InputError, UnsafeSubmissionError
from harness.submit import quantization_configs
from harness.submit.strict_text import read_json
from harness.submit.tensor_files import Tensor

MAX_RANK = 512
MAX_ALPHA = 4096.0

_MAX_BYTES = 1024 * 1024

MODEL_TYPES = (
    "gemma", "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3",
)  # fmt: skip
"""Architectures that can be scored: decoders with code inside transformers."""

# What transformers writes for these architectures, older versions included.
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


def _refuse(path: Path, what: str, *, field: str | None = None, accepted: str | None = None) -> UnsafeSubmissionError:
    return UnsafeSubmissionError(Fault(f"{path}: {what}.", file=str(path), field=field, accepted=accepted))


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
    if quantization == "config":
        check_quantization(path, config)
    elif "quantization_config" in config:
        kind = "a full_model is 16 bit" if quantization is None else "a GGUF file says itself how it is packed"
        raise _refuse(path, f"it describes quantized weights: {kind}, so submit what it was made from, or remove it")
    unknown = sorted(set(config) - _MODEL_KEYS - {"quantization_config"})
    if unknown:
        raise _refuse(
            path, f"the keys {', '.join(map(repr, unknown[:5]))} are not on the list of accepted ones: remove them"
        )
    if config.get("model_type") not in MODEL_TYPES:
        raise _refuse(
            path, f"model_type {config.get('model_type')!r} can't be scored: use one of {', '.join(MODEL_TYPES)}"
        )
    if any(abs(number) > _BEYOND_USE for number in _numbers(config)):
        raise _refuse(path, f"it holds a number above {_BEYOND_USE}")
    _check_sizes(path, config, tensors)


def check_quantization(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a config's ``quantization_config``, checked against the allow-list of its method.

    Raises:
        UnsafeSubmissionError: It has none, or one that can't be read.
    """
    told = config.get("quantization_config")
    if told is None:
        raise _refuse(
            path,
            "it has no quantization_config, so nothing says what the packed numbers mean: keep the one that the "
            "library wrote, or submit a full_model",
        )
    if wrong := quantization_configs.fault(told):
        raise _refuse(path, wrong)
    return dict(told)


def _layer_numbers(tensors: Mapping[str, Tensor]) -> set[int]:
    told = (re.search(r"(?:^|\.)layers\.(\d{1,6})\.", name) for name in tensors)
    return {int(match.group(1)) for match in told if match}


def _check_sizes(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a config whose sizes are not the tensors' own."""
    for key in ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"):
        if not isinstance(config.get(key), int) or isinstance(config[key], bool) or config[key] < 1:
            raise _refuse(path, f"`{key}` must be a whole number above 0", field=key, accepted="1, 2, ...")
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST):
            raise _refuse(
                path, f"`{key}` must be a whole number from 1 to {_LARGEST}", field=key, accepted=f"1 to {_LARGEST}"
            )
    embeddings = [
        each.shape for name, each in tensors.items() if re.search(r"(?:embed_tokens|embed_in)\.weight$", name)
    ]
    shape = (config["vocab_size"], config["hidden_size"])
    if embeddings != [shape]:
        found = embeddings[0] if embeddings else "no"
        raise _refuse(
            path, f"vocab_size and hidden_size make embeddings of shape {shape}, and the weights have {found}"
        )
    layers = _layer_numbers(tensors)
    # Counted first: a set of as many numbers as a stranger claims could fill the memory.
    if len(layers) != config["num_hidden_layers"] or layers != set(range(len(layers))):
        raise _refuse(
            path, f"num_hidden_layers is {config['num_hidden_layers']}, and the weights have {len(layers)} layers"
        )
    # Phi-3 stores two projections in one tensor.
    widths = {side for name, each in tensors.items() if ".mlp." in name for side in _sides(each, config["hidden_size"])}
    if not widths & {config["intermediate_size"], 2 * config["intermediate_size"]}:
        raise _refuse(path, f"intermediate_size is {config['intermediate_size']}, and no MLP tensor has that width")
    width = max(side for each in tensors.values() for side in each.shape)
    heads = max(config["num_attention_heads"], config.get("num_key_value_heads") or 1)
    if heads * (config.get("head_dim") or 1) > 4 * width:
        raise _refuse(path, "num_attention_heads times head_dim is wider than any tensor")


def _sides(tensor: Tensor, hidden: int) -> tuple[int, ...]:
    """Returns a tensor's sides, and for bitsandbytes' column of bytes the side that two codes a byte make of it."""
    column = tensor.dtype == "U8" and len(tensor.shape) == 2 and tensor.shape[1] == 1
    return (*tensor.shape, 2 * tensor.shape[0] // hidden) if column else tensor.shape


def _empty(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 500)


def _names(value: Any) -> bool:
    """Module names only: peft takes other text as a regular expression."""
    listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value == "all-linear" or (listed and all(re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name) for name in value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _per_module(largest: float) -> Any:
    """Plain module names to numbers; peft reads the names as regular expressions."""

    def accept(value: Any) -> bool:
        return isinstance(value, dict) and all(
            re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name) and _number(number) and 0 < number <= largest
            for name, number in value.items()
        )

    return accept


_UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "kasa_config", "layer_replication", "layers_pattern", "loftq_config",
    "lora_bias", "lora_ga_config", "megatron_config", "modules_to_save", "monteclora_config",
    "runtime_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
    "velora_config",
)  # fmt: skip

_EMPTY = (_empty, "nothing: it changes the model in ways that are not merged here")

_ADAPTER_KEYS: Mapping[str, tuple[Any, str]] = {
    "peft_type": (lambda value: value == "LORA", "LORA"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "CAUSAL_LM"),
    "r": (lambda value: _number(value) and value == int(value) and 0 < value <= MAX_RANK, f"1 to {MAX_RANK}"),
    "lora_alpha": (lambda value: _number(value) and 0 < value <= MAX_ALPHA, f"a number up to {MAX_ALPHA:.0f}"),
    "rank_pattern": (_per_module(MAX_RANK), f"module names with 1 to {MAX_RANK}"),
    "alpha_pattern": (_per_module(MAX_ALPHA), f"module names with numbers up to {MAX_ALPHA:.0f}"),
    "target_modules": (_names, "a list of module names, or all-linear"),
    "bias": (lambda value: value == "none", "none"),
    # PiSSA, LoftQ and their like change the base as well, so the base named in the manifest is not theirs.
    "init_lora_weights": (lambda value: _flag(value) or value in ("gaussian", "orthogonal"), "true, false or gaussian"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "lora_dropout": (lambda value: _number(value) and 0 <= value < 1, "0 to 1"),
    "inference_mode": (_flag, "true or false"),
    "layers_to_transform": (
        lambda value: value is None or (isinstance(value, list) and all(_number(each) for each in value)),
        "a list of layer numbers",
    ),
    "qalora_group_size": (_number, "a number"),
    "ensure_weight_tying": (_flag, "true or false"),
    "megatron_core": (_text, "text"),
    "peft_version": (_text, "text"),
    "base_model_name_or_path": (_text, "text"),
    "revision": (_text, "text"),
    **dict.fromkeys(_UNSUPPORTED, _EMPTY),
}

_FACTOR = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")


def check_adapter(path: Path, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None) -> None:
    """Checks an adapter_config.json against the allow-list, and the factors against rank and base.

    Args:
        path: The config.
        tensors: The adapter's own.
        base: The base model's, None where they are not here yet.

    Raises:
        UnsafeSubmissionError: Another kind of adapter than plain, rank-stabilized or weight-decomposed
            LoRA, limits passed, factors without their partner, or modules that the base hasn't.
    """
    config = read_config(path)
    for key, value in config.items():
        if key not in _ADAPTER_KEYS:
            raise _refuse(path, f"the key {key!r} is not on the list of accepted ones: remove it", field=key)
        accepts, told = _ADAPTER_KEYS[key]
        if not accepts(value):
            raise _refuse(path, f"`{key}` is {str(value)[:60]!r}, and accepted is {told}", field=key, accepted=told)
    for key in ("peft_type", "r", "target_modules"):
        if key not in config:
            raise _refuse(path, f"`{key}` is missing: accepted is {_ADAPTER_KEYS[key][1]}", field=key)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            raise _refuse(
                path, f"tensor {name!r} is no LoRA factor: submit an adapter that peft's save_pretrained wrote"
            )
        modules.setdefault(factor.group(1), {})[factor.group(2).removesuffix(".weight")] = tensor
    ranks = {config["r"], *config.get("rank_pattern", {}).values()}
    for module, factors in modules.items():
        _check_factors(path, module, factors, ranks, bool(config.get("use_dora")))
        if base is not None:
            _check_base(path, module, factors, base)


def _check_factors(path: Path, module: str, factors: Mapping[str, Tensor], ranks: set[int], dora: bool) -> None:
    wanted = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if dora else [])}
    if set(factors) != wanted:
        raise _refuse(path, f"module {module} has {', '.join(sorted(factors))}, and needs {', '.join(sorted(wanted))}")
    down, up = factors["lora_A"].shape, factors["lora_B"].shape
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] not in ranks:
        raise _refuse(path, f"module {module} has factors of shapes {down} and {up}, not of the rank that `r` says")


def _check_base(path: Path, module: str, factors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    weight = base.get(f"{module}.weight")
    if weight is None:
        raise _refuse(path, f"it adapts {module}, and the base model has no such layer: name the right `base_model`")
    if weight.shape != (factors["lora_B"].shape[0], factors["lora_A"].shape[1]):
        raise _refuse(path, f"{module} is {weight.shape} in the base model, and the adapter was made for another shape")
