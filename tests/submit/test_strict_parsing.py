"""The readers of YAML and JSON from strangers, one step below the manifests and configs that use them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.errors import InputError, UnsafeSubmissionError
from harness.publish import formatting
from harness.submit import strict_parsing
from harness.submit.scan.model_config import read_config
from harness.submit.strict_parsing import parse_json, read_json, read_yaml

_SHARED_FOLDER = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip


def _yaml(folder: Path, text: str | bytes, limit: int = 10_000) -> Any:
    path = folder / "told.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, limit=limit)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!python/object/new:os.system [id]", "could not determine a constructor"),
        ("a: !unknown 1", "could not determine a constructor"),
        ("%YAML 9.9\n---\na: 1", "incompatible YAML document"),
        ("a: \x00", "special characters are not allowed"),
        ("? {a: 1}\n: b", "unhashable key"),
        ("a: 2024-01-01T99:99:99Z", "hour must be in"),
        ("a: !!int x", "invalid literal"),
        ("a: 0x_", "invalid literal"),
        ('a: "\\U99999999"', "not plain YAML"),
        ("a: !!str [1]", "expected a scalar node"),
        ("a: !!seq {b: 1}", "expected a sequence node"),
        ("a: !!omap 3", "expected a sequence"),
        ("<<: 1", "for merging"),
        ("a: 1\n\tb: 2", "not plain YAML"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: 'open", "not plain YAML"),
        ("a: 1\n...\nb: 2\n", "not plain YAML"),
        ("a: &lonely 1", "anchor or alias"),
        ("&root {a: 1}", "anchor or alias"),
        ("- &a [x]\n- &b [*a, *a]\n- [*b, *b]", "anchor or alias"),
        ("a: *nobody", "anchor or alias"),
        ("a:\n" + "".join(f"{' ' * depth}-\n" for depth in range(1, 60)), "nested more than 40 deep"),
        ("{a: " * 41 + "1" + "}" * 41, "nested more than 40 deep"),
        ("1: a\n'1': b", "the key '1' is given twice"),
        ("a: {b: [{c: 1, c: 2}]}", "the key 'c' is given twice"),
    ],
)
def test_yaml_that_means_more_than_it_shows_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _yaml(tmp_path, text)


@pytest.mark.parametrize("depth", [1, 20, 40])
def test_nesting_up_to_the_limit_is_read(tmp_path: Path, depth: int) -> None:
    value = _yaml(tmp_path, "[" * depth + "]" * depth)
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


def test_the_same_key_in_two_mappings_is_no_duplicate(tmp_path: Path) -> None:
    assert _yaml(tmp_path, "a: {x: 1}\nb: {x: 2, a: 3}\n") == {"a": {"x": 1}, "b": {"x": 2, "a": 3}}
    assert parse_json('{"a": {"x": 1}, "b": {"x": 2, "a": 3}}') == {"a": {"x": 1}, "b": {"x": 2, "a": 3}}


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    for reader, text in ((read_yaml, "a: 12345"), (read_json, '{"a": 1}')):
        path = tmp_path / "x"
        path.write_text(text, encoding="utf-8")
        assert reader(path, limit=8)
        with pytest.raises(InputError, match="it has 8 bytes, and at most 7 are read"):
            reader(path, limit=7)


def test_the_limit_counts_bytes_and_not_characters(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it has 23 bytes"):
        _yaml(tmp_path, "a: " + "ä" * 10, limit=22)
    assert _yaml(tmp_path, "a: " + "ä" * 10, limit=23) == {"a": "ä" * 10}


def test_a_syntax_error_over_many_lines_becomes_one_short_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _yaml(tmp_path, "a: [" + "\n  long text without an end," * 200)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 260


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is not JSON"),
        ("nul", "it is not JSON"),
        ("{} {}", "it is not JSON"),
        ("{'a': 1}", "it is not JSON"),
        ('{"a": 1,}', "it is not JSON"),
        ('{"a": 01}', "it is not JSON"),
        ('{"a": 1} // note', "it is not JSON"),
        ("\ufeff{}", "it is not JSON"),
        ('{"a": "\x01"}', "it is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "it is not JSON"),
        ('{"a":' * 100_000, "it is not JSON"),
        ('{"a": [NaN]}', "it holds NaN, which is no JSON number"),
        ('{"a": Infinity}', "it holds Infinity"),
        ('{"a": -Infinity}', "it holds -Infinity"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key 'b' is given twice"),
        ('{"a": 1, "\\u0061": 2}', "the key 'a' is given twice"),
    ],
)
def test_json_that_is_not_strict_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_json(text)


# Tags have a test of their own.
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="!"), max_size=9)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(value=_JSON)
def test_what_the_standard_library_writes_is_read_back_unchanged(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


# YAML that PyYAML itself would write, with one character replaced: nothing but a value or a refusal.
@_SHARED_FOLDER
@given(value=_JSON, position=st.integers(0, 200), character=st.sampled_from("&*[]{}:,-#'\"|>%@ \n\t?=<0aé"))
@example(value={"a": 1}, position=3, character="&")
def test_yaml_with_one_character_changed_is_a_value_or_a_refusal(
    tmp_path: Path, value: Any, position: int, character: str
) -> None:
    text = yaml.safe_dump(value)
    place = position % len(text)
    told = "a value"
    try:
        assert repr(_yaml(tmp_path, text[:place] + character + text[place + 1 :]))
    except InputError as refused:
        told = str(refused)
    assert told
    assert len(told) < 300


@_SHARED_FOLDER
@given(raw=st.binary(max_size=60) | st.text('{}[]:,"\\u0123456789eE+-. aNInfty', max_size=60).map(str.encode))
def test_any_bytes_as_a_config_are_a_mapping_or_a_refusal_that_names_the_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    told = f"{path}: a mapping."
    try:
        assert isinstance(read_config(path), dict)
    except UnsafeSubmissionError as refused:
        told = str(refused)
    assert told.startswith(f"{path}: ")
    assert told.endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "yes: 1\ntrue: 2",
        "on: 1\nYes: 2",
        "1: a\n0x1: b",
        "~: a\nnull: b",
        "a: {no: 1, off: 2}",
        "<<: {a: 1}\n<<: {a: 2}",
    ],
)
def test_a_key_spelt_in_two_ways_is_given_twice(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is given twice: keep one"):
        _yaml(tmp_path, text)


def test_what_a_refusal_quotes_can_be_seen(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _yaml(tmp_path, "a: [\u202e")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines", "code_revision", "auto_class"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"a": m}, lambda m: {"a": [[1, {"b": m}]]}])
def test_a_key_that_names_code_is_found_at_any_depth_whatever_its_value(tmp_path: Path, key: str, wrap: Any) -> None:
    path = tmp_path / "generation_config.json"
    for value in (None, False, {}, "x.Y"):
        path.write_text(json.dumps(wrap({key: value})), encoding="utf-8")
        with pytest.raises(UnsafeSubmissionError, match=rf"names code to run \({key}\)"):
            read_config(path)


def test_a_value_or_a_longer_key_that_only_sounds_like_code_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"note": "auto_map", "my_auto_map": 1, "list": ["trust_remote_code"]}', encoding="utf-8")
    assert read_config(path)["note"] == "auto_map"


def test_several_keys_that_name_code_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"trust_remote_code": true, "a": {"auto_map": {}}}', encoding="utf-8")
    with pytest.raises(UnsafeSubmissionError, match=r"\(auto_map, trust_remote_code\)"):
        read_config(path)


def test_a_yaml_infinity_is_a_float_that_later_rules_must_see(tmp_path: Path) -> None:
    read = _yaml(tmp_path, "a: .inf\nb: -.inf\nc: .nan\n")
    assert (read["a"], read["b"]) == (math.inf, -math.inf)
    assert math.isnan(read["c"])


JOINED = {
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467", "heart on fire": "\u2764\ufe0f\u200d\U0001f525",
    "skin": "\U0001f469\U0001f3fd\u200d\U0001f52c", "shaking head": "\U0001f642\u200d\u2194\ufe0f",
    "devanagari": "\u0915\u094d\u200d\u0937", "malayalam": "\u0d28\u0d4d\u200d\u0d35",
    "devanagari apart": "\u0915\u094d\u200c\u0937", "persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "persian with a mark": "\u0645\u064e\u200c\u062e",
}  # fmt: skip
STRAY = {
    "latin": "a\u200db", "latin apart": "a\u200cb", "first": "\u200dx", "last": "\U0001f468\u200d",
    "twice": "\U0001f468\u200d\u200d\U0001f469", "emoji and letter": "\U0001f468\u200da",
    "after alef, which never joins": "\u0627\u200c\u0645", "emoji apart": "\U0001f468\u200c\U0001f469",
    "virama and sign": "\u0915\u094d\u200d!", "hebrew": "\u05d0\u200d\u05d1", "bare": "\u200d",
}  # fmt: skip


@pytest.mark.parametrize("text", JOINED.values(), ids=JOINED)
def test_a_joiner_that_shapes_what_is_seen_is_text(text: str) -> None:
    assert strict_parsing.hidden_in(text) is None
    assert formatting.visible(text) == text, "a page shows it as it was written"


@pytest.mark.parametrize("text", STRAY.values(), ids=STRAY)
def test_a_joiner_that_nobody_can_see_is_hidden(text: str) -> None:
    assert strict_parsing.hidden_in(text) in ("\u200c", "\u200d")
    assert "\\u200" in formatting.visible(text)


@pytest.mark.parametrize("code", [0x200B, 0x200E, 0x202E, 0x2066, 0xFEFF, 0x1B, 0xD800])
def test_nothing_else_that_is_hidden_is_text_anywhere(code: int) -> None:
    assert strict_parsing.hidden_in(f"\u0915\u094d{chr(code)}\u0937") == chr(code)
