"""The protocol of a backend, and the bit-widths that it is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

WIDTHS = (16, 8, 4, 3, 2, 1)
"""Bits per code that the matrix shows; a few backends have presets or names of 5, 6 and 7 bits as well."""


@runtime_checkable
class Quantizer(Protocol):
    """A backend: one way to turn a 16-bit checkpoint into a proved quantized model.

    Attributes:
        backend: Name of its module.
        deterministic: Whether the same checkpoint, spec and calibration give
            the same codes each time, on one machine and one device.
        install: Command that brings what it needs beside Quench itself.
        impossible: Widths in bits that it can't make, each with the reason in
            a few words; all other widths of ``WIDTHS`` are presets.
    """

    backend: str
    deterministic: bool
    install: str
    impossible: Mapping[int, str]

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns the specs that tables and defaults offer."""
        ...

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec of a full name, preset or not; None where it is not one of this backend's."""
        ...

    def library_version(self) -> str | None:
        """Returns the version of what does the quantizing; None where it is absent or there is none.

        It is part of every cell's key: another version, another cell.
        """
        ...

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns one sentence why ``spec`` can't run on ``device`` here, None where it can."""
        ...

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint quantized, dequantized into a dense model, and proved.

        The linear layers inside the transformer blocks are quantized, nothing
        else. The checkpoint's files are left as they are.

        Args:
            checkpoint: The dense 16-bit model.
            spec: One of this backend's.
            device: torch device of the model that comes back.
            calibration: The texts that ``calibration.prepare`` chose for
                ``spec``; unused where ``calibration.recipe_of`` it is None.

        Raises:
            QuantizationError: The backend failed, or its proof does not hold.
        """
        ...
