"""AWQ through gptqmodel: 4 bits, columns scaled up where activations are large before plain rounding.

The scales are folded into the layer before, so norms and neighbouring layers
change too: the model that is scored takes all of them from the quantized
checkpoint, and the error is measured after the scales are taken out again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.quantize import calibration as texts
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

if TYPE_CHECKING:
    from harness.quantize.formats.codes import ReadBack

_NAME = re.compile(rf"awq-4bit-g([1-9]\d{{0,5}})(-sym)?{texts.NAME_ENDING}")

# Its search for a clipping range goes through the rows in such batches.
_MULTIPLE = 64

REMARK = (
    "AWQ folds scales into norms and neighbouring layers, so those are the quantized checkpoint's; errors are measured "
    "after taking row and column scales out, and survival of single layers is not."
)
"""What a proof says of a model that went through AWQ, whichever library did it."""


def _spec(group_size: int, *, symmetric: bool = False, source: str = texts.RETAIN) -> QuantizerSpec:
    ending = "" if source == texts.RETAIN else f"-calib-{source}"
    return QuantizerSpec(
        name=f"awq-4bit-g{group_size}{'-sym' if symmetric else ''}{ending}",
        backend="awq",
        bits=4,
        group_size=group_size,
        symmetric=symmetric,
        label=f"AWQ 4-bit, group {group_size}, {'symmetric' if symmetric else 'asymmetric'}"
        + ("" if source == texts.RETAIN else f", calibrated on {source}"),
        options=texts.options(source),
    )


def rescaled(original: Any, quantized: Any) -> Any:
    """Returns ``original`` with the row and column scales that bring it nearest to ``quantized``.

    Both scales are found by alternating least squares; where AWQ changed no
    scale they come out near 1.

    Args:
        original: torch.float32 [out_features, in_features], the checkpoint's.
        quantized: The same layer as AWQ left it, dequantized.
    """
    import torch

    rows, columns = torch.ones(original.shape[0]), torch.ones(original.shape[1])
    for _ in range(20):
        columns = _fit(quantized, original * rows[:, None], dim=0)
        rows = _fit(quantized, original * columns[None], dim=1)
    return original * rows[:, None] * columns[None]


def _fit(wanted: Any, given: Any, dim: int) -> Any:
    import torch

    square = given.square().sum(dim)
    return torch.where(square > 0, (wanted * given).sum(dim) / square.clamp(min=1e-30), 1.0)


class Rescaled(Mapping[str, Any]):
    """A checkpoint's own weights in the scales that AWQ put them into, one layer at a time."""

    def __init__(self, source: Mapping[str, Any], layers: Mapping[str, ReadBack]) -> None:
        self._source, self._layers = source, layers

    def __getitem__(self, name: str) -> Any:
        return rescaled(self._source[name], self._layers[name].dequantize())

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Awq:
    """gptqmodel's AWQ, read back from the checkpoint that it saves."""

    backend = "awq"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType(
        dict.fromkeys((8, 3, 2, 1), "AWQ's GEMM layout, in which its checkpoints are shipped, holds 4-bit codes alone")
    )

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 4 bits in groups of 128 and 64, asymmetric as AWQ checkpoints are shipped."""
        return tuple(_spec(group) for group in (128, 64))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``awq-4bit-g{N}``, then ``-sym``, then ``-calib-{forget,holdout,random}``."""
        told = _NAME.fullmatch(name)
        if told is None:
            return None
        group, symmetric, source = told.groups()
        return _spec(int(group), symmetric=symmetric is not None, source=source or texts.RETAIN)

    def library_version(self) -> str | None:
        """Returns gptqmodel's version, None where it is not installed."""
        return version_of("gptqmodel")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("gptqmodel",))

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as AWQ quantizes it, with all tensors of the quantized checkpoint.

        Raises:
            QuantizationError: No calibration, a layer that the packed layout
                can't hold, a failure of the library, or the proof fails.
        """
        from harness.quantize.models.dense import source_weights
        from harness.quantize.proof import prove
        from harness.quantize.runners import gptqmodel as gptqmodel_runner
        from harness.quantize.runners.calibrated import make

        def config_of(configs: Any) -> Any:
            return configs.AWQConfig(
                bits=spec.bits, group_size=spec.group_size, sym=spec.symmetric, device=device, offload_to_disk=False,
                fallback=None,
            )  # fmt: skip

        # Its layers take 16-bit weights alone.
        dtype = "float16" if checkpoint.dtype == "float32" else checkpoint.dtype
        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: gptqmodel_runner.run(
                checkpoint, windows, place, dtype=dtype, config_of=config_of,
                options=lambda library: {"backend": library.BACKEND.AWQ_TORCH},
            ),
            device=device,
            library=gptqmodel_runner.DISTRIBUTION,
            row_multiple=_MULTIPLE,
            width_multiple=spec.group_size or 1,
        )  # fmt: skip
        with source_weights(checkpoint) as source:
            proof = prove(
                made.model, checkpoint, spec, made.layers, remarks=(made.remark, REMARK),
                reference=Rescaled(source, made.layers),
            )  # fmt: skip
        # No codes are handed on: on another scale in every model, they can't be compared with the target's.
        return dataclasses.replace(made.finish(spec, proof), layers={})


BACKEND = Awq()
