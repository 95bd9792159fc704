"""The codes of a layer with their scales, and how they make weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.quantize.formats.bit_stream import packed_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadBack:
    """One linear layer as read back from its backend.

    ``value = (book[code], or code - zero) * scale + shift``. It is plain data,
    so the proof can do that arithmetic itself instead of trusting a backend's.

    Attributes:
        codes: torch.uint8 [out_features, in_features] on the CPU.
        scales: Floating tensor: [out_features, groups], or [groups] where
            groups are ``flat``.
        bits: Bits per code, 1 to 8.
        group_size: Weights that share a scale; None means one row.
        zeros: Zero points in the shape of ``scales``; None where every group
            has ``offset``.
        offset: Code of 0.0 where there is no ``zeros`` and no ``book``.
        book: Levels by code, for code books; None for uniform grids.
        flat: Whether groups run through the row-major matrix, across rows.
        rounded_to: Floating dtype that the backend rounds its dequantized
            weights to, e.g. ``bfloat16``; None for float32.
        step: Mean distance of two neighbouring levels; None if not uniform.
        shifts: What is added after scaling, in the shape of ``scales``; None
            where nothing is.
        computed_in: Floating dtype of the backend's arithmetic, which rounds
            after each operation; None for float32.
        group_index: torch.int64 [in_features], the group of each column,
            where columns were quantized in another order than they lie; None
            where groups are neighbours.
        scale_bytes: Bytes that scales and shifts take where they are stored
            in another form, e.g. quantized themselves.
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
    shifts: Any = None
    computed_in: str | None = None
    group_index: Any = None
    scale_bytes: int | None = None

    def _per_weight(self, values: Any) -> Any:
        rows, width = self.codes.shape
        if self.group_index is not None:
            return values.view(rows, -1)[:, self.group_index]
        if self.flat:
            return values.reshape(-1).repeat_interleave(self.group_size)[: rows * width].view(rows, width)
        size = width if self.group_size is None else min(self.group_size, width)
        return values.view(rows, -1).repeat_interleave(size, dim=1)[:, :width]

    def dequantize(self) -> Any:
        """Returns the layer's weight as torch.float32 [out_features, in_features]."""
        import torch

        dtype = torch.float32 if self.computed_in is None else getattr(torch, self.computed_in)
        if self.book is not None:
            levels = self.book.to(dtype)[self.codes.int()]
        elif self.zeros is not None:
            levels = self.codes.to(dtype) - self._per_weight(self.zeros.to(dtype))
        else:
            levels = self.codes.to(dtype) - self.offset
        weight = levels * self._per_weight(self.scales.to(dtype))
        if self.shifts is not None:
            weight = weight + self._per_weight(self.shifts.to(dtype))
        return weight.float() if self.rounded_to is None else weight.to(getattr(torch, self.rounded_to)).float()

    @property
    def symmetric(self) -> bool | None:
        """Whether 0.0 has the middle code in every group; None for code books and shifted levels."""
        if self.book is not None or self.shifts is not None:
            return None
        middle = 2 ** (self.bits - 1)
        return self.offset == middle if self.zeros is None else bool((self.zeros == middle).all())

    @property
    def overhead_bytes(self) -> int:
        """Bytes of scales, zero points, shifts and column order; integer zero points are packed like codes."""
        if self.scale_bytes is not None:
            size = self.scale_bytes
        else:
            size = _bytes_of(self.scales) + (0 if self.shifts is None else _bytes_of(self.shifts))
        if self.group_index is not None:
            # Files store it as int32.
            size += 4 * int(self.group_index.numel())
        if self.zeros is None:
            return size
        if self.zeros.is_floating_point():
            return size + _bytes_of(self.zeros)
        return size + packed_size(int(self.zeros.numel()), self.bits)


def _bytes_of(values: Any) -> int:
    return int(values.numel() * values.element_size())
