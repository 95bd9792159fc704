"""Linear layers of a float32 model through oneDNN, where that is the faster way on a CPU.

torch multiplies float32 matrices with MKL, which leaves part of some CPUs'
arithmetic unused. Measured on two cores of an AMD EPYC with AVX-512, GFLOP/s
of MKL and oneDNN: 85 and 102 for 1,822 rows through SmolLM2's feed-forward
layers, 70 and 87 through its output layer, 41 and 62 for 24 rows of the latter.
Results differ as those of any two orders of summation do: Min-40% of a text of
1,822 tokens is as far from float64's (3e-7) either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

_WORTHWHILE = 2**24
"""Multiplications of a layer from which on the call itself costs next to nothing."""


def replaceable(model: Any) -> list[Any]:
    """Returns the modules of a model that ``through_onednn`` can speed up on this machine, possibly none."""
    import torch

    if model.device.type != "cpu" or not _is_faster_here():
        return []
    return [
        module for module in model.modules() if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32
    ]


@contextmanager
def through_onednn(linears: Sequence[Any]) -> Iterator[None]:
    """Has these linear layers computed by oneDNN within the block."""
    for linear in linears:
        linear.forward = partial(_forward, linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _forward(linear: Any, hidden: Any) -> Any:
    import torch

    weight = linear.weight
    if hidden.dtype != weight.dtype or hidden.numel() * len(weight) < _WORTHWHILE:
        return torch.nn.functional.linear(hidden, weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, linear.bias, "none", [], "")


@cache
def _is_faster_here() -> bool:
    """Returns whether this CPU is of the kind that gained, and torch's operator (compiled models use it) is there."""
    import torch

    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    hidden, weight = torch.linspace(-1, 1, 64).reshape(4, 16), torch.linspace(-2, 1, 128).reshape(8, 16)
    try:
        found = torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found, hidden @ weight.T, atol=1e-5))
