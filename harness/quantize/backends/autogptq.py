"""AutoGPTQ, which most GPTQ checkpoints were made with; unmaintained, so it runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from harness.quantize.backends.gptq import GptqNames
from harness.quantize.legacy.environments import INSTALL
from harness.quantize.runners.legacy import missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec

_NAMES = GptqNames(backend="autogptq", label="AutoGPTQ")

# The packed layout holds whole words of codes along both axes.
_MULTIPLE = 32

_KNOWN = ("gemma", "llama", "mistral", "qwen2")


class AutoGptq:
    """AutoGPTQ on the CPU, read back from the checkpoint that it saves."""

    backend = "autogptq"
    deterministic = True
    install = INSTALL
    impossible = MappingProxyType({1: "AutoGPTQ packs 8, 4, 3 and 2 bits"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3 and 2 bits in groups of 128, and 4 bits in groups of 64; symmetric as its default is."""
        return tuple(
            _NAMES.spec(bits, group, symmetric=True)
            for bits, group in ((8, 128), (4, 128), (4, 64), (3, 128), (2, 128))
        )

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``autogptq-{8,4,3,2}bit-g{N}`` or ``-row``.

        ``-act`` quantizes columns in the order of their activations, ``-sym``
        centres the grid on 0, ``-calib-{forget,holdout,random}`` calibrates on
        other text than the corpus's retain text; in this order.
        """
        return _NAMES.parse(name)

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
        from harness.quantize.proof import prove
        from harness.quantize.runners import legacy as legacy_runner
        from harness.quantize.runners.calibrated import make

        options = {"symmetric": spec.symmetric, "desc_act": spec.options["desc_act"]}
        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: legacy_runner.run(checkpoint, spec, windows, place, known=_KNOWN, options=options),
            device=device,
            library="auto-gptq",
            row_multiple=_MULTIPLE,
            width_multiple=_MULTIPLE,
        )
        return made.finish(spec, prove(made.model, checkpoint, spec, made.layers, remarks=(made.remark,)))


BACKEND = AutoGptq()
