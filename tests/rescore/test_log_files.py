"""Strict reading of a stranger's JSON: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InputError
from harness.rescore import files as log_files
from harness.rescore.files import Place

HERE = Place("m/log.json").at(7, "forget")


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_place_names_file_part_and_entry() -> None:
    assert str(Place("m/log.json")) == "m/log.json"
    assert str(Place("m/log.json").at(3)) == "m/log.json, entry 3"
    assert str(HERE) == "m/log.json, forget entry 7"
    assert str(HERE.fault("it is odd")) == "m/log.json, forget entry 7: it is odd."


def test_a_log_is_read_with_the_digest_of_its_bytes(tmp_path: Path) -> None:
    content = b'[ {"a": 1.5, "b": "\\u00e9"} ]\n'
    (tmp_path / "log.json").write_bytes(content)
    value, digest = log_files.read(tmp_path / "log.json", tmp_path, "log.json")
    assert value == [{"a": 1.5, "b": "é"}]
    assert digest == hashlib.sha256(content).hexdigest()


def test_nan_and_infinity_are_read_as_the_program_wrote_them(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("[NaN, Infinity, -Infinity]")
    value, _ = log_files.read(tmp_path / "log.json", tmp_path, "log.json")
    assert math.isnan(value[0])
    assert value[1:] == [math.inf, -math.inf]


def test_an_absent_file_and_a_folder_are_no_logs(tmp_path: Path) -> None:
    assert "it can't be read (No such file" in refusal(log_files.read, tmp_path / "x.json", tmp_path, "x.json")
    (tmp_path / "d.json").mkdir()
    assert "it is no file" in refusal(log_files.read, tmp_path / "d.json", tmp_path, "d.json")


def test_a_link_inside_its_folder_is_followed_and_one_out_of_it_is_not(tmp_path: Path) -> None:
    inner, outer = tmp_path / "m", tmp_path / "secret.json"
    inner.mkdir()
    (inner / "real.json").write_text("1")
    outer.write_text("2")
    (inner / "near.json").symlink_to(inner / "real.json")
    (inner / "far.json").symlink_to(outer)
    assert log_files.read(inner / "near.json", inner, "near")[0] == 1
    assert "link out of its folder" in refusal(log_files.read, inner / "far.json", inner, "far")
    assert "link out of its folder" in refusal(log_files.read, inner / ".." / "secret.json", inner, "up")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), ({}, "an empty object"), ({"a": 1}, "an object"), ("x", "a text"), (3, "a number"),
     (0.5, "a number"), (True, "true or false"), ([], "an empty list")],
)  # fmt: skip
def test_what_is_no_list_is_said_to_be_what_it_is(value: Any, kind: str) -> None:
    assert (
        refusal(log_files.as_list, value, HERE, "texts") == f"{HERE}: a list of texts is expected, and this is {kind}."
    )


@pytest.mark.parametrize("value", [None, [], [1], "x", 3, True])
def test_what_is_no_object_is_refused(value: Any) -> None:
    assert "an object with 'a' is expected" in refusal(log_files.as_object, value, HERE, "'a'")
    assert log_files.as_object({}, HERE, "'a'") == {}


def test_lists_have_an_upper_limit() -> None:
    longest = [0] * log_files.MAX_ENTRIES
    assert log_files.as_list(longest, HERE, "texts") is longest
    assert "2001 entries, and at most 2000" in refusal(log_files.as_list, [*longest, 0], HERE, "texts")


@given(st.text())
def test_a_text_is_given_back_as_it_is(text: str) -> None:
    assert log_files.text({"a": text}, "a", HERE, len(text)) == text


@given(st.text(min_size=1))
def test_a_text_may_be_as_long_as_allowed_and_no_longer(text: str) -> None:
    assert f"has {len(text)} characters" in refusal(log_files.text, {"a": text}, "a", HERE, len(text) - 1)


@pytest.mark.parametrize("half", ["\ud800", "a\udfffb"])
def test_half_a_character_is_no_text(half: str) -> None:
    assert json.loads(json.dumps(half)) == half
    assert "half a character" in refusal(log_files.text, {"a": half}, "a", HERE, 10)


@pytest.mark.parametrize(("entry", "kind"), [({}, "missing"), ({"a": None}, "null"), ({"a": ["x"]}, "a list")])
def test_a_text_that_is_missing_is_told_from_one_that_is_none(entry: dict[str, Any], kind: str) -> None:
    assert refusal(log_files.text, entry, "a", HERE, 10) == f"{HERE}: 'a' must be a text, and is {kind}."


@given(st.floats() | st.integers(-(10**300), 10**300))
def test_a_number_is_given_back_as_a_float(number: float) -> None:
    found = log_files.number({"a": number}, "a", HERE)
    assert isinstance(found, float)
    assert found == float(number) or (math.isnan(found) and math.isnan(number))


def test_an_absent_number_is_none_and_anything_else_is_refused() -> None:
    assert log_files.number({}, "a", HERE) is None
    assert log_files.number({"a": None}, "a", HERE) is None
    for wrong in ("1.0", True, [1.0], {"a": 1}):
        assert "'a' must be a number" in refusal(log_files.number, {"a": wrong}, "a", HERE)
    assert "401 digits" in refusal(log_files.number, {"a": 10**400}, "a", HERE)
