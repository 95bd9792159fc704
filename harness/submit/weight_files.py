"""Which files of a submission hold its weights, and the one digest over them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.errors import InputError, UnsafeSubmissionError
from harness.provenance import sha256_files, sha256_json
from harness.records import Submission
from harness.shards import PACKING_FILES, weight_names
from harness.submit.strict_parsing import read_json

HUB = "hf://"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""A repository's name as the hub and peft write it, without ``hf://``."""

_CONFIGS = ("config.json", "adapter_config.json")

# Paths of two parts as training scripts write them; owners on the hub have two letters at least.
_FOLDERS = re.compile(
    r"(.|(base|local|my|merged|(pre)?trained|hf|target|llm)?[_-]?(models?|ckpts?|checkpoints?|outputs?|out|results?|"
    r"runs?|weights?|saves?|saved|logs?|exps?|experiments?|data|cache|tmp|temp|mnt|home|root|workspace|content|work|"
    r"submissions?|adapters?|artifacts?|pretrained|scratch|opt))/.*|"
    r".*/((checkpoint|step|epoch|global_step)[_-]?\d+|final|last|best|merged)",
    re.IGNORECASE,
)


def names_hub(named: str, *places: Path) -> bool:
    """Returns whether what a config calls its base is a repository on a hub, and not a folder of whoever trained.

    Two parts may be either. A folder it is where it lies in one of the places
    or in the working directory, where its first part is a name such as
    ``models``, ``outputs`` or a single letter, and where its second is such as
    ``checkpoint-500``.

    Args:
        named: ``base_model_name_or_path``.
        places: Folders that a relative path may start from.
    """
    if HUB_NAME.fullmatch(named) is None or _FOLDERS.fullmatch(named) is not None:
        return False
    return not any((place / named).exists() for place in (Path(), *places))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Returns what a folder's weights are made of: safetensors or GGUF, an index, and the configs that say how."""
    chosen = [folder / name for name in weight_names(path.name for path in folder.glob("*.safetensors"))]
    chosen += [path for ending in (".safetensors.index.json", ".gguf") for path in folder.glob(f"*{ending}")]
    packing = [folder / name for name in PACKING_FILES if (folder / name).is_file()]
    chosen += [folder / name for name in _CONFIGS if (folder / name).is_file()]
    # The scan refuses those that say another thing than config.json.
    return tuple(sorted(chosen if packing and _says_packing(folder / "config.json") else chosen + packing))


def _says_packing(config: Path) -> bool:
    try:
        told = read_json(config, limit=1 << 20)
    except (InputError, OSError):
        return False
    return isinstance(told, dict) and told.get("quantization_config") is not None


def folder_digest(folder: Path) -> str:
    """Returns the digest over the weight files of a folder."""
    return sha256_files(weight_files(folder), folder)


def digest_of(folder: Path, sha256: Mapping[str, str]) -> str:
    """Returns the ``folder_digest`` of a folder whose files have, or will have, these SHA-256 by name."""
    return sha256_json([(path.name, sha256[path.name]) for path in weight_files(folder)])


def weights_digest(submission: Submission) -> str:
    """Returns what the keys of a submission's cells know its weights by.

    A local folder: the digest over its safetensors (or GGUF) files, their
    index and its config, which ``weights_sha256`` in its manifest must say. A
    hub reference: that over repository and commit, which fix the files
    without a download; ``prepare.content_digest`` has the digest of the files.

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
