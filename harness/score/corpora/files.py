"""Reading corpus texts: MUSE's local form, and the hub turned into it.

Local form: ``CONFIG/SPLIT.json``, a list of objects for ``knowmem`` and
``verbmem`` and a list of strings for ``privleak`` and ``raw``. What comes from
the hub is written once to the cache in that form, so that scoring itself needs
no network.

Source: the loader of ``muse_bench`` (``load_data.py``).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import CorpusError
from harness.paths import cache_dir, may_download
from harness.provenance import sha256_json

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "knowmem": ("question", "answer"),
    "verbmem": ("prompt", "gt"),
    "privleak": ("text",),
    "raw": ("text",),
}
"""Columns of each config, as on the hub."""


def read_json(path: Path, remedy: str = "restore it.") -> Any:
    """Returns a JSON file's value.

    Args:
        path: The file.
        remedy: End of the sentence for a file that is none, or was cut short.

    Raises:
        CorpusError: It can't be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path} can't be read as JSON ({error}): {remedy}") from None


def read_split(
    folder: Path, config: str, split: str, remedy: str, *, sha256: str | None = None
) -> list[dict[str, str]]:
    """Returns the items of ``folder/config/split.json`` with exactly the config's columns.

    Args:
        folder: Folder in MUSE's local form.
        config: One of ``COLUMNS``.
        split: Name of the split.
        remedy: What to do about a file that is missing or faulty: the end of the sentence.
        sha256: Digest that the items must have (``digest``); None accepts any.

    Raises:
        CorpusError: The file is missing, empty, no JSON, has an item of
            another form, or other items than the digest says.
    """
    _columns(config)
    if not split.replace("_", "").isalnum():
        raise CorpusError(f"{split!r} is no name of a split: letters, digits and underscores are accepted.")
    path = folder / config / f"{split}.json"
    if not path.is_file():
        raise CorpusError(f"{path} is missing: {remedy}")
    items = read_json(path, remedy)
    if not isinstance(items, list) or not items:
        raise CorpusError(f"{path} must be a JSON list with at least one item: {remedy}")
    found = [item(path, position, one, config) for position, one in enumerate(items)]
    if sha256 not in (None, digest(found)):
        raise CorpusError(
            f"{path} does not hold the corpus's texts (its {len(found)} items have the digest {digest(found)[:12]}..,"
            f" pinned is {str(sha256)[:12]}..): {remedy}"
        )
    return found


def digest(items: Sequence[Mapping[str, str]]) -> str:
    """Returns the SHA-256 over a split's items: over every character, but not over how the file is laid out."""
    return sha256_json(list(items))


def _columns(config: str) -> tuple[str, ...]:
    if config not in COLUMNS:
        raise CorpusError(f"There is no data config {config!r}: {', '.join(COLUMNS)} are accepted.")
    return COLUMNS[config]


def item(path: Path, position: int, item: Any, config: str) -> dict[str, str]:
    """Returns one item of a split with exactly its config's columns.

    Args:
        path: File that it stands in, for the message.
        position: Its place there.
        item: What was read.
        config: One of ``COLUMNS``.

    Raises:
        CorpusError: It has another form, an empty field, or half a character.
    """
    columns = _columns(config)
    if columns == ("text",) and isinstance(item, str):
        return {"text": _whole(path, position, item)}
    if not isinstance(item, dict) or not all(isinstance(item.get(column), str) for column in columns):
        form = "a string" if columns == ("text",) else f"an object with the strings {' and '.join(columns)}"
        raise CorpusError(f"Item {position} of {path} must be {form}: correct it, or use the corpus's own data.")
    # Nothing follows from an empty prompt, and no answer is near an empty reference, whatever the model.
    if blank := next((column for column in columns if column != "text" and not item[column].strip()), None):
        raise CorpusError(f"Item {position} of {path} has an empty {blank}: fill it, or take the item out.")
    return {column: _whole(path, position, item[column]) for column in columns}


def _whole(path: Path, position: int, text: str) -> str:
    """Returns the text, refused where it holds half a character: no tokenizer could read it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CorpusError(f"Item {position} of {path} holds a lone surrogate, which is no text: correct it.")
    return text


def hub_cache(name: str, revision: str) -> Path:
    """Returns where the local form of a hub data set is kept, whether or not it has been fetched."""
    return cache_dir() / "corpora" / f"{name}-{revision[:12]}"


def hub_folder(name: str, repo: str, revision: str, config: str, split: str) -> Path:
    """Returns the cached local form of a hub data set, fetching a split that is not there yet.

    Args:
        name: Name of the corpus.
        repo: Data set on the hub.
        revision: Commit to fetch.
        config: One of ``COLUMNS``.
        split: Name of the split.

    Raises:
        CorpusError: The hub can't be reached or has no such split.
    """
    columns = _columns(config)
    folder = hub_cache(name, revision)
    path = folder / config / f"{split}.json"
    if not path.is_file():
        rows = _fetch(repo, revision, config, split)
        items = [row["text"] if columns == ("text",) else {c: row[c] for c in columns} for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(items, file, ensure_ascii=False)
        Path(partial).replace(path)
    return folder


def _fetch(repo: str, revision: str, config: str, split: str) -> list[dict[str, Any]]:
    if not may_download():
        raise CorpusError(
            f"Split {config}/{split} of {repo} at {revision[:7]} is not here, and this command downloads nothing."
        )
    from datasets import load_dataset

    try:
        return list(load_dataset(repo, config, split=split, revision=revision))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"Split {config}/{split} of {repo} at {revision[:7]} can't be fetched from the hub ({reason}): check the"
            " network, or give --data-dir a folder with the same data in MUSE's local form."
        ) from None
