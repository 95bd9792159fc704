"""A packed checkpoint on disk, taken apart: quantized layers unpacked, all other tensors as they are.

AWQ rescales norms and neighbouring layers, so whatever is not quantized comes
from the quantized checkpoint too, never from the one it was made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import QuantizationError, first_line
from harness.quantize.formats import awq as packed_awq
from harness.quantize.formats import bitsandbytes as packed_bitsandbytes
from harness.quantize.formats import compressed_tensors
from harness.quantize.formats import gguf as packed_gguf
from harness.quantize.formats import gptq as packed_gptq
from harness.quantize.formats.codes import ReadBack

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>qweight|qzeros|scales|g_idx)")

# As the scan reads them: what a file means that does not name its method.
_BESIDE = {
    "quantize_config.json": {"quant_method": "gptq"}, "quant_config.json": {"quant_method": "awq"},
    "quantization_config.json": {},
}  # fmt: skip

_Unpack = Callable[[Mapping[str, Any], str], ReadBack]


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
    """Returns what ``config.json`` says about the packing, or the file of a library's own beside it.

    Raises:
        QuantizationError: Neither says anything.
    """
    told = _json(folder / "config.json").get("quantization_config")
    beside = ({**meant, **own} for name, meant in _BESIDE.items() if (own := _json(folder / name)))
    config = told or next(beside, None)
    if not isinstance(config, dict) or not config:
        raise QuantizationError(
            f"{folder} holds no quantization_config in config.json: without it packed codes can't be read."
        )
    return config


def _weights(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder, without a second copy of the same weights."""
    paths = sorted(folder.glob("*.safetensors"))
    own = [path for path in paths if not path.name.startswith("consolidated")]
    return own or paths


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _unpacker(config: Mapping[str, Any]) -> tuple[re.Pattern[str], _Unpack]:
    """Returns the names of packed tensors and what turns one layer's into codes, by the config's own method."""
    method = str(config.get("quant_method", "")).lower()
    if method == "bitsandbytes":
        bnb = packed_bitsandbytes.BnbFormat.from_config(config)
        return packed_bitsandbytes.KEY, lambda tensors, name: packed_bitsandbytes.unpack_layer(tensors, bnb, name=name)
    if method == "compressed-tensors":
        ct = compressed_tensors.CompressedFormat.from_config(config)
        return compressed_tensors.KEY, lambda tensors, name: compressed_tensors.unpack_layer(tensors, ct, name=name)
    if method == "awq" or is_awq(config):
        awq = packed_awq.AwqFormat.from_config(config)
        return _KEY, lambda tensors, name: packed_awq.unpack_layer(tensors, awq, name=name)
    gptq = packed_gptq.GptqFormat.from_config(config)
    return _KEY, lambda tensors, name: packed_gptq.unpack_layer(tensors, gptq, name=name)


def _shared_out(keys: Iterable[str], pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """Returns the tensors' names of each packed layer by the part after its module's name; a ``weight`` goes along."""
    found: dict[str, dict[str, str]] = {}
    keys = list(keys)
    for key in keys:
        if told := pattern.fullmatch(key):
            found.setdefault(told["module"], {})[told["part"]] = key
    for key in keys:
        module, _, part = key.rpartition(".")
        if part == "weight" and module in found:
            found[module][part] = key
    return found


def _unpacked(unpack: _Unpack, tensors: Mapping[str, Any], name: str) -> ReadBack:
    try:
        return unpack(tensors, name)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        # A stranger's tensors may have any shape and type that safetensors knows.
        said = first_line(error)[:200]
        raise QuantizationError(f"{name}'s packed tensors don't fit together ({said}): save the model anew.") from error


def read(folder: Path) -> PackedCheckpoint:
    """Returns a packed checkpoint with its codes unpacked.

    GPTQ (and AutoRound), AWQ, bitsandbytes and compressed-tensors checkpoints
    are read, and one GGUF file beside a config.json.

    Raises:
        QuantizationError: The format is another one, or the files don't fit
            their config.
    """
    from safetensors import safe_open

    if gguf := sorted(folder.glob("*.gguf")):
        layers, dense = packed_gguf.read(gguf[0], _json(folder / "config.json"))
        return PackedCheckpoint(layers=layers, others=dense, config={"quant_method": "gguf"})
    config = quantization_config(folder)
    pattern, unpack = _unpacker(config)
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            for path in _weights(folder)
        ]
        where = {key: file for file in files for key in file.keys()}  # noqa: SIM118 - not a mapping
        packed = _shared_out(where, pattern)
        if not packed:
            raise QuantizationError(f"{folder} holds no packed layer of method {config.get('quant_method')!r}.")
        taken = {key for parts in packed.values() for key in parts.values()}
        return PackedCheckpoint(
            layers={
                name: _unpacked(unpack, {part: where[key].get_tensor(key) for part, key in parts.items()}, name)
                for name, parts in packed.items()
            },
            others={key: file.get_tensor(key) for key, file in where.items() if key not in taken},
            config=config,
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
