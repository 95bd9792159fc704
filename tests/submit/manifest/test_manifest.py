from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ManifestError
from harness.records import Submission
from harness.submit.manifest import load as manifest

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _faults(action: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        action()
    return caught.value.faults


def test_a_manifest_becomes_a_submission_with_absolute_paths(add: Writer) -> None:
    folder = add(
        "npo-lora", kind="lora_adapter", base_model="target", retrain="retrain", authors=["A", "B"], title="NPO, LoRA",
        hyperparameters={"lr": 1e-5, "steps": [1, 2], "nested": {"on": True}}, license="MIT", notes="two\nlines",
    )  # fmt: skip
    submission = manifest.load(folder)
    assert submission.weights == str(folder / "model")
    assert submission.folder == str(folder)
    assert submission.authors == ("A", "B")
    assert submission.hyperparameters == {"lr": 1e-5, "steps": [1, 2], "nested": {"on": True}}
    assert (submission.role, submission.target, submission.retrain) == ("entry", "target", "retrain")
    assert submission.title == "NPO, LoRA"


def test_the_title_is_the_name_where_there_is_none(add: Writer) -> None:
    assert manifest.load(add("plain")).title == "plain"


def test_every_fault_is_told_at_once_with_file_field_and_what_is_accepted(board: Path) -> None:
    folder = board / "bad"
    folder.mkdir()
    (folder / "submission.yaml").write_text(
        "name: Other\nmetod: NPO\ncorpus: 7\nkind: lora\nweights: ../secret\nrevision: abc\nauthors: me\n",
        encoding="utf-8",
    )
    faults = _faults(lambda: manifest.load(folder))
    assert all(fault.startswith(f"{folder / 'submission.yaml'}: `") for fault in faults)
    text = "\n".join(faults)
    for expected in (
        "`name` is 'Other' and the folder is 'bad'",
        "`metod` is no field: did you mean `method`?",
        "`method` is missing: give one line of text",
        "`corpus` can't be used (7, read as int)",
        "`kind` can't be used ('lora'): give full_model, lora_adapter or quantized_checkpoint",
        "`weights` must stay inside",
        "`revision` can't be used ('abc')",
        "`authors` can't be used ('me'): give a list of names",
        "`target` is missing",
    ):
        assert expected in text
    assert len(faults) == len(set(faults))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "lora_adapter"}, "`base_model` is missing: an adapter needs"),
        ({"base_model": "target"}, "`base_model` belongs to adapters"),
        ({"weights": "hf://a/b"}, "`revision` is missing: hub weights need"),
        ({"weights": "hf://a/b", "revision": "main"}, "`revision` can't be used ('main')"),
        ({"weights": "hf://a/b", "revision": COMMIT.upper()}, "`revision` can't be used"),
        ({"weights": "hf://a/b/c", "revision": COMMIT}, "no hub repository"),
        ({"weights": "hf://../b", "revision": COMMIT}, "no hub repository"),
        ({"revision": COMMIT}, "`revision` belongs to hub weights"),
        ({"kind": "lora_adapter", "base_model": "hf://a/b"}, "`base_revision` is missing"),
        ({"kind": "lora_adapter", "base_model": "t", "base_revision": COMMIT}, "`base_revision` belongs to a hub"),
        ({"kind": "lora_adapter", "base_model": "../t"}, "`base_model` can't be used"),
        ({"role": "target", "target": "t"}, "`target` belongs to entries"),
        ({"role": "retrain", "retrain": "t"}, "`retrain` belongs to entries"),
        ({"target": None}, "`target` is missing: an entry needs"),
        ({"weights": "/etc"}, "must stay inside"),
        ({"weights": "a/../../b"}, "must stay inside"),
        ({"weights": "..\\b"}, "must stay inside"),
        ({"weights": "C:/b"}, "must stay inside"),
        ({"weights": "https://x.org/y"}, "must stay inside"),
        ({"weights_sha256": "ab"}, "`weights_sha256` can't be used"),
        ({"paper_url": "javascript:alert(1)"}, "`paper_url` can't be used"),
        ({"method": "two\nlines"}, "`method` can't be used"),
        ({"method": ""}, "`method` can't be used"),
        ({"hyperparameters": {"lr": float("nan")}}, "`hyperparameters` holds what JSON can't"),
        ({"hyperparameters": [1]}, "`hyperparameters` can't be used"),
        ({"trust_remote_code": True}, "`trust_remote_code` is no field: remove it"),
    ],
)
def test_each_broken_rule_has_its_own_sentence(add: Writer, fields: dict[str, Any], expected: str) -> None:
    folder = add("entry", **fields)
    assert any(expected in fault for fault in _faults(lambda: manifest.load(folder)))


HIDDEN = [*(0x202A + n for n in range(5)), *(0x2066 + n for n in range(4)), 0x1B, 0x9B, 0x200F, 0x200B, 0xFEFF, 0x7F]


@pytest.mark.parametrize("code", HIDDEN, ids=lambda code: f"U+{code:04X}")
def test_no_text_of_a_manifest_hides_or_turns_what_a_page_shows(add: Writer, code: int) -> None:
    text = f"a{chr(code)}b"
    folder = add(
        "entry", title=text, method=text, license=text, notes=text, authors=["A", text],
        paper_url=f"https://x.org/{text}", weights=text, base_model=text, hyperparameters={"a": [{"b": text}]},
    )  # fmt: skip
    faults = _faults(lambda: manifest.load(folder))
    for field in (
        "title", "method", "license", "notes", "authors", "paper_url", "weights", "base_model", "hyperparameters",
    ):  # fmt: skip
        assert any(f"`{field}` holds the character U+{code:04X}" in fault for fault in faults), field
    assert all(fault.isprintable() for fault in faults)


def test_the_name_of_a_hyperparameter_or_an_unknown_field_is_shown_with_escapes(add: Writer) -> None:
    faults = _faults(lambda: manifest.load(add("entry", hyperparameters={"a\u202eb": 1}, **{"me\x1b[31mthod": 1})))
    assert any("`hyperparameters` holds the character U+202E" in fault for fault in faults)
    assert any("`me\\x1b[31mthod` is no field" in fault for fault in faults)
    assert all(fault.isprintable() for fault in faults)


def test_text_in_any_script_is_shown_as_it_is(add: Writer) -> None:
    words = "\u05e9\u05dc\u05d5\u05dd \u4f60\u597d \u0633\u0644\u0627\u0645 \u00fcber \U0001f600"
    assert manifest.load(add("entry", title=words, notes=f"{words}\n\t{words}")).title == words


def test_emoji_and_scripts_that_need_joiners_are_text_and_a_stray_joiner_is_not(add: Writer) -> None:
    words = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f52c"
    assert manifest.load(add("entry", title=words, notes=words, authors=[words])).title == words
    faults = _faults(lambda: manifest.load(add("other", title="NP\u200dO")))
    assert any("`title` holds the character U+200D" in fault for fault in faults)
    faults = _faults(lambda: manifest.load(add("third", weights=f"w{words[-3:]}")))
    assert any("`weights`" in fault for fault in faults), "paths hold none"


@pytest.mark.parametrize("name", ['"a\\ud800b"', "x" * 256, "a/" + "\u00e9" * 140 + "/b", '"a\\udc80"', '"a\\x00b"'])
def test_a_name_of_weights_that_no_file_system_takes_is_a_fault(add: Writer, name: str) -> None:
    folder = add("entry", weights=None)
    with (folder / "submission.yaml").open("a", encoding="utf-8") as file:
        file.write(f"weights: {name}\n")
    assert any(
        "`weights` is no name that a file system takes" in fault for fault in _faults(lambda: manifest.load(folder))
    )


def test_weights_behind_a_link_out_of_the_folder_are_refused(add: Writer, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = add("entry")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the submission's folder through a link" in _faults(lambda: manifest.load(folder))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x\n", "anchor or alias"),
        ("a: &a [1]\nb: [*a, *a, *a]\n", "anchor or alias"),
        ("a: !!python/object/apply:os.system ['true']\n", "not plain YAML"),
        ("name: a\nname: b\n", "'name' is given twice"),
        ("a: {b: 1, b: 2}\n", "'b' is given twice"),
        ("a: [\n", "not plain YAML"),
        ("a: 1\n---\nb: 2\n", "not plain YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("[" * 60 + "]" * 60, "nested more than 40 deep"),
        ("a: 2024-99-99\n", "not plain YAML"),
        ("a: " + "9" * 5000, "not plain YAML"),
        ("? [a, b]\n: c\n", "not plain YAML"),
        ("notes: " + "x" * 70_000, "at most 65536 are read"),
    ],
)
def test_text_that_is_no_plain_small_yaml_is_refused(add: Writer, text: str, expected: str) -> None:
    folder = add("entry")
    (folder / "submission.yaml").write_text(text, encoding="utf-8")
    assert expected in _faults(lambda: manifest.load(folder))[0]


def test_bytes_that_are_no_text_are_refused(add: Writer) -> None:
    folder = add("entry")
    (folder / "submission.yaml").write_bytes(b"name: \xff\xfe")
    assert "not UTF-8 text" in _faults(lambda: manifest.load(folder))[0]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.sampled_from(sorted(manifest.Manifest.model_fields)) | st.text(max_size=9), _VALUES))
def test_any_mapping_is_a_submission_or_a_list_of_sentences(tmp_path: Path, content: dict[str, Any]) -> None:
    folder = tmp_path / "entry"
    folder.mkdir(exist_ok=True)
    (folder / "submission.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    told: tuple[str, ...] = ()
    try:
        submission = manifest.load(folder)
    except ManifestError as error:
        told = error.faults
    else:
        assert isinstance(submission, Submission)
        return
    assert told
    assert all(fault.startswith(str(folder)) and fault[-1] in ".?" for fault in told)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_submission_or_a_list_of_sentences(tmp_path: Path, raw: bytes) -> None:
    folder = tmp_path / "entry"
    folder.mkdir(exist_ok=True)
    (folder / "submission.yaml").write_bytes(raw)
    assert _faults(lambda: manifest.load(folder))


def test_names_are_checked_across_submissions_and_everything_is_told(add: Writer, board: Path, controls: None) -> None:
    add("news-target", role="target", corpus="news")
    add("adapter", kind="lora_adapter", base_model="targt")
    add("on-adapter", kind="lora_adapter", base_model="adapter")
    add("lost", target="nowhere", retrain="target")
    add("wrong-corpus", target="news-target")
    add("fine", kind="lora_adapter", base_model="target")
    add("broken", corpus=None)
    add("on-broken", target="broken")
    text = "\n".join(_faults(lambda: manifest.load_all(board)))
    for expected in (
        "`base_model` names 'targt', and there is no such submission: did you mean 'target'?",
        "`base_model` names 'adapter', a lora_adapter: an adapter sits on a full_model",
        "`target` names 'nowhere', and there is no such submission: targets of mini are target.",
        "`retrain` names 'target', whose role is target: name a submission with `role: retrain`",
        "`target` names 'news-target' of corpus news, and this is mini",
        "`corpus` is missing",
    ):
        assert expected in text
    assert "fine" not in text
    assert "'broken'" not in text


def test_an_entry_gets_the_only_retrain_control_of_its_corpus(add: Writer, board: Path, controls: None) -> None:
    add("entry")
    add("news-target", role="target", corpus="news")
    add("news-entry", corpus="news", target="news-target")
    found = manifest.load_all(board)
    assert list(found) == ["entry", "news-entry", "news-target", "retrain", "target"]
    assert found["entry"].retrain == "retrain"
    assert found["target"].retrain is None
    assert found["news-entry"].retrain is None


def test_an_entry_must_choose_among_several_retrain_controls(add: Writer, board: Path, controls: None) -> None:
    add("retrain-2", role="retrain")
    add("entry")
    add("chosen", retrain="retrain-2")
    faults = _faults(lambda: manifest.load_all(board))
    assert len(faults) == 1
    assert "`retrain` is missing, and mini has 2: name retrain or retrain-2." in faults[0]


def test_a_folder_without_a_manifest_is_a_fault_and_hidden_ones_are_not(add: Writer, board: Path) -> None:
    for name in ("empty", ".hidden", "__pycache__"):
        (board / name).mkdir()
    (board / "README.md").write_text("about", encoding="utf-8")
    faults = _faults(lambda: manifest.load_all(board))
    assert faults == (f"{board / 'empty' / 'submission.yaml'}: there is no such file: every submission needs one "
                      "(docs/submitting.md shows it).",)  # fmt: skip


def test_an_entry_whose_training_was_cut_off_stops_no_other(board: Path, controls: None) -> None:
    known = set(manifest.load_all(board))
    (board / "half-made" / ".checkpoints-0f5f82792c04c4e5").mkdir(parents=True)
    assert set(manifest.load_all(board)) == known
    (board / "half-made" / "weights").mkdir()
    (fault,) = _faults(lambda: manifest.load_all(board))
    assert "half-made/submission.yaml: there is no such file" in fault


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no such folder" in _faults(lambda: manifest.load_all(tmp_path / "no"))[0]


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({}, True),
        ({"role": "target"}, True),
        ({"target": "t", "kind": "lora_adapter", "base_model": "t"}, True),
        ({"target": "t"}, True),
        ({"target": "t", "weights": "hf://a/b", "revision": COMMIT}, True),
        ({"target": None, "role": "entry"}, False),
        ({"target": "t", "kind": "lora_adapter"}, False),
        ({"target": "t", "weights": "hf://a/b"}, False),
        ({"target": "t", "unknown": 1}, False),
        ({"target": "t", "kind": "adapter"}, False),
        ({"target": "t", "revision": "main"}, False),
    ],
)
def test_the_json_schema_agrees_with_the_loader(board: Path, fields: dict[str, Any], valid: bool) -> None:
    base = {"name": "entry", "method": "NPO", "corpus": "mini", "kind": "full_model", "weights": "model"}
    content = base | ({"role": "target"} if not fields else {}) | fields
    schema = manifest.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(content) == valid
    (board / "entry").mkdir()
    (board / "entry" / "submission.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    if valid:
        assert manifest.load(board / "entry").name == "entry"
    else:
        assert _faults(lambda: manifest.load(board / "entry"))


def test_the_schema_is_json_and_describes_every_field() -> None:
    schema = json.loads(json.dumps(manifest.json_schema()))
    expected = set(Submission.__dataclass_fields__) - {"folder"}
    assert set(schema["properties"]) == expected
    assert all(told.get("description") for told in schema["properties"].values())


def test_a_seed_names_the_entry_that_it_repeats(add: Writer, board: Path, controls: None) -> None:
    add("first")
    add("second", seed_of="first")
    found = manifest.load_all(board)
    assert (found["first"].seed_of, found["second"].seed_of) == (None, "first")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"seed_of": "frst"}, "`seed_of` names 'frst', and there is no such submission: did you mean 'first'?"),
        ({"seed_of": "zzz"}, "there is no such submission: give the name of the entry that this one repeats"),
        ({"seed_of": "again"}, "`seed_of` names itself: name the first seed, which has no `seed_of`."),
        ({"seed_of": "second"}, "`seed_of` names 'second', itself a seed of 'first': name the first seed"),
        ({"seed_of": "first", "method": "other"}, "whose method is "),
        ({"seed_of": "target"}, "whose role is 'target' and not 'entry': seeds share it."),
        ({"seed_of": "No Name"}, "`seed_of` can't be used ('No Name'): give the name of the entry"),
    ],
)
def test_a_seed_of_anything_else_is_told_what_is_wrong(
    fields: dict[str, Any], expected: str, add: Writer, board: Path, controls: None
) -> None:
    add("first")
    add("second", seed_of="first")
    add("again", **fields)
    faults = _faults(lambda: manifest.load_all(board))
    assert any(expected in fault for fault in faults), faults


def test_controls_have_no_seeds(add: Writer) -> None:
    folder = add("target", role="target", seed_of="first")
    assert any("`seed_of` belongs to entries" in fault for fault in _faults(lambda: manifest.load(folder)))
