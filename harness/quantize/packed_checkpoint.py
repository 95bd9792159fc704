"""A packed checkpoint on disk, taken apart: quantized layers unpacked, all other tensors as they are.

AWQ rescales norms and neighbouring layers, so whatever is not quantized comes
from the quantized checkpoint too, never from the one it was made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import QuantizationError
from harness.quantize import packed_awq, packed_gptq
from harness.quantize.readback import ReadBack

_PACKED = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedCheckpoint:
    """What the files of a packed checkpoint hold.

    Attributes:
        layers: Unpacked linear layers by module name.
        others: Every other tensor by parameter name, on the CPU.
        config: The ``quantization_config`` that they were read by.
    """

    layers: Mapping[str, ReadBack]
    others: Mapping[str, Any]
    config: Mapping[str, Any]


def quantization_config(folder: Path) -> Mapping[str, Any]:
    """Returns what ``config.json`` (or ``quantize_config.json``) says about the packing.

    Raises:
        QuantizationError: Neither says anything.
    """
    config = _json(folder / "config.json").get("quantization_config") or _json(folder / "quantize_config.json")
    if not isinstance(config, dict) or not config:
        raise QuantizationError(
            f"{folder} holds no quantization_config in config.json: without it packed codes can't be read."
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _unpacker(config: Mapping[str, Any]) -> Callable[[Mapping[str, Any], str], ReadBack]:
    """Returns what turns one layer's tensors into codes, by the config's own method."""
    packing = str(config.get("packing_format") or config.get("checkpoint_format") or "").lower()
    if str(config.get("quant_method", "")).lower() == "awq" or packing.endswith(("gemm", "awq")):
        awq = packed_awq.AwqFormat.from_config(dict(config) | {"quant_method": "awq", "version": "gemm"})
        return lambda tensors, name: packed_awq.unpack_layer(tensors, awq, name=name)
    gptq = packed_gptq.GptqFormat.from_config(config)
    return lambda tensors, name: packed_gptq.unpack_layer(tensors, gptq, name=name)


def read(folder: Path) -> PackedCheckpoint:
    """Returns a GPTQ, AWQ or AutoRound checkpoint with its codes unpacked.

    Raises:
        QuantizationError: The format is another one, or the files don't fit
            their config.
    """
    from safetensors import safe_open

    config = quantization_config(folder)
    unpack = _unpacker(config)
    packed: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            for key in file.keys():  # noqa: SIM118 - not a mapping
                module, _, part = key.rpartition(".")
                if part in _PACKED:
                    packed.setdefault(module, {})[part] = file.get_tensor(key)
                else:
                    others[key] = file.get_tensor(key)
    if not packed:
        raise QuantizationError(f"{folder} holds no packed layer (no tensor that ends in .qweight).")
    return PackedCheckpoint(
        layers={name: unpack(tensors, name) for name, tensors in packed.items()}, others=others, config=config
    )


def fill(model: Any, packed: PackedCheckpoint) -> None:
    """Puts the weights of a packed checkpoint into a dense model of its shape, layers dequantized.

    Args:
        model: Dense transformers model; every parameter that the checkpoint
            holds is overwritten.
        packed: What ``read`` returned.

    Raises:
        QuantizationError: The checkpoint holds a tensor that the model lacks,
            or one of another shape.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = {f"{name}.weight": layer.dequantize() for name, layer in packed.layers.items()}
    with torch.no_grad():
        for name, tensor in {**packed.others, **weights}.items():
            own = parameters.get(name)
            if own is None and name.endswith(".bias") and not bool(tensor.any()):
                # AutoGPTQ and AutoAWQ write a bias of zeros where there is none.
                continue
            if own is None or own.shape != tensor.shape:
                raise QuantizationError(
                    f"The packed checkpoint holds {name} of shape {tuple(tensor.shape)}, and the model "
                    f"{'lacks it' if own is None else f'has it as {tuple(own.shape)}'}: they are not of one model."
                )
            own.copy_(tensor)
