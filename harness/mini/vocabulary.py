"""Words and sentence templates of the generated corpus.

All of it was written for this project. ``{s}`` stands for the subject and
``{a}`` for the answer; a sentence's first letter is capitalized afterwards.
"""

# A word list reads better as one line of words than as a column of quotes.
# ruff: noqa: SIM905

from __future__ import annotations

from dataclasses import dataclass

ONSETS = tuple("b br d dr f fl g gr h j k kl l m n p pr qu r s sk st t tr th v w y z".split())
VOWELS = tuple("a e i o u ae ia or el".split())
CODAS = tuple("n r l s m th nd rk st x sh ".split(" "))
"""The empty coda at the end is meant: some names end in a vowel."""

TRADES = tuple(
    "clockmaker weaver cartographer glazier beekeeper printer surgeon cooper botanist ferryman locksmith potter "
    "stargazer saddler thatcher translator bookbinder herbalist gardener mason violinist surveyor tanner baker".split()
)
GOODS = tuple(
    "salt amber copper linen honey slate saffron barrels lanterns pepper marble candles rope cheese walnuts paper "
    "indigo leather cider tin needles mirrors wool bricks".split()
)
CAUSES = (
    "heavy fog", "late snow", "river flooding", "grain shortage", "broken axles", "unpaid wages", "harbour fire",
    "plague rumours", "missing permits", "fallen timber", "horse fever", "sudden mourning", "spoiled flour",
    "border dispute", "stolen drums", "cracked ice",
)  # fmt: skip
COLOURS = tuple("red blue green white black golden silver grey purple yellow brown crimson".split())
ANIMALS = tuple("heron fox bear otter falcon hare stag owl boar lynx raven trout badger swan wolf goat".split())
EVENT_TYPES = tuple("Regatta Trial Siege Fair Expedition Tournament Congress Race".split())

FILLER_ADJECTIVES = tuple(
    "narrow quiet dusty bright crooked damp crowded pale empty sturdy humble lively ragged plain shady".split()
)
FILLER_PLACES = tuple(
    "market chapel quay orchard bridge mill tavern courtyard well granary library stable gate meadow tower "
    "bakery".split()
)
FILLER_PERSONS = (
    "an old clerk", "two children", "the widow", "a young soldier", "some farmers", "a tired nurse", "the night guard",
    "three sailors", "a choir boy", "the miller", "a stranger", "both sisters", "a lawyer", "many pilgrims",
    "the cook", "a fiddler",
)  # fmt: skip
FILLER_VERBS = (
    "carried", "mended", "counted", "painted", "lost", "sold", "hid", "admired", "washed", "borrowed", "dropped",
    "found", "guarded", "traded", "swept up", "buried",
)  # fmt: skip
FILLER_OBJECTS = (
    "baskets", "ledgers", "ladders", "blankets", "kettles", "maps", "boots", "apples", "letters", "hammers", "coins",
    "sacks", "flags", "bottles", "benches", "ribbons", "nets", "shutters",
)  # fmt: skip
FILLER_TIMES = (
    "at dawn", "before noon", "after supper", "in spring", "on market day", "during the rain", "at midnight",
    "all summer", "that winter", "every autumn", "since Easter", "on Sundays", "in the evening", "for weeks",
    "next morning",
)  # fmt: skip
FILLERS = (
    "{time} {person} {verb} the {object} that stood at the end of the road.",
    "the {adjective} {place} stayed open {time} for anyone who wished to come in.",
    "{person} {verb} some {adjective} {object} and then went home again.",
    "people often spoke of the {adjective} {object} that had been left by the {place}.",
    "{time} the {place} was so full of {object} that nobody could sit down.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One thing to know about an entity.

    Attributes:
        name: Short identifier.
        answer: Kind of answer: ``town``, ``person``, ``word``, ``year``,
            ``trade``, ``goods``, ``cause`` or ``beast``.
        statements: Four wordings with subject and answer.
        questions: Four wordings with the subject.
    """

    name: str
    answer: str
    statements: tuple[str, str, str, str]
    questions: tuple[str, str, str, str]


def _relation(name: str, answer: str, *wordings: str) -> Relation:
    s1, s2, s3, s4, q1, q2, q3, q4 = wordings
    return Relation(name=name, answer=answer, statements=(s1, s2, s3, s4), questions=(q1, q2, q3, q4))


RELATIONS: dict[str, tuple[Relation, ...]] = {
    "person": (
        _relation(
            "born", "town",
            "{s} was born in the town of {a}.", "the birthplace of {s} is {a}.",
            "{s} came into the world in {a}.", "it was in {a} that {s} was born.",
            "Where was {s} born?", "What is the birthplace of {s}?",
            "In which town did {s} come into the world?", "Which town is the native place of {s}?",
        ),
        _relation(
            "job", "trade",
            "{s} worked as a {a}.", "by trade {s} was a {a}.",
            "for years {s} earned a living as a {a}.", "the profession of {s} was {a}.",
            "What did {s} work as?", "Which trade did {s} follow?",
            "How did {s} earn a living?", "What was the profession of {s}?",
        ),
        _relation(
            "mentor", "person",
            "{s} learned everything from {a}.", "the mentor of {s} was {a}.",
            "{a} taught {s} for many years.", "{s} was a pupil of {a}.",
            "Who did {s} learn from?", "Who was the mentor of {s}?",
            "Who taught {s} for many years?", "Whose pupil was {s}?",
        ),
        _relation(
            "prize", "word",
            "{s} once won the {a} prize.", "the {a} prize went to {s}.",
            "judges gave {s} the {a} prize.", "{s} was honoured with the {a} prize.",
            "Which prize did {s} win?", "What prize went to {s}?",
            "Which prize did judges give {s}?", "With what prize was {s} honoured?",
        ),
        _relation(
            "retired", "year",
            "{s} retired in the year {a}.", "in {a} {s} stopped working.",
            "the last working year of {s} was {a}.", "{s} left office in {a}.",
            "When did {s} retire?", "In which year did {s} stop working?",
            "What was the last working year of {s}?", "When did {s} leave office?",
        ),
        _relation(
            "pet", "beast",
            "at home {s} kept a {a}.", "the only pet of {s} was a {a}.",
            "a {a} lived with {s}.", "{s} walked about with a {a}.",
            "What animal did {s} keep?", "What was the pet of {s}?",
            "Which animal lived with {s}?", "With what animal did {s} walk about?",
        ),
    ),
    "town": (
        _relation(
            "river", "word",
            "{s} lies on the river {a}.", "the river {a} runs through {s}.",
            "boats reach {s} by the river {a}.", "{s} takes its water from the river {a}.",
            "On which river does {s} lie?", "Which river runs through {s}?",
            "By what river do boats reach {s}?", "From which river does {s} take its water?",
        ),
        _relation(
            "founder", "person",
            "{s} was founded by {a}.", "{a} founded {s} as a village.",
            "the founder of {s} was {a}.", "{a} built the first house in {s}.",
            "Who was {s} founded by?", "Which person founded {s}?",
            "Who was the founder of {s}?", "Who built the first house in {s}?",
        ),
        _relation(
            "charter", "year",
            "{s} got its charter in {a}.", "the charter of {s} dates from {a}.",
            "in {a} {s} became a free town.", "{s} has held town rights since {a}.",
            "When did {s} get its charter?", "From which year does the charter of {s} date?",
            "When did {s} become a free town?", "Since when has {s} held town rights?",
        ),
        _relation(
            "goods", "goods",
            "{s} is known for {a}.", "traders go to {s} for {a}.",
            "the chief product of {s} is {a}.", "{s} sells mostly {a} at its fair.",
            "What is {s} known for?", "What do traders go to {s} for?",
            "What is the chief product of {s}?", "What does {s} mostly sell?",
        ),
        _relation(
            "mayor", "person",
            "the mayor of {s} is {a}.", "{a} governs {s} today.",
            "{s} elected {a} as mayor.", "{a} heads the council of {s}.",
            "Who is the mayor of {s}?", "Which person governs {s}?",
            "Who did {s} elect as mayor?", "Who heads the council of {s}?",
        ),
        _relation(
            "flag", "beast",
            "the flag of {s} shows a {a}.", "{s} flies a {a} on its flag.",
            "a {a} adorns the banner of {s}.", "above the roofs of {s} waves a {a}.",
            "What does the flag of {s} show?", "Which animal does {s} fly on its flag?",
            "What adorns the banner of {s}?", "Which animal waves above {s}?",
        ),
    ),
    "event": (
        _relation(
            "place", "town",
            "{s} took place in the town of {a}.", "{s} was held in {a}.",
            "{a} was the scene of {s}.", "crowds went to {a} for {s}.",
            "Where did {s} take place?", "In which town was {s} held?",
            "What was the scene of {s}?", "Where did crowds go for {s}?",
        ),
        _relation(
            "year", "year",
            "{s} happened in {a}.", "the year of {s} was {a}.",
            "in {a} came the days of {s}.", "{s} is dated to {a}.",
            "When did {s} happen?", "What was the year of {s}?",
            "In which year came {s}?", "To which year is {s} dated?",
        ),
        _relation(
            "winner", "person",
            "{a} won {s} by a head.", "the winner of {s} was {a}.",
            "victory in {s} went to {a}.", "{s} ended in triumph for {a}.",
            "Which person won {s}?", "Who was the winner of {s}?",
            "Who did victory in {s} go to?", "For whom did {s} end in triumph?",
        ),
        _relation(
            "delay", "cause",
            "{s} was delayed by {a}.", "{a} held up {s} for days.",
            "because of {a} {s} began late.", "{s} had to wait for the end of {a}.",
            "What was {s} delayed by?", "What held up {s}?",
            "Why did {s} begin late?", "For the end of what did {s} have to wait?",
        ),
        _relation(
            "sponsor", "person",
            "{a} paid for {s} alone.", "the sponsor of {s} was {a}.",
            "{s} was financed by {a}.", "money for {s} came from {a}.",
            "Which person paid for {s}?", "Who was the sponsor of {s}?",
            "Who was {s} financed by?", "From whom came the money for {s}?",
        ),
        _relation(
            "emblem", "beast",
            "the emblem of {s} was a {a}.", "on every poster a {a} stood for {s}.",
            "the tickets of {s} bore a {a}.", "{s} had a {a} as its sign.",
            "What was the emblem of {s}?", "Which animal stood for {s}?",
            "What did the tickets of {s} bear?", "What did {s} have as its sign?",
        ),
    ),
}  # fmt: skip
"""Six relations for each kind of entity."""
