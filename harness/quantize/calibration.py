"""Calibration sets: the choice of texts, the proof that they leak nothing, and windows of tokens.

GPTQ, AWQ and AutoRound look at activations, so they need texts. Which texts is
a choice that could bring forgotten text back; it is part of the spec, hashed,
and by default kept clear of everything that a score rests on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import QuantizationError
from harness.records import QuantizerSpec

RETAIN, FORGET, HOLDOUT, RANDOM = "retain", "forget", "holdout", "random"
SOURCES = (RETAIN, FORGET, HOLDOUT, RANDOM)

DEFAULT_SAMPLES, DEFAULT_TOKENS = 64, 128

OVERLAP_WORDS = 13
"""Words in a row that two texts may not share; the length that GPT-3's contamination study used."""

NAME_ENDING = rf"(?:-calib-({'|'.join(source for source in SOURCES if source != RETAIN)}))?"
"""Regular expression of the ending of a preset's name that tells its calibration source."""

_SEED = 0
_LABELS = {
    RETAIN: "calibrated on retain text",
    FORGET: "calibrated on the forgotten text",
    HOLDOUT: "calibrated on holdout text",
    RANDOM: "calibrated on random tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a spec calibrates on.

    Attributes:
        source: ``retain``, ``forget``, ``holdout`` or ``random``; the last
            draws tokens and needs no texts.
        samples: Windows of tokens, at most.
        tokens: Tokens in a window.
    """

    source: str
    samples: int
    tokens: int

    @property
    def needs_texts(self) -> bool:
        """Whether texts of the corpus have to be handed in."""
        return self.source != RANDOM

    @property
    def label(self) -> str:
        """What a table says of it."""
        return _LABELS[self.source]


def options(source: str = RETAIN) -> dict[str, Any]:
    """Returns the options that a spec carries for calibration on ``source``."""
    return {"calibration": source, "samples": DEFAULT_SAMPLES, "tokens": DEFAULT_TOKENS}


def recipe_of(spec: QuantizerSpec) -> Recipe | None:
    """Returns what ``spec`` calibrates on, None where it looks at no activations.

    Raises:
        QuantizationError: Its options name no known source.
    """
    source = spec.options.get("calibration")
    if source is None:
        return None
    if source not in SOURCES:
        raise QuantizationError(
            f"{spec.name} asks for calibration on {source!r}: known sources are {', '.join(SOURCES)}."
        )
    return Recipe(source=source, samples=spec.options["samples"], tokens=spec.options["tokens"])


def _runs(text: str) -> set[int]:
    """Returns hashes of every run of ``OVERLAP_WORDS`` words, case and punctuation aside."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[at : at + OVERLAP_WORDS])) for at in range(len(words) - OVERLAP_WORDS + 1)}


def clear_of(texts: Sequence[str], forbidden: Iterable[str]) -> tuple[str, ...]:
    """Returns those ``texts`` that share no run of 13 words with any of ``forbidden``, in their order.

    Source: the contamination test of Brown et al., "Language Models are
        Few-Shot Learners" (2020), appendix C.
    Differs from the reference: a text that overlaps is left out as a whole
        instead of being cut around the overlap.
    """
    taken: set[int] = set()
    for text in forbidden:
        taken |= _runs(text)
    return tuple(text for text in texts if taken.isdisjoint(_runs(text)))


def choose(texts: Sequence[str], recipe: Recipe, forbidden: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns at most ``recipe.samples`` texts to calibrate on, the same ones and in the same order each time.

    The order is that of the texts' digests: it depends on no position in the
    corpus, so its first pages weigh no more than its last ones.

    Args:
        texts: The split that ``recipe.source`` names; ignored for random tokens.
        recipe: What the spec asks for.
        forbidden: Texts that scores rest on. Only ``retain`` is held clear of
            them: the other sources are in the preset's name for that reason.

    Raises:
        QuantizationError: No text is left.
    """
    if not recipe.needs_texts:
        return ()
    usable = tuple(dict.fromkeys(text for text in texts if text.strip()))
    clear = clear_of(usable, forbidden) if recipe.source == RETAIN else usable
    if not clear:
        raise QuantizationError(
            f"None of the {len(usable)} {recipe.source} texts can be calibrated on: each shares {OVERLAP_WORDS} words "
            "in a row with forgotten or evaluation text; give other texts, or use a preset that is named for it "
            "(-calib-forget, -calib-holdout, -calib-random)."
        )
    return tuple(sorted(clear, key=_digest_of_text)[: recipe.samples])


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest(texts: Sequence[str], recipe: Recipe) -> str:
    """Returns the SHA-256 over everything that decides the tokens, but for the tokenizer."""
    told = [recipe.source, recipe.samples, recipe.tokens, _SEED, [_digest_of_text(text) for text in texts]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def prepare(
    spec: QuantizerSpec, splits: Mapping[str, Sequence[str]], forbidden: Iterable[str] = ()
) -> tuple[QuantizerSpec, tuple[str, ...]]:
    """Returns ``spec`` with the digest of its calibration, and the texts to hand to its backend.

    This comes before a cell's key is made, so that other texts make another
    cell. A spec that needs no calibration comes back as it is.

    Args:
        spec: A preset or a parsed spec.
        splits: Texts by source: ``retain``, ``forget``, ``holdout``.
        forbidden: Forgotten and evaluation texts, which ``retain`` texts are
            held clear of.

    Raises:
        QuantizationError: The source is missing, or nothing of it may be used.
    """
    recipe = recipe_of(spec)
    if recipe is None:
        return spec, ()
    if recipe.needs_texts and recipe.source not in splits:
        raise QuantizationError(
            f"{spec.name} calibrates on {recipe.source} text, which this corpus lacks: "
            f"it has {', '.join(sorted(splits)) or 'none'}."
        )
    texts = choose(splits.get(recipe.source, ()), recipe, forbidden)
    return replace(spec, calibration=digest(texts, recipe)), texts


def check(spec: QuantizerSpec, texts: Sequence[str]) -> Recipe:
    """Returns the recipe of a spec whose texts are the ones that its digest was made of.

    Raises:
        QuantizationError: Texts are missing, or are not those of the digest.
    """
    recipe = recipe_of(spec)
    if recipe is None:
        raise QuantizationError(f"{spec.name} needs no calibration and says so: this is a fault of its backend.")
    if recipe.needs_texts and not texts:
        raise QuantizationError(
            f"{spec.name} needs calibration texts and got none: hand it the {recipe.source} texts of the corpus."
        )
    if spec.calibration is not None and spec.calibration != digest(texts, recipe):
        raise QuantizationError(
            f"{spec.name} got other calibration texts than its digest {spec.calibration[:12]} was made of: "
            "plan the run again, the corpus has changed."
        )
    return recipe


def _random_windows(recipe: Recipe, tokenizer: Any) -> list[list[int]]:
    import torch

    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    drawn = torch.randint(
        len(ordinary), (recipe.samples, recipe.tokens), generator=torch.Generator().manual_seed(_SEED)
    )
    return [[int(token) for token in row] for row in ordinary[drawn]]


def windows(texts: Sequence[str], recipe: Recipe, tokenizer: Any, *, longest: int | None = None) -> list[list[int]]:
    """Returns windows of token ids, each of ``recipe.tokens`` tokens, at most ``recipe.samples`` of them.

    Every text gives its first window before any gives its second; texts that
    are shorter than a window are joined. Where all of them together are
    shorter than one window, that one is short.

    Args:
        texts: As ``choose`` returned them.
        recipe: What the spec asks for.
        tokenizer: transformers tokenizer of the checkpoint.
        longest: Most tokens that the model takes; None means any number.

    Raises:
        QuantizationError: The texts hold no token.
    """
    size = min(recipe.tokens, longest or recipe.tokens)
    recipe = replace(recipe, tokens=size)
    if not recipe.needs_texts:
        return _random_windows(recipe, tokenizer)
    documents = [[int(token) for token in tokenizer(text)["input_ids"]] for text in texts]
    rounds = max(-(-len(tokens) // size) for tokens in documents) if documents else 0
    stream: list[int] = []
    for start in range(0, rounds * size, size):
        for tokens in documents:
            stream += tokens[start : start + size]
        if len(stream) >= recipe.samples * size:
            break
    if not stream:
        raise QuantizationError("The calibration texts hold no token for this tokenizer: give other texts.")
    cut = [stream[at : at + size] for at in range(0, len(stream) - size + 1, size)] or [stream]
    return cut[: recipe.samples]
