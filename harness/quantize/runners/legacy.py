"""Quench's side of AutoGPTQ and AutoAWQ: writes the job, starts legacy/worker.py, reads its checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import QuantizationError
from harness.paths import cache_dir
from harness.quantize.legacy.environments import INSTALL, LIBRARIES, installed, run_worker
from harness.records import Checkpoint, QuantizerSpec

# No job takes this long; one that hangs must end also where `quench run` has no --timeout.
_TIMEOUT_S = 24 * 3600.0


def missing_reason(spec: QuantizerSpec) -> str | None:
    """Returns one sentence how to get the environment that ``spec`` needs; None where it is there."""
    if installed(spec.backend) is not None:
        return None
    return f"{spec.name} needs {LIBRARIES[spec.backend]} in an environment of its own, not made here: run {INSTALL}."


def version_of(backend: str) -> str | None:
    """Returns the version of a backend's library as it is pinned in the environment, None where that is not made."""
    environment = installed(backend)
    return None if environment is None else environment.versions[LIBRARIES[backend]]


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config of transformers 5 in the words of transformers 4, which ignores those that it doesn't know.

    A base frequency that it overlooks is replaced by a default, and the model
    is silently another one.

    Raises:
        QuantizationError: Layers have rotary embeddings of their own each,
            which transformers 4 has no word for.
    """
    told = dict(config)
    if "dtype" in told:
        told["torch_dtype"] = told.pop("dtype")
    rope = dict(told.pop("rope_parameters", None) or {})
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise QuantizationError(
            "The old transformers of AutoGPTQ and AutoAWQ can't tell one layer's rotary embedding from another's, and "
            "this model has several: choose another backend."
        )
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            told[name] = rope.pop(name)
    if rope.get("rope_type", "default") != "default":
        told["rope_scaling"] = rope
    return told


def _staged(checkpoint: Checkpoint, folder: Path, spec: QuantizerSpec, known: Collection[str]) -> None:
    """Fills ``folder`` with links to the checkpoint's weights and its config in full, translated.

    Every value of the config is written out, since defaults differ between
    versions of transformers.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    if config.model_type not in known:
        raise QuantizationError(
            f"{spec.name} can't quantize a model of type {config.model_type!r}: {LIBRARIES[spec.backend]} is used for "
            f"{', '.join(sorted(known))}; choose another backend."
        )
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for path in Path(checkpoint.path).glob(pattern):
            (folder / path.name).symlink_to(path.resolve())
    told = translated(json.loads(config.to_json_string(use_diff=False)))
    (folder / "config.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def run(
    checkpoint: Checkpoint,
    spec: QuantizerSpec,
    windows: Sequence[Sequence[int]],
    place: Path,
    *,
    known: Collection[str],
    options: Mapping[str, Any],
) -> None:
    """Has the worker quantize the checkpoint, on the CPU, and save it in ``place``.

    Args:
        checkpoint: The 16-bit model.
        spec: What is asked for.
        windows: Token windows to calibrate on.
        place: Folder to save in.
        known: Values of ``model_type`` that the library is used for.
        options: Further fields of the worker's job.

    Raises:
        QuantizationError: The environment is not made, the model is of
            another type, or the worker failed.
    """
    import torch

    environment = installed(spec.backend)
    if environment is None:
        raise QuantizationError(missing_reason(spec) or "")
    with tempfile.TemporaryDirectory() as staging:
        _staged(checkpoint, Path(staging), spec, known)
        job = {
            "name": spec.name,
            "backend": spec.backend,
            "model": staging,
            "save_in": str(place),
            "windows": [list(window) for window in windows],
            "bits": spec.bits,
            "group_size": -1 if spec.group_size is None else spec.group_size,
            "threads": torch.get_num_threads(),
            **options,
        }
        log = cache_dir() / "environments" / "logs" / f"{spec.name}-{checkpoint.sha256[:12]}.log"
        run_worker(environment, job, timeout_s=_TIMEOUT_S, log=log)
