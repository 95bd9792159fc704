from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.publish import formatting
from harness.publish.statistics.quantities import Estimate


@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_nothing_invisible_survives_in_names(text: str) -> None:
    shown = formatting.visible(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for c in shown)


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=30))
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert formatting.visible(text) == text


def test_dangerous_characters_are_named() -> None:
    assert formatting.visible("a\u202eb\u200bc\x00\n") == "a\\u202eb\\u200bc\\u0000\\u000a"
    assert formatting.prose("a\nb\u202e") == "a\nb\\u202e"


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("https://example.org/a?b=c", True), ("http://example.org", True), ("javascript:alert(1)", False),
        ("JAVASCRIPT:alert(1)", False), ("data:text/html,x", False), ("//example.org", False), ("https://", False),
        ("https://exa mple.org", False), ("https://example.org/\u202e", False), ("file:///etc/passwd", False),
        ("http://[", False), (None, False), (7, False),
    ],
)  # fmt: skip
def test_only_web_addresses_become_links(text: object, link: bool) -> None:
    assert (formatting.web_address(text) is not None) == link


@given(st.text(max_size=100))
def test_a_slug_is_a_safe_file_name(name: str) -> None:
    slug = formatting.slug(name)
    assert slug
    assert not set(slug) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert ".." not in slug
    assert not slug.startswith((".", "-"))


def test_slugs_keep_good_names_and_tell_bad_ones_apart() -> None:
    assert formatting.slug("npo-gdr-lora") == "npo-gdr-lora"
    assert formatting.slug("../x") != formatting.slug("../y")


def test_numbers_have_fixed_digits_and_no_negative_zero() -> None:
    assert formatting.number(-0.001) == "0.00"
    assert formatting.number(None) != ""
    assert formatting.number(1.005, 1) == "1.0"
    assert formatting.signed(0.2) == "+0.20"
    assert formatting.signed(-0.2) == "-0.20"
    assert formatting.signed(0.0) == "0.00"
    assert formatting.percent(0.914) == "91%"
    assert formatting.ends(Estimate(value=1, low=0.5, high=1.5), 1, 100) == "[50.0, 150.0]"
    assert formatting.ends(Estimate(value=1)) == ""


@pytest.mark.parametrize(
    ("change", "before", "direction", "word"),
    [
        ((0.2, 0.1, 0.3), 0.1, "lower", "bad"), ((-0.2, -0.3, -0.1), 0.5, "lower", "good"),
        ((0.2, 0.1, 0.3), 0.1, "higher", "good"), ((-0.2, -0.3, -0.1), 0.5, "higher", "bad"),
        ((0.2, -0.1, 0.3), 0.1, "lower", "same"), ((0.2, 0.0, 0.3), 0.1, "higher", "same"),
        ((40, 30, 50), -60, "toward_zero", "good"), ((-40, -50, -30), -20, "toward_zero", "bad"),
        ((40, 30, 50), -10, "toward_zero", "bad"), ((-40, -50, -30), 60, "toward_zero", "good"),
    ],
)  # fmt: skip
def test_whether_a_change_is_good_depends_on_the_metrics_direction(change, before, direction, word) -> None:  # type: ignore[no-untyped-def]
    estimate = Estimate(value=change[0], low=change[1], high=change[2])
    assert formatting.good_or_bad(estimate, before, direction) == word


def test_matching_words_are_marked_in_the_references_order() -> None:
    pieces = list(formatting.marked("the Red fox ran", "the red dog ran"))
    assert pieces == [("the Red", True), (" fox ", False), ("ran", True)]
    assert list(formatting.marked("", "x")) == []


def test_marked_words_are_the_longest_common_subsequence_not_the_longest_runs() -> None:
    # The longest run, "x y z", stands where only one more word fits beside it; four words are common without it.
    text, reference = "x y z a b c d", "a b c d x y z"
    hits = "".join(piece for piece, hit in formatting.marked(text, reference) if hit)
    assert hits == "a b c d"


def test_punctuation_and_case_do_not_keep_a_word_from_being_marked() -> None:
    assert list(formatting.marked("Oskel, north!", "(oskel) NORTH")) == [("Oskel, north", True), ("!", False)]


@given(st.text(st.characters(categories=["L", "Zs"]), max_size=60), st.text(max_size=60))
def test_marking_loses_no_character(text: str, reference: str) -> None:
    assert "".join(piece for piece, _ in formatting.marked(text, reference)) == formatting.excerpt(text)


def test_excerpts_end_at_200_characters() -> None:
    assert len(formatting.excerpt("x" * 500)) == 200
    assert formatting.excerpt("x" * 200) == "x" * 200


def test_bars_and_shades_stay_in_range() -> None:
    assert formatting.place(99) == "96.0"
    assert formatting.place(-99) == "0.0"
    assert [formatting.heat(value) for value in (None, -1, 0.2, 0.4, 0.6, 9)] == ["none", "0", "1", "2", "3", "4"]


def test_the_end_of_a_text_begins_with_a_word() -> None:
    assert formatting.ending("short and whole", 20) == "short and whole"
    assert formatting.ending("the quick brown fox jumps over it", 20) == "…fox jumps over it"
    assert formatting.ending("own fox jumps over i", 20) == "…fox jumps over i"


def test_the_end_of_a_text_without_spaces_is_cut_anywhere_and_never_too_long() -> None:
    assert formatting.ending("x" * 50, 20) == "…" + "x" * 19
    assert len(formatting.ending("\u202e" * 50, 20)) == 20
