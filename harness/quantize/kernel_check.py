"""Compares a library's own kernels with the dense model that is scored, on the same text.

What is scored are dense weights (every backend is judged by the same
arithmetic); what is shipped runs through a library's kernels. Where those run
on this device, one batch of real text says how far the two are apart, and
whether that is more than computing in 16 bit explains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from harness.errors import QuantizationError, first_line
from harness.quantize import backend_of
from harness.records import Checkpoint, Proof, QuantizedModel, QuantizerSpec

TEXTS, TOKENS = 4, 128
"""Texts of a batch, and tokens of each."""


@runtime_checkable
class RunsNatively(Protocol):
    """What a backend has whose library can run the model that it quantized."""

    def native(self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str) -> Any:
        """Returns the checkpoint's model in its own dtype, its block linears replaced by the library's layers.

        Raises:
            QuantizationError: There is no kernel for ``spec`` on ``device``.
        """
        ...


def probe(
    quantized: QuantizedModel, checkpoint: Checkpoint, tokenizer: Any, texts: Sequence[str], *, device: str
) -> QuantizedModel:
    """Returns the quantized model with what its library's kernels make of some texts noted in its proof.

    Backends that have no kernel come back as they are; where a kernel fails or
    overflows, a remark says so and no figure is noted.

    Args:
        quantized: A dense model with its proof.
        checkpoint: What it was quantized from.
        tokenizer: That of the checkpoint.
        texts: Real text of the corpus; the first ``TEXTS`` are used.
        device: torch device of both.
    """
    backend = backend_of(quantized.spec)
    proof = quantized.proof
    if proof is None or not isinstance(backend, RunsNatively):
        return quantized
    rows = quantized.model.get_input_embeddings().num_embeddings
    try:
        read = [tokenizer(text)["input_ids"][:TOKENS] for text in texts[:TEXTS]]
        batch = [ids for ids in read if ids and max(ids) < rows]
        made = backend.native(checkpoint, quantized.spec, device=device)
        found = _compare(quantized.model, made, batch, checkpoint.dtype)
    except QuantizationError as error:
        remark = str(error)
    # Whatever a library's kernel does, the cells of this model don't need it.
    except Exception as error:
        said = first_line(error)[:200]
        remark = f"Its library's own kernel failed on this device, which says: {said}"
    else:
        if all(map(math.isfinite, found)):
            return replace(quantized, proof=_noted(proof, found))
        remark = "Its library's own kernel overflows on this device: some of the logits are NaN or infinite."
    return replace(quantized, proof=replace(proof, remarks=(*proof.remarks, remark)))


def _noted(proof: Proof, found: tuple[float, float, float]) -> Proof:
    most, mean, rounding = found
    return replace(proof, native_max_difference=most, native_mean_difference=mean, native_rounding_difference=rounding)


def _compare(dense: Any, native: Any, batch: Sequence[Sequence[int]], dtype: str) -> tuple[float, float, float]:
    """Returns the largest and mean difference of logits, and the mean difference that another precision makes.

    The last is that of the dense model in 16 bit and in float32: both hold the
    same weights, but for their last rounding.
    """
    import torch

    other = copy.deepcopy(dense).to(getattr(torch, dtype) if dense.dtype == torch.float32 else torch.float32)
    largest, sums, rounding, count = 0.0, 0.0, 0.0, 0
    with torch.inference_mode():
        for ids in batch:
            tokens = torch.tensor([list(ids)], device=dense.device)
            expected, found, rounded = (
                model(input_ids=tokens, use_cache=False).logits.float() for model in (dense, native, other)
            )
            apart = (found - expected).abs()
            largest = max(largest, float(apart.max()))
            sums += float(apart.double().sum())
            rounding += float((rounded - expected).abs().double().sum())
            count += apart.numel()
    return largest, sums / count, rounding / count
