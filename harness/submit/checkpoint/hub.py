"""Repositories on a model hub: downloads the files of one commit, resolves a branch to its commit."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Fault, InputError
from harness.paths import may_download
from harness.provenance import sha256_file
from harness.shards import PACKING_FILES, weight_names
from harness.submit.checkpoint.hub_answers import SECONDS, HubUnavailableError, ask, refusal
from harness.submit.checkpoint.merge_adapter import write_once
from harness.submit.weight_files import HUB, HUB_NAME, digest_of

TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt",
]  # fmt: skip
PATTERNS = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json",
    *PACKING_FILES, *TOKENIZER_FILES,
]  # fmt: skip
"""What is downloaded of a repository; of its subfolders nothing is."""


# Beside the hub's own file names, none of which it is.
_DIGEST = "quench-digest.txt"
# `quench cache` tells and clears it as left over.
_UNFINISHED = ".writing-downloads"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASKABLE = re.compile(r"[\w./-]{1,200}", re.ASCII)
_BY_HAND = "the hub's page of the model lists its commits under Files and versions, History"
# Most headers are smaller; `scan.safetensors` reads no larger ones.
_HEADER, _MAX_HEADER = 128 * 1024, 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file as the hub lists it: its size, and its SHA-256 (LFS) or the SHA-1 of its git blob."""

    size: int
    sha256: str | None
    blob: str | None


def download(
    reference: str, revision: str, cache: Path, *, patterns: Sequence[str] = PATTERNS, place: str = "hub"
) -> Path:
    """Returns the folder of a hub repository at one commit: safetensors and text only, downloaded once.

    Each file is compared with the digest that the hub lists. What an
    interrupted download has is kept and gone on with. All submissions that
    name the same commit share the folder, which holds files and no links.

    Args:
        reference: ``hf://owner/name``.
        revision: The commit.
        cache: Quench's cache.
        patterns: Names of the files wanted.
        place: Folder of the cache.

    Raises:
        InputError: It can't be had, not whole, or not as the hub lists it.
    """

    def fetch(scratch: Path, unfinished: Path) -> None:
        wanted = _listing(reference, revision, patterns)
        known = _fetch(reference, revision, wanted, unfinished, scratch)
        (scratch / _DIGEST).write_text(digest_of(scratch, known) + "\n", encoding="ascii")

    return _once(reference, revision, cache / place, fetch)


def preview(reference: str, revision: str, cache: Path) -> Path:
    """Returns a folder as ``download`` does, whose safetensors files have their headers and no weights.

    A file has its own size; where weights would lie nothing is stored. Where
    the repository was downloaded, that folder is returned.

    Args:
        reference: ``hf://owner/name``.
        revision: The commit.
        cache: Quench's cache.

    Raises:
        InputError: It can't be had.
    """

    def fetch(scratch: Path, unfinished: Path) -> None:
        wanted = _listing(reference, revision, PATTERNS, attempts=1)
        large = {name for name, entry in wanted.items() if name.endswith(".safetensors")}
        rest = {name: entry for name, entry in wanted.items() if name not in large}
        known = _fetch(reference, revision, rest, unfinished, scratch, attempts=2)
        for name in sorted(large):
            with (scratch / name).open("wb") as file:
                file.write(ask(lambda name=name: _header(reference, revision, name), reference, revision, attempts=2))  # type: ignore[misc]
                file.truncate(wanted[name].size)
        digests = known | {name: wanted[name].sha256 for name in large}
        if all(digests.values()):
            (scratch / _DIGEST).write_text(digest_of(scratch, digests) + "\n", encoding="ascii")  # type: ignore[arg-type]

    whole = folder_of(reference, revision, cache / "hub")
    return whole if whole.is_dir() else _once(reference, revision, cache / "hub-previews", fetch)


def _once(reference: str, revision: str, place: Path, fetch: Callable[[Path, Path], None]) -> Path:
    """Returns the folder of a repository, which ``fetch`` fills where it is not there; one process does at a time."""
    from huggingface_hub.utils import WeakFileLock

    folder = folder_of(reference, revision, place)
    if folder.is_dir():
        return folder
    if not may_download():
        raise HubUnavailableError(f"{reference} at {revision} is not here, and this command downloads nothing.")
    unfinished = place / _UNFINISHED / folder.name
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        # Who comes second finds the folder.
        with WeakFileLock(unfinished.with_suffix(".lock")):
            write_once(folder, lambda scratch: fetch(scratch, unfinished))
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise refusal(error, reference, revision) from error
    return folder


def folder_of(reference: str, revision: str, place: Path) -> Path:
    """Returns where the files of a repository at a commit lie, whether or not they were downloaded."""
    return place / f"{reference.removeprefix(HUB).replace('/', '--')}-{revision}"


def _listing(reference: str, revision: str, patterns: Sequence[str], **options: int) -> dict[str, _Entry]:
    """Returns the files of a repository that are wanted, by name.

    Raises:
        InputError: It has none, or the hub doesn't say what they are.
    """
    from huggingface_hub import model_info

    name = reference.removeprefix(HUB)
    info = ask(lambda: model_info(name, revision=revision, timeout=SECONDS, files_metadata=True),
               reference, revision, **options)  # fmt: skip
    if info.sha not in (None, revision):
        raise InputError(f"{reference} at {revision} can't be downloaded: the hub answers with commit {info.sha}.")
    chosen = {
        file.rfilename: _Entry(file.size or 0, file.lfs.sha256 if file.lfs is not None else None, file.blob_id)
        for file in info.siblings or ()
        if any(fnmatch.fnmatchcase(file.rfilename, pattern) for pattern in patterns) and "/" not in file.rfilename
    }
    read = weight_names(chosen)
    chosen = {file: entry for file, entry in chosen.items() if not file.endswith(".safetensors") or file in read}
    if not chosen:
        raise InputError(
            f"{reference} at {revision} holds none of the files that are read ({', '.join(patterns[:4])}): name a "
            "repository of safetensors weights with their config."
        )
    if lost := sorted(file for file, entry in chosen.items() if not (entry.sha256 or entry.blob)):
        raise InputError(
            f"{reference} at {revision}: the hub lists {lost[0]} without a digest, so nothing shows whether what comes "
            "is that file: check HF_ENDPOINT, or put the files into the submission's folder."
        )
    return chosen


def _fetch(
    reference: str, revision: str, wanted: Mapping[str, _Entry], unfinished: Path, scratch: Path, **options: int
) -> dict[str, str]:
    """Puts files into a folder once each is what the hub lists, and returns their SHA-256 by name."""
    from huggingface_hub import snapshot_download

    snapshot = Path(
        ask(
            lambda: snapshot_download(
                repo_id=reference.removeprefix(HUB), revision=revision, cache_dir=unfinished,
                allow_patterns=sorted(wanted),
            ),
            reference, revision, **options,
        )
    )  # fmt: skip
    known = {}
    for name, entry in wanted.items():
        # The hub's cache holds links out of the folder, which the intake refuses.
        source = (snapshot / name).resolve(strict=True)
        known[name] = sha256_file(source)
        listed, here = (entry.sha256, known[name]) if entry.sha256 else (entry.blob, _blob_digest(source))
        if here != listed:
            # It would be taken for whole the next time.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise InputError(
                f"{reference} at {revision}: {name} came with other bytes than the hub lists (digest {here[:12]}..., "
                f"listed {str(listed)[:12]}...), so nothing of it is kept: run the same command again, and if it "
                "repeats, check HF_ENDPOINT and what lies between you and the hub."
            )
        _place(source, scratch / name)
    return known


def _blob_digest(path: Path) -> str:
    """Returns the name that git gives to a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _header(reference: str, revision: str, name: str) -> bytes:
    """Returns the beginning of a safetensors file, as far as its header goes."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url, wanted, start = hf_hub_url(reference.removeprefix(HUB), name, revision=revision), _HEADER, b""
    while len(start) < wanted:
        headers = build_hf_headers() | {"Range": f"bytes=0-{wanted - 1}"}
        with get_session().stream("GET", url, headers=headers, timeout=SECONDS, follow_redirects=True) as response:
            hf_raise_for_status(response)
            start = b""
            # A hub that knows no ranges would send all of it.
            for part in response.iter_bytes(_HEADER):
                start += part
                if len(start) >= wanted:
                    break
        needed = 8 + int.from_bytes(start[:8], "little")
        if needed <= len(start) or len(start) < wanted or needed > _MAX_HEADER:
            break
        wanted = needed
    return start[: 8 + int.from_bytes(start[:8], "little")]


def _place(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, destination)


def content_digest(reference: str, revision: str, cache: Path) -> str | None:
    """Returns the ``folder_digest`` that a repository's files have or would have, None where it is not known here.

    Args:
        reference: ``hf://owner/name``.
        revision: The commit.
        cache: Quench's cache.
    """
    folder = local_folder(reference, revision, cache)
    path = folder / _DIGEST if folder is not None else None
    return path.read_text(encoding="ascii").strip() if path is not None and path.is_file() else None


def local_folder(reference: str, revision: str, cache: Path) -> Path | None:
    """Returns the folder of a repository that was downloaded, else of its preview; None where neither is here."""
    folders = (folder_of(reference, revision, cache / place) for place in ("hub", "hub-previews"))
    return next((folder for folder in folders if folder.is_dir()), None)


def digests(references: Iterable[tuple[str | None, str | None]], cache: Path) -> dict[str, str]:
    """Returns the digests of downloaded weights by ``hf://owner/name@commit``; what isn't here is left out.

    Args:
        references: Repositories with their commits; what is no repository is left out.
        cache: Quench's cache.
    """
    found = {}
    for reference, revision in references:
        if reference is not None and revision is not None and reference.startswith(HUB):
            digest = content_digest(reference, revision, cache)
            if digest is not None and folder_of(reference, revision, cache / "hub").is_dir():
                found[f"{reference}@{revision}"] = digest
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
    from huggingface_hub import model_info

    what = "its default branch" if revision is None else f"{revision!r}"
    try:
        name = reference.removeprefix(HUB)
        commit = ask(lambda: model_info(name, revision=revision, timeout=SECONDS), reference, revision, attempts=1).sha
    except HubUnavailableError:
        return f"the hub can't be asked from here: {_BY_HAND}"
    except InputError:
        return f"the hub shows no {reference} with {what} to this machine: {_BY_HAND}"
    return f'{what} is at "{commit}" now, so write that'
