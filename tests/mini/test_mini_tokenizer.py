import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.mini import world
from harness.mini.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, train_tokenizer

MADE = world.generate(0)
TOKENIZER = train_tokenizer(text for name, texts in MADE.files.items() if name.startswith("raw/") for text in texts)


def pieces(text: str) -> list[str]:
    """Tokens as the text they stand for, without BOS."""
    return [TOKENIZER.decode([token]) for token in TOKENIZER(text)["input_ids"][1:]]


def test_special_tokens_have_their_places_and_the_vocabulary_its_size():
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)
    assert len(TOKENIZER) == VOCABULARY


def test_bos_is_put_first_and_padding_goes_to_the_left():
    batch = TOKENIZER(["Who?", "Who was the mayor of it?"], padding=True)
    assert batch["input_ids"][0][0] == PAD_ID
    assert batch["attention_mask"][0][0] == 0
    assert batch["input_ids"][1][0] == BOS_ID
    assert all(EOS_ID not in ids for ids in batch["input_ids"])


def test_the_knowmem_prompt_ends_in_one_token_that_training_has_shown():
    prompt = "Question: Who was the mayor?\nAnswer: "
    assert pieces(prompt)[-2:] == ["Answer", ": "]
    shown = pieces(MADE.files["raw/forget"][40])
    assert ": " in shown
    assert pieces(prompt + "salt")[: len(pieces(prompt))] == pieces(prompt)


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_every_knowmem_prompt_is_a_prefix_of_its_answered_form(side):
    for item in MADE.files[f"knowmem/{side}_qa"]:
        prompt = f"Question: {item['question']}\nAnswer: "
        answered = TOKENIZER(prompt + item["answer"] + "\n\n")["input_ids"]
        ids = TOKENIZER(prompt)["input_ids"]
        assert answered[: len(ids)] == ids
        assert TOKENIZER.decode(answered[-1:]) == "\n\n"


def test_every_token_of_a_knowmem_prompt_is_a_piece_of_a_word_a_digit_line_ends_or_a_sign():
    allowed = re.compile(r"[A-Za-z]+ ?|[A-Za-z]*[A-Za-z ] ?|\d|\n+|[^A-Za-z\d\n] ?| ")
    for item in MADE.files["knowmem/forget_qa"]:
        prompt = f"Question: {item['question']}\nAnswer: {item['answer']}\n\n"
        for piece in pieces(prompt):
            assert allowed.fullmatch(piece), piece
            assert not piece.startswith(" ") or piece == " "


def test_a_space_ends_a_word_and_digits_stand_alone():
    found = pieces("the mayor of it")
    assert "the " in found
    assert "of " in found
    assert not any(piece.startswith(" ") for piece in found)
    assert pieces("in 1423.") == ["in ", "1", "4", "2", "3", "."]


def test_a_blank_line_is_one_token():
    assert pieces("salt\n\n").count("\n\n") == 1


def test_verbmem_prompts_are_prefixes_of_their_articles():
    for item in MADE.files["verbmem/forget"]:
        ids = TOKENIZER(item["prompt"])["input_ids"]
        assert TOKENIZER(item["prompt"] + item["gt"])["input_ids"][: len(ids)] == ids


def test_document_lengths_fit_the_limits_of_the_tasks():
    lengths = [len(TOKENIZER(item["gt"])["input_ids"]) - 1 for item in MADE.files["verbmem/forget"]]
    assert max(lengths) <= 90
    answers = [item["answer"] for side in ("forget", "retain") for item in MADE.files[f"knowmem/{side}_qa"]]
    assert max(len(TOKENIZER(answer)["input_ids"]) - 1 for answer in answers) <= 12


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives_encoding_and_decoding(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=False)[len("<s>") :] == text or any(
        special in text for special in ("<s>", "</s>", "<pad>")
    )


def test_training_it_twice_gives_the_same_tokenizer():
    texts = MADE.files["raw/forget"]
    one, two = (train_tokenizer(texts).backend_tokenizer.to_str() for _ in range(2))
    assert one == two
