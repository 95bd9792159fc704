"""What a backend hands over of each layer: codes, scales, and how they make weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.quantize.packing import packed_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadBack:
    """One linear layer as read back from its backend.

    ``value = (book[code], or code - zero) * scale``. It is plain data, so the
    proof can do that arithmetic itself instead of trusting a backend's.

    Attributes:
        codes: torch.uint8 [out_features, in_features] on the CPU.
        scales: Floating tensor: [out_features, groups], or [groups] where
            groups are ``flat``.
        bits: Bits per code.
        group_size: Weights that share a scale; None means one row.
        zeros: Zero points in the shape of ``scales``; None where every group
            has ``offset``.
        offset: Code of 0.0 where there is no ``zeros`` and no ``book``.
        book: Levels by code, for code books; None for uniform grids.
        flat: Whether groups run through the row-major matrix, across rows.
        rounded_to: Floating dtype that the backend rounds its dequantized
            weights to, e.g. ``bfloat16``; None for float32.
        step: Mean distance of two neighbouring levels; None if not uniform.
    """

    codes: Any
    scales: Any
    bits: int
    group_size: int | None
    zeros: Any = None
    offset: int = 0
    book: Any = None
    flat: bool = False
    rounded_to: str | None = None
    step: float | None = None

    def _per_weight(self, values: Any) -> Any:
        rows, width = self.codes.shape
        if self.flat:
            return values.reshape(-1).repeat_interleave(self.group_size)[: rows * width].view(rows, width)
        size = width if self.group_size is None else min(self.group_size, width)
        return values.view(rows, -1).repeat_interleave(size, dim=1)[:, :width]

    def dequantize(self) -> Any:
        """Returns the layer's weight as torch.float32 [out_features, in_features]."""
        import torch

        if self.book is not None:
            levels = self.book.float()[self.codes.int()]
        elif self.zeros is not None:
            levels = self.codes.float() - self._per_weight(self.zeros.float())
        else:
            levels = self.codes.float() - self.offset
        weight = levels * self._per_weight(self.scales.float())
        return weight if self.rounded_to is None else weight.to(getattr(torch, self.rounded_to)).float()

    @property
    def overhead_bytes(self) -> int:
        """Bytes of scales and zero points; integer zero points are packed like codes."""
        size = int(self.scales.numel() * self.scales.element_size())
        if self.zeros is None:
            return size
        if self.zeros.is_floating_point():
            return size + int(self.zeros.numel() * self.zeros.element_size())
        return size + packed_size(int(self.zeros.numel()), self.bits)
