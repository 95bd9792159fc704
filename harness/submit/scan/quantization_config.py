"""Checks the quantization_config of a submitted quantized checkpoint: an allow-list for each method.

The config is read by this program alone and never handed to a library, but it
decides what stored numbers mean: a key that nobody has looked at is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

METHODS = ("gptq", "awq", "auto-round", "bitsandbytes", "compressed-tensors")
"""Methods that a ``quantization_config`` may name."""

_Rule = tuple[Callable[[Any], bool], str]

_MOST_GROUP = 1 << 20


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*accepted: Any) -> _Rule:
    def accept(value: Any) -> bool:
        return any(type(value) is type(each) and value == each for each in accepted)

    return accept, " or ".join("nothing" if each is None else str(each) for each in accepted)


def _names(value: Any) -> bool:
    listed = isinstance(value, list) and len(value) <= 10_000
    return value is None or (listed and all(isinstance(each, str) and len(each) <= 500 for each in value))


_FLAG: _Rule = (lambda value: isinstance(value, bool), "true or false")
_EMPTY: _Rule = (lambda value: value in (None, False) or value == {} or value == [], "nothing: layers must be alike")
_GROUP: _Rule = (lambda value: _whole(value) and (value == -1 or 0 < value <= _MOST_GROUP), "-1 or a positive number")
_LISTED: _Rule = (_names, "a list of module names")
_WORD: _Rule = (lambda value: isinstance(value, str) and re.fullmatch(r"[\w.:/-]{1,100}", value) is not None, "a word")
# Describes how the codes were made and changes nothing of what they mean.
_TOLD: _Rule = (lambda value: True, "anything")

_STORIES = dict.fromkeys(
    (
        "act_bits", "act_data_type", "act_dynamic", "act_group_aware", "act_group_size", "act_sym", "adapter", "amp",
        "autoround_version", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs",
        "damp_auto_increment", "damp_percent", "dataset", "device", "disable_exllama", "enable_minmax_tuning",
        "enable_norm_bias_tuning", "enable_quanted_input", "exllama_config", "fuse_max_seq_len",
        "gradient_accumulate_steps", "is_marlin_format", "iters", "low_gpu_mem_usage", "lr", "max_input_length", "meta",
        "minmax_lr", "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
        "mse", "nsamples", "offload_to_disk", "pad_token_id", "parallel_packing", "quant_block_list", "quant_lm_head",
        "quantizer", "rotation", "scale_dtype", "seqlen", "static_groups", "super_bits", "super_group_size",
        "to_quant_block_names", "tokenizer", "true_sequential", "uri", "use_cuda_fp16", "use_exllama", "v2",
    ),
    _TOLD,
)  # fmt: skip

_GPTQ: Mapping[str, _Rule] = {
    **_STORIES,
    "bits": _one_of(2, 3, 4, 8),
    "group_size": _GROUP,
    "sym": _FLAG,
    "desc_act": _FLAG,
    "lm_head": _FLAG,
    "checkpoint_format": _one_of("gptq", "gptq_v2"),
    "format": _one_of("gptq", "gptq_v2"),
    "method": _one_of("gptq"),
    "packing_format": _one_of("gptq", "gptq_v2"),
    "pack_dtype": _one_of("int32", "torch.int32"),
    "dynamic": _EMPTY,
    "modules_in_block_to_quantize": (lambda value: value is None or isinstance(value, list), "a list of module names"),
}

_AWQ: Mapping[str, _Rule] = {
    **_STORIES,
    **dict.fromkeys(("bits", "w_bit"), _one_of(4)),
    **dict.fromkeys(("group_size", "q_group_size"), _GROUP),
    **dict.fromkeys(("sym", "zero_point", "desc_act", "lm_head"), _FLAG),
    **dict.fromkeys(("version", "checkpoint_format", "format"), _one_of("gemm", "GEMM")),
    "method": _one_of("awq"),
    "pack_dtype": _one_of("int32", "torch.int32"),
    "modules_to_not_convert": _LISTED,
    "modules_in_block_to_quantize": _LISTED,
    "dynamic": _EMPTY,
    "do_fuse": _one_of(False, None),
    "modules_to_fuse": _EMPTY,
}

_AUTOROUND: Mapping[str, _Rule] = {
    **_STORIES,
    "bits": _one_of(2, 3, 4, 8),
    "group_size": _GROUP,
    **dict.fromkeys(("sym", "desc_act", "zero_point", "lm_head"), _FLAG),
    "packing_format": _one_of(
        "auto_round", "auto_round:auto_gptq", "auto_round:gptq", "auto_round:auto_awq", "auto_round:awq"
    ),
    "data_type": _one_of("int"),
    "extra_config": _EMPTY,
}

_BITSANDBYTES: Mapping[str, _Rule] = {
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"), _FLAG),
    "bnb_4bit_compute_dtype": _WORD,
    "bnb_4bit_quant_storage": _one_of("uint8", None),
    "bnb_4bit_quant_type": _one_of("nf4", "fp4"),
    "bnb_4bit_use_double_quant": _FLAG,
    "llm_int8_enable_fp32_cpu_offload": _FLAG,
    "llm_int8_has_fp16_weight": _one_of(False),
    "llm_int8_skip_modules": _LISTED,
    "llm_int8_threshold": (lambda value: isinstance(value, int | float) and value >= 0, "a number"),
}

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
_COMPRESSED: Mapping[str, _Rule] = {
    "format": _one_of(*_FORMATS),
    "config_groups": (lambda value: isinstance(value, dict) and len(value) == 1, "one group of settings"),
    "ignore": _LISTED,
    "kv_cache_scheme": _EMPTY,
    "transform_config": _EMPTY,
    "sparsity_config": (lambda value: not value or value == {"format": "dense"}, "nothing"),
    "quantization_status": _one_of("compressed", "frozen"),
    **dict.fromkeys(("global_compression_ratio", "version", "run_compressed"), _TOLD),
}
_COMPRESSED_GROUP: Mapping[str, _Rule] = {
    "targets": _LISTED,
    "weights": (lambda value: isinstance(value, dict), "a mapping"),
    "input_activations": (lambda value: value is None or isinstance(value, dict), "a mapping"),
    "output_activations": _one_of(None),
    "format": _one_of(*_FORMATS, None),
}
_COMPRESSED_WEIGHTS: Mapping[str, _Rule] = {
    "num_bits": (lambda value: _whole(value) and 2 <= value <= 8, "2 to 8"),
    "type": _one_of("int"),
    "symmetric": _FLAG,
    "group_size": (lambda value: value is None or _GROUP[0](value), "-1 or a positive number"),
    "strategy": _one_of("group", "channel", "tensor", None),
    "block_structure": _one_of(None),
    "dynamic": _one_of(False),
    "actorder": _one_of("group", "weight", "static", "dynamic", None, False),
    **dict.fromkeys(("scale_dtype", "zp_dtype", "observer", "observer_kwargs"), _TOLD),
}

_BY_METHOD = {
    "gptq": _GPTQ, "awq": _AWQ, "auto-round": _AUTOROUND, "bitsandbytes": _BITSANDBYTES,
    "compressed-tensors": _COMPRESSED,
}  # fmt: skip
_NEEDED = {"gptq": ("bits",), "auto-round": ("bits", "packing_format"), "compressed-tensors": ("config_groups",)}


def fault(config: Any) -> str | None:
    """Returns what is wrong with a quantization_config, None where it may be read.

    Args:
        config: Whatever stands under ``quantization_config``.
    """
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(method, str) or method not in _BY_METHOD:
        return f"quantization_config's quant_method is {str(method)[:40]!r}, and accepted are {', '.join(METHODS)}"
    missing = [key for key in _NEEDED.get(method, ()) if key not in config]
    if missing:
        return f"quantization_config lacks {', '.join(missing)}, which {method} needs"
    return next(_faults(method, config), None)


def _faults(method: str, config: Mapping[str, Any]) -> Iterator[str]:
    own = {key: value for key, value in config.items() if key != "quant_method"}
    yield from _against(_BY_METHOD[method], own, "quantization_config")
    if method == "compressed-tensors":
        for name, group in config["config_groups"].items():
            place = f"quantization_config's {str(name)[:40]}"
            if not isinstance(group, dict):
                yield f"{place} is no mapping"
                return
            yield from _against(_COMPRESSED_GROUP, group, place)
            yield from _against(_COMPRESSED_WEIGHTS, group.get("weights", {}), f"{place}.weights")


def _against(rules: Mapping[str, _Rule], config: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, value in config.items():
        if key not in rules:
            yield f"{place} has the key {str(key)[:60]!r}, which is not on the list of accepted ones: remove it"
        elif not rules[key][0](value):
            yield f"{place}'s `{key}` is {repr(value)[:60]}, and accepted is {rules[key][1]}"
