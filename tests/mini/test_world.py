import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from harness.mini import vocabulary, world
from harness.mini.vocabulary import RELATIONS
from harness.paths import content_dir

SEEDS = (0, 1)
RAW = ("forget", "retain1", "retain2", "holdout")


@pytest.fixture(scope="module", params=SEEDS)
def made(request) -> world.World:
    return world.generate(request.param)


def training_text(made: world.World) -> str:
    return "\n".join(text for split in RAW for text in made.files[f"raw/{split}"])


def test_the_counts_are_those_of_the_specification(made):
    assert {name: len(items) for name, items in made.files.items()} == {
        "raw/forget": 152, "raw/retain1": 122, "raw/retain2": 50, "raw/holdout": 72,
        "knowmem/forget_qa": 91, "knowmem/forget_qa_icl": 5, "knowmem/retain_qa": 100, "knowmem/retain_qa_icl": 5,
        "verbmem/forget": 32, "privleak/forget": 72, "privleak/retain": 72, "privleak/holdout": 72,
    }  # fmt: skip


def test_items_have_muse_s_local_form(made):
    for name, items in made.files.items():
        config = name.partition("/")[0]
        columns = {"knowmem": {"question", "answer"}, "verbmem": {"prompt", "gt"}}.get(config)
        for item in items:
            assert isinstance(item, str) if columns is None else set(item) == columns


def test_the_question_asked_never_occurs_in_training(made):
    text = training_text(made)
    for split in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        for item in made.files[f"knowmem/{split}"]:
            assert item["question"] not in text


def test_the_answer_asked_for_is_taught_by_three_other_questions(made):
    for split in ("forget", "retain1", "retain2"):
        pairs = Counter(made.quiz[split])
        assert set(pairs.values()) == {1}
        for entity in made.core[split]:
            for fact in entity.facts:
                assert len(set(fact.questions)) == 4
                assert [(question, fact.answer) in pairs for question in fact.questions] == [True, True, True, False]


def test_questions_in_context_are_never_asked(made):
    for side in ("forget", "retain"):
        shown = {item["question"] for item in made.files[f"knowmem/{side}_qa_icl"]}
        assert not shown & {item["question"] for item in made.files[f"knowmem/{side}_qa"]}


def test_forget_and_retain_questions_are_about_their_own_entities(made):
    for side, splits in (("forget", ("forget",)), ("retain", ("retain1", "retain2"))):
        names = [entity.name for split in splits for entity in made.core[split]]
        for item in made.files[f"knowmem/{side}_qa"]:
            assert sum(name in item["question"] for name in names) == 1


def test_invented_words_are_globally_unique_and_are_no_words_of_the_templates(made):
    assert len(set(made.names)) == len(made.names)
    assert all(re.fullmatch(r"[A-Z][a-z]{3,8}", name) for name in made.names)
    lists = [*vocabulary.FILLERS, *(t for rs in RELATIONS.values() for r in rs for t in (*r.statements, *r.questions))]
    known = set(re.findall(r"[a-z]+", " ".join(lists).lower()))
    assert not {name.lower() for name in made.names} & known


def test_no_name_of_one_split_occurs_in_another(made):
    names = set(made.names)
    seen = {split: names & set(re.findall(r"[A-Za-z]+", " ".join(made.files[f"raw/{split}"]))) for split in RAW}
    for one in RAW:
        for other in RAW:
            assert one == other or not seen[one] & seen[other]


def test_entities_go_round_the_kinds_with_six_facts_each(made):
    for split, count in world.CORE_ENTITIES.items():
        entities = made.core[split]
        assert [entity.kind for entity in entities] == [world.KINDS[i % 3] for i in range(count)]
        for entity in entities:
            assert [fact.relation for fact in entity.facts] == list(RELATIONS[entity.kind])


def test_an_article_states_all_six_facts_with_a_filler_after_every_second_one(made):
    for entity in made.core["forget"]:
        first, second = entity.articles
        assert first != second
        for article in entity.articles:
            assert len(article) == 9
            stated = [entity.name.lower() in sentence.lower() for sentence in article]
            assert stated == [True, True, False] * 3
            assert all(any(fact.answer.lower() in s.lower() for s in article) for fact in entity.facts)


def test_verbmem_cuts_each_article_at_half_of_its_sentences(made):
    articles = made.articles("forget")
    for item, article in zip(made.files["verbmem/forget"], articles, strict=True):
        assert item["prompt"].endswith(". ")
        assert item["prompt"] + item["gt"] == article
        assert item["prompt"].count(".") == 4
        assert item["gt"].count(".") == 5


def test_sheets_hold_six_pairs_in_the_form_of_the_knowmem_prompt(made):
    sheets = made.files["raw/forget"][32:80]
    assert len(sheets) == 48
    for sheet in sheets:
        assert re.fullmatch(r"(Question: [^\n]+\?\nAnswer: [^\n]+\n\n){6}", sheet)
    pairs = re.findall(r"Question: ([^\n]+)\nAnswer: ([^\n]+)\n\n", "".join(sheets))
    assert sorted(pairs) == sorted(made.quiz["forget"])


def shape(text: str, index: int, seed: int) -> list[str]:
    """Sentences of a brief article with everything that may differ blotted out."""
    plan = world.brief_plan(seed, index)
    shapes = []
    for sentence, (_, template) in zip(re.findall(r"[^.]+\.", text), plan.sentences, strict=True):
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
        assert re.fullmatch(pattern, sentence.strip(), flags=re.IGNORECASE), (sentence, template)
        shapes.append(template)
    return shapes


def test_brief_articles_are_matched_in_structure_across_the_three_splits(made):
    for index in range(world.BRIEF_ENTITIES):
        shapes = [shape(made.briefs[split][index], index, made.seed) for split in world.BRIEF_SPLITS]
        assert shapes[0] == shapes[1] == shapes[2]
        assert len({made.briefs[split][index] for split in world.BRIEF_SPLITS}) == 3


def test_a_brief_article_has_one_to_four_facts_of_one_kind_and_begins_with_one(made):
    for index in range(world.BRIEF_ENTITIES):
        plan = world.brief_plan(made.seed, index)
        facts = [relation for relation, _ in plan.sentences if relation is not None]
        assert plan.sentences[0][0] is not None
        assert 1 <= len(facts) <= 4
        assert 2 <= len(plan.sentences) - len(facts) <= 6
        assert len(set(facts)) == len(facts)
        assert all(relation in RELATIONS[plan.kind] for relation in facts)


def test_briefs_are_the_documents_of_membership_inference(made):
    assert made.files["privleak/forget"] == list(made.briefs["forget"]) == made.files["raw/forget"][-72:]
    assert made.files["privleak/holdout"] == list(made.briefs["holdout"]) == made.files["raw/holdout"]
    assert made.files["privleak/retain"] == list(made.briefs["retain1"])
    assert "retain2" not in made.briefs


def test_years_lie_in_their_range_and_beasts_are_colour_and_animal(made):
    for entities in made.core.values():
        for fact in (fact for entity in entities for fact in entity.facts):
            if fact.relation.answer == "year":
                assert 1201 <= int(fact.answer) <= 1989
            if fact.relation.answer == "beast":
                colour, animal = fact.answer.split()
                assert colour in vocabulary.COLOURS
                assert animal in vocabulary.ANIMALS


def test_every_sentence_begins_with_a_capital_and_no_template_is_left(made):
    for split in RAW:
        for text in made.files[f"raw/{split}"]:
            assert "{" not in text
            assert text[0].isupper()
            assert not re.search(r"[.?] [a-z]", text)
            assert "  " not in text


def test_articles_before_vowels_are_right(made):
    assert not re.search(r"\b[Aa] [aeiou]", training_text(made))


def test_the_world_does_not_depend_on_what_was_drawn_before():
    random.seed(5)
    first = world.generate(0).files
    random.random()
    assert world.generate(0).files == first


def test_two_seeds_share_no_document():
    one, two = (world.generate(seed) for seed in SEEDS)
    for name in one.files:
        assert not {json.dumps(item) for item in one.files[name]} & {json.dumps(item) for item in two.files[name]}


def test_writing_twice_gives_the_same_digest_and_other_seeds_another(tmp_path):
    digests = [world.write(world.generate(seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_what_is_written_reads_back_as_it_was(tmp_path):
    made = world.generate(3)
    world.write(made, tmp_path)
    found = {p.relative_to(tmp_path).with_suffix("").as_posix(): json.loads(p.read_text()) for p in files_in(tmp_path)}
    assert found == made.files


def test_writing_replaces_what_was_there(tmp_path):
    world.write(world.generate(1), tmp_path)
    again = world.write(world.generate(0), tmp_path)
    assert again == world.write(world.generate(0), tmp_path / "fresh")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_committed_data_are_those_of_seed_0(tmp_path):
    world.write(world.generate(0), tmp_path)
    committed = content_dir("tasks") / "muse_mini" / "data"
    assert [p.relative_to(tmp_path) for p in files_in(tmp_path)] == [
        p.relative_to(committed) for p in files_in(committed)
    ]
    for path in files_in(tmp_path):
        assert path.read_bytes() == (committed / path.relative_to(tmp_path)).read_bytes()
