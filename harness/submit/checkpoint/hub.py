"""Repositories on a model hub: downloads the files of one commit, resolves a branch to its commit."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import Fault, InputError
from harness.submit.checkpoint.merge_adapter import write_once
from harness.submit.weight_files import HUB, HUB_NAME, folder_digest

TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt",
]  # fmt: skip
PATTERNS = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json",
    *TOKENIZER_FILES,
]  # fmt: skip
"""What is downloaded of a repository; of its subfolders nothing is."""

# Beside the hub's own file names, none of which it is.
_DIGEST = "quench-digest.txt"
# `quench cache` tells and clears it as left over.
_UNFINISHED = ".writing-downloads"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASKABLE = re.compile(r"[\w./-]{1,200}", re.ASCII)
_BY_HAND = "the hub's page of the model lists its commits under Files and versions, History"
_SECONDS = 10.0


def download(
    reference: str, revision: str, cache: Path, *, patterns: Sequence[str] = PATTERNS, place: str = "hub"
) -> Path:
    """Returns the folder of a hub repository at one commit: safetensors and text only, downloaded once.

    What an interrupted download has is kept and gone on with. All submissions
    that name the same commit share the folder, which holds files and no links.

    Args:
        reference: ``hf://owner/name``.
        revision: The commit.
        cache: Quench's cache.
        patterns: Names of the files wanted.
        place: Folder of the cache.

    Raises:
        InputError: It can't be had, or not whole.
    """
    from huggingface_hub import errors, model_info, snapshot_download
    from huggingface_hub.utils import WeakFileLock

    name = reference.removeprefix(HUB)

    def fetch(scratch: Path) -> None:
        # Without a network the snapshot would be returned as far as it had come.
        there = [each.rfilename for each in model_info(name, revision=revision, timeout=_SECONDS).siblings or ()]
        wanted = [each for each in there if any(fnmatch.fnmatchcase(each, one) for one in patterns) and "/" not in each]
        if not wanted:
            raise FileNotFoundError(f"{name} has no safetensors and no config")
        snapshot = snapshot_download(repo_id=name, revision=revision, cache_dir=unfinished, allow_patterns=wanted)
        for each in wanted:
            # The hub's cache holds links out of the folder, which the intake refuses.
            _place((Path(snapshot) / each).resolve(strict=True), scratch / each)
        (scratch / _DIGEST).write_text(folder_digest(scratch) + "\n", encoding="ascii")

    folder = _folder(reference, revision, cache / place)
    if folder.is_dir():
        return folder
    unfinished = cache / place / _UNFINISHED / folder.name
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        # Who comes second finds the folder.
        with WeakFileLock(unfinished.with_suffix(".lock")):
            write_once(folder, fetch)
            shutil.rmtree(unfinished, ignore_errors=True)
        return folder
    except (errors.HTTPError, OSError) as error:
        raise InputError(
            f"{reference} at {revision} can't be downloaded ({type(error).__name__}): check name, commit and network, "
            "or put the files into the submission's folder."
        ) from error


def _folder(reference: str, revision: str, place: Path) -> Path:
    return place / f"{reference.removeprefix(HUB).replace('/', '--')}-{revision}"


def _place(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, destination)


def digests(references: Iterable[tuple[str | None, str | None]], cache: Path) -> dict[str, str]:
    """Returns the digests of downloaded weights by ``hf://owner/name@commit``; what isn't here is left out.

    Args:
        references: Repositories with their commits; what is no repository is left out.
        cache: Quench's cache.
    """
    found = {}
    for reference, revision in references:
        if reference is not None and revision is not None and reference.startswith(HUB):
            path = _folder(reference, revision, cache / "hub") / _DIGEST
            if path.is_file():
                found[f"{reference}@{revision}"] = path.read_text(encoding="ascii").strip()
    return found


def with_commits(faults: Iterable[str], fields: Mapping[Any, Any]) -> list[str]:
    """Returns a manifest's faults; those of a missing commit, or of a branch in its place, tell which to write.

    The hub is asked for it; where it can't be reached, they tell where a person finds it.

    Args:
        faults: Faults of the fields.
        fields: The fields, unchecked.
    """
    return list(_with_commits(faults, fields))


def _with_commits(faults: Iterable[str], fields: Mapping[Any, Any]) -> Iterator[str]:
    for fault in faults:
        repository = {"revision": "weights", "base_revision": "base_model"}.get(getattr(fault, "field", None) or "")
        reference, told = fields.get(repository), fields.get(getattr(fault, "field", None))
        askable = told is None or (isinstance(told, str) and _ASKABLE.fullmatch(told) and not _COMMIT.fullmatch(told))
        if isinstance(fault, Fault) and _is_repository(reference) and askable:
            sentence = f"{fault.removesuffix('.')}; {_commit(str(reference), told)}."
            yield Fault(sentence, file=fault.file, field=fault.field, accepted=fault.accepted)
        else:
            yield fault


def _is_repository(reference: Any) -> bool:
    return (
        isinstance(reference, str)
        and reference.startswith(HUB)
        and HUB_NAME.fullmatch(reference.removeprefix(HUB)) is not None
    )


def _commit(reference: str, revision: str | None) -> str:
    """Returns in words which commit a branch or tag is at now, None for the default branch."""
    from huggingface_hub import errors, model_info

    what = "its default branch" if revision is None else f"{revision!r}"
    try:
        commit = model_info(reference.removeprefix(HUB), revision=revision, timeout=_SECONDS).sha
    except errors.HfHubHTTPError:
        return f"the hub shows no {reference} with {what} to this machine: {_BY_HAND}"
    except (errors.HTTPError, OSError):
        return f"the hub can't be asked from here: {_BY_HAND}"
    return f'{what} is at "{commit}" now, so write that'
