"""Results without texts, for corpora whose texts may not be published."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from harness.records import CellResult, DocumentRecord

_MARK = "[withheld: SHA-256 "


def without_texts(result: CellResult) -> CellResult:
    """Returns a result whose answers are digests and whose excerpts are empty; every number stays.

    Equal answers have equal digests, so models that answer alike are still
    found. An empty answer stays empty.
    """
    return replace(result, documents=tuple(_closed(document) for document in result.documents))


def is_withheld(document: DocumentRecord) -> bool:
    """Returns whether a document's answer was replaced by its digest."""
    return document.response.startswith(_MARK) and document.prompt_excerpt == ""


def _closed(document: DocumentRecord) -> DocumentRecord:
    answer = document.response
    if answer and not is_withheld(document):
        answer = f"{_MARK}{hashlib.sha256(answer.encode()).hexdigest()}]"
    return replace(document, prompt_excerpt="", reference_excerpt="", response=answer)
