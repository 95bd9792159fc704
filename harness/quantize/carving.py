"""One transformer block of a checkpoint as a small checkpoint of its own.

Every backend that looks at no activations quantizes a block alone to the same
codes as within its model: so a pair of models that no memory holds can be
compared block by block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.errors import QuantizationError
from harness.records import Checkpoint

_WORDS = 8
"""Vocabulary of a carved model: its embedding is not quantized and stays small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Where the blocks of a model are.

    Attributes:
        prefix: What names of modules in a block begin with before its number, e.g. ``model.layers.``.
        depth: Number of blocks.
        layers: Linear layers of block 0, by full name.
    """

    prefix: str
    depth: int
    layers: tuple[str, ...]

    def name_in_model(self, carved: str, block: int) -> str:
        """Returns what a module of a carved block is called in its model."""
        return f"{self.prefix}{block}.{carved.removeprefix(f'{self.prefix}0.')}"


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)


def _skeleton(config: Any) -> Any:
    """Returns the model of a config without memory for its weights.

    Raises:
        QuantizationError: There is no causal language model of that config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise QuantizationError(
            f"A model of type {config.model_type} generates no text, so nothing of it is scored: "
            "use a causal language model."
        ) from error


def stack_of(checkpoint: Checkpoint) -> Stack:
    """Returns where a checkpoint's blocks are, without loading a weight.

    Raises:
        QuantizationError: It has no blocks that can be told.
    """
    from harness.quantize.dense import block_linears

    config = _config(checkpoint)
    depth = config.get_text_config().num_hidden_layers
    names = list(block_linears(_skeleton(config)))
    told = re.match(r"(.*?\.)\d+\.", names[0])
    if told is None:
        raise QuantizationError(
            f"{checkpoint.path}: the blocks of its model have no numbers, so none can be taken out."
        )
    layers = tuple(name for name in names if name.startswith(f"{told.group(1)}0."))
    return Stack(prefix=told.group(1), depth=depth, layers=layers)


@contextmanager
def carved(checkpoint: Checkpoint, stack: Stack, block: int) -> Iterator[Checkpoint]:
    """Gives one block of a checkpoint as a checkpoint, for as long as the context lasts.

    Its weights are the block's own in their own dtype; embedding, head and
    final norm, which nobody quantizes, are zeros for eight words.

    Raises:
        QuantizationError: The files lack a weight of the block.
    """
    import torch
    from safetensors.torch import save_file

    from harness.quantize.dense import source_weights

    values = _config(checkpoint).to_dict()
    depth = stack.depth
    small = {key: value[block : block + 1] if isinstance(value, list) and len(value) == depth else value
             for key, value in values.items()}  # fmt: skip
    config = type(_config(checkpoint)).from_dict(
        small | {"num_hidden_layers": 1, "vocab_size": _WORDS, "pad_token_id": None, "bos_token_id": 0,
                 "eos_token_id": 0}
    )  # fmt: skip
    dtype = getattr(torch, checkpoint.dtype)
    tensors: dict[str, Any] = {}
    with source_weights(checkpoint) as source:
        for name, shape in _shapes(_skeleton(config)).items():
            if not name.startswith(f"{stack.prefix}0."):
                tensors[name] = torch.zeros(shape, dtype=dtype)
                continue
            original = stack.name_in_model(name, block)
            tensor = source.raw(original)
            if tuple(tensor.shape) != shape:
                raise QuantizationError(
                    f"{checkpoint.path}: {original} has the shape {tuple(tensor.shape)}, and config.json says {shape}: "
                    "weights and config don't belong together."
                )
            tensors[name] = tensor.contiguous()
    with TemporaryDirectory(prefix="quench-block-") as folder:
        config.save_pretrained(folder)
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        del tensors
        yield replace(checkpoint, path=folder, sha256=f"{checkpoint.sha256}/{block}", unquantized_path=None)


def _shapes(model: Any) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
