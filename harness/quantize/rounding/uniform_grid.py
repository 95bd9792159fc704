"""Round to nearest on a uniform grid: codes, scales and zero points of one weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import QuantizationError
from harness.quantize.formats.bit_stream import check_bits, packed_size

_SHARES = tuple(percent / 100 for percent in range(98, 28, -2))

# float16: smallest normal number, spacing below it, and largest number.
_NORMAL, _SPACING, _LARGEST = 2.0**-14, 2.0**-24, 65504.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """One weight on a uniform grid; value = (code - zero) * scale.

    Attributes:
        codes: torch.uint8 [out_features, in_features], each below ``2**bits``.
        scales: torch.float16 or torch.float32 [out_features, groups].
        zeros: torch.uint8 [out_features, groups], the code of 0.0; always
            ``2**(bits - 1)``, and not stored, where ``symmetric``.
        bits: Bits per code, 2 to 8.
        group_size: Consecutive weights of a row that share a scale; None
            means the whole row. The last group of a row may be shorter.
        symmetric: Whether the grid is centred on 0.
    """

    codes: Any
    scales: Any
    zeros: Any
    bits: int
    group_size: int | None
    symmetric: bool

    def dequantize(self) -> Any:
        """Returns the weight as torch.float32 [out_features, in_features].

        Exact with float16 scales: one of 11 bits times a code difference of
        at most 8 bits fits into float32.
        """
        width = self.codes.shape[1]
        size = width if self.group_size is None else min(self.group_size, width)
        scales = self.scales.float().repeat_interleave(size, dim=1)[:, :width]
        zeros = self.zeros.float().repeat_interleave(size, dim=1)[:, :width]
        return (self.codes.float() - zeros) * scales

    @property
    def size_bytes(self) -> int:
        """Bytes of packed codes, scales and packed zero points."""
        groups, weights = int(self.scales.numel()), int(self.codes.numel())
        zeros = 0 if self.symmetric else packed_size(groups, self.bits)
        return packed_size(weights, self.bits) + groups * int(self.scales.element_size()) + zeros

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight with a scale and, if asymmetric, a zero code per group."""
        overhead = 8 * int(self.scales.element_size()) + (0 if self.symmetric else self.bits)
        return self.bits + overhead * int(self.scales.numel()) / int(self.codes.numel())

    @property
    def step(self) -> float:
        """Mean distance of two neighbouring levels, in weight units, over the groups."""
        return float(self.scales.double().mean())


def _check(weight: Any, bits: int, group_size: int | None) -> None:
    check_bits(bits, least=2)
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise QuantizationError(
            f"A weight of shape {tuple(weight.shape)} and type {weight.dtype} can't be rounded to a grid: "
            "a non-empty matrix [out_features, in_features] of floating-point numbers is needed."
        )
    if group_size is not None and (isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1):
        raise QuantizationError(
            f"Group size {group_size!r} can't be used: give a whole number from 1 up, or None per row."
        )
    if not bool(weight.isfinite().all()):
        raise QuantizationError("The weight holds NaN or infinity, which no grid can hold: repair the checkpoint.")


def _in_groups(weight: Any, group_size: int | None) -> Any:
    """Returns the weight as float32 [out, groups, size]; a short last group repeats its last column."""
    import torch

    out, width = weight.shape
    size = width if group_size is None else min(group_size, width)
    missing = -width % size
    padded = weight.float()
    if missing:
        # Repeating a member moves neither minimum nor maximum of its group.
        padded = torch.cat([padded, padded[:, -1:].expand(out, missing)], dim=1)
    return padded.reshape(out, -1, size)


def _to_float16(scales: Any) -> Any:
    """Returns scales as float16, upwards where float16 is too coarse to round them."""
    import torch

    if float(scales.max()) > _LARGEST:
        raise QuantizationError(
            f"A group of weights needs a scale of {float(scales.max()):.3g}, and float16 scales end at {_LARGEST:.0f}: "
            "weights this large are no usable model."
        )
    # Below the normal range a scale rounded down could cut off the ends of its
    # group; rounded up to float16's spacing it can't.
    tiny = (scales / _SPACING).ceil() * _SPACING
    return torch.where(scales < _NORMAL, tiny, scales).half()


def _to_float32(scales: Any) -> Any:
    if not bool(scales.isfinite().all()):
        raise QuantizationError(
            "The span of a group of weights is beyond float32: weights this large are no usable model."
        )
    return scales


def round_to_grid(
    weight: Any, *, bits: int, group_size: int | None, symmetric: bool, wide_scales: bool = False
) -> Grid:
    """Returns ``weight`` rounded to the nearest level of a uniform grid per group.

    Asymmetric: the grid spans the group's minimum to maximum, widened to hold
    0, with an integer zero point. Symmetric: it is centred on 0 with a step of
    ``2 * max(abs(w)) / (2**bits - 1)``. Codes are chosen against the scale
    that is stored, in float16 unless ``wide_scales``, so no value lies further
    from its level than half a step plus what rounding the scale moved the end
    of the grid.

    Groups of one repeated value come back exactly where float16 holds the
    value (so do all-zero groups, at every width). Groups whose step would fall
    below float16's smallest number, 2**-24, take that number as their step.

    Args:
        weight: Floating tensor [out_features, in_features], any device.
        bits: Bits per code, 2 to 8.
        group_size: Weights of a row that share a scale; None means per row.
        symmetric: Whether the grid is centred on 0.
        wide_scales: Keep scales in float32, as research code that never packs
            its weights does.

    Raises:
        QuantizationError: Not a matrix, not finite, arguments out of range, or
            weights too large for the scales.

    Source: the quantizer of GPTQ (Frantar et al., ICLR 2023; ``quant.py``),
        without its search for a smaller range.
    Differs from the reference: float16 scales, exact constant groups, and a
        short last group instead of a refusal.
    """
    _check(weight, bits, group_size)
    groups = _in_groups(weight, group_size)
    return _as_grid(weight, *_round(groups, bits, symmetric, 1.0, wide_scales), bits, group_size, symmetric)


def _as_grid(
    weight: Any, codes: Any, scales: Any, zeros: Any, bits: int, group_size: int | None, symmetric: bool
) -> Grid:
    import torch

    return Grid(
        codes=codes.reshape(weight.shape[0], -1)[:, : weight.shape[1]].contiguous(),
        scales=scales,
        zeros=zeros.to(torch.uint8),
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )


def _round(groups: Any, bits: int, symmetric: bool, share: float, wide_scales: bool = False) -> tuple[Any, Any, Any]:
    """Returns codes [out, groups, size], scales and zeros [out, groups] of a grid over a share of the range."""
    import torch

    top = 2**bits - 1
    least, greatest = groups.amin(dim=2), groups.amax(dim=2)
    low, high = least.clamp(max=0), greatest.clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    # For float16 divided before the subtraction: the span of two finite floats may overflow.
    span = (high - low) / top if wide_scales else high / top - low / top
    scales = _to_float32(span * share) if wide_scales else _to_float16(span * share)

    held = greatest.abs().to(scales.dtype)
    constant = (least == greatest) & (held.float() == greatest.abs())
    scales = torch.where(constant, held, scales)
    # All-zero groups have every scale to choose from; 0 would make codes 0/0.
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)

    wide = scales.float()
    zeros = torch.full_like(wide, 2 ** (bits - 1)) if symmetric else (-low * share / wide).round().clamp(0, top)
    codes = ((groups / wide[..., None]).round() + zeros[..., None]).clamp(0, top).to(torch.uint8)
    return codes, scales, zeros


def round_to_clipped_grid(weight: Any, *, bits: int, group_size: int | None, symmetric: bool) -> Grid:
    """Returns ``weight`` rounded to the grid of least squared error among grids of a smaller range.

    Each group takes, of the ranges of 100%, 98%, ... 30% of its own, the one
    whose rounded weights lie nearest to the weights; of equals the widest.

    Args:
        weight: Floating tensor [out_features, in_features], any device.
        bits: Bits per code, 2 to 8.
        group_size: Weights of a row that share a scale; None means per row.
        symmetric: Whether the grid is centred on 0.

    Raises:
        QuantizationError: As ``round_to_grid``.

    Source: the range search of GPTQ (Frantar et al., ICLR 2023; ``quant.py``,
        ``mse=True``).
    Differs from the reference: squared error instead of the power 2.4, and
        steps of 2% down to 30% instead of 1% down to 20%.
    """
    import torch

    _check(weight, bits, group_size)
    groups = _in_groups(weight, group_size)
    size = groups.shape[2]
    # Columns that only fill up the last group must not weigh on its range.
    counted = (torch.arange(groups.shape[1] * size, device=groups.device) < weight.shape[1]).view(-1, size)
    codes, scales, zeros = _round(groups, bits, symmetric, 1.0)
    least = _squared_error(groups, codes, scales, zeros, counted)
    for share in _SHARES:
        other = _round(groups, bits, symmetric, share)
        error = _squared_error(groups, *other, counted)
        better = error < least
        least = torch.where(better, error, least)
        codes = torch.where(better[..., None], other[0], codes)
        scales = torch.where(better, other[1], scales)
        zeros = torch.where(better, other[2], zeros)
    return _as_grid(weight, codes, scales, zeros, bits, group_size, symmetric)


def _squared_error(groups: Any, codes: Any, scales: Any, zeros: Any, counted: Any) -> Any:
    """Returns the sum of squared rounding errors of each group, [out, groups]."""
    error = (codes.float() - zeros[..., None]) * scales.float()[..., None] - groups
    return (error.square() * counted).sum(dim=2)
