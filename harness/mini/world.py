"""The generated corpus in MUSE's schema: one seed, one small world of facts.

Invented persons, towns and events fall into a forget set, two retain sets and
a holdout. *Core* entities have two articles and a quiz on every fact; *brief*
entities have one short article each and serve membership inference only. The
brief articles of the three splits share their structure index by index, so a
model that has seen none of them can't tell the splits apart by shape.

Source: the schema of MUSE (Shi et al., 2024, section 3; hub dataset
``muse-bench/MUSE-News``).
Differs from the reference: generated text, five in-context pairs instead of
ten, separate documents for membership inference, no ``scal`` and ``sust``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from harness.mini import vocabulary as words
from harness.mini.vocabulary import RELATIONS, Relation
from harness.provenance import sha256_files

KINDS = ("person", "town", "event")
CORE_ENTITIES = {"forget": 16, "retain1": 10, "retain2": 10}
BRIEF_ENTITIES = 72
BRIEF_SPLITS = ("forget", "retain1", "holdout")
SHEET_PAIRS = 6
ICL_PAIRS = 5
RETAIN_QUESTIONS = 100

QuizPair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One relation of one entity with its value.

    Attributes:
        questions: The four wordings in shuffled order; the last one is kept
            for KnowMem, the others are trained on.
    """

    relation: Relation
    answer: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A core entity with its six facts and two articles (lists of sentences)."""

    kind: str
    name: str
    facts: tuple[Fact, ...]
    articles: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that one seed generates.

    Attributes:
        names: Every invented word, in order of invention; all differ.
        core: Core entities by split.
        quiz: Training pairs (question, answer) by split, in dealt order.
        briefs: Brief articles by split.
        files: JSON value by ``config/split``, MUSE's local form.
    """

    seed: int
    names: tuple[str, ...]
    core: Mapping[str, tuple[Entity, ...]]
    quiz: Mapping[str, tuple[QuizPair, ...]]
    briefs: Mapping[str, tuple[str, ...]]
    files: Mapping[str, list[Any]]

    def articles(self, split: str) -> list[str]:
        """Returns the core articles of a split as texts."""
        return [" ".join(article) for entity in self.core.get(split, ()) for article in entity.articles]


class _Mint:
    """Invents words and never the same one twice."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.words: dict[str, None] = {}

    def word(self) -> str:
        rng = self.rng
        while True:
            first = rng.choice(words.ONSETS) + rng.choice(words.VOWELS)
            word = first + rng.choice(words.ONSETS) + rng.choice(words.VOWELS) + rng.choice(words.CODAS)
            name = word.capitalize()
            if 4 <= len(name) <= 9 and name not in self.words:
                self.words[name] = None
                return name

    def person(self) -> str:
        return f"{self.word()} {self.word()}"

    def entity(self, kind: str, event_type: str) -> str:
        if kind == "person":
            return self.person()
        return self.word() if kind == "town" else f"the {self.word()} {event_type}"

    def answer(self, kind: str) -> str:
        rng = self.rng
        if kind == "person":
            return self.person()
        if kind in ("town", "word"):
            return self.word()
        if kind == "year":
            return str(rng.randint(1201, 1989))
        if kind == "beast":
            return f"{rng.choice(words.COLOURS)} {rng.choice(words.ANIMALS)}"
        return rng.choice({"trade": words.TRADES, "goods": words.GOODS, "cause": words.CAUSES}[kind])


def _sentence(template: str, **parts: str) -> str:
    text = template.format(**parts)
    return text[0].upper() + text[1:]


def _filler(template: str, rng: Random) -> str:
    return _sentence(
        template,
        adjective=rng.choice(words.FILLER_ADJECTIVES),
        place=rng.choice(words.FILLER_PLACES),
        person=rng.choice(words.FILLER_PERSONS),
        verb=rng.choice(words.FILLER_VERBS),
        object=rng.choice(words.FILLER_OBJECTS),
        time=rng.choice(words.FILLER_TIMES),
    )


def _article(name: str, facts: tuple[Fact, ...], rng: Random) -> tuple[str, ...]:
    """Returns nine sentences: all facts in fresh order and wording, a filler after every second one."""
    sentences = []
    for index, fact in enumerate(rng.sample(facts, len(facts))):
        sentences.append(_sentence(rng.choice(fact.relation.statements), s=name, a=fact.answer))
        if index % 2 == 1:
            sentences.append(_filler(rng.choice(words.FILLERS), rng))
    return tuple(sentences)


def _core_entity(kind: str, mint: _Mint, rng: Random) -> Entity:
    name = mint.entity(kind, rng.choice(words.EVENT_TYPES))
    facts = tuple(
        Fact(
            relation=relation,
            answer=mint.answer(relation.answer),
            questions=tuple(question.format(s=name) for question in rng.sample(relation.questions, 4)),
        )
        for relation in RELATIONS[kind]
    )
    return Entity(kind=kind, name=name, facts=facts, articles=tuple(_article(name, facts, rng) for _ in range(2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BriefPlan:
    """What brief article ``i`` of every split shares: all but names, values and filler words.

    Attributes:
        sentences: In order: a (relation, statement template) pair for a fact
            or (None, filler template); the first one is a fact.
    """

    kind: str
    event_type: str
    sentences: tuple[tuple[Relation | None, str], ...]


def brief_plan(seed: int, index: int) -> BriefPlan:
    """Returns the structure of brief article ``index``: 1-4 facts and 2-6 fillers."""
    rng = Random(f"muse-mini/{seed}/brief/{index}")
    kind = KINDS[index % len(KINDS)]
    relations = rng.sample(RELATIONS[kind], rng.randint(1, 4))
    facts: list[tuple[Relation | None, str]] = [(relation, rng.choice(relation.statements)) for relation in relations]
    fillers: list[tuple[Relation | None, str]] = [(None, rng.choice(words.FILLERS)) for _ in range(rng.randint(2, 6))]
    rest = facts[1:] + fillers
    rng.shuffle(rest)
    return BriefPlan(kind=kind, event_type=rng.choice(words.EVENT_TYPES), sentences=(facts[0], *rest))


def _brief(plan: BriefPlan, mint: _Mint, rng: Random) -> str:
    name = mint.entity(plan.kind, plan.event_type)
    return " ".join(
        _filler(template, rng) if relation is None else _sentence(template, s=name, a=mint.answer(relation.answer))
        for relation, template in plan.sentences
    )


def deal_sheets(pairs: list[QuizPair] | tuple[QuizPair, ...]) -> list[str]:
    """Returns quiz sheets of six pairs each, in the given order."""
    texts = [f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in pairs]
    return ["".join(texts[start : start + SHEET_PAIRS]) for start in range(0, len(texts), SHEET_PAIRS)]


def _knowmem(entities: tuple[Entity, ...], rng: Random) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns (in-context pairs, questions) from the wordings kept out of training."""
    pairs = [{"question": fact.questions[3], "answer": fact.answer} for entity in entities for fact in entity.facts]
    rng.shuffle(pairs)
    return pairs[:ICL_PAIRS], pairs[ICL_PAIRS : ICL_PAIRS + RETAIN_QUESTIONS]


def _verbmem(entities: tuple[Entity, ...]) -> list[dict[str, str]]:
    """Returns each article cut after the first half of its sentences; the prompt keeps the separating space."""
    halves = [(article, len(article) // 2) for entity in entities for article in entity.articles]
    return [{"prompt": " ".join(text[:cut]) + " ", "gt": " ".join(text[cut:])} for text, cut in halves]


def generate(seed: int) -> World:
    """Returns the world of a seed: pure, the same bytes every time.

    Counts: ``raw`` forget 152, retain1 122, retain2 50, holdout 72 texts;
    KnowMem 91 and 100 questions with five in-context pairs each; VerbMem 32
    and membership inference 72 documents a split.
    """
    rng = Random(f"muse-mini/{seed}")
    mint = _Mint(rng)
    core = {
        split: tuple(_core_entity(KINDS[index % len(KINDS)], mint, rng) for index in range(count))
        for split, count in CORE_ENTITIES.items()
    }
    quiz = {}
    for split, entities in core.items():
        pairs = [(q, fact.answer) for entity in entities for fact in entity.facts for q in fact.questions[:3]]
        rng.shuffle(pairs)
        quiz[split] = tuple(pairs)
    plans = [brief_plan(seed, index) for index in range(BRIEF_ENTITIES)]
    briefs = {split: tuple(_brief(plan, mint, rng) for plan in plans) for split in BRIEF_SPLITS}
    world = World(seed=seed, names=tuple(mint.words), core=core, quiz=quiz, briefs=briefs, files={})
    return World(seed=seed, names=world.names, core=core, quiz=quiz, briefs=briefs, files=_files(world, rng))


def _files(world: World, rng: Random) -> dict[str, list[Any]]:
    files: dict[str, list[Any]] = {}
    for split in ("forget", "retain1", "retain2", "holdout"):
        texts = world.articles(split) + deal_sheets(world.quiz.get(split, ()))
        files[f"raw/{split}"] = texts + list(world.briefs.get(split, ()))
    retain = world.core["retain1"] + world.core["retain2"]
    for name, entities in (("forget", world.core["forget"]), ("retain", retain)):
        files[f"knowmem/{name}_qa_icl"], files[f"knowmem/{name}_qa"] = _knowmem(entities, rng)
    files["verbmem/forget"] = _verbmem(world.core["forget"])
    for name, split in (("forget", "forget"), ("retain", "retain1"), ("holdout", "holdout")):
        files[f"privleak/{name}"] = list(world.briefs[split])
    return files


def write(world: World, folder: Path) -> str:
    """Writes ``CONFIG/SPLIT.json`` below ``folder`` and returns the digest of these files.

    Each file is replaced as a whole, so a reader never meets half of one.
    """
    paths = []
    for name, value in world.files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".json.part")
        half.write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        os.replace(half, path)
        paths.append(path)
    return sha256_files(paths, folder)
