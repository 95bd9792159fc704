"""GPTQ through gptqmodel: 8 to 2 bits, each column's rounding error spread over the columns still to come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from harness.quantize import calibration as texts
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_CHOICES = rf"-([8432])bit-(?:g([1-9]\d{{0,5}})|row)(-act)?(-sym)?{texts.NAME_ENDING}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqNames:
    """The names of one backend.

    Attributes:
        backend: Its name, which all of them begin with.
        label: What labels begin with.
    """

    backend: str
    label: str

    def spec(
        self, bits: int, group_size: int | None, *, symmetric: bool, reordered: bool = False, source: str = texts.RETAIN
    ) -> QuantizerSpec:
        """Returns the spec of these choices; ``reordered``: columns in the order of their activations."""
        groups = "row" if group_size is None else f"g{group_size}"
        told = "per row" if group_size is None else f"group {group_size}"
        ending = "" if source == texts.RETAIN else f"-calib-{source}"
        act, sym = "-act" if reordered else "", "-sym" if symmetric else ""
        return QuantizerSpec(
            name=f"{self.backend}-{bits}bit-{groups}{act}{sym}{ending}",
            backend=self.backend,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            label=f"{self.label} {bits}-bit, {told}, {'symmetric' if symmetric else 'asymmetric'}"
            + (", act-order" if reordered else "")
            + ("" if source == texts.RETAIN else f", calibrated on {source}"),
            options={"desc_act": reordered, **texts.options(source)},
        )

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec of a full name, None where it is not one of this backend's."""
        told = re.fullmatch(self.backend + _CHOICES, name)
        if told is None:
            return None
        bits, group, reordered, symmetric, source = told.groups()
        return self.spec(
            int(bits),
            int(group) if group else None,
            symmetric=symmetric is not None,
            reordered=reordered is not None,
            source=source or texts.RETAIN,
        )


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
        from harness.quantize.proof import prove
        from harness.quantize.runners import gptqmodel as gptqmodel_runner
        from harness.quantize.runners.calibrated import make

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
            lambda windows, place: gptqmodel_runner.run(checkpoint, windows, place, dtype=dtype, config_of=config_of),
            device=device,
            library=gptqmodel_runner.DISTRIBUTION,
            row_multiple=_MULTIPLE,
            width_multiple=_MULTIPLE,
        )
        return made.finish(spec, prove(made.model, checkpoint, spec, made.layers, remarks=(made.remark,)))


BACKEND = Gptq()
