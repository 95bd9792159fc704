"""What every backend must do: functions that raise AssertionError where one doesn't."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import quantize
from harness.quantize.backend import WIDTHS
from harness.records import Checkpoint, QuantizedModel

WORST_ERROR: Mapping[int, float] = MappingProxyType({1: 1.2, 2: 0.8, 3: 0.4, 4: 0.2, 5: 0.1, 6: 0.05, 8: 0.02})
"""By width, the relative error that random weights may have at most; beyond it something went wrong."""

STRANGE_NAMES = ("", "-", "4bit", "int8", "reference", "rtn-4bit-g64", "x" * 10_000, "\N{SNOWMAN}")
"""Names that no backend but their own may know."""


def files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the digest of every file of a checkpoint by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(checkpoint.path).iterdir()}


def logits(model: Any) -> Any:
    """Returns a model's logits on twenty fixed tokens, [1, 20, vocabulary]."""
    import torch

    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


def check_names(name: str) -> None:
    """A backend's presets are found by name, are its own, and it knows no name of others."""
    backend = quantize.discover()[name]
    presets = backend.presets()
    assert len({spec.name for spec in presets}) == len(presets), "two presets have one name"
    for spec in presets:
        assert quantize.resolve(spec.name) == spec, f"{spec.name} is not found by its name"
        assert quantize.backend_of(spec) is backend
        assert backend.parse(spec.name) == spec
        assert spec.label, f"{spec.name} has no label"
        assert spec.bits in (16, *range(1, 9)), f"{spec.name} claims {spec.bits} bits"
    own = {spec.name for spec in presets}
    for strange in set(STRANGE_NAMES) - own:
        if not strange.startswith(f"{name}-"):
            assert backend.parse(strange) is None, f"{name} takes {strange[:40]!r} for a name of its own"


def check_facts(name: str) -> None:
    """A backend says of every width what it offers or why it does not, and why it can't run in one sentence."""
    backend = quantize.discover()[name]
    offered = {spec.bits for spec in backend.presets()}
    assert not offered & set(backend.impossible), "a width is both offered and impossible"
    for bits in WIDTHS[1:]:
        assert bits in offered or backend.impossible[bits].strip(), f"nothing is said of {bits} bit"
    assert isinstance(backend.deterministic, bool)
    assert backend.install.strip(), "it does not say how to install it"
    version = backend.library_version()
    assert version is None or version.strip(), "an empty version hides a change"
    for spec in backend.presets():
        for device in ("cpu", "cuda"):
            reason = backend.unavailable_reason(spec, device)
            assert reason is None or (reason.strip() and "\n" not in reason), f"{reason!r} is no sentence"


def check_repeats(first: QuantizedModel, second: QuantizedModel) -> None:
    """The same checkpoint and spec gave the same model, which computes, and is not in training mode."""
    import torch

    assert first.proof == second.proof, "quantizing twice gave two proofs"
    assert torch.equal(logits(first.model), logits(second.model)), "quantizing twice gave two models"
    assert bool(logits(first.model).isfinite().all()), "its logits are not finite"
    assert not first.model.training


def check_proof(quantized: QuantizedModel, *, linear_layers: int = 14) -> None:
    """A quantized model holds the proof that it claims: all of its block linears, on a grid, of counted bytes.

    Args:
        quantized: What the backend made of one of ``tiny_models.SHAPES``.
        linear_layers: Linear layers inside its blocks.
    """
    from harness.quantize.models.dense import block_linears

    spec, proof = quantized.spec, quantized.proof
    assert proof is not None, "a quantized model comes with its proof (harness.quantize.proof.prove)"
    assert proof.linear_layers == proof.quantized_layers == linear_layers
    assert proof.parameter_share == 1.0
    # A group of 16 weights can't have more than 16 levels.
    least = min(31 if spec.bits == 8 else 2 ** (spec.bits - 1), (spec.group_size or 128) - 1)
    assert least < proof.max_levels <= 2**spec.bits, f"{proof.max_levels} levels are not those of {spec.bits} bits"
    assert proof.group_size == spec.group_size
    assert proof.relative_error is not None
    assert 0 < proof.relative_error < WORST_ERROR[spec.bits], f"an error of {proof.relative_error} at {spec.bits} bits"
    assert proof.max_abs_error is not None
    assert proof.max_abs_error > 0
    linears = block_linears(quantized.model)
    weights = sum(linear.weight.numel() for linear in linears.values())
    counted = 8 * proof.size_bytes / weights
    assert abs(proof.bits_per_weight - counted) < 1e-6 * counted
    assert proof.bits_per_weight > spec.bits - 0.01, "fewer bits per weight than its codes have"
    # AWQ's codes are on a scale of their own in every model: such a backend hands on none.
    assert list(quantized.layers) in ([], list(linears)), "codes of some layers are missing"


def check_only_block_linears_change(quantized: QuantizedModel, original: Any, *, reference: bool = False) -> None:
    """Nothing but the linear layers inside the blocks has other weights than before.

    Args:
        quantized: What the backend made of the checkpoint.
        original: The checkpoint's model (``models.dense.load_dense``).
        reference: Whether not even those may have.
    """
    import torch

    from harness.quantize.models.dense import block_linears

    linears = {f"{name}.weight" for name in block_linears(original)}
    parameters = dict(quantized.model.named_parameters())
    for name, weight in original.named_parameters():
        same = torch.equal(weight, parameters[name])
        assert same == (name not in linears or reference), f"{name} {'is as it was' if same else 'has changed'}"
    if quantized.proof is not None:
        dense = {re.sub(r"\.\d+(?=\.|$)", ".*", name.removesuffix(".weight")) for name in set(parameters) - linears}
        assert set(quantized.proof.dense_modules) == dense
