"""Records of quantized weights: proof, codes, survival of an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What reading a quantized model back has shown.

    Attributes:
        linear_layers: Linear layers inside the transformer blocks.
        quantized_layers: How many of them hold at most ``2**bits`` levels a
            group; bits are each layer's own where a remark tells several.
        parameter_share: Share of those layers' parameters that is quantized.
        max_levels: Largest number of distinct values found in one group.
        group_size: Group size that was checked; None means per row.
        bits_per_weight: Measured, scales and zero points included.
        size_bytes: Bytes of the quantized layers.
        max_abs_error: Largest difference to the 16-bit weights; None where
            those are not known (a checkpoint submitted quantized).
        relative_error: Frobenius norm of that difference over the weights'.
        codes_sha256: Digest over the codes (or dequantized levels).
        dense_modules: Modules with weights that stay in 16 bit.
        remarks: What a reader must know, e.g. run-time outlier columns.
        mean_abs_error: Mean of its size; None where it is not known or, in old rows, was not measured.
        symmetric: Whether 0 has the middle code everywhere; None where a code book or shifts decide, and in old rows.
        native_max_difference: Largest difference of logits between the
            library's own kernel and the dense model; None where none was run.
        native_mean_difference: Mean of the same.
        native_rounding_difference: Mean of what 16 bit makes of the dense model.
    """

    linear_layers: int
    quantized_layers: int
    parameter_share: float
    max_levels: int
    group_size: int | None
    bits_per_weight: float
    size_bytes: int
    max_abs_error: float | None
    relative_error: float | None
    codes_sha256: str
    dense_modules: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    mean_abs_error: float | None = None
    symmetric: bool | None = None
    native_max_difference: float | None = None
    native_mean_difference: float | None = None
    native_rounding_difference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSurvival:
    """How much of one layer's update is still there after quantization.

    With W_t the target's and W_u the unlearned model's 16-bit weights and Q
    the quantizer: dW = W_u - W_t and dQ = Q(W_u) - Q(W_t).

    Attributes:
        layer: Full module name.
        codes_changed: Share of codes that differ from the target's codes.
        update_in_steps: Mean of abs(dW) over the mean quantization step;
            None where the backend has no uniform step.
        relative_update: Norm of dW over norm of W_t.
        survival_ratio: <dQ, dW> / <dW, dW>; 1 = the update survives, 0 = it
            is gone; None where dW is zero or negligible.
        cosine: Cosine of dQ with dW; None where either is zero.
        num_weights: Parameters of the layer, to average with.
        update_norm: Frobenius norm of dW; None in old rows.
        norm_ratio: Norm of dQ over norm of dW; None where dW is zero, and in
            old rows.
        effective_rank: (sum s^2)^2 / sum s^4 over dW's singular values s: r
            for r equal ones; None where dW is zero, over all layers, and in
            old rows.
    """

    layer: str
    codes_changed: float
    update_in_steps: float | None
    relative_update: float
    survival_ratio: float | None
    cosine: float | None
    num_weights: int
    update_norm: float | None = None
    norm_ratio: float | None = None
    effective_rank: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayer:
    """Codes of one linear layer as read back from its backend.

    Attributes:
        codes: torch.uint8 tensor [out_features, in_features], on the CPU.
        step: Mean size of one code step in weight units, None if not uniform.
    """

    codes: Any
    step: float | None
