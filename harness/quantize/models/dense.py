"""A checkpoint as a dense model: load it, find its block linears, read its weights again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import model_files, shards
from harness.errors import QuantizationError
from harness.records import Checkpoint


def load_dense(checkpoint: Checkpoint, *, device: str) -> Any:
    """Returns the checkpoint's model in eval mode: float32 on a CPU, its own dtype elsewhere.

    Many CPUs have no fast 16-bit arithmetic, and float32 holds every 16-bit
    weight and every dequantized level exactly.

    Raises:
        InputError: Files and config don't fit together.
    """
    import torch

    dtype = torch.float32 if device == "cpu" else getattr(torch, checkpoint.dtype)
    return model_files.load(Path(checkpoint.path), dtype=dtype).to(device).eval()


def depth_of(checkpoint: Checkpoint) -> int:
    """Returns how many transformer blocks a checkpoint's config says it has."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    return depth_in(config)


def depth_in(config: Any) -> int:
    """Returns how many transformer blocks a model's config says it has."""
    return int(config.get_text_config().num_hidden_layers)


def block_stacks(model: Any) -> dict[str, Any]:
    """Returns the lists of a model's transformer blocks by module name; none lies within another."""
    from torch import nn

    depth = depth_in(model.config)
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            found[name] = module
    return found


def block_linears(model: Any) -> dict[str, Any]:
    """Returns the linear layers inside the transformer blocks by module name, in model order.

    Embeddings, the output head and whatever else lies outside the blocks are
    not among them, tied or not.

    Raises:
        QuantizationError: The blocks can't be told, or hold no linear layer.
    """
    from torch import nn

    found = {
        f"{prefix}.{name}": module
        for prefix, stack in block_stacks(model).items()
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not found:
        raise QuantizationError(
            f"{type(model).__name__} has no list of {depth_in(model.config)} transformer blocks with torch.nn.Linear "
            "layers in it: Llama-, Qwen-, Mistral-, Gemma- and GPT-NeoX-like models can be quantized."
        )
    return found


def replace_weight(linear: Any, weight: Any) -> None:
    """Puts ``weight`` in the place of a linear layer's own, in that one's dtype and device."""
    import torch

    with torch.no_grad():
        linear.weight.copy_(weight)


class SourceWeights(Mapping[str, Any]):
    """A checkpoint's own weights, read lazily from its safetensors files.

    Keys are module names; a value is the module's ``weight`` as float32 on the
    CPU, read anew each time so that only one is in memory.

    Args:
        tensors: The stored tensors by the model's own names (``model_files.tensors``).
    """

    def __init__(self, tensors: Mapping[str, shards.StoredTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, module: str) -> Any:
        return self.raw(f"{module}.weight").float()

    def raw(self, name: str) -> Any:
        """Returns a tensor by its name in the model, in its own dtype.

        Raises:
            QuantizationError: The files hold no such tensor.
        """
        if name not in self._tensors:
            raise QuantizationError(
                f"The checkpoint's files hold no tensor {name}: save the model again with save_pretrained."
            )
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".weight") for name in self._tensors if name.endswith(".weight"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def source_weights(checkpoint: Checkpoint) -> Iterator[SourceWeights]:
    """Opens a checkpoint's safetensors files for reading weights by module name."""
    folder = Path(checkpoint.path)
    yield SourceWeights(model_files.tensors(model_files.skeleton(folder), folder))


def with_layers(checkpoint: Checkpoint, make_layer: Any, *, device: str) -> Any:
    """Returns the checkpoint's model in its own dtype with every block linear replaced by ``make_layer(linear)``."""
    import torch

    model = load_dense(checkpoint, device=device).to(getattr(torch, checkpoint.dtype))
    with torch.no_grad():
        for name, linear in block_linears(model).items():
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make_layer(linear))
    return model
