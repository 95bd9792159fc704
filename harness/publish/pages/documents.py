"""Documents across bit-widths: the answers of a submission from 16 down to 2 bit, most recovered first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.publish.board import LeaderboardRow
from harness.publish.formatting import ending, excerpt
from harness.publish.thresholds import FORGET_METRICS, REFERENCE
from harness.records import CellResult, DocumentRecord
from harness.score.metrics.formulas import METRICS, PRIMARY
from harness.store.withheld_texts import is_withheld

Answers = Mapping[str, Mapping[int, DocumentRecord]]
"""By quantizer and document."""


def across_bits(row: LeaderboardRow) -> list[dict[str, Any]]:
    """Returns every document that was answered at 16 bit and at a narrower width, the most recovered first.

    Each has ``label`` and ``document``, ``back`` (how much its score rose from 16 bit at most), ``prompt`` (its end),
    ``reference`` (both of at most ``formatting.EXCERPT`` characters) and ``answers``: one per width, widest first, with
    ``bits``, ``quantizer`` (the backend whose answer scores highest there), ``score`` and ``text``. Documents whose
    texts the store withholds are left out: there would be nothing to read.
    """
    found = []
    for metric in FORGET_METRICS:
        answers = {
            name: {document.index: document for document in result.cells[metric].documents}
            for name, result in row.by_quantizer.items()
            if metric in result.cells
        }
        widths = {name: row.by_quantizer[name].spec.bits for name in answers}
        for index, first in answers.get(REFERENCE, {}).items():
            document = None if is_withheld(first) else _document(metric, index, answers, widths)
            if document is not None:
                found.append(document)
    return sorted(found, key=lambda document: -document["back"])


def _document(metric: str, index: int, answers: Answers, widths: Mapping[str, int]) -> dict[str, Any] | None:
    scores = {
        name: documents[index].scores[metric]
        for name, documents in answers.items()
        if index in documents and metric in documents[index].scores
    }
    worst: dict[int, str] = {}
    for name, score in scores.items():
        if widths[name] not in worst or score > scores[worst[widths[name]]]:
            worst[widths[name]] = name
    narrow = [scores[name] for bits, name in worst.items() if bits < widths[REFERENCE]]
    if REFERENCE not in scores or not narrow:
        return None
    first = answers[REFERENCE][index]
    return {
        "label": METRICS[metric].label, "document": index, "back": max(narrow) - scores[REFERENCE],
        "prompt": ending(first.prompt_excerpt), "reference": excerpt(first.reference_excerpt),
        "answers": [
            {"bits": bits, "quantizer": name, "score": scores[name], "text": excerpt(answers[name][index].response)}
            for bits, name in sorted(worst.items(), reverse=True)
        ],
    }  # fmt: skip


def as_script(documents: Sequence[Mapping[str, Any]]) -> str:
    """Returns a script that hands the documents to the viewer: browsers refuse to fetch data from ``file://`` pages."""
    rounded = [
        {**document, "answers": [{**answer, "score": round(answer["score"], 4)} for answer in document["answers"]]}
        for document in documents
    ]
    return f"window.quenchDocuments = {json.dumps(rounded, allow_nan=False, separators=(',', ':'))};\n"


def rows(cells: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """Yields one row per answered document of the finished cells, texts cut to ``formatting.EXCERPT`` characters."""
    for cell in cells:
        metric = next((score.metric for score in cell.scores if score.metric in PRIMARY), None)
        if metric is None or cell.status != "finished":
            continue
        for document in cell.documents:
            if metric in document.scores and document.reference_sha256 is not None:
                yield {
                    "corpus": cell.corpus, "submission": cell.cell.submission, "quantizer": cell.cell.quantizer,
                    "bits": cell.spec.bits, "metric": metric, "document": document.index,
                    "score": document.scores[metric], "prompt": ending(document.prompt_excerpt),
                    "reference": excerpt(document.reference_excerpt), "response": excerpt(document.response),
                    "prompt_sha256": document.prompt_sha256, "reference_sha256": document.reference_sha256,
                }  # fmt: skip
