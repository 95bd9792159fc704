"""Checks how a submitted quantized checkpoint says it is packed: a strict model for each method.

The config is read by this program alone and never handed to a library, but it
decides what stored numbers mean. So a field of a model is read by a reader in
``harness.quantize.formats`` or pinned to the one meaning that is computed;
``IGNORED`` tells how codes were made; any other key must be switched off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from harness.errors import InputError
from harness.shards import PACKING_FILES
from harness.submit.scan import foreign_formats
from harness.submit.scan.strict_model import Wrong, accepts, faults_of, is_empty, listed, shown
from harness.submit.strict_parsing import read_json, visible

IGNORED = frozenset({
    "act_bits", "act_data_type", "act_dynamic", "act_group_aware", "act_group_size", "act_sym", "adapter", "amp",
    "autoround_version", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_auto_increment", "damp_percent", "dataset", "device", "disable_exllama", "enable_minmax_tuning",
    "enable_norm_bias_tuning", "enable_quanted_input", "exllama_config", "fuse_max_seq_len",
    "global_compression_ratio", "gradient_accumulate_steps", "ignore", "is_marlin_format", "iters",
    "lm_head", "low_gpu_mem_usage", "lr", "max_input_length", "meta", "minmax_lr", "model_file_base_name",
    "model_name_or_path", "model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize",
    "modules_to_not_convert", "mse", "nsamples", "offload_to_disk", "pad_token_id",
    "parallel_packing", "provider", "quant_block_list", "quant_lm_head", "quantizer", "scale_dtype", "seqlen",
    "static_groups", "super_bits", "super_group_size", "to_quant_block_names", "tokenizer", "true_sequential", "uri",
    "use_cuda_fp16", "use_exllama", "v2", "version", "run_compressed", "bnb_4bit_compute_dtype", "zp_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload", "llm_int8_skip_modules", "llm_int8_threshold",
    "quantization_status", "targets", "input_activations", "observer", "observer_kwargs",
    "actorder",
})  # fmt: skip
"""Keys that tell how codes were made or are run, or that the tensors themselves show."""


def _whole(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError("4.0 is equal to 4 and no whole number")
    return value


_Width = Annotated[Literal[2, 3, 4, 8], BeforeValidator(_whole)]
_Four = Annotated[Literal[4], BeforeValidator(_whole)]
_AsWidth = Field(description="2, 3, 4 or 8")
_Group = Annotated[Literal[-1], BeforeValidator(_whole)] | Annotated[int, Field(gt=0, le=1 << 20)]
_AsGroup = accepts("-1 or a positive number")
_Flag = accepts("true or false")
_Word = Literal["int32", "torch.int32", None]
_AsWord = accepts("int32")
_Int = Literal["int", None]
_AsInt = accepts("int")
_GptqLayout = Literal["gptq", "gptq_v2"]
_AsGptq = accepts("gptq or gptq_v2")
_Gemm = Literal["gemm", "GEMM"]
_AsGemm = accepts("gemm")
_Layout = Literal["pack-quantized", "int-quantized", "naive-quantized"]
_LAYOUTS = ", ".join(get_args(_Layout))


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True)


class Gptq(_Settings):
    """GPTQ, as AutoGPTQ, gptqmodel and AutoRound's auto_gptq export write it."""

    bits: _Width = _AsWidth
    group_size: _Group = _AsGroup
    sym: bool = _Flag
    desc_act: bool = _Flag
    checkpoint_format: _GptqLayout = _AsGptq
    format: _GptqLayout = _AsGptq
    packing_format: _GptqLayout = _AsGptq
    method: Literal["gptq"] = accepts("gptq")
    pack_dtype: _Word = _AsWord
    data_type: _Int = _AsInt


class Awq(_Settings):
    """AWQ's GEMM format, as AutoAWQ, gptqmodel and AutoRound's auto_awq export write it."""

    bits: _Four = accepts("4")
    w_bit: _Four = accepts("4")
    group_size: _Group = _AsGroup
    q_group_size: _Group = _AsGroup
    sym: bool = _Flag
    zero_point: bool = _Flag
    version: _Gemm = _AsGemm
    checkpoint_format: _Gemm = _AsGemm
    format: _Gemm = _AsGemm
    method: Literal["awq"] = accepts("awq")
    pack_dtype: _Word = _AsWord
    data_type: _Int = _AsInt


class AutoRound(_Settings):
    """AutoRound's own format: GPTQ's or AWQ's layout by another name."""

    bits: _Width = _AsWidth
    group_size: _Group = _AsGroup
    sym: bool = _Flag
    zero_point: bool = _Flag
    desc_act: bool = _Flag
    packing_format: Literal[
        "auto_round", "auto_round:auto_gptq", "auto_round:gptq", "auto_round:auto_awq", "auto_round:awq"
    ] = Field(description="auto_round, auto_round:auto_gptq or auto_round:auto_awq")
    data_type: _Int = _AsInt


class Bitsandbytes(_Settings):
    """bitsandbytes, as transformers saves it."""

    load_in_4bit: bool = _Flag
    load_in_8bit: bool = _Flag
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = accepts("nf4 or fp4")
    bnb_4bit_quant_storage: Literal["uint8", "torch.uint8", None] = accepts("uint8")


class CompressedTensors(_Settings):
    """compressed-tensors with integers, as llm-compressor writes it."""

    format: str | None = accepts(_LAYOUTS)
    config_groups: dict[str, dict[str, Any]] = Field(min_length=1, description="groups of settings, all alike")
    sparsity_config: dict[Literal["format"], Literal["dense"]] | None = accepts("nothing")


class CompressedWeights(_Settings):
    """The weights of one of compressed-tensors' groups."""

    num_bits: Annotated[int, Field(ge=2, le=8)] = accepts("2 to 8")
    type: Literal["int"] = accepts("int")
    symmetric: bool = _Flag
    group_size: _Group | None = _AsGroup
    strategy: Literal["group", "channel", "tensor", None] = accepts("group, channel or tensor")


MODELS: Mapping[str, type[BaseModel]] = {
    "gptq": Gptq, "awq": Awq, "auto-round": AutoRound, "bitsandbytes": Bitsandbytes,
    "compressed-tensors": CompressedTensors,
}  # fmt: skip
METHODS = tuple(MODELS)
"""Methods that a ``quantization_config`` may name."""

# Two names of one setting.
_SAME = (("bits", "w_bit"), ("group_size", "q_group_size"), ("checkpoint_format", "format"),
         ("checkpoint_format", "packing_format"), ("format", "packing_format"), ("version", "checkpoint_format"),
         ("version", "format"), ("load_in_4bit", "_load_in_4bit"), ("load_in_8bit", "_load_in_8bit"))  # fmt: skip
_OF_CODES = ("bits", "group_size", "sym", "data_type")
_HEAD = re.compile(r"[+-]?:?\^?(\.\*)?\\?\.?lm_head(\.\*)?\$?")


def stated(folder: Path, config: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, Any], str | None]:
    """Returns how a folder says that its weights are packed, and what is wrong with that, None where it may be read.

    Args:
        folder: Where config.json lies, and perhaps one of ``PACKING_FILES``.
        config: What config.json holds; its ``quantization_config`` comes first.
        notes: Takes sentences about what is ignored.
    """
    told: dict[str, Any] = {}
    if config.get("quantization_config") is not None:
        told["config.json"] = config["quantization_config"]
    for name, meant in PACKING_FILES.items():
        if (folder / name).is_file():
            try:
                settings = read_json(folder / name, limit=1 << 20)
            except InputError as refused:
                return {}, f"{name} beside it can't be read: {refused}"
            told[name] = {**meant, **settings} if isinstance(settings, dict) else settings
    if not told:
        why = "so nothing says what the packed numbers mean: keep what the library wrote, or submit a full_model"
        return {}, f"it has no quantization_config, {why}"
    for name, settings in told.items():
        if wrong := fault(settings, [] if name == "config.json" and len(told) > 1 else notes):
            return {}, wrong if name == "config.json" else wrong.replace("quantization_config", name, 1)
    first, *others = told
    for name in others:
        for key in ("quant_method", *MODELS[told[first]["quant_method"]].model_fields):
            one, other = told[first].get(key), told[name].get(key)
            if None not in (one, other) and one != other:
                wrong = f"`{key}` is {shown(one)} in {first} and {shown(other)} in {name}: keep the file that is right"
                return {}, wrong
    return dict(told[first]), None


def fault(config: Any, notes: list[str] | None = None) -> str | None:
    """Returns what is wrong with a quantization_config, None where it may be read.

    Args:
        config: Whatever stands under ``quantization_config``.
        notes: Takes a sentence about keys that are ignored.
    """
    method = config.get("quant_method") if isinstance(config, dict) else None
    if isinstance(config, dict) and (name := foreign_formats.of_config({"quantization_config": config})):
        return f"quantization_config says {name}, which is not read: accepted are {', '.join(METHODS)}"
    if not isinstance(method, str) or method not in MODELS:
        return f"quantization_config's quant_method is {shown(method)}, and accepted are {', '.join(METHODS)}"
    ignored: list[str] = []
    wrong = next(_faults(method, config, ignored), None)
    if ignored and notes is not None:
        notes.append(f"quantization_config: ignored, since they change no code: {listed(set(ignored))}.")
    return wrong


def _faults(method: str, config: Mapping[str, Any], ignored: list[str]) -> Iterator[str]:
    own = {key: value for key, value in config.items() if key != "quant_method"}
    if method == "bitsandbytes":
        own = {key.removeprefix("_") if key.startswith("_load_in_") else key: value for key, value in own.items()}
    for key in ("dynamic", "extra_config"):
        if isinstance(own.get(key), dict) and method != "compressed-tensors":
            yield from _apart(key, own.pop(key), config)
    yield from _against(MODELS[method], own, "quantization_config's ", ignored)
    for first, second in _SAME:
        one, other = config.get(first), config.get(second)
        known = first in MODELS[method].model_fields and second.removeprefix("_") in MODELS[method].model_fields
        if known and None not in (one, other) and str(one).lower() != str(other).lower():
            yield f"quantization_config's `{first}` is {shown(one)} and its `{second}` {shown(other)}: they contradict"
    if isinstance(config.get("sym"), bool) and config["sym"] is config.get("zero_point"):
        yield f"quantization_config's `sym` and `zero_point` are both {shown(config['sym'])}: they contradict"
    if method == "bitsandbytes" and bool(own.get("load_in_4bit")) == bool(own.get("load_in_8bit")):
        yield "quantization_config must say load_in_4bit or load_in_8bit, and one of them"
    if method == "auto-round" and str(config.get("packing_format")).endswith("awq") and config.get("bits") != 4:
        yield f"quantization_config's `bits` is {shown(config.get('bits'))}, and accepted is 4 in AWQ's layout"
    if method == "compressed-tensors":
        yield from _group_faults(config, ignored)


def _against(model: type[BaseModel], own: Mapping[str, Any], place: str, ignored: list[str]) -> Iterator[str]:
    read = {key: value for key, value in own.items() if key in model.model_fields}
    for key in own:
        if key in IGNORED or (key not in read and is_empty(own[key])):
            ignored.append(key)
        elif key not in read:
            yield f"{place}`{visible(key[:60])}` is {shown(own[key])}, and no reader knows what it means: remove it"
    yield from (told for told, _, _ in faults_of(model, read, place))


def _apart(key: str, modules: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yields modules with settings of their own; those of the others, or a head left in 16 bit, change no code."""
    for name, own in modules.items():
        settings = own if isinstance(own, dict) else {}
        alike = all(settings[each] in (config.get(each), None) for each in _OF_CODES if each in settings)
        wide = isinstance(settings.get("bits"), int) and settings["bits"] >= 16
        dense_head = _HEAD.fullmatch(name) and (wide or name.startswith("-"))
        if not dense_head and (not alike or name.startswith("-") or not isinstance(own, dict)):
            told = "settings of its own, and layers must be alike (lm_head alone may stay in 16 bit)"
            yield f"quantization_config's `{key}` gives {visible(name[:60])} {told}"


def _group_faults(config: Mapping[str, Any], ignored: list[str]) -> Iterator[str]:
    seen: list[dict[str, Any]] = []
    groups = config.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        place = f"quantization_config's {visible(str(name)[:40])}"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            yield f"{place} is no mapping with weights"
            return
        layout, size = group.get("format") or config.get("format"), weights.get("group_size")
        foreign = foreign_formats.method_name(layout) or ("FP8" if weights.get("type") == "float" else None)
        if foreign:
            yield f"{place} says {foreign}, which is not read: accepted are integers"
            return
        rest = {key: value for key, value in group.items() if key not in ("weights", "format")}
        yield from _against(_Settings, rest, f"{place}'s ", ignored)
        yield from _against(CompressedWeights, weights, f"{place}.weights's ", ignored)
        if layout not in get_args(_Layout) or config.get("format") not in (None, layout):
            yield f"{place}'s `format` is {shown(layout)}, and accepted is one of {_LAYOUTS}, the same everywhere"
        if layout == "pack-quantized" and weights.get("num_bits") not in (2, 4, 8, None):
            yield f"{place}.weights's `num_bits` is {shown(weights['num_bits'])}, and accepted is 2, 4 or 8 in {layout}"
        if weights.get("strategy") == "group" and (type(size) is not int or size < 1):
            yield f"{place}.weights's `group_size` is {shown(size)}, and strategy group needs a positive number"
        seen.append({"format": layout} | {key: weights.get(key) for key in CompressedWeights.model_fields})
    if any(each != seen[0] for each in seen[1:]):
        yield "quantization_config's `config_groups` differ, and layers must be alike"


def layer_faults(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Wrong]:
    """Yields the first layer of GPTQ and AWQ whose tensors are not all there or not of the shapes that settings say."""
    bits, size = settings.get("bits") or settings.get("w_bit"), settings.get("group_size", settings.get("q_group_size"))
    if settings.get("quant_method") not in ("gptq", "awq", "auto-round") or bits is None or size is None:
        return
    awq = "awq" in (settings["quant_method"], str(settings.get("packing_format")).rpartition("_")[2])
    for layer in sorted({name.rpartition(".")[0] for name in shapes if name.endswith((".qweight", ".qzeros"))}):
        parts = {part: shapes.get(f"{layer}.{part}", ()) for part in ("qweight", "qzeros", "scales")}
        if lacking := [part for part, shape in parts.items() if len(shape) != 2]:
            told = f"{visible(layer[:200])} lacks {' and '.join(lacking)}: a packed layer has"
            yield f"{told} qweight, qzeros and scales, each a matrix", None, None
            return
        codes, (groups, rows) = parts["qweight"], parts["scales"]
        columns = codes[0] if awq else codes[0] * 32 // bits
        needed = 1 if size < 0 else -(-columns // size)
        if groups != needed:
            told = f"{visible(layer[:200])} holds {columns} columns, in groups of {size} {needed}, with scales for"
            yield f"{told} {groups}: correct `bits` or `group_size` of its quantization_config", "group_size", None
            return
        if codes[1] != (rows * bits // 32 if awq else rows) or parts["qzeros"] != (groups, rows * bits // 32):
            told = f"{visible(layer[:200])} has scales of shape {parts['scales']}, codes {codes} and zero points"
            yield f"{told} {parts['qzeros']}, which don't fit together: save the model anew", None, None
            return
