"""The texts of a corpus: their form, encoding, repetitions, overlaps and digests."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import CorpusError
from harness.provenance import sha256_json
from harness.score.corpora import files as corpus_files

# What must have no text in common, or a score would speak of something else.
_APART = (
    ("privleak/forget", "privleak/holdout"), ("privleak/forget", "privleak/retain"),
    ("privleak/holdout", "privleak/retain"), ("raw/forget", "raw/retain1"), ("raw/forget", "raw/retain2"),
    ("raw/forget", "raw/holdout"), ("raw/forget", "privleak/holdout"), ("knowmem/forget_qa", "knowmem/retain_qa"),
    ("knowmem/forget_qa", "knowmem/forget_qa_icl"), ("knowmem/retain_qa", "knowmem/retain_qa_icl"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One file of texts.

    Attributes:
        name: ``CONFIG/SPLIT``.
        items: How many there are; None where the file is missing or no list.
        words: Mean number of words of an item.
        repeated: Items that occurred before in the file, letter for letter.
        sha256: Digest to pin; None where items are faulty.
    """

    name: str
    items: int | None = None
    words: float | None = None
    repeated: int = 0
    sha256: str | None = None


def split(
    data: Path, config: str, name: str, texts: dict[str, list[dict[str, str]]], faults: list[str],
    remarks: list[str], *, needed: bool,
) -> Split:  # fmt: skip
    """Returns what one file holds.

    Args:
        data: Folder in MUSE's local form.
        config: One of ``files.COLUMNS``.
        name: Of the split.
        texts: Takes the items by ``CONFIG/SPLIT`` where all are as they should be.
        faults: Takes sentences on what can't be used.
        remarks: Takes sentences on what to know.
        needed: Whether a task reads it, so that it must be there.
    """
    path, name = data / config / f"{name}.json", f"{config}/{name}"
    if needed and not path.is_file():
        faults.append(f"{path} is missing: its tasks read {name}, in MUSE's local form.")
        return Split(name=name)
    try:
        items = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        faults.append(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.")
        return Split(name=name)
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path} can't be read as JSON ({error}): mend it.")
        return Split(name=name)
    if not isinstance(items, list) or not items:
        faults.append(f"{path} must be a JSON list with at least one item.")
        return Split(name=name)
    found: list[dict[str, str]] = []
    wrong: list[str] = []
    for position, item in enumerate(items):
        try:
            found.append(corpus_files.item(path, position, item, config))
        except CorpusError as error:
            wrong.append(str(error))
    faults += wrong[:5]
    if len(wrong) > 5:
        faults.append(f"{path}: {len(wrong) - 5} more items are as faulty.")
    whole = [" ".join(item.values()) for item in found]
    if empty := sum(not text.strip() for text in whole):
        faults.append(f"{path}: {empty} of {len(items)} texts are empty: fill them, or take them out.")
    remarks += [f"{path}: {told}." for told in _odd(whole)]
    repeated = len(whole) - len(set(whole))
    if repeated:
        remarks.append(f"{path}: {repeated} of {len(items)} items repeat another letter for letter.")
    if not wrong:
        texts[name] = found
    return Split(
        name=name,
        items=len(items),
        words=sum(len(text.split()) for text in whole) / len(whole) if whole else None,
        repeated=repeated,
        sha256=None if wrong else corpus_files.digest(found),
    )


def _odd(texts: Sequence[str]) -> Iterator[str]:
    """Yields what speaks of a wrong encoding on the way."""
    broken = sum("\N{REPLACEMENT CHARACTER}" in text or "\N{ZERO WIDTH NO-BREAK SPACE}" in text for text in texts)
    if broken:
        yield f"{broken} texts hold replacement characters or byte-order marks, which a wrong encoding leaves"
    control = sum(any(unicodedata.category(c) == "Cc" and c not in "\n\r\t" for c in text) for text in texts)
    if control:
        yield f"{control} texts hold control characters"
    apart = sum(unicodedata.normalize("NFC", text) != text for text in texts)
    if apart:
        yield f"{apart} texts are not in the composed form (NFC), so equal words may differ"


def overlaps(texts: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[str]:
    """Yields a sentence for each two splits that share a text and must not.

    Args:
        texts: Items by ``CONFIG/SPLIT``.
    """
    for one, other in _APART:
        if one in texts and other in texts:
            # Of a question the answer may differ: it is the question that must not come twice.
            first, second = ({next(iter(item.values())).strip() for item in texts[name]} for name in (one, other))
            if both := sorted(first & second):
                yield (
                    f"{one} and {other} share {len(both)} {'text' if len(both) == 1 else 'texts'}, the first is"
                    f" {both[0][:60]!r}: what is scored there would be the same; take them out of one."
                )


def check_pins(
    facts: Mapping[str, Any], texts: Mapping[str, list[dict[str, str]]], needed: Sequence[tuple[str, str]],
    faults: list[str], remarks: list[str],
) -> None:  # fmt: skip
    """Compares texts with the digests that the facts pin, and tells the digest where none is.

    Args:
        facts: What ``corpus.json`` says.
        texts: Items by ``CONFIG/SPLIT``.
        needed: Splits that the tasks read, in order.
        faults: Takes sentences on texts that differ.
        remarks: Takes the digest to pin.
    """
    pinned = facts.get("split_sha256")
    for name, sha256 in (pinned if isinstance(pinned, dict) else {}).items():
        if name in texts and corpus_files.digest(texts[name]) != sha256:
            faults.append(f"{name} has the digest {corpus_files.digest(texts[name])}, and corpus.json pins {sha256}.")
    names = ["/".join(split) for split in needed]
    if not names or not set(names) <= set(texts):
        return
    digest = sha256_json({name: texts[name] for name in names})
    if facts.get("data_sha256") is None and not pinned:
        remarks.append(f'No digest is pinned, so changed texts pass unseen: add "data_sha256": "{digest}".')
    elif facts.get("data_sha256") not in (None, digest):
        faults.append(f"The texts have the digest {digest}, and corpus.json pins {facts['data_sha256']}.")
