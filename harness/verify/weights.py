"""A submission's model for the independent check: merged by peft, dequantized by the quantizer's own library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.errors import QuenchError, first_line
from harness.records import QuantizerSpec

_IN_A_BLOCK = re.compile(r"\.\d+\.")
SUBMITTED_QUANTIZED = "its weights were submitted quantized: what they are, only the program that packed them could say"
"""Why nothing of a quantized checkpoint is checked."""

_FLOAT16_SPACING, _FLOAT16_NORMAL = 2.0**-24, 2.0**-14


class NotCheckedError(QuenchError):
    """Something can't be checked here; the message says why."""


class Dense:
    """A 16-bit model whose weights are held in float32.

    Args:
        base: Folder of the full model.
        adapter: Folder of the LoRA adapter that peft merges; None for none.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        stored = _stored_dtype(base)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True, torch_device="cpu")
            model = model.merge_and_unload()
        # A float32 model is rounded to bfloat16 once, before anything else.
        self._dtype = torch.float16 if stored == "F16" else torch.bfloat16
        if adapter is not None or stored == "F32":
            with torch.no_grad():
                # Parameters alone: rounded, the frequencies of rotary positions would be others.
                for parameter in model.parameters():
                    parameter.copy_(parameter.to(self._dtype))
        self._model = model.eval()
        self._weights = {
            linear: linear.weight.detach().to(self._dtype) for name, linear in model.named_modules()
            if isinstance(linear, torch.nn.Linear) and _IN_A_BLOCK.search(name)
        }  # fmt: skip

    def under(self, spec: QuantizerSpec) -> Any:
        """Returns the model with the dequantized weights of a quantizer; the ones before are overwritten.

        Raises:
            NotCheckedError: The library is not installed, or fails to load.
        """
        import torch

        with torch.no_grad():
            for linear, weight in self._weights.items():
                try:
                    linear.weight.copy_(_DEQUANTIZED[spec.backend](weight, spec))
                except (ImportError, RuntimeError, ValueError, AssertionError) as error:
                    raise NotCheckedError(f"{spec.name}'s library can't be used here ({first_line(error)})") from error
        return self._model


def _stored_dtype(folder: Path) -> str:
    """Returns the type of most bytes of a folder's safetensors files, as that format names it."""
    from safetensors import safe_open

    sizes = dict.fromkeys(("BF16", "F16", "F32"), 0)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                stored = file.get_slice(name)
                if stored.get_dtype() in sizes:
                    sizes[stored.get_dtype()] += math.prod(stored.get_shape()) * (
                        4 if stored.get_dtype() == "F32" else 2
                    )
    return max(sizes, key=sizes.__getitem__)


def unchecked_reason(spec: QuantizerSpec) -> str | None:
    """Returns why a quantizer's weights can't be made again by plain means; None where they can."""
    if "calibration" in spec.options:
        return f"{spec.name} is calibrated: its codes depend on texts and on the order of sums"
    if spec.options.get("wide_parts"):
        return f"{spec.name} mixes two widths, which are not written down a second time"
    if spec.backend not in _DEQUANTIZED:
        return f"no library outside Quench makes and dequantizes {spec.backend}'s weights here"
    return None


def _rtn(weight: Any, spec: QuantizerSpec) -> Any:
    """Round to nearest, written down a second time from its definition in docs/backends.md."""
    import torch

    rows, width = weight.shape
    shares = [1.0, *(percent / 100 for percent in range(98, 28, -2))] if spec.options.get("clip") else [1.0]
    parts = []
    for group in weight.float().split(min(spec.group_size or width, width), dim=1):
        best, least = torch.empty_like(group), torch.full((rows, 1), torch.inf)
        for share in shares:
            dense = _rounded(group, spec, share)
            error = (dense - group).square().sum(1, keepdim=True)
            best, least = torch.where(error < least, dense, best), torch.minimum(error, least)
        parts.append(best)
    return torch.cat(parts, dim=1)


def _rounded(group: Any, spec: QuantizerSpec, share: float) -> Any:
    import torch

    top = 2**spec.bits - 1
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
    same = low == high
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if spec.options.get("scales") == "float32":
        step = (high - low) / top * share
        held = torch.maximum(high, -low)
    else:
        exact = (high / top - low / top) * share
        tiny = (exact / _FLOAT16_SPACING).ceil() * _FLOAT16_SPACING
        step = torch.where(exact < _FLOAT16_NORMAL, tiny, exact).half().float()
        held = torch.maximum(high, -low).half().float()
    # A group of one value keeps it, where its scale can hold it.
    step = torch.where(same & (held == torch.maximum(high, -low)), held, step)
    step = torch.where(step == 0, 1.0, step)
    zero = torch.full_like(step, 2 ** (spec.bits - 1)) if spec.symmetric else (-low * share / step).round()
    zero = zero.clamp(0, top)
    return (((group / step).round() + zero).clamp(0, top) - zero) * step


def _bnb(weight: Any, spec: QuantizerSpec) -> Any:
    from bitsandbytes import functional

    if spec.bits == 8:
        codes, greatest, _ = functional.int8_vectorwise_quant(weight.half())
        return functional.int8_vectorwise_dequant(codes, greatest)
    kind = spec.name.removeprefix("bnb-").removesuffix("-dq")
    # One row: the kernel for CPUs begins a new block in each row, also where 64 does not divide it.
    packed, state = functional.quantize_4bit(
        weight.reshape(1, -1), blocksize=spec.group_size, quant_type=kind,
        compress_statistics=bool(spec.options.get("double_quant")),
    )  # fmt: skip
    return functional.dequantize_4bit(packed, state).reshape(weight.shape)


def _linear(weight: Any) -> Any:
    import torch

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def _hqq(weight: Any, spec: QuantizerSpec) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=spec.bits, group_size=spec.group_size, axis=spec.options["axis"])
    return HQQLinear(_linear(weight), config, compute_dtype=weight.dtype, device="cpu").dequantize()


def _quanto(weight: Any, spec: QuantizerSpec) -> Any:
    import torch
    from optimum.quanto import QLinear, qtypes, quantize_weight
    from optimum.quanto.tensor.qbits import QBitsDequantizer

    kind = qtypes[f"qint{spec.bits}"]
    layer = QLinear.from_module(_linear(weight), weights=kind)
    if spec.bits == 8:
        scale = layer.optimizer(weight, qtype=kind, axis=0)
        return quantize_weight(weight, qtype=kind, axis=0, scale=scale, optimized=False).dequantize()
    # Codes are not packed: the library would compile a C++ extension to unpack them.
    size = layer.weight_group_size
    scale, shift = layer.optimizer(weight, qtype=kind, axis=0, group_size=size)
    codes = torch.ops.quanto.quantize_affine(weight, kind.bits, 0, size, scale, shift)
    made = SimpleNamespace(_data=codes, _scale=scale, _shift=shift, qtype=kind, axis=0, shape=weight.shape)
    return QBitsDequantizer.forward(None, made)


def _torchao(weight: Any, spec: QuantizerSpec) -> Any:
    import torch
    from torchao import quantization

    if spec.group_size is None:
        config = quantization.Int8WeightOnlyConfig(version=2)
    else:
        kinds = quantization.MappingType
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{spec.bits}"), granularity=quantization.PerGroup(spec.group_size),
            mapping_type=kinds.SYMMETRIC if spec.symmetric else kinds.ASYMMETRIC,
        )  # fmt: skip
    linear = _linear(weight)
    quantization.quantize_(linear, config)
    return linear.weight.dequantize()


def _gguf(weight: Any, spec: QuantizerSpec) -> Any:
    import torch
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[spec.options["type"]]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), kind), kind))


_DEQUANTIZED: Mapping[str, Callable[[Any, QuantizerSpec], Any]] = {
    "reference": lambda weight, _: weight, "rtn": _rtn, "bnb": _bnb, "hqq": _hqq, "quanto": _quanto,
    "torchao": _torchao, "gguf": _gguf,
}  # fmt: skip
