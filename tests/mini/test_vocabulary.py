import re
import string

import pytest

from harness.mini import vocabulary
from harness.mini.vocabulary import RELATIONS

LISTS = {
    name: getattr(vocabulary, name)
    for name in ("TRADES", "GOODS", "CAUSES", "COLOURS", "ANIMALS", "EVENT_TYPES", "FILLER_ADJECTIVES",
                 "FILLER_PLACES", "FILLER_PERSONS", "FILLER_VERBS", "FILLER_OBJECTS", "FILLER_TIMES")
}  # fmt: skip


def slots(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_no_word_twice(name):
    assert len(set(LISTS[name])) == len(LISTS[name])


def test_lists_have_the_lengths_of_the_specification():
    lengths = {name: len(words) for name, words in LISTS.items()}
    assert (lengths["TRADES"], lengths["GOODS"], lengths["CAUSES"]) == (24, 24, 16)
    assert (lengths["COLOURS"], lengths["ANIMALS"], lengths["EVENT_TYPES"]) == (12, 16, 8)
    assert all(15 <= length <= 20 for name, length in lengths.items() if name.startswith("FILLER"))
    assert len(vocabulary.FILLERS) == 5


@pytest.mark.parametrize("kind", RELATIONS)
def test_a_kind_has_six_relations_with_four_wordings_each(kind):
    assert len({relation.name for relation in RELATIONS[kind]}) == 6
    for relation in RELATIONS[kind]:
        assert len(set(relation.statements)) == len(set(relation.questions)) == 4
        assert all(sorted(slots(statement)) == ["a", "s"] for statement in relation.statements)
        assert all(slots(question) == ["s"] for question in relation.questions)
        assert all(question.endswith("?") for question in relation.questions)
        assert all(statement.endswith(".") for statement in relation.statements)


def test_questions_of_two_relations_of_a_kind_never_coincide():
    for relations in RELATIONS.values():
        questions = [question for relation in relations for question in relation.questions]
        assert len(set(questions)) == len(questions)


def test_closed_answers_share_no_word_so_that_rouge_rewards_the_right_one_only():
    for answers in (vocabulary.TRADES, vocabulary.GOODS, vocabulary.CAUSES):
        words = [word for answer in answers for word in answer.split()]
        assert len(set(words)) == len(words)


def test_answers_hold_neither_articles_nor_signs():
    for name in ("TRADES", "GOODS", "CAUSES", "COLOURS", "ANIMALS"):
        for answer in LISTS[name]:
            assert re.fullmatch(r"[a-z]+( [a-z]+)?", answer)
            assert answer.split()[0] not in ("a", "an", "the")
