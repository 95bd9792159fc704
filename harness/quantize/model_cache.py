"""Quantized models kept on disk, so that a checkpoint is quantized once per spec, by whatever job comes first.

An entry's target is needed under every quantizer by every entry's job (to see
what of the update survives), and GPTQ, AWQ or AutoRound take minutes where
reading their result takes seconds. What is kept: every tensor that differs from
the checkpoint's own, the codes, and the proof, under a digest of all that made
them. The least recently used go first when the folder grows too large.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from harness import lru_folder
from harness.errors import InputError
from harness.provenance import sha256_files, sha256_json
from harness.quantize import backend_of, with_package
from harness.quantize.calibration import recipe_of
from harness.quantize.models.streamed import must_stream
from harness.records import Checkpoint, Proof, QuantizedLayer, QuantizedModel, QuantizerSpec

FOLDER = "quantized"
"""Name of the folder inside the cache."""

DEFAULT_LIMIT = 32 * 2**30
"""Bytes that kept models take together unless somebody says otherwise."""

READ_BYTES_PER_SECOND = 2e8
"""What reading a kept model is taken to bring; models that are made faster than that are not kept."""

_TENSORS, _ABOUT = "tensors.safetensors", "about.json"
_CODES = "codes:"


def quantize_once(
    checkpoint: Checkpoint, spec: QuantizerSpec, *, device: str, calibration: Sequence[str], cache: Path, limit: int
) -> QuantizedModel:
    """Returns the checkpoint quantized and proved, from the cache where it was made before.

    Args:
        checkpoint: The dense 16-bit model.
        spec: How to quantize it.
        device: torch device of the model that comes back.
        calibration: What the spec's digest of calibration texts stands for.
        cache: Quench's cache folder.
        limit: Bytes that kept models may take together; 0 keeps none.

    Raises:
        QuantizationError: The backend failed, or its proof does not hold.
    """
    place = cache / FOLDER / _key(checkpoint, spec, device)
    found = _read(place, checkpoint, spec, device)
    if found is not None:
        return found
    made = backend_of(spec).quantize(checkpoint, spec, device=device, calibration=calibration)
    # AWQ hands on no codes, and is the slowest to make.
    if limit and (made.layers or recipe_of(spec) is not None):
        _keep(place, made, checkpoint, limit)
    return made


def _key(checkpoint: Checkpoint, spec: QuantizerSpec, device: str) -> str:
    version = with_package(spec.backend, backend_of(spec).library_version())
    return sha256_json([checkpoint.sha256, checkpoint.dtype, asdict(spec), version, device.partition(":")[0], _code()])


@cache
def _code() -> str:
    """Returns a digest of all code of this room: an entry made by other code is another entry."""
    folder = Path(__file__).parent
    return sha256_files(sorted(folder.rglob("*.py")), folder)


def _read(place: Path, checkpoint: Checkpoint, spec: QuantizerSpec, device: str) -> QuantizedModel | None:
    """Returns a kept model; None where there is none, or it is damaged."""
    from safetensors import SafetensorError

    if not (place / _ABOUT).is_file():
        return None
    # What is kept comes back as a whole model; what must be streamed is made again, unless only whole models make it.
    if recipe_of(spec) is None and must_stream(checkpoint, device=device, quantized=True):
        return None
    try:
        about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
        if sha256_files([place / _TENSORS], place) != about["tensors_sha256"]:
            raise ValueError("damaged")
        os.utime(place)
        return _put_together(place, about, checkpoint, spec, device)
    except (OSError, SafetensorError, InputError, ValueError, KeyError, TypeError):
        # Another process may have dropped it meanwhile; a damaged one is made again.
        lru_folder.drop(place)
        return None


def _put_together(
    place: Path, about: Mapping[str, Any], checkpoint: Checkpoint, spec: QuantizerSpec, device: str
) -> QuantizedModel:
    import torch
    from safetensors import safe_open

    from harness.quantize.models.dense import load_dense

    model = load_dense(checkpoint, device=device)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    codes: dict[str, Any] = {}
    with safe_open(place / _TENSORS, framework="pt", device="cpu") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name.startswith(_CODES):
                codes[name.removeprefix(_CODES)] = file.get_tensor(name)
            else:
                parameters[name].copy_(file.get_tensor(name))
    told: dict[str, Any] = about["proof"]
    proof: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return QuantizedModel(
        model=model,
        spec=spec,
        proof=Proof(**proof),
        layers={name: QuantizedLayer(codes=codes[name], step=step) for name, step in about["steps"].items()},
        quantize_seconds=about["quantize_seconds"],
    )


def _keep(place: Path, made: QuantizedModel, checkpoint: Checkpoint, limit: int) -> None:
    """Writes a model into the cache, where that pays and there is room; a full disk only means that it isn't kept."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = _changed(made, checkpoint)
    tensors |= {f"{_CODES}{name}": layer.codes.contiguous() for name, layer in made.layers.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if made.quantize_seconds < size / READ_BYTES_PER_SECOND or size > limit:
        return
    with suppress(OSError, SafetensorError), lru_folder.writing(place) as folder:
        folder.mkdir()
        save_file(tensors, folder / _TENSORS)
        about = {
            "quantizer": made.spec.name,
            "proof": asdict(made.proof) if made.proof else None,
            "steps": {name: layer.step for name, layer in made.layers.items()},
            "quantize_seconds": made.quantize_seconds,
            "tensors_sha256": sha256_files([folder / _TENSORS], folder),
        }
        (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    lru_folder.trim(place.parent, limit)


def _changed(made: QuantizedModel, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the parameters of a quantized model that are not those of its checkpoint."""
    import torch

    from harness.quantize.models.dense import source_weights

    changed = {}
    quantized = {f"{name}.weight" for name in made.layers}
    with source_weights(checkpoint) as source:
        for name, parameter in made.model.named_parameters():
            own = parameter.detach().cpu()
            if name in quantized or not torch.equal(own.float(), source.raw(name).float()):
                changed[name] = own.contiguous()
    return changed
