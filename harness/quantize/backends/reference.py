"""The 16-bit reference: the checkpoint unchanged, to compare every quantized cell with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType

from harness.quantize.libraries import install_line, missing_reason
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_SPEC = QuantizerSpec(
    name="reference", backend="reference", bits=16, group_size=None, symmetric=None, label="16 bit (not quantized)"
)


class Reference:
    """No quantization: nothing to prove, and no codes."""

    backend = "reference"
    deterministic = True
    install = install_line("score")
    impossible = MappingProxyType(dict.fromkeys((8, 4, 3, 2, 1), "it is the checkpoint as it is"))

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns the one spec there is."""
        return (_SPEC,)

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``reference``."""
        return _SPEC if name == _SPEC.name else None

    def library_version(self) -> str | None:
        """Returns None: nothing quantizes."""
        return None

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: torch or transformers is not installed."""
        return missing_reason(spec.name, ("torch", "transformers"), extra="score")

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint's own model, without proof and without codes."""
        from harness.quantize.models.dense import load_dense
        from harness.quantize.models.streamed import must_stream, streamed_model

        started = time.perf_counter()
        by_block = must_stream(checkpoint, device=device, quantized=False)
        model = streamed_model(checkpoint, device=device) if by_block else load_dense(checkpoint, device=device)
        seconds = time.perf_counter() - started
        return QuantizedModel(
            model=model, spec=spec, proof=None, layers={}, quantize_seconds=seconds, streamed=by_block
        )  # fmt: skip


BACKEND = Reference()
