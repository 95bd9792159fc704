"""A folder that can't be read stops what asks for it and nothing else, in every command that plans."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli.main import app

SHIPPED = paths.content_dir("submissions")
GOOD, TARGET, RETRAIN = "mini-npo-gdr-lora", "mini-target-4bit", "mini-retrain"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name in (GOOD, TARGET, RETRAIN):
        shutil.copytree(SHIPPED / name, folder / name)
    return folder


@pytest.fixture
def board(sound: Path, tmp_path: Path) -> Path:
    """An entry with its controls, whose files are those of ``sound``."""
    shutil.copytree(sound, tmp_path / "board", copy_function=os.link)
    return tmp_path / "board"


def quench(*arguments: str, board: Path) -> Result:
    return CliRunner().invoke(app, [*arguments, "--submissions", str(board)])


def add(board: Path, name: str, model: str = GOOD, **changes: str) -> Path:
    """Adds a copy of a model under another name, with other fields in its manifest."""
    shutil.copytree(SHIPPED / model, board / name, ignore=shutil.ignore_patterns("training_log.json"))
    manifest = board / name / "submission.yaml"
    text = re.sub(r"\nweights_sha256: .*", "", manifest.read_text(encoding="utf-8"))
    for field, value in ({"name": name} | changes).items():
        text = re.sub(rf"(?m)^{field}: .*", f"{field}: {value}", text)
    manifest.write_text(text, encoding="utf-8")
    return board / name


def instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


WEIGHTS = "weights/adapter_model.safetensors"


def broken_target(board: Path, name: str) -> None:
    add(board, name, target="broken-target")
    (add(board, "broken-target", TARGET) / "submission.yaml").write_text("name: [", encoding="utf-8")


def unreadable_target(board: Path, name: str) -> None:
    add(board, name, target="unreadable-target")
    instead(add(board, "unreadable-target", TARGET) / "weights/model.safetensors", os.mkfifo)


def unknown_corpus(board: Path, name: str) -> None:
    add(board, "target-of-nobody-s", TARGET, corpus="nobody-s")
    manifest = add(board, name, corpus="nobody-s", target="target-of-nobody-s") / "submission.yaml"
    manifest.write_text(re.sub(r"retrain: .*\n", "", manifest.read_text(encoding="utf-8")), encoding="utf-8")


def other_architecture(board: Path, name: str) -> None:
    add(board, name, target="small-target")
    config = add(board, "small-target", TARGET) / "weights" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"num_hidden_layers": 1}
    config.write_text(json.dumps(settings), encoding="utf-8")


def unknown_quantization(board: Path, name: str) -> None:
    folder = add(board, name, TARGET, role="entry", kind="quantized_checkpoint")
    config = folder / "weights" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"quantization_config": {"quant_method": "nobody-s"}}
    config.write_text(json.dumps(settings), encoding="utf-8")
    manifest = folder / "submission.yaml"
    manifest.write_text(manifest.read_text(encoding="utf-8") + f"target: {TARGET}\n", encoding="utf-8")


FAULTS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "no-manifest": (lambda board, name: (board / name).mkdir(), "there is no such file"),
    "no-yaml": (lambda board, name: (add(board, name) / "submission.yaml").write_text("name: ["), "is not plain YAML"),
    "no-fields": (lambda board, name: (add(board, name) / "submission.yaml").write_text("7"), "it must be a mapping"),
    "manifest-pipe": (
        lambda board, name: instead(add(board, name) / "submission.yaml", os.mkfifo), "there is no such file"),
    "manifest-folder": (
        lambda board, name: instead(add(board, name) / "submission.yaml", os.mkdir), "there is no such file"),
    "weights-pipe": (lambda board, name: instead(add(board, name) / WEIGHTS, os.mkfifo), "is not a plain file"),
    "index-folder": (
        lambda board, name: (add(board, name) / "weights/model.safetensors.index.json").mkdir(), "is not a plain file"),
    "link-to-nothing": (
        lambda board, name: instead(add(board, name) / WEIGHTS, lambda path: path.symlink_to("no")), "can't be read"),
    "loop-of-links": (
        lambda board, name: (add(board, name) / "weights/a.safetensors").symlink_to("a.safetensors"), "can't be read"),
    "no-weights": (lambda board, name: (add(board, name) / WEIGHTS).unlink(), "holds no .safetensors file"),
    "unknown-corpus": (unknown_corpus, "nobody-s"),
    "unknown-target": (lambda board, name: add(board, name, target="nothing"), "names 'nothing'"),
    "other-architecture": (other_architecture, "and its target small-target '1': name the target that it was"),
    "faulty-target": (broken_target, "names 'broken-target', which has faults of its own: mend that one first"),
    "unreadable-target": (unreadable_target, "is not a plain file"),
    "unknown-quantization": (unknown_quantization, "nobody-s"),
}  # fmt: skip
OPTIONS = ("--quantizers", "reference", "--tasks", "muse_mini_verbmem_f", "--store", "absent.duckdb")


@pytest.fixture(scope="module")
def faulty(sound: Path) -> Path:
    """The sound submissions beside one folder for each fault."""
    folder = sound.parent / "faulty"
    shutil.copytree(sound, folder, copy_function=os.link)
    for name, (break_, _) in FAULTS.items():
        break_(folder, f"with-{name}")
    return folder


def planned(result: Result, code: int) -> set[str]:
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    rows = json.loads(result.stdout)["rows"]
    assert all(row["reason"] for row in rows if row.get("state") == "left out")
    return {row["submission"] for row in rows if row.get("state") != "left out"}


def test_faults_of_others_stop_no_command_and_are_not_told(faulty: Path) -> None:
    result = quench("plan", GOOD, *OPTIONS, "--json", board=faulty)
    assert planned(result, 0) == {GOOD, TARGET, RETRAIN}
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_command_over_everything_tells_the_faults_and_goes_on_with_the_others(faulty: Path, command: str) -> None:
    result = quench(command, *OPTIONS, "--json", board=faulty)
    assert planned(result, 1) == {GOOD, TARGET, RETRAIN, "small-target"}
    assert all(line.startswith("Left out: ") for line in result.stderr.splitlines())
    for name, (_, sentence) in FAULTS.items():
        assert sentence in result.stderr, name


@pytest.mark.parametrize("name", FAULTS)
def test_what_asks_for_a_faulty_folder_alone_is_refused_before_any_work(
    faulty: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = quench("run", f"with-{name}", *OPTIONS, board=faulty)
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(line.startswith("Error: ") for line in result.stderr.splitlines())
    assert FAULTS[name][1] in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_asks_for_sound_and_faulty_ones_goes_on_with_the_sound(faulty: Path) -> None:
    result = quench("plan", GOOD, "with-weights-pipe", "with-no-manifest", *OPTIONS, "--json", board=faulty)
    assert planned(result, 1) == {GOOD, TARGET, RETRAIN}
    assert result.stderr.count("Left out: ") == 2


def test_where_nothing_is_left_every_fault_is_told(board: Path) -> None:
    for name in (GOOD, TARGET, RETRAIN):
        (board / name / "submission.yaml").unlink()
    result = quench("status", board=board)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 3


def test_faults_of_another_corpus_are_not_told(board: Path) -> None:
    (add(board, "news-entry", corpus="news") / "submission.yaml").open("a").write("surplus: 1\n")
    options = (*OPTIONS, "--json")
    assert planned(quench("plan", "--corpus", "mini", *options, board=board), 0) == {GOOD, TARGET, RETRAIN}
    assert "surplus" in quench("plan", *options, board=board).stderr


def test_the_only_retrain_control_with_a_fault_is_not_gone_without(board: Path) -> None:
    manifest = add(board, "mine") / "submission.yaml"
    manifest.write_text(re.sub(r"retrain: .*\n", "", manifest.read_text(encoding="utf-8")), encoding="utf-8")
    assert quench("plan", "mine", board=board).exit_code == 0
    (board / RETRAIN / "submission.yaml").unlink()
    shutil.copy(SHIPPED / RETRAIN / "submission.yaml", board / RETRAIN)
    (board / RETRAIN / "submission.yaml").open("a").write("surplus: 1\n")
    result = quench("plan", "mine", board=board)
    assert result.exit_code == 2
    assert f"`retrain` names '{RETRAIN}', which has faults of its own" in result.stderr


def test_survival_of_a_named_entry_asks_for_that_entry_alone(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.run import update_survival

    asked = []
    monkeypatch.setattr(update_survival, "survive", lambda name, *others, **options: asked.append(name) or {})
    (board / "notes").mkdir()
    assert quench("survival", GOOD, "--json", board=board).exit_code == 0
    result = quench("survival", "notes", board=board)
    assert (result.exit_code, asked) == (2, [GOOD])
    assert "notes/submission.yaml: there is no such file" in result.stderr
