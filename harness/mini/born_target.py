"""Rounds a model's linear layers to a 4-bit grid: how mini-target-4bit, the 4-bit target, is made."""

from __future__ import annotations

from typing import Any

from harness.errors import QuantizationError
from harness.quantize.backends.rtn import round_to_grid

BORN_BITS, BORN_GROUP = 4, 128
BORN_PASSES = 20
"""More than ever needed: four to six were, on trained weights."""


def round_linear_layers(model: Any) -> None:
    """Puts every linear weight inside the blocks onto the 4-bit grid, in place and in bfloat16 numbers.

    Embeddings, norms and output head stay as they are. One rounding is not
    quite enough: where the end of a group is cut off by half a step, or moves
    when its level is stored in bfloat16, a second one finds a slightly other
    grid. Repeated until nothing changes (five times or so), the model is what
    its quantization gives back, bit by bit.

    Raises:
        QuantizationError: A weight is not finite, or no end was found.
    """
    import torch

    for module in model.model.layers.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        for _ in range(BORN_PASSES):
            grid = round_to_grid(module.weight.data, bits=BORN_BITS, group_size=BORN_GROUP, symmetric=False)
            rounded = grid.dequantize().to(torch.bfloat16).float()
            if torch.equal(rounded, module.weight.data):
                break
            module.weight.data.copy_(rounded)
        else:
            raise QuantizationError(f"A weight is not on its own grid after {BORN_PASSES} roundings: build it again.")
