"""AutoGPTQ, which most GPTQ checkpoints were made with; unmaintained, so it runs in an environment of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType

from harness.quantize import calibration as texts
from harness.quantize.environments import INSTALL
from harness.quantize.through_legacy import missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_NAME = re.compile(rf"autogptq-([8432])bit-(?:g([1-9]\d{{0,5}})|row)(-act)?(-sym)?{texts.NAME_ENDING}")

# The packed layout holds whole words of codes along both axes.
_MULTIPLE = 32

_KNOWN = ("gemma", "llama", "mistral", "qwen2")


def _spec(
    bits: int, group_size: int | None, *, symmetric: bool, reordered: bool = False, source: str = texts.RETAIN
) -> QuantizerSpec:
    groups = "row" if group_size is None else f"g{group_size}"
    told = "per row" if group_size is None else f"group {group_size}"
    ending = "" if source == texts.RETAIN else f"-calib-{source}"
    return QuantizerSpec(
        name=f"autogptq-{bits}bit-{groups}{'-act' if reordered else ''}{'-sym' if symmetric else ''}{ending}",
        backend="autogptq",
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        label=f"AutoGPTQ {bits}-bit, {told}, {'symmetric' if symmetric else 'asymmetric'}"
        + (", act-order" if reordered else "")
        + ("" if source == texts.RETAIN else f", calibrated on {source}"),
        options={"desc_act": reordered, **texts.options(source)},
    )


class AutoGptq:
    """AutoGPTQ on the CPU, read back from the checkpoint that it saves."""

    backend = "autogptq"
    deterministic = True
    install = INSTALL
    impossible = MappingProxyType({1: "AutoGPTQ packs 8, 4, 3 and 2 bits"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3 and 2 bits in groups of 128, and 4 bits in groups of 64; symmetric as its default is."""
        return tuple(
            _spec(bits, group, symmetric=True) for bits, group in ((8, 128), (4, 128), (4, 64), (3, 128), (2, 128))
        )

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``autogptq-{8,4,3,2}bit-g{N}`` or ``-row``.

        ``-act`` quantizes columns in the order of their activations, ``-sym``
        centres the grid on 0, ``-calib-{forget,holdout,random}`` calibrates on
        other text than the corpus's retain text; in this order.
        """
        told = _NAME.fullmatch(name)
        if told is None:
            return None
        bits, group, reordered, symmetric, source = told.groups()
        return _spec(
            int(bits),
            int(group) if group else None,
            symmetric=symmetric is not None,
            reordered=reordered is not None,
            source=source or texts.RETAIN,
        )

    def library_version(self) -> str | None:
        """Returns auto-gptq's version in the environment of its own, None where that is not made."""
        return version_of(self.backend)

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: an environment that is not made."""
        return missing_reason(spec)

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as AutoGPTQ quantizes it on the CPU, read back from its packed layers.

        Raises:
            QuantizationError: No calibration, a model that the library is not
                used for, a layer that the packed layout can't hold, a failure
                of the library, or the proof fails.
        """
        from harness.quantize import through_legacy
        from harness.quantize.calibrated import make
        from harness.quantize.proof import prove

        options = {"symmetric": spec.symmetric, "desc_act": spec.options["desc_act"]}
        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: through_legacy.run(checkpoint, spec, windows, place, known=_KNOWN, options=options),
            device=device,
            library="auto-gptq",
            row_multiple=_MULTIPLE,
            width_multiple=_MULTIPLE,
        )
        return made.finish(spec, prove(made.model, checkpoint, spec, made.layers, remarks=(made.remark,)))


BACKEND = AutoGptq()
