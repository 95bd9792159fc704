"""`quench init` and `quench validate`, as a user and as CI meet them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli import submissions
from harness.cli.main import app
from harness.submit.manifest import init as manifest_init
from harness.submit.manifest import load as manifest

SHIPPED = paths.content_dir("submissions")


def quench(*arguments: str | Path, code: int = 0, answers: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answers)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    assert "Traceback" not in result.output + result.stderr
    return result


def checked(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    return list(json.loads(quench("validate", *arguments, "--json", code=code).stdout)["rows"])


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The shipped controls of mini, and a folder of weights without a manifest."""
    folder = tmp_path / "submissions"
    for name in ("mini-target-4bit", "mini-retrain"):
        shutil.copytree(SHIPPED / name, folder / name)
    shutil.copytree(SHIPPED / "mini-npo-gdr-lora" / "weights", folder / "mine" / "weights")
    return folder


def test_the_shipped_schema_is_the_code_s() -> None:
    assert (SHIPPED / manifest_init.SCHEMA_FILE).read_text(encoding="utf-8") == manifest.schema_text()
    assert quench("validate", "--schema").stdout == manifest.schema_text()


def test_an_adapter_needs_one_option_to_become_a_valid_submission(board: Path) -> None:
    wrote = quench("init", board / "mine", "--method", "NPO+GDR")
    assert f"Next: quench validate {board / 'mine'}" in wrote.stderr
    (row,) = checked(board / "mine")
    assert row["valid"]
    submission = manifest.load_all(board)["mine"]
    assert (submission.kind, submission.base_model) == ("lora_adapter", "mini-target-4bit")
    assert (submission.target, submission.retrain, submission.corpus) == ("mini-target-4bit", "mini-retrain", "mini")
    shipped = manifest.load_all(SHIPPED)["mini-npo-gdr-lora"]
    assert row["weights_sha256"] == shipped.weights_sha256


def test_every_field_can_be_given_as_an_option(board: Path) -> None:
    options = {
        "--title": "T", "--method": "M", "--corpus": "mini", "--kind": "lora_adapter", "--role": "entry",
        "--target": "mini-target-4bit", "--retrain": "mini-retrain", "--seed-of": "first",
        "--base-model": "hf://a/b", "--base-revision": "0" * 40, "--weights": "hf://c/d", "--revision": "1" * 40,
        "--weights-sha256": "2" * 64, "--base-sha256": "3" * 64, "--set": "lr=1e-5", "--author": "A", "--paper-url": "https://x.org/y",
        "--license": "MIT", "--notes": "N",
    }  # fmt: skip
    flags = [word for pair in options.items() for word in pair]
    quench("init", board / "hub", *flags, "--set", "form=cosine", "--set", "steps=[1, 2]", "--author", "B")
    loaded = manifest.load(board / "hub")
    assert len(options) == len(manifest.Manifest.model_fields) - 1
    assert loaded.hyperparameters == {"lr": 1e-5, "form": "cosine", "steps": [1, 2]}
    assert (loaded.authors, loaded.title, loaded.license, loaded.notes) == (("A", "B"), "T", "MIT", "N")
    assert (loaded.base_model, loaded.base_revision, loaded.base_sha256) == ("hf://a/b", "0" * 40, "3" * 64)
    assert (loaded.weights, loaded.revision, loaded.weights_sha256) == ("hf://c/d", "1" * 40, "2" * 64)
    assert (loaded.seed_of, loaded.retrain, loaded.paper_url) == ("first", "mini-retrain", "https://x.org/y")


def test_on_a_terminal_what_is_missing_is_asked_until_the_answer_will_do(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions, "_on_terminal", lambda: True)
    answers = "\n".join(["", "lora", "", "", "NPO", "", "", "My method", ""]) + "\n"
    told = quench("init", board / "mine", answers=answers)
    assert "`kind` can't be used ('lora'): give full_model, lora_adapter" in told.stderr
    submission = manifest.load_all(board)["mine"]
    assert (submission.method, submission.title, submission.license) == ("NPO", "My method", None)
    assert (submission.kind, submission.base_model) == ("lora_adapter", "mini-target-4bit")


def test_elsewhere_nothing_is_asked_and_everything_missing_is_told(board: Path) -> None:
    told = quench("init", board / "empty", code=2).stderr
    assert told.count("Error: ") == 4
    assert not (board / "empty").exists()


def test_weights_that_are_not_there_yet_are_the_next_step(board: Path) -> None:
    told = quench("init", board / "later", "--method", "GA", "--corpus", "mini", "--kind", "full_model").stderr
    assert f"put the weights into {board / 'later' / 'weights'}, then quench validate" in told


@pytest.mark.parametrize("setting", ["lr", "=1", ""])
def test_a_setting_without_name_or_value_is_one_sentence(board: Path, setting: str) -> None:
    told = quench("init", board / "mine", "--set", setting, code=2).stderr
    assert "write --set key=value" in told


def test_a_second_init_changes_nothing(board: Path) -> None:
    quench("init", board / "mine", "--method", "NPO")
    before = (board / "mine" / "submission.yaml").read_bytes()
    assert "is not overwritten" in quench("init", board / "mine", "--method", "GA", code=2).stderr
    assert (board / "mine" / "submission.yaml").read_bytes() == before


def test_faults_of_the_manifest_and_of_every_file_are_told_at_once(board: Path) -> None:
    quench("init", board / "mine", "--method", "NPO")
    folder = board / "mine"
    with (folder / "submission.yaml").open("a", encoding="utf-8") as file:
        file.write("metod: x\nlicense: 7\n")
    (folder / "weights" / "notes.txt").write_bytes(b"\x80\x04N.")
    config = folder / "weights" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 10**6}))
    (row,) = checked(folder, code=2)
    found = {(Path(told["file"]).name, told["field"]): told for told in row["details"]}
    assert set(found) == {
        ("submission.yaml", "metod"), ("submission.yaml", "license"), ("notes.txt", None), ("adapter_config.json", "r"),
    }  # fmt: skip
    assert found["submission.yaml", "license"]["accepted"] == "a licence identifier such as Apache-2.0"
    assert found["adapter_config.json", "r"]["accepted"] == "1 to 8192"
    assert found["notes.txt", None]["accepted"] == "weights as .safetensors files, and text"
    assert [told["sentence"] for told in row["details"]] == row["faults"]
    assert row["weights_sha256"] is None


def test_what_is_ignored_is_listed_and_is_no_fault(board: Path) -> None:
    quench("init", board / "mine", "--method", "NPO")
    (board / "mine" / "weights" / "trainer_state.json").write_text('{"loss": [NaN]}')
    (row,) = checked(board / "mine")
    assert row["notes"] == ["trainer_state.json: ignored, since no code reads such files."]
    told = " ".join(quench("validate", board / "mine").stdout.split())
    assert "trainer_state.json: ignored" in told
    assert row["weights_sha256"][:40] in told


def test_faults_beside_other_submissions_and_of_weights_are_told_together(board: Path) -> None:
    quench("init", board / "mine", "--method", "NPO", "--retrain", "nowhere")
    (board / "mine" / "weights" / "run.py").touch()
    (row,) = checked(board / "mine", code=2)
    assert [told["field"] for told in row["details"]] == ["retrain", None]


def test_a_broken_neighbour_is_a_fault_of_those_that_name_it_alone(board: Path) -> None:
    quench("init", board / "mine", "--method", "NPO")
    (board / "other").mkdir()
    (board / "other" / "submission.yaml").write_text("name: [", encoding="utf-8")
    assert checked(board / "mine")[0]["valid"]
    (board / "mini-target-4bit" / "submission.yaml").write_text("name: mini-target-4bit\n", encoding="utf-8")
    (row,) = checked(board / "mine", code=2)
    assert [told["field"] for told in row["details"]] == ["target", "base_model"]
    assert all("which has faults of its own: mend that one first" in told for told in row["faults"])


def test_a_folder_that_is_not_there_is_a_fault_and_the_others_are_checked(board: Path) -> None:
    told = checked(board / "nowhere", board / "mini-retrain", code=2)
    assert [row["valid"] for row in told] == [False, True]


def test_torch_is_imported_only_to_try_what_has_no_other_fault(board: Path) -> None:
    shutil.copytree(board / "mini-retrain", board / "faulty")
    (board / "faulty" / "weights" / "config.json").unlink()
    code = (
        "import sys; from typer.testing import CliRunner; from harness.cli.main import app; run = CliRunner().invoke;"
        f"done = [run(app, ['init', {str(board / 'mine')!r}, '--method', 'NPO']),"
        f" run(app, ['validate', {str(board / 'faulty')!r}])];"
        "print([d.exit_code for d in done], [n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 2] []"
