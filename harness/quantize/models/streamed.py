"""Models that do not fit into memory: each transformer block is read when it runs, and dropped after it.

What lies outside the blocks stays in memory. Of a quantized model codes and
scales are on disk, a quarter of its float32 weights, and a block's dense
weights are made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from harness import memory, model_files, shards
from harness.errors import QuantizationError
from harness.paths import cache_dir
from harness.quantize.formats.codes import ReadBack
from harness.quantize.models.dense import block_stacks
from harness.records import Checkpoint

_NOTHING: Mapping[str, ReadBack] = MappingProxyType({})


def must_stream(checkpoint: Checkpoint, *, device: str, quantized: bool) -> bool:
    """Returns whether a checkpoint's blocks are to be read one after the other: the rule of ``harness.memory``.

    Args:
        checkpoint: The 16-bit model.
        device: torch device of the model.
        quantized: Whether codes come to its weights, and to measure survival
            the same of its target.
    """
    width = 4 if device == "cpu" else 2
    need = shards.count_numbers(Path(checkpoint.path)) * (2 * (width + 1) if quantized else width)
    return memory.must_stream(need, Path(checkpoint.path).name, device=device)


class LayersOnDisk(Mapping[str, ReadBack]):
    """What was read back of each layer by module name, in files that go when this object does."""

    def __init__(self) -> None:
        # A prefix that `quench cache` and `quench doctor` know, should the process be killed.
        self._place = TemporaryDirectory(dir=cache_dir(), prefix="quantizing-", ignore_cleanup_errors=True)
        self._told: dict[str, tuple[Path, ReadBack]] = {}

    def put(self, name: str, layer: ReadBack) -> None:
        """Writes one layer's tensors."""
        import torch
        from safetensors.torch import save_file

        told = {each.name: getattr(layer, each.name) for each in fields(layer)}
        # Clones, since tensors of one file may not share memory.
        tensors = {key: value.contiguous().clone() for key, value in told.items() if isinstance(value, torch.Tensor)}
        path = Path(self._place.name) / f"{len(self._told)}.safetensors"
        save_file(tensors, path)
        without: dict[str, Any] = dict.fromkeys(tensors)
        self._told[name] = path, replace(layer, **without)

    def __getitem__(self, name: str) -> ReadBack:
        from safetensors.torch import load_file

        path, layer = self._told[name]
        return replace(layer, **load_file(path))

    def __iter__(self) -> Iterator[str]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)


class _DenseWeights(Mapping[str, Any]):
    """A model's parameters by name, each made when it is asked for: the checkpoint's own, or from a layer's codes."""

    def __init__(self, model: Any, folder: Path, layers: Mapping[str, ReadBack]) -> None:
        self._names, self._layers = [name for name, _ in model.named_parameters()], layers
        self.tensors = model_files.tensors(model, folder)

    def __getitem__(self, name: str) -> Any:
        layer = self._layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return self.tensors[name].read() if layer is None else layer.dequantize()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def streamed_model(checkpoint: Checkpoint, *, device: str, layers: Mapping[str, ReadBack] = _NOTHING) -> Any:
    """Returns the checkpoint's model in eval mode, its blocks read from disk whenever they run.

    It computes what the whole model does, in the same dtype: float32 on a CPU,
    its own elsewhere. It is for one thread at a time.

    Args:
        checkpoint: The 16-bit model.
        device: torch device of what is computed.
        layers: What was read back of quantized layers, by module name; may be
            filled after the call, before the model runs.

    Raises:
        InputError: Files and config don't fit together.
        QuantizationError: The model has no list of blocks: it can only be loaded whole.
    """
    import torch
    from accelerate import init_empty_weights
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from accelerate.utils import PrefixedDataset, set_module_tensor_to_device
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    dtype = torch.float32 if device == "cpu" else getattr(torch, checkpoint.dtype)
    # Buffers are made: they are small, and files hold few of them.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    model_files.check(model, Path(checkpoint.path))
    weights = _DenseWeights(model, Path(checkpoint.path), layers)
    if not block_stacks(model):
        raise QuantizationError(
            f"{checkpoint.path}: it has no list of transformer blocks to read one after the other: use a machine whose "
            "memory holds the model, or try it whole with --stream never."
        )
    blocks = {f"{name}.{number}": block for name, stack in block_stacks(model).items()
              for number, block in enumerate(stack)}  # fmt: skip
    inside = tuple(f"{name}." for name in blocks)
    for name in weights:
        if not name.startswith(inside):
            set_module_tensor_to_device(model, name, device, value=weights[name].to(dtype))
    for name, buffer in list(model.named_buffers()):
        value = weights.tensors[name].read().to(buffer.dtype) if name in weights.tensors else buffer
        set_module_tensor_to_device(model, name, device, value=value)
    model.tie_weights()
    for name, block in blocks.items():
        own = PrefixedDataset(weights, f"{name}.")
        # The whole block at once: a feed-forward part runs in pieces, which would each read it again.
        hook = AlignDevicesHook(execution_device=device, offload=True, weights_map=own, place_submodules=True)
        add_hook_to_module(block, hook)
    return model.eval()
