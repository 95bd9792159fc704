"""What `quench init` finds out by itself, and the commented file that it writes."""

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

from harness.errors import InputError, ManifestError, UnsafeSubmissionError
from harness.submit.manifest import init as manifest_init
from harness.submit.manifest import load as manifest

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL = {"method": "NPO", "corpus": "mini", "kind": "full_model", "target": "target", "weights": "weights"}


def _adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05} | config
    (folder / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder.parent


@pytest.fixture
def targets(add: Writer) -> None:
    add("target", role="target")
    add("news-target", role="target", corpus="news")


def test_an_adapter_tells_its_kind_base_target_corpus_and_hyperparameters(board: Path, targets: None) -> None:
    folder = _adapter(board / "mine" / "lora", base_model_name_or_path="target", use_rslora=True, use_dora=False)
    assert manifest_init.gathered(folder, {"method": "NPO"}) == {
        "name": "mine", "weights": "lora", "kind": "lora_adapter", "base_model": "target", "role": "entry",
        "target": "target", "corpus": "mini", "method": "NPO",
        "hyperparameters": {"lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "rslora": True},
    }  # fmt: skip


def test_a_base_on_the_hub_is_named_with_the_commit_that_the_adapter_names(board: Path, targets: None) -> None:
    folder = _adapter(board / "mine" / "lora", base_model_name_or_path="owner/model", revision=COMMIT)
    fields = manifest_init.gathered(folder, {})
    assert (fields["base_model"], fields["base_revision"]) == ("hf://owner/model", COMMIT)


@pytest.mark.parametrize(
    "told",
    [
        "/srv/model", "../model", "a/b/c", "", 7, None, "a/b\n", "target2", "models/mistral-7b", "w/mistral", "./model",
        "outputs/checkpoint-500", "llama-ft/checkpoint-1200", "Models/Llama-3", "base_model/llama", "ckpts/x", "a\0/b",
        "owner/lies-here", "owner/lies-beside",
    ],
)  # fmt: skip
def test_a_base_that_a_manifest_can_t_name_is_left_open(
    board: Path, targets: None, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "lies-here").mkdir(parents=True)
    (board / "mine" / "owner" / "lies-beside").mkdir(parents=True)
    fields = manifest_init.gathered(
        _adapter(board / "mine" / "lora", base_model_name_or_path=told, revision="main"), {}
    )
    assert "base_model" not in fields
    assert "base_revision" not in fields


@pytest.mark.parametrize(
    "told",
    ["meta-llama/Llama-2-7b-hf", "EleutherAI/pythia-160m", "mistralai/Mistral-7B-v0.1", "modelscope/x", "01-ai/Yi-6B",
     "outputsinc/model", "owner/checkpoints", "HuggingFaceTB/SmolLM2-135M"],
)  # fmt: skip
def test_a_repository_of_the_hub_is_one_whatever_its_name_resembles(board: Path, targets: None, told: str) -> None:
    folder = _adapter(board / "mine" / "lora", base_model_name_or_path=told)
    assert manifest_init.gathered(folder, {})["base_model"] == f"hf://{told}"


def test_a_path_that_ends_in_a_submission_s_name_is_that_submission(board: Path, targets: None) -> None:
    folder = _adapter(board / "mine" / "lora", base_model_name_or_path="/somewhere/else/news-target")
    assert manifest_init.gathered(folder, {})["base_model"] == "news-target"
    assert manifest_init.gathered(folder, {})["corpus"] == "news"


@pytest.mark.parametrize(
    ("config", "kind"),
    [({}, "full_model"), ({"quantization_config": {"quant_method": "gptq"}}, "quantized_checkpoint")],
)
def test_a_config_tells_whether_a_model_is_quantized(board: Path, config: dict[str, Any], kind: str) -> None:
    (board / "mine").mkdir()
    (board / "mine" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    fields = manifest_init.gathered(board / "mine", {})
    assert (fields["kind"], fields["weights"]) == (kind, ".")


def test_a_gguf_file_is_a_quantized_checkpoint(board: Path) -> None:
    (board / "mine" / "weights").mkdir(parents=True)
    (board / "mine" / "weights" / "a.gguf").write_bytes(b"GGUF")
    assert manifest_init.gathered(board / "mine", {})["kind"] == "quantized_checkpoint"


def test_what_is_given_goes_before_what_is_found(board: Path, targets: None) -> None:
    folder = _adapter(board / "mine" / "lora", base_model_name_or_path="target")
    given_ = {"kind": "full_model", "corpus": "news", "hyperparameters": {"lora_rank": 4, "lr": 1}, "target": "x"}
    fields = manifest_init.gathered(folder, given_)
    assert (fields["kind"], fields["corpus"], fields["target"]) == ("full_model", "news", "x")
    assert fields["hyperparameters"] == {"lora_rank": 4, "lr": 1, "lora_alpha": 16.0, "lora_dropout": 0.05}


def test_a_control_gets_no_target_and_an_entry_the_only_one_of_its_corpus(board: Path, targets: None) -> None:
    assert "target" not in manifest_init.gathered(board / "mine", {"role": "retrain", "corpus": "mini"})
    assert manifest_init.gathered(board / "mine", {"corpus": "news"})["target"] == "news-target"
    assert "target" not in manifest_init.gathered(board / "mine", {"corpus": "books"})


def test_a_config_that_names_code_is_refused_and_nothing_is_written(board: Path) -> None:
    folder = _adapter(board / "mine" / "lora", auto_map={"AutoModel": "x.Y"})
    with pytest.raises(UnsafeSubmissionError, match="names code to run"):
        manifest_init.gathered(folder, {})
    assert [path.name for path in folder.iterdir()] == ["lora"]


def test_the_file_names_its_schema_explains_every_field_and_reads_back(board: Path) -> None:
    fields = {"name": "mine", **FULL, "base_revision": None, "hyperparameters": {"a": [1]}, "title": "a: b # c"}
    path = manifest_init.write(board / "mine", fields)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# yaml-language-server: $schema=../{manifest_init.SCHEMA_FILE}"
    for name, about in manifest.Manifest.model_fields.items():
        place = next(n for n, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name}:"))
        assert lines[place - 1].startswith("# ")
        assert str(about.description)[:40] in "\n".join(lines[:place])
    assert manifest.load(board / "mine").title == "a: b # c"
    schema = json.loads((board / manifest_init.SCHEMA_FILE).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_nothing_is_ever_overwritten(board: Path) -> None:
    (board / manifest_init.SCHEMA_FILE).write_text("mine", encoding="utf-8")
    path = manifest_init.write(board / "mine", {"name": "mine", **FULL})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is there already and is not overwritten: edit it"):
        manifest_init.gathered(board / "mine", {})
    with pytest.raises(InputError, match=r"can't be written \(File exists\)"):
        manifest_init.write(board / "mine", {"name": "mine", **FULL})
    assert path.read_bytes() == before
    assert (board / manifest_init.SCHEMA_FILE).read_text(encoding="utf-8") == "mine"


def test_a_link_in_the_manifest_s_place_is_not_written_through(board: Path, tmp_path: Path) -> None:
    (board / "mine").mkdir()
    (board / "mine" / "submission.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is there already"):
        manifest_init.gathered(board / "mine", {})
    with pytest.raises(InputError, match="can't be written"):
        manifest_init.write(board / "mine", {"name": "mine", **FULL})
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_missing_is_told_with_its_option_and_no_folder_is_made(board: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_init.write(
            board / "mine", {"name": "mine", "weights": "weights", "authors": "me", "hyperparameters": [1]}
        )
    text = "\n".join(caught.value.faults)
    for option in ("--method", "--corpus", "--kind", "--target", "--author", "--set"):
        assert f"(option {option})." in text
    assert list(board.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("corpus", "Mini", "`corpus` can't be used ('Mini')"),
        ("kind", "lora", "`kind` can't be used"),
        ("base_model", "../x", "`base_model` can't be used"),
        ("revision", "main", "`revision` can't be used"),
        ("title", "a\u202eb", "`title` can't be used"),
        ("revision", COMMIT, None),
        ("base_revision", COMMIT, None),
        ("base_model", "hf://a/b", None),
        ("kind", "lora_adapter", None),
        ("target", "target", None),
    ],
)
def test_an_answer_is_judged_by_its_own_field_alone(field: str, value: str, sentence: str | None) -> None:
    told = manifest_init.fault_of(field, value)
    assert told is None if sentence is None else str(told).startswith(sentence)


_LINES = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    title=_LINES,
    notes=_LINES,
    authors=st.lists(_LINES, max_size=3),
    numbers=st.dictionaries(_LINES, st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _LINES),
)
def test_any_text_comes_back_from_the_file_as_it_was_given(
    tmp_path: Path, title: str, notes: str, authors: list[str], numbers: dict[str, Any]
) -> None:
    fields = {"name": "mine", **FULL, "title": title, "notes": notes, "authors": authors, "hyperparameters": numbers}
    (tmp_path / "mine").mkdir(exist_ok=True)
    (tmp_path / "mine" / "submission.yaml").write_text(manifest_init.text(fields), encoding="utf-8")
    loaded = manifest.load(tmp_path / "mine")
    assert (loaded.title, loaded.notes, loaded.authors) == (title, notes, tuple(authors))
    assert loaded.hyperparameters == numbers
