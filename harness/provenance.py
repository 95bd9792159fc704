"""Digests, versions, commit and device: everything that makes a result traceable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.paths import checkout_dir
from harness.records import Provenance

DISTRIBUTIONS = (
    "quench-bench", "torch", "transformers", "peft", "lm_eval", "tokenizers",
    "safetensors", "rouge-score", "numpy", "bitsandbytes", "gptqmodel", "hqq", "optimum-quanto", "torchao", "gguf",
    "auto-round",
)  # fmt: skip
"""Distributions whose versions are kept with every result."""

# A change elsewhere (pages, docs, submissions) can't move a number.
_SCORED_PATHS = ("harness", "tasks", "pyproject.toml", "constraints.txt")


def sha256_text(text: str) -> str:
    """Returns the digest of UTF-8 ``text``."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the digest of a JSON value, independent of key order."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


@cache
def _sha256_file(path: str, size: int, modified_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the digest of a file, kept in memory until size or time changes.

    Raises:
        InputError: It is a folder, a pipe or a device: reading that fails, or never ends.
        OSError: It can't be read.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{path} is not a plain file: put the file itself there.")
    return _sha256_file(str(path.resolve()), facts.st_size, facts.st_mtime_ns)


def sha256_files(paths: Iterable[Path], root: Path) -> str:
    """Returns one digest over files: their names below ``root`` and contents."""
    return sha256_json(sorted((path.relative_to(root).as_posix(), sha256_file(path)) for path in paths))


def cell_key(**inputs: Any) -> str:
    """Returns the key of a cell: the digest of every input that can move its numbers.

    Args:
        **inputs: weights, base, quantizer, data, task, scoring version, seed,
            limit, ...; all JSON values.
    """
    return sha256_json(inputs)


@cache
def version_of(distribution: str) -> str | None:
    """Returns the installed version of a distribution, None when absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    root = checkout_dir()
    if root is None:
        return None
    try:
        # No optional locks: a run that is killed here would leave one, and the checkout could not be committed to.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


_handed_over: tuple[str | None, bool] | None = None


def take_code_state(state: tuple[str | None, bool]) -> None:
    """Has ``code_state`` answer what the process that started this one has found: one run asks git once."""
    global _handed_over
    _handed_over = state


@cache
def code_state() -> tuple[str | None, bool]:
    """Returns the commit and whether anything that scores differs from it.

    Outside a checkout ``QUENCH_COMMIT`` names the commit, as an image's build
    sets it; without it the version of the distribution stands for the code:
    the result is ``(None, False)``.
    """
    if _handed_over is not None:
        return _handed_over
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        told = os.environ.get("QUENCH_COMMIT", "")
        return (told if re.fullmatch(r"[0-9a-f]{40}", told) else None), False
    return commit, bool(_git("status", "--porcelain", "--", *_SCORED_PATHS))


def device_name(device: str) -> str:
    """Returns the card's name for ``cuda`` devices, else the machine's processor kind."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(torch.device(device)))
    return f"cpu ({os.uname().machine}, {os.cpu_count()} cores)"


def collect(*, device: str, threads: int, seed: int, scoring_version: int,
            extra_versions: Mapping[str, str] | None = None) -> Provenance:  # fmt: skip
    """Returns the provenance of a result made now, by this program.

    Args:
        device: torch device, e.g. ``cpu`` or ``cuda:0``.
        threads: torch threads in use.
        seed: Seed of everything random.
        scoring_version: ``score.metrics.formulas.SCORING_VERSION``.
        extra_versions: Versions beyond ``DISTRIBUTIONS``.
    """
    commit, dirty = code_state()
    versions = {name: version for name in DISTRIBUTIONS if (version := version_of(name)) is not None}
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions | dict(extra_versions or {}),
        git_commit=commit,
        dirty=dirty,
        device=device_name(device),
        threads=threads,
        seed=seed,
        scoring_version=scoring_version,
    )
