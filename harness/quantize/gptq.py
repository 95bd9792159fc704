"""GPTQ through gptqmodel: 8 to 2 bits, each column's rounding error spread over the columns still to come."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from harness.quantize.gptq_names import GptqNames
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_NAMES = GptqNames(backend="gptq", label="GPTQ")

# The packed layout holds whole words of codes along both axes.
_MULTIPLE = 32


class Gptq:
    """gptqmodel's GPTQ, read back from the checkpoint that it saves."""

    backend = "gptq"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType({1: "gptqmodel packs 2 to 8 bits"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3 and 2 bits in groups of 128 and 64, symmetric as the library's default is."""
        return tuple(_NAMES.spec(bits, group, symmetric=True) for bits in (8, 4, 3, 2) for group in (128, 64))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``gptq-{8,4,3,2}bit-g{N}`` or ``-row``.

        ``-act`` quantizes columns in the order of their activations, ``-sym``
        centres the grid on 0, ``-calib-{forget,holdout,random}`` calibrates on
        other text than the corpus's retain text; in this order.
        """
        return _NAMES.parse(name)

    def library_version(self) -> str | None:
        """Returns gptqmodel's version, None where it is not installed."""
        return version_of("gptqmodel")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("gptqmodel",))

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as GPTQ quantizes it, read back from its packed layers.

        Raises:
            QuantizationError: No calibration, a layer that the packed layout
                can't hold, a failure of the library, or the proof fails.
        """
        from harness.quantize import through_gptqmodel
        from harness.quantize.calibrated import make
        from harness.quantize.proof import prove

        def config_of(configs: Any) -> Any:
            return configs.GPTQConfig(
                bits=spec.bits,
                group_size=-1 if spec.group_size is None else spec.group_size,
                sym=spec.symmetric,
                desc_act=spec.options["desc_act"],
                # Its own default, which it does not lift where there is one group alone.
                act_group_aware=spec.group_size is not None and not spec.options["desc_act"],
                # The first variant can't store a zero point of 0.
                format="gptq" if spec.symmetric else "gptq_v2",
                device=device,
                offload_to_disk=False,
                # Else layers that see little text would be rounded plainly, under GPTQ's name.
                fallback=None,
            )

        # Many CPUs have no fast 16-bit arithmetic.
        dtype = "float32" if device == "cpu" else checkpoint.dtype
        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: through_gptqmodel.run(checkpoint, windows, place, dtype=dtype, config_of=config_of),
            device=device,
            library=through_gptqmodel.DISTRIBUTION,
            row_multiple=_MULTIPLE,
            width_multiple=_MULTIPLE,
        )
        return made.finish(spec, prove(made.model, checkpoint, spec, made.layers, remarks=(made.remark,)))


BACKEND = Gptq()
