"""Calibration: which texts may be used, that the same ones are used each time, and what windows they make."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize import calibration
from harness.quantize.calibration import Recipe, choose, clear_of, digest, prepare, recipe_of, windows
from harness.records import QuantizerSpec

RETAIN = Recipe(source="retain", samples=4, tokens=5)
WORDS = [f"word{number}" for number in range(40)]
LONG = " ".join(WORDS)


class LetterTokenizer:
    """One token a letter, as transformers' tokenizers are called."""

    all_special_ids = [0, 1]

    def __call__(self, text: str) -> dict[str, Any]:
        return {"input_ids": [ord(letter) for letter in text]}

    def __len__(self) -> int:
        return 12


def spec(source: str | None) -> QuantizerSpec:
    options = {} if source is None else calibration.options(source)
    return QuantizerSpec(
        name="gptq-4bit-g64", backend="gptq", bits=4, group_size=64, symmetric=True, label="GPTQ", options=options
    )


def text_of(window: list[int]) -> str:
    return "".join(map(chr, window))


def test_a_text_that_shares_thirteen_words_in_a_row_is_left_out() -> None:
    thirteen, twelve = " ".join(WORDS[5:18]), " ".join(WORDS[5:17])
    texts = ("nothing of it", f"before {thirteen} after", f"before {twelve} after")
    assert clear_of(texts, [LONG]) == (texts[0], texts[2])
    assert clear_of(texts, []) == texts


@pytest.mark.parametrize("disguise", [str.upper, lambda text: text.replace(" ", ",\n"), lambda text: f"“{text}!”"])
def test_case_and_punctuation_hide_no_overlap(disguise: Any) -> None:
    assert clear_of([disguise(" ".join(WORDS[:13]))], [LONG]) == ()


def test_an_overlap_may_lie_in_any_of_the_forbidden_texts() -> None:
    assert clear_of([" ".join(WORDS[20:33])], iter(["other", LONG])) == ()


def test_texts_of_fewer_words_share_no_run_at_all() -> None:
    assert clear_of(["word1 word2"], ["word1 word2"]) == ("word1 word2",)


@given(st.permutations([f"text number {number}" for number in range(9)]))
def test_the_choice_does_not_depend_on_the_order_of_the_corpus(texts: list[str]) -> None:
    chosen = choose(texts, RETAIN)
    assert len(chosen) == 4
    assert chosen == choose(sorted(texts), RETAIN)
    assert set(chosen) <= set(texts)


def test_blank_and_repeated_texts_count_once() -> None:
    assert sorted(choose(["a b", "", " \n", "a b", "c d"], RETAIN)) == ["a b", "c d"]


def test_retain_texts_are_held_clear_of_forbidden_ones_and_the_named_exceptions_are_not() -> None:
    assert choose([LONG, "fine"], RETAIN, [LONG]) == ("fine",)
    for source in ("forget", "holdout"):
        assert choose([LONG], dataclasses.replace(RETAIN, source=source), [LONG]) == (LONG,)


def test_where_every_text_overlaps_calibration_is_refused_with_the_ways_out() -> None:
    with pytest.raises(QuantizationError, match=r"None of the 2 retain texts.*13 words in a row.*-calib-forget"):
        choose([LONG, " ".join(WORDS[:20])], RETAIN, [LONG])
    with pytest.raises(QuantizationError, match="None of the 0 forget texts"):
        choose(["  "], dataclasses.replace(RETAIN, source="forget"))


def test_the_digest_moves_with_everything_that_decides_the_tokens() -> None:
    texts = ("one", "two")
    seen = {
        digest(texts, RETAIN),
        digest(texts[::-1], RETAIN),
        digest(("one two",), RETAIN),
        digest(texts, dataclasses.replace(RETAIN, source="forget")),
        digest(texts, dataclasses.replace(RETAIN, samples=5)),
        digest(texts, dataclasses.replace(RETAIN, tokens=6)),
    }
    assert len(seen) == 6
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in seen)


def test_digest_and_choice_are_the_same_in_another_process() -> None:
    code = (
        "from harness.quantize.calibration import *; r = Recipe(source='retain', samples=2, tokens=5);"
        "t = choose(['a b c', 'd e f', 'g h i'], r, ['x ' * 20]); print(digest(t, r))"
    )
    told = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    recipe = Recipe(source="retain", samples=2, tokens=5)
    assert told == {digest(choose(["a b c", "d e f", "g h i"], recipe), recipe) + "\n"}


def test_a_spec_is_given_its_digest_and_texts_before_its_cells_are_named() -> None:
    prepared, texts = prepare(spec("retain"), {"retain": ["fine", LONG], "forget": [LONG]}, [LONG])
    assert texts == ("fine",)
    assert prepared.calibration == digest(texts, Recipe(source="retain", samples=64, tokens=128))
    assert dataclasses.replace(prepared, calibration=None) == spec("retain")
    assert calibration.check(prepared, texts) == recipe_of(prepared)


def test_a_spec_without_calibration_comes_back_as_it_is() -> None:
    assert recipe_of(spec(None)) is None
    assert prepare(spec(None), {"retain": ["fine"]}) == (spec(None), ())
    with pytest.raises(QuantizationError, match="needs no calibration"):
        calibration.check(spec(None), ())


def test_a_source_that_the_corpus_lacks_is_named() -> None:
    with pytest.raises(QuantizationError, match="calibrates on holdout text, which this corpus lacks: it has retain"):
        prepare(spec("holdout"), {"retain": ["fine"]})
    with pytest.raises(QuantizationError, match="on 'wikitext': known sources are retain, forget, holdout, random"):
        recipe_of(spec("wikitext"))


def test_other_texts_than_those_of_the_digest_are_refused() -> None:
    prepared, _ = prepare(spec("retain"), {"retain": ["fine"]})
    with pytest.raises(QuantizationError, match="got other calibration texts than its digest"):
        calibration.check(prepared, ("fine", "more"))
    with pytest.raises(QuantizationError, match="needs calibration texts and got none: hand it the retain texts"):
        calibration.check(prepared, ())


def test_every_text_gives_its_first_window_before_any_gives_its_second() -> None:
    made = windows(["aaaaaAAAAA11111", "bbbbbBBBBB"], RETAIN, LetterTokenizer())
    assert [text_of(window) for window in made] == ["aaaaa", "bbbbb", "AAAAA", "BBBBB"]


def test_short_texts_are_joined_into_full_windows() -> None:
    made = windows(["abc", "def", "gh", "ijk"], RETAIN, LetterTokenizer())
    assert [text_of(window) for window in made] == ["abcde", "fghij"]


def test_texts_that_fill_no_window_make_one_short_one() -> None:
    assert windows(["ab"], RETAIN, LetterTokenizer()) == [[97, 98]]
    with pytest.raises(QuantizationError, match="hold no token"):
        windows([""], RETAIN, LetterTokenizer())
    with pytest.raises(QuantizationError, match="hold no token"):
        windows([], RETAIN, LetterTokenizer())


def test_windows_are_no_longer_than_the_model_takes() -> None:
    made = windows(["abcdefghij"], RETAIN, LetterTokenizer(), longest=3)
    assert [text_of(window) for window in made] == ["abc", "def", "ghi"]


@given(st.lists(st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=23), min_size=1, max_size=6))
def test_windows_are_full_and_made_of_the_texts_alone(texts: list[str]) -> None:
    if not any(texts):
        return
    made = windows(texts, RETAIN, LetterTokenizer())
    assert 1 <= len(made) <= RETAIN.samples
    assert len(made) == 1 or {len(window) for window in made} == {RETAIN.tokens}
    left = sorted("".join(texts))
    for letter in "".join(map(text_of, made)):
        left.remove(letter)


def test_random_tokens_need_no_text_and_are_the_same_each_time() -> None:
    recipe = Recipe(source="random", samples=30, tokens=7)
    assert choose(["text"], recipe) == ()
    made = windows((), recipe, LetterTokenizer())
    assert made == windows((), recipe, LetterTokenizer())
    assert {len(window) for window in made} == {7}
    # Every ordinary token of the vocabulary, and neither of the special ones.
    assert {token for window in made for token in window} == set(range(2, 12))
    assert len(made) == 30
    prepared, texts = prepare(spec("random"), {})
    assert texts == ()
    assert calibration.check(prepared, ()).needs_texts is False


@pytest.mark.parametrize(
    ("name", "source"),
    [("x-calib-forget", "forget"), ("x-calib-holdout", "holdout"), ("x-calib-random", "random"), ("x", None),
     ("x-calib-retain", "no match"), ("x-calib-", "no match")],
)  # fmt: skip
def test_the_ending_of_a_name_tells_any_source_but_the_default(name: str, source: str | None) -> None:
    told = re.fullmatch(rf"x{calibration.NAME_ENDING}", name)
    assert (told.group(1) if told else "no match") == source
