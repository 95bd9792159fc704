"""The weight files of a submission, and their digest."""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import UnsafeSubmissionError
from harness.provenance import sha256_files, sha256_json
from harness.records import Submission

HUB = "hf://"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""A repository's name as the hub and peft write it, without ``hf://``."""

_CONFIGS = (
    "config.json", "adapter_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json",
)  # fmt: skip

_SECOND_COPY = re.compile(r"consolidated[\w.-]*\.safetensors", re.ASCII)


def is_second_copy(path: Path) -> bool:
    """Returns whether a file holds the weights of its folder a second time, as Mistral ships them; no library reads it."""
    own = ("model.safetensors", "model.safetensors.index.json")
    return _SECOND_COPY.fullmatch(path.name) is not None and any((path.parent / name).is_file() for name in own)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Returns what a folder's weights are made of: safetensors or GGUF, an index, and the configs."""
    own = [path for path in folder.glob("*.safetensors") if not is_second_copy(path)]
    chosen = [*own, *folder.glob("*.safetensors.index.json"), *folder.glob("*.gguf")]
    chosen += [folder / name for name in _CONFIGS if (folder / name).is_file()]
    return tuple(sorted(chosen))


def folder_digest(folder: Path) -> str:
    """Returns the digest over the weight files of a folder."""
    return sha256_files(weight_files(folder), folder)


def weights_digest(submission: Submission) -> str:
    """Returns the digest of a submission's weights: what ``weights_sha256`` in its manifest must say.

    A local folder: over its safetensors (or GGUF) files, their index and its
    config. A hub reference: over repository and commit, which fix the files.

    Raises:
        UnsafeSubmissionError: The folder holds no file of weights.
    """
    if submission.weights.startswith(HUB):
        return sha256_json([submission.weights, submission.revision])
    folder = Path(submission.weights)
    endings = (".safetensors", ".gguf") if submission.kind == "quantized_checkpoint" else (".safetensors",)
    if not any(path.suffix in endings for path in weight_files(folder)):
        raise UnsafeSubmissionError(
            f"{submission.name}: {folder} holds no .safetensors file: put the weights there, or name the folder "
            "that has them under `weights` in submission.yaml."
        )
    return folder_digest(folder)
