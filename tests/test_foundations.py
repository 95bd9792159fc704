"""records, errors, paths, provenance: what every room stands on."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errors, paths, provenance, records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def record_types() -> list[type]:
    return [value for value in vars(records).values() if dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("record", record_types(), ids=lambda record: record.__name__)
def test_every_record_is_frozen_slotted_keyword_only_and_documented(record: type) -> None:
    parameters = record.__dataclass_params__
    assert parameters.frozen
    assert "__slots__" in vars(record)
    assert all(field.kw_only for field in dataclasses.fields(record))
    assert record.__doc__
    assert not record.__doc__.startswith(f"{record.__name__}(")


def test_records_import_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import harness.records;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "['harness']"


def test_an_unknown_name_is_answered_with_the_nearest_known_ones() -> None:
    error = errors.UnknownNameError("quantizer", "rtn-4bit-g12", ["rtn-4bit-g128", "bnb-nf4", "reference"])
    assert "rtn-4bit-g12'" in str(error)
    assert "did you mean rtn-4bit-g128?" in str(error)


def test_a_name_unlike_any_other_is_answered_with_the_whole_list() -> None:
    assert "known: a, b." in str(errors.UnknownNameError("task", "zzzz", ["b", "a"]))


def test_a_manifest_error_keeps_every_fault() -> None:
    error = errors.ManifestError(["first fault", "second fault"])
    assert error.faults == ("first fault", "second fault")
    assert str(error) == "first fault\nsecond fault"


def test_every_error_crosses_processes_with_what_it_says() -> None:
    for error in (
        errors.ManifestError(["first fault", "second fault"]),
        errors.UnknownNameError("quantizer", "rtn-4bit-g12x", ["rtn-4bit-g128", "bnb-nf4"]),
        errors.UnsafeSubmissionError("The weights are a pickle."),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


def test_every_error_of_the_tree_is_drawn_in_its_docstring() -> None:
    tree = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.QuenchError)
    ]
    assert len(tree) >= 8
    for error in tree:
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("name", ["tasks", "submissions", "leaderboard"])
def test_shipped_content_is_found_in_the_checkout(name: str) -> None:
    assert paths.content_dir(name) == Path(__file__).parent.parent / name


def test_missing_content_says_that_the_installation_is_damaged() -> None:
    with pytest.raises(FileNotFoundError, match="reinstall quench-bench"):
        paths.content_dir("no-such-content")


def test_the_cache_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "chosen"))
    assert paths.cache_dir() == tmp_path / "chosen"
    assert paths.cache_dir().is_dir()


def test_the_cache_follows_the_xdg_rule_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / "quench"


def test_a_file_digest_is_sha256_and_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert provenance.sha256_file(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"other")
    assert provenance.sha256_file(file) == hashlib.sha256(b"other").hexdigest()


def test_a_digest_over_files_depends_on_names_and_contents_but_not_on_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    whole = provenance.sha256_files([first, second], tmp_path)
    assert whole == provenance.sha256_files([second, first], tmp_path)
    second.rename(tmp_path / "c")
    assert whole != provenance.sha256_files([first, tmp_path / "c"], tmp_path)


@given(st.dictionaries(st.text(min_size=1), JSON, max_size=6))
def test_a_json_digest_does_not_depend_on_key_order(value: dict[str, object]) -> None:
    assert provenance.sha256_json(value) == provenance.sha256_json(dict(reversed(value.items())))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers() | st.none(), min_size=1))
def test_a_cell_key_changes_when_any_input_changes(inputs: dict[str, int | None]) -> None:
    key = provenance.cell_key(**inputs)
    for name, value in inputs.items():
        assert provenance.cell_key(**{**inputs, name: 0 if value is None else value + 1}) != key


def test_provenance_names_commit_versions_and_seed() -> None:
    made = provenance.collect(device="cpu", threads=2, seed=7, scoring_version=3, extra_versions={"x": "1"})
    assert made.seed == 7
    assert made.scoring_version == 3
    assert made.versions["x"] == "1"
    assert made.versions["numpy"] == provenance.version_of("numpy")
    assert made.created_at.endswith("+00:00")
    assert made.device.startswith("cpu (")


def test_a_checkout_with_changed_code_is_dirty_and_one_with_changed_docs_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "code.py").write_text("1")
    (tmp_path / "pyproject.toml").write_text("")
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "checkout_dir", lambda: tmp_path)
    read = provenance.code_state.__wrapped__
    commit, dirty = read()
    assert len(commit or "") == 40
    assert not dirty
    (tmp_path / "README.md").write_text("docs")
    assert read() == (commit, False)
    (tmp_path / "harness" / "code.py").write_text("2")
    assert read() == (commit, True)


def test_outside_a_checkout_there_is_no_commit_and_nothing_is_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "checkout_dir", lambda: None)
    monkeypatch.delenv("QUENCH_COMMIT", raising=False)
    assert provenance.code_state.__wrapped__() == (None, False)


@pytest.mark.parametrize(("told", "commit"), [("a1" * 20, "a1" * 20), ("main", None), ("A1" * 20, None), ("", None)])
def test_outside_a_checkout_the_environment_may_name_a_whole_commit(
    monkeypatch: pytest.MonkeyPatch, told: str, commit: str | None
) -> None:
    monkeypatch.setattr(provenance, "checkout_dir", lambda: None)
    monkeypatch.setenv("QUENCH_COMMIT", told)
    assert provenance.code_state.__wrapped__() == (commit, False)
