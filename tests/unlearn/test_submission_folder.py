import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from harness.errors import InputError, UnsafeSubmissionError
from harness.submit.checkpoint.prepare import weights_digest
from harness.unlearn.planned_training import StepLog
from harness.unlearn.recipes import load_recipe
from harness.unlearn.submission_folder import read_manifest, write_entry, write_submission
from harness.unlearn.trainer import TrainingLog


def folder_with_weights(root: Path, name: str = "my-entry") -> Path:
    weights = root / name / "weights"
    weights.mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, weights / "model.safetensors")
    (weights / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return root / name


def make_log(name: str, **overrides: object) -> TrainingLog:
    step = StepLog(step=1, losses={"loss": 1.0}, grad_norm=1.0, learning_rate=1e-3)
    return TrainingLog(
        recipe=load_recipe(name, **overrides), seed=7, device="cpu", trained_parameters=10, forget_windows=1,
        retain_windows=1, steps=(step, step), versions={}, seconds=1.0,
    )  # fmt: skip


def test_the_manifest_says_what_was_given_and_leaves_out_what_was_not(tmp_path):
    folder = folder_with_weights(tmp_path)
    submission = write_submission(folder, method="GA", corpus="mini", kind="full_model", authors=("Quench",))
    written = yaml.safe_load((folder / "submission.yaml").read_text())
    assert written == {
        "name": "my-entry", "title": "my-entry", "method": "GA", "corpus": "mini", "kind": "full_model",
        "role": "entry", "weights": "weights", "weights_sha256": weights_digest(submission), "authors": ["Quench"],
    }  # fmt: skip


def test_the_record_that_comes_back_has_absolute_paths_and_the_file_has_none(tmp_path, monkeypatch):
    folder = folder_with_weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    submission = write_submission(Path("my-entry"), method="GA", corpus="mini", kind="full_model")
    assert submission.name == "my-entry"
    assert Path(submission.weights) == folder / "weights"
    assert str(tmp_path) not in (folder / "submission.yaml").read_text()


def test_the_digest_follows_the_weights(tmp_path):
    folder = folder_with_weights(tmp_path)
    before = write_submission(folder, method="GA", corpus="mini", kind="full_model").weights_sha256
    save_file({"weight": torch.zeros(2)}, folder / "weights/model.safetensors")
    assert write_submission(folder, method="GA", corpus="mini", kind="full_model").weights_sha256 != before


@pytest.mark.parametrize(("name", "kind"), [("mini_npo_gdr_lora", "lora_adapter"), ("npo_gdr", "full_model")])
def test_an_entry_takes_method_kind_and_settings_from_its_recipe(tmp_path, name, kind):
    folder, log = folder_with_weights(tmp_path), make_log(name)
    entry = write_entry(folder, recipe=log.recipe, log=log, target="the-target", corpus="mini", retrain="r",
                        hyperparameters={"more": 1})  # fmt: skip
    assert (entry.kind, entry.role, entry.target, entry.retrain) == (kind, "entry", "the-target", "r")
    assert entry.base_model == ("the-target" if kind == "lora_adapter" else None)
    assert entry.method == "NPO+GDR"
    assert entry.hyperparameters["update_precision"] == "float32"
    assert entry.hyperparameters["learning_rate"] == log.recipe.learning_rate
    assert (entry.hyperparameters["seed"], entry.hyperparameters["steps"], entry.hyperparameters["more"]) == (7, 2, 1)
    assert read_manifest(folder)["hyperparameters"] == entry.hyperparameters


def test_an_adapter_may_sit_on_something_else_than_its_target(tmp_path):
    log = make_log("ga", lora_rank=2)
    entry = write_entry(folder_with_weights(tmp_path), recipe=log.recipe, log=log, target="t", corpus="news",
                        base_model="hf://a/b", base_revision="0" * 40)  # fmt: skip
    assert (entry.base_model, entry.base_revision) == ("hf://a/b", "0" * 40)


def test_a_folder_without_weights_is_an_input_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="weights"):
        write_submission(tmp_path / "empty", method="GA", corpus="mini", kind="full_model")


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    (tmp_path / "bad/weights").mkdir(parents=True)
    (tmp_path / "bad/weights/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeSubmissionError):
        write_submission(tmp_path / "bad", method="GA", corpus="mini", kind="full_model")
    assert not (tmp_path / "bad/submission.yaml").exists()


@pytest.mark.parametrize("content", [None, b"- a list", b"a: [", b"\xff\xfe\x00", b"!!python/object:os.system {}"])
def test_a_manifest_that_can_t_be_read_counts_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "submission.yaml").write_bytes(content)
    assert read_manifest(tmp_path) is None


def test_a_long_note_survives_the_round_trip(tmp_path):
    notes = "A colon: a hash # and 'quotes' é and a line that is longer than any width. " * 5
    folder = folder_with_weights(tmp_path)
    write_submission(folder, method="GA", corpus="mini", kind="full_model", notes=notes)
    assert read_manifest(folder)["notes"] == notes
