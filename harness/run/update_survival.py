"""Measures how much of one submission's update survives each quantizer; nothing is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import InputError, UnknownNameError
from harness.quantize import backend_of, model_cache
from harness.quantize.survival import measure as survival_measure
from harness.quantize.survival.layer_by_layer import stream, streams
from harness.records import Checkpoint, LayerSurvival, QuantizerSpec, Submission
from harness.run.plan import calibration_texts
from harness.score.corpora import catalogue
from harness.submit.checkpoint import prepare
from harness.submit.scan import folder as folder_scan


def survive(
    name: str, against: str | None, specs: Sequence[QuantizerSpec], submissions: Mapping[str, Submission], *,
    cache: Path, data_dir: Path | None = None, device: str = "cpu",
    on_layer: Callable[[int, int], None] = lambda done, layers: None,
) -> dict[str, tuple[LayerSurvival, ...]]:  # fmt: skip
    """Returns the survival of a submission's update by quantizer's name: all layers pooled, then each.

    Quantizers that look at no activations are measured layer by layer; the
    others on whole models, calibrated on the corpus as a run calibrates them.

    Args:
        name: Submission whose update it is.
        against: What it was unlearned from; its own target when None.
        specs: Quantizers.
        submissions: All by name.
        cache: Folder for merged and quantized models.
        data_dir: Folder of the corpus in MUSE's local form, for calibration.
        device: Where models are quantized.
        on_layer: Told (done, layers) after each layer.

    Raises:
        InputError: A name is unknown, there is nothing to compare with, or a
            quantizer can't run here.
        QuantizationError: The models have different shapes, or a backend fails.
    """
    for wanted in (name, *([against] if against else [])):
        if wanted not in submissions:
            raise UnknownNameError("submission", wanted, submissions)
    entry = submissions[name]
    other = against or entry.target
    if other is None or other not in submissions or other == name:
        raise InputError(f"{name} has no target to compare with: name what it was unlearned from with --against.")
    for spec in specs:
        if reason := backend_of(spec).unavailable_reason(spec, device):
            raise InputError(reason)
    pair: list[Checkpoint] = []
    for one in (entry, submissions[other]):
        if one.kind == "quantized_checkpoint":
            raise InputError(f"{one.name} is quantized already: its update is measured on the 16-bit model.")
        folder_scan.scan(one, submissions)
        pair.append(prepare.prepare(one, submissions, cache=cache))
    new, old = pair
    told = [spec for spec in specs if spec.backend != "reference"]
    found = stream(new, old, [spec for spec in told if streams(spec)], device=device, on_layer=on_layer) if any(
        streams(spec) for spec in told
    ) else {}  # fmt: skip
    for spec in told:
        if not streams(spec):
            corpus = catalogue.load_corpus(entry.corpus, data_dir=data_dir)
            found[spec.name] = _whole(new, old, *calibration_texts.prepare(spec, corpus), cache=cache, device=device)
    return {spec.name: found[spec.name] for spec in told}


def _whole(
    new: Checkpoint, old: Checkpoint, spec: QuantizerSpec, texts: Sequence[str], *, cache: Path, device: str
) -> tuple[LayerSurvival, ...]:
    """Returns the rows from two whole models; none where the backend hands on no codes."""
    made = [
        model_cache.quantize_once(
            one, spec, device=device, calibration=texts, cache=cache, limit=model_cache.DEFAULT_LIMIT
        )
        for one in (new, old)
    ]  # fmt: skip
    return survival_measure.measure(made[0], made[1], new, old)
