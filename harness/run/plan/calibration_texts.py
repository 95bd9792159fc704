"""The calibration texts of a corpus for a quantizer.

Quantization knows no corpora, and scoring no quantizers: here the two meet,
before a cell's key is made, so that other texts make another cell.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import CorpusError
from harness.quantize import calibration
from harness.records import QuantizerSpec
from harness.score.corpora import catalogue

_SOURCES = {
    "retain": (("raw", "retain1"), ("privleak", "retain")),
    "forget": (("raw", "forget"), ("privleak", "forget")),
    "holdout": (("raw", "holdout"), ("privleak", "holdout")),
}
"""Splits that a source of calibration texts may come from; the first that a corpus has is taken."""

_SCORED = (
    ("raw", "forget"), ("privleak", "forget"), ("privleak", "holdout"), ("verbmem", "forget"),
    ("knowmem", "forget_qa"), ("knowmem", "retain_qa"),
)  # fmt: skip
"""Splits whose texts no calibration on retain texts may share."""


def prepare(spec: QuantizerSpec, corpus: catalogue.Corpus) -> tuple[QuantizerSpec, tuple[str, ...]]:
    """Returns a quantizer's specification with the digest of its calibration, and the texts for its backend.

    A quantizer that needs no calibration comes back as it is, without texts.

    Raises:
        QuantizationError: The corpus has no text that may be used.
        CorpusError: The corpus has none of the splits that the texts may come from.
    """
    recipe = calibration.recipe_of(spec)
    if recipe is None:
        return spec, ()
    if not recipe.needs_texts:
        return calibration.prepare(spec, {})
    texts = {recipe.source: _first(corpus, recipe.source)}
    return calibration.prepare(spec, texts, tuple(_scored_texts(corpus)))


def _first(corpus: catalogue.Corpus, source: str) -> tuple[str, ...]:
    *others, last = _SOURCES[source]
    for config, split in others:
        try:
            return tuple(item["text"] for item in catalogue.load_split(corpus, config, split))
        except CorpusError:
            continue
    return tuple(item["text"] for item in catalogue.load_split(corpus, *last))


def _scored_texts(corpus: catalogue.Corpus) -> Iterator[str]:
    for config, split in _SCORED:
        try:
            found = catalogue.load_split(corpus, config, split)
        except CorpusError:
            # A split that isn't there can't be scored either; the tasks' own are checked before planning.
            continue
        yield from (" ".join(item.values()) for item in found)
