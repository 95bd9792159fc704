"""AutoAWQ, which most AWQ checkpoints were made with; unmaintained, so it runs in an environment of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from types import MappingProxyType

from harness.quantize import calibration as texts
from harness.quantize.legacy.environments import INSTALL
from harness.quantize.runners.legacy import missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_NAME = re.compile(rf"autoawq-4bit-g([1-9]\d{{0,5}}){texts.NAME_ENDING}")

# Its search for a clipping range goes through the rows in such batches.
_MULTIPLE = 64

_KNOWN = ("gemma", "llama", "mistral", "qwen2", "qwen3")


def _spec(group_size: int, *, source: str = texts.RETAIN) -> QuantizerSpec:
    ending = "" if source == texts.RETAIN else f"-calib-{source}"
    return QuantizerSpec(
        name=f"autoawq-4bit-g{group_size}{ending}",
        backend="autoawq",
        bits=4,
        group_size=group_size,
        symmetric=False,
        label=f"AutoAWQ 4-bit, group {group_size}, asymmetric"
        + ("" if source == texts.RETAIN else f", calibrated on {source}"),
        options=texts.options(source),
    )


class AutoAwq:
    """AutoAWQ on the CPU, read back from the checkpoint that it saves."""

    backend = "autoawq"
    deterministic = True
    install = INSTALL
    impossible = MappingProxyType(dict.fromkeys((8, 3, 2, 1), "AutoAWQ makes 4 bit alone"))

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 4 bits, the one width that the library makes, in groups of 128 and 64; asymmetric."""
        return tuple(_spec(group) for group in (128, 64))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``autoawq-4bit-g{N}``, then ``-calib-{forget,holdout,random}``."""
        told = _NAME.fullmatch(name)
        if told is None:
            return None
        group, source = told.groups()
        return _spec(int(group), source=source or texts.RETAIN)

    def library_version(self) -> str | None:
        """Returns autoawq's version in the environment of its own, None where that is not made."""
        return version_of(self.backend)

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: an environment that is not made."""
        return missing_reason(spec)

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as AutoAWQ quantizes it on the CPU, with all tensors of the quantized checkpoint.

        Raises:
            QuantizationError: No calibration, a model that the library is not
                used for, a layer that the packed layout can't hold, a failure
                of the library, or the proof fails.
        """
        from harness.quantize.backends.awq import REMARK, Rescaled
        from harness.quantize.models.dense import source_weights
        from harness.quantize.proof import prove
        from harness.quantize.runners import legacy as legacy_runner
        from harness.quantize.runners.calibrated import make

        # As the library loads a 16-bit checkpoint.
        options = {"dtype": "float16" if checkpoint.dtype == "float32" else checkpoint.dtype}
        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: legacy_runner.run(checkpoint, spec, windows, place, known=_KNOWN, options=options),
            device=device,
            library="autoawq",
            row_multiple=_MULTIPLE,
            width_multiple=spec.group_size or 1,
        )
        with source_weights(checkpoint) as source:
            proof = prove(
                made.model, checkpoint, spec, made.layers, remarks=(made.remark, REMARK),
                reference=Rescaled(source, made.layers),
            )  # fmt: skip
        # No codes are handed on: on another scale in every model, they can't be compared with the target's.
        return dataclasses.replace(made.finish(spec, proof), layers={})


BACKEND = AutoAwq()
