"""The effective rank of an update before quantization: over how many directions it spreads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.records import Checkpoint

EXACT_SIDE = 1024
"""Shorter side up to which the Gram matrix is computed: one of 4096 x 11008 takes 7 s on a thread, the estimate 0.9."""

PROBES = 32
"""Directions that a larger matrix is asked about."""


def effective_rank(update: Any) -> float | None:
    """Returns (sum s^2)^2 / sum s^4 over a matrix's singular values s: r for r equal ones.

    No singular value is computed: with G the Gram matrix this is
    trace(G)^2 / trace(G^2). Where ``EXACT_SIDE`` is exceeded trace(G^2) is
    estimated, with a fixed seed: exact for ranks up to ``PROBES``, and within
    3% for flat spectra.

    Args:
        update: Floating tensor [out_features, in_features].

    Returns:
        None where the matrix is zero.

    Source: the estimate is Hutch++ (Meyer et al., "Hutch++: Optimal Stochastic
        Trace Estimation", 2021) with normal probes.
    """
    import torch

    norm = float(torch.linalg.vector_norm(update, dtype=torch.float64))
    if norm == 0:
        return None
    # Scaled to norm 1 first: fourth powers of small updates leave float32's range.
    scaled = update.float() / norm
    if scaled.shape[0] > scaled.shape[1]:
        scaled = scaled.T
    if scaled.shape[0] <= EXACT_SIDE:
        return 1.0 / _square(scaled @ scaled.T)
    probes = torch.randn(scaled.shape[0], 2 * PROBES, generator=torch.Generator().manual_seed(0))
    basis, _ = torch.linalg.qr(scaled @ (scaled.T @ probes[:, :PROBES]))
    rest = probes[:, PROBES:] - basis @ (basis.T @ probes[:, PROBES:])
    within, beyond = (_square(scaled @ (scaled.T @ directions)) for directions in (basis, rest))
    return 1.0 / (within + beyond / PROBES)


def _square(values: Any) -> float:
    return float(values.double().square().sum())


def ranks_of(unlearned: Checkpoint, target: Checkpoint, layers: Iterable[str]) -> dict[str, float | None]:
    """Returns the effective rank of each layer's update; one layer is in memory at a time."""
    from harness.quantize.models.dense import source_weights

    with source_weights(unlearned) as new, source_weights(target) as old:
        return {name: effective_rank(new[name] - old[name]) for name in layers}
