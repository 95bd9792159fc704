"""Formats of weights and adapters that are not read, each by its own name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_METHODS: Mapping[str, str] = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "finegrained_fp8", "float-quantized"), "FP8"),
    "modelopt": "NVIDIA ModelOpt (FP8 or NVFP4)", "nvfp4": "NVFP4", "nvfp4-pack-quantized": "NVFP4",
    "mxfp4": "MXFP4", "mxfp4-pack-quantized": "MXFP4", "mxfp8-quantized": "MXFP8", "mxfp4-quantized": "MXFP4",
    "exl2": "ExLlamaV2", "exl3": "ExLlamaV3", "hqq": "HQQ", "quanto": "quanto", "torchao": "torchao", "aqlm": "AQLM",
    "vptq": "VPTQ", "bitnet": "BitNet", "eetq": "EETQ", "higgs": "HIGGS", "spqr": "SpQR", "quark": "AMD Quark",
    "sparse-24": "2:4 sparsity", "marlin-24": "2:4 sparsity",
}  # fmt: skip

DTYPES: Mapping[str, str] = {
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "FP8"),
    "F4": "FP4 (NVFP4 or MXFP4)", "U32": "MLX",
}  # fmt: skip
"""Formats that store their numbers as a type of safetensors that no accepted one has."""


def method_name(method: object) -> str | None:
    """Returns the name of a quantization method or format that is not read, None for any other text."""
    return _METHODS.get(method) if isinstance(method, str) else None


def of_config(config: Mapping[str, Any]) -> str | None:
    """Returns the foreign format that a config.json or adapter_config.json belongs to, None where it is none."""
    quantization = config.get("quantization_config")
    for told in (config.get("quantization"), quantization):
        if isinstance(told, dict) and "quant_method" not in told and {"bits", "group_size"} <= set(told):
            return "MLX"
    if isinstance(quantization, dict) and (name := method_name(quantization.get("quant_method"))):
        return name
    if "peft_type" in config or "model_type" not in config and "architectures" in config:
        return None
    if "fine_tune_type" in config or "lora_parameters" in config:
        return "MLX"
    if isinstance(config.get("config"), dict) and "model_class" in config:
        return "the adapters library"
    return None


def of_tensors(names: Iterable[str]) -> str | None:
    """Returns the foreign format that an adapter's tensors are named by, None where it is none."""
    endings = {name.rpartition(".")[2] for name in names}
    if endings & {"lora_a", "lora_b"}:
        return "MLX"
    return "Tunix" if endings & {"w_lora_a", "w_lora_b", "kernel_lora_a", "kernel_lora_b"} else None


def sentence(name: str, *, adapter: bool) -> str:
    """Returns what is wrong with a folder in a foreign format, without its path."""
    if adapter:
        return f"it is an adapter of {name}, which is not read: convert it to peft's LoRA, or merge it and submit that"
    return f"its weights are in the format of {name}, which is not read: submit the 16-bit model it was made from"
