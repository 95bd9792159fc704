"""AutoRound: learns block by block which way each weight is rounded and how wide each grid is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from harness import model_files
from harness.quantize import calibration as texts
from harness.quantize.libraries import install_line, missing_reason, version_of
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec
from harness.tokenizer import load_tokenizer

ITERATIONS = 200
"""Steps for each block, the library's default."""

_NAME = re.compile(rf"autoround-([8432])bit-g([1-9]\d{{0,5}})(-sym)?(?:-iters(0|[1-9]\d{{0,3}}))?{texts.NAME_ENDING}")

_BATCH, _SEED = 8, 42

# The packed layout holds whole words of codes along both axes.
_MULTIPLE = 32


def _spec(
    bits: int, group_size: int, *, symmetric: bool = True, iterations: int = ITERATIONS, source: str = texts.RETAIN
) -> QuantizerSpec:
    steps = "" if iterations == ITERATIONS else f"-iters{iterations}"
    ending = "" if source == texts.RETAIN else f"-calib-{source}"
    return QuantizerSpec(
        name=f"autoround-{bits}bit-g{group_size}{'-sym' if symmetric else ''}{steps}{ending}",
        backend="autoround",
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        label=f"AutoRound {bits}-bit, group {group_size}, {'symmetric' if symmetric else 'asymmetric'}"
        + ("" if iterations == ITERATIONS else f", {iterations} steps")
        + ("" if source == texts.RETAIN else f", calibrated on {source}"),
        options={"iters": iterations, **texts.options(source)},
    )


class AutoRound:
    """Intel's AutoRound, read back from the checkpoint that it saves."""

    backend = "autoround"
    deterministic = True
    install = install_line("quantizers")
    impossible = MappingProxyType({1: "auto-round makes 2 to 8 bits"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        """Returns 8, 4, 3 and 2 bits in groups of 64, symmetric as the library's default is."""
        return tuple(_spec(bits, 64) for bits in (8, 4, 3, 2))

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec for ``autoround-{8,4,3,2}bit-g{N}``.

        ``-sym`` centres the grid on 0, ``-iters{N}`` takes another number of
        steps, ``-calib-{forget,holdout,random}`` calibrates on other text than
        the corpus's retain text; in this order.
        """
        told = _NAME.fullmatch(name)
        if told is None or told.group(4) == str(ITERATIONS):
            return None
        bits, group, symmetric, steps, source = told.groups()
        return _spec(
            int(bits),
            int(group),
            symmetric=symmetric is not None,
            iterations=ITERATIONS if steps is None else int(steps),
            source=source or texts.RETAIN,
        )

    def library_version(self) -> str | None:
        """Returns auto-round's version, None where it is not installed."""
        return version_of("auto-round")

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        """Returns why it can't run: a library that is not installed."""
        return missing_reason(spec.name, ("auto-round",))

    def quantize(
        self, checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str] = ()
    ) -> QuantizedModel:
        """Returns the checkpoint as AutoRound quantizes it, read back from its packed layers.

        Raises:
            QuantizationError: No calibration, a layer that the packed layout
                can't hold, a failure of the library, or the proof fails.
        """
        from harness.quantize.proof import prove
        from harness.quantize.runners.calibrated import make

        made = make(
            checkpoint,
            spec,
            calibration,
            lambda windows, place: _run(checkpoint, spec, windows, device=device, place=place),
            device=device,
            library="auto-round",
            row_multiple=_MULTIPLE,
            width_multiple=_MULTIPLE,
        )
        return made.finish(spec, prove(made.model, checkpoint, spec, made.layers, remarks=(made.remark,)))


def _run(
    checkpoint: Checkpoint, spec: QuantizerSpec, windows: Sequence[Sequence[int]], *, device: str, place: Path
) -> None:
    """Has AutoRound quantize the checkpoint and save it below ``place``."""
    import torch
    from auto_round import AutoRound as Library

    library = Library(
        model_files.load(Path(checkpoint.path), dtype=getattr(torch, checkpoint.dtype)),
        load_tokenizer(checkpoint.tokenizer_path),
        bits=spec.bits,
        group_size=spec.group_size,
        sym=spec.symmetric,
        iters=spec.options["iters"],
        dataset=[{"input_ids": torch.tensor([list(window)])} for window in windows],
        nsamples=len(windows),
        seqlen=max(map(len, windows)),
        batch_size=min(_BATCH, len(windows)),
        device_map=device,
        seed=_SEED,
        # Compiling takes longer than it saves on one model, and needs a compiler.
        enable_torch_compile=False,
    )
    library.quantize_and_save(output_dir=str(place), format="auto_round")


BACKEND = AutoRound()
