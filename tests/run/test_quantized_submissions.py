"""Checkpoints that were submitted quantized, from the command line to the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from quantized_files import bnb_weights, write_bnb, write_dense, write_gguf, write_gptq
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli.main import app
from harness.quantize import resolve
from harness.run.plan import planner
from harness.submit.manifest import load as manifest

SHIPPED = paths.content_dir("submissions")
SOURCE = SHIPPED / "mini-ga-gdr-full-lr2e-4" / "weights"
TASKS = "muse_mini_knowmem_f,muse_mini_knowmem_r"
LAYER = "model.layers.2.mlp.up_proj"
BAD = ("bad-bits", "bad-scales", "bad-shape", "bad-short")


def quench(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    assert "Traceback" not in result.output + result.stderr
    return result


def submit(board: Path, name: str, write: Callable[[Path], Any], **fields: Any) -> Path:
    """Adds an entry whose weights ``write`` puts into its folder."""
    folder = board / name
    folder.mkdir()
    told = {"name": name, "method": "GA+GDR", "corpus": "mini", "kind": "quantized_checkpoint",
            "target": "mini-target-plain", "weights": "weights", "license": "Apache-2.0"}  # fmt: skip
    (folder / "submission.yaml").write_text(yaml.safe_dump(told | fields), encoding="utf-8")
    write(folder / "weights")
    return folder


def _bnb_dense(packed: Path, folder: Path) -> None:
    """The dense model that a bitsandbytes checkpoint means, in the library's own words."""
    write_dense(SOURCE, folder)
    tensors = load_file(SOURCE / "model.safetensors")
    tensors |= {f"{name}.weight": weight.bfloat16() for name, weight in bnb_weights(packed)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _damaged(**changes: Any) -> Callable[[Path], None]:
    """Writes a GPTQ checkpoint with a false claim, or with a tensor of one layer replaced or taken away."""

    def write(folder: Path) -> None:
        replaced = {key: changes.pop(key) for key in ("qweight", "scales") if key in changes}
        write_gptq(SOURCE, folder, **changes)
        tensors = load_file(folder / "model.safetensors")
        for part, tensor in replaced.items():
            del tensors[f"{LAYER}.{part}"]
            if tensor is not None:
                tensors[f"{LAYER}.{part}"] = tensor
        save_file(tensors, folder / "model.safetensors")

    return write


def _cut_off(folder: Path) -> None:
    path = write_gptq(SOURCE, folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Controls, four quantized entries with the dense models that they mean, and four hostile ones."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("board")
    for name in ("mini-target-plain", "mini-retrain", "mini-ga-gdr-full-lr2e-4", "mini-target-4bit"):
        shutil.copytree(SHIPPED / name, folder / name)
    submit(folder, "q-gptq", lambda to: write_gptq(SOURCE, to), base_model="mini-ga-gdr-full-lr2e-4")
    submit(folder, "q-gguf4", lambda to: write_gguf(SOURCE, to, "Q4_0"))
    submit(folder, "q-gguf8", lambda to: write_gguf(SOURCE, to, "Q8_0"))
    nf4 = submit(folder, "q-nf4", lambda to: write_bnb(SOURCE, to, load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    submit(folder, "d-gptq", lambda to: write_dense(SOURCE, to), kind="full_model")
    submit(folder, "d-gguf4", lambda to: write_dense(SOURCE, to, everything=True), kind="full_model")
    submit(folder, "d-gguf8", lambda to: write_dense(SOURCE, to, 8, everything=True), kind="full_model")
    submit(folder, "d-nf4", lambda to: _bnb_dense(nf4 / "weights", to), kind="full_model")
    submit(folder, "bad-bits", _damaged(bits=8))
    submit(folder, "bad-scales", _damaged(scales=None))
    submit(folder, "bad-shape", _damaged(qweight=torch.zeros(16, 100, dtype=torch.int32)))
    submit(folder, "bad-short", _cut_off)
    return folder


@pytest.fixture(scope="module")
def store(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every entry scored on three documents of two tasks."""
    path = tmp_path_factory.mktemp("run") / "store.duckdb"
    names = [f"{kind}-{form}" for kind in "qd" for form in ("gptq", "gguf4", "gguf8", "nf4")]
    quench("run", *names, *BAD, "--submissions", board, "--quantizers", "reference", "--tasks", TASKS, "--limit", "3",
           "--no-controls", "--store", path, code=1)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def cells(store: Path) -> list[dict[str, Any]]:
    return list(json.loads(quench("show", "--cells", "--store", store, "--json").stdout)["rows"])


def of(cells: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    found = sorted((cell for cell in cells if cell["submission"] == name), key=lambda cell: str(cell["task"]))
    assert len(found) == 2, name
    return found


def test_good_checkpoints_are_valid_and_damaged_files_are_not(board: Path) -> None:
    result = CliRunner().invoke(app, ["validate", "--submissions", str(board), "--json"])
    checked = {row["submission"]: row for row in json.loads(result.stdout)["rows"]}
    assert {name for name, row in checked.items() if not row["valid"]} == set(BAD)
    assert "it is cut off" in checked["bad-short"]["faults"][0]


@pytest.mark.parametrize("form", ["gptq", "gguf4", "gguf8", "nf4"])
def test_scores_are_those_of_the_dense_model_that_the_codes_mean(cells: list[dict[str, Any]], form: str) -> None:
    mine, dense = of(cells, f"q-{form}"), of(cells, f"d-{form}")
    for packed, plain in zip(mine, dense, strict=True):
        assert (packed["status"], plain["status"]) == ("finished", "finished"), packed["reason"] or plain["reason"]
        differing = {key for key in packed if packed[key] != plain[key]}
        assert differing <= {
            "submission",
            "kind",
            "quantizer",
            "bits",
            "key",
            "seconds",
            "peak_memory_bytes",
            "created_at",
            "bits_per_weight",
            "max_abs_error",
            "mean_abs_error",
            "relative_error",
            "symmetric",
            "remarks",
        }
    assert any(cell["knowmem_r"] for cell in mine)


def test_documents_are_word_for_word_the_dense_model_s(store: Path) -> None:
    def listed(name: str, quantizer: str) -> list[dict[str, Any]]:
        shown = quench("show", name, "--documents", "--task", "muse_mini_knowmem_r", "--quantizer", quantizer,
                       "--store", store, "--json")  # fmt: skip
        return list(json.loads(shown.stdout)["rows"])

    assert listed("q-gptq", "submitted-gptq-4bit-g32-sym") == listed("d-gptq", "reference")


@pytest.mark.parametrize(
    ("name", "quantizer", "bits", "bits_per_weight", "symmetric"),
    [
        ("q-gptq", "submitted-gptq-4bit-g32-sym", 4, 4.625, True),
        ("q-gguf4", "submitted-gguf-q4_0", 4, 4.5, True),
        ("q-gguf8", "submitted-gguf-q8_0", 8, 8.5, True),
        ("q-nf4", "submitted-bnb-nf4", 4, 4.5, None),
    ],
)
def test_each_is_scored_under_its_own_width_with_what_was_measured(
    cells: list[dict[str, Any]], name: str, quantizer: str, bits: int, bits_per_weight: float, symmetric: bool | None
) -> None:
    for cell in of(cells, name):
        assert (cell["quantizer"], cell["bits"]) == (quantizer, bits)
        assert (cell["bits_per_weight"], cell["symmetric"]) == (bits_per_weight, symmetric)
        known = cell["mean_abs_error"] is not None
        assert known is (name == "q-gptq")
        assert (cell["relative_error"] is not None) is known


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("bad-bits", "intake", "with scales for"),
        ("bad-scales", "intake", f"{LAYER} lacks scales: a packed layer has qweight, qzeros and scales"),
        ("bad-shape", "intake", f"{LAYER} has scales of shape"),
        ("bad-short", "intake", "it is cut off"),
    ],
)
def test_hostile_files_end_as_failed_rows_of_one_sentence(
    cells: list[dict[str, Any]], name: str, stage: str, message: str
) -> None:
    for cell in of(cells, name):
        assert (cell["status"], cell["stage"]) == ("failed", stage)
        assert message in cell["reason"]
        assert cell["error_type"] in ("QuantizationError", "UnsafeSubmissionError")


def test_a_gguf_file_that_claims_too_much_is_refused_before_anything_runs(board: Path, tmp_path: Path) -> None:
    shutil.copytree(board / "mini-target-plain", tmp_path / "mini-target-plain")
    shutil.copytree(board / "mini-retrain", tmp_path / "mini-retrain")
    folder = submit(tmp_path, "huge", lambda to: write_gguf(SOURCE, to))
    path = folder / "weights" / "model.gguf"
    path.write_bytes(path.read_bytes()[:8] + (1 << 61).to_bytes(8, "little") + path.read_bytes()[16:])
    for command in (("plan", "huge"), ("run", "huge")):
        refused = quench(*command, "--submissions", tmp_path, "--store", tmp_path / "s.duckdb", code=2)
        assert len(refused.stderr.strip().splitlines()) == 1
        assert f"Error: {path}: it claims {1 << 61} tensors" in refused.stderr
    assert not (tmp_path / "s.duckdb").exists()


def test_an_unknown_method_is_refused_with_those_that_are_accepted(board: Path, tmp_path: Path) -> None:
    shutil.copytree(board / "mini-target-plain", tmp_path / "mini-target-plain")
    shutil.copytree(board / "mini-retrain", tmp_path / "mini-retrain")
    submit(tmp_path, "odd", lambda to: write_gptq(SOURCE, to, quant_method="exl2"))
    refused = quench("plan", "odd", "--submissions", tmp_path, "--store", tmp_path / "s.duckdb", code=2)
    assert "accepted are gptq, awq, auto-round, bitsandbytes, compressed-tensors" in refused.stderr


def test_the_proof_stands_on_the_entry_s_page(store: Path, tmp_path: Path) -> None:
    quench("render", "--store", store, "--out", tmp_path / "site")
    with_base = (tmp_path / "site" / "submission" / "q-gptq.html").read_text(encoding="utf-8")
    alone = (tmp_path / "site" / "submission" / "q-gguf4.html").read_text(encoding="utf-8")
    assert "quench run q-gptq --corpus mini --quantizers reference" in with_base
    assert "submitted-gptq-4bit-g32-sym" in with_base
    assert "submitted-gguf-q4_0" in alone


def _keys(board: Path, **options: Any) -> dict[tuple[str, str], set[str]]:
    made = planner.plan(manifest.load_all(board), quantizers=[resolve("reference"), resolve("rtn-4bit-g64")], **options)
    return {(job.submission.name, job.spec.name): {cell.key for cell in job.cells} for job in made.jobs}


def test_a_quantized_checkpoint_is_planned_as_it_is_and_nothing_else_is(board: Path) -> None:
    planned = _keys(board, names=["q-gguf8", "mini-target-plain"])
    assert set(planned) == {
        ("mini-target-plain", "reference"), ("mini-target-plain", "rtn-4bit-g64"),
        ("mini-retrain", "reference"), ("mini-retrain", "rtn-4bit-g64"), ("q-gguf8", "submitted-gguf-q8_0"),
    }  # fmt: skip


def test_other_bytes_or_another_base_are_another_cell(board: Path, tmp_path: Path) -> None:
    shutil.copytree(board, tmp_path / "copy")
    before = _keys(tmp_path / "copy", names=["q-gptq"])
    path = tmp_path / "copy" / "q-gptq" / "submission.yaml"
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(told | {"base_model": "mini-target-4bit"}), encoding="utf-8")
    other_base = _keys(tmp_path / "copy", names=["q-gptq"])
    write_gptq(SOURCE, tmp_path / "copy" / "q-gptq" / "weights", damp_percent=0.5)
    other_bytes = _keys(tmp_path / "copy", names=["q-gptq"])
    place = ("q-gptq", "submitted-gptq-4bit-g32-sym")
    assert not before[place] & other_base[place]
    assert not other_base[place] & other_bytes[place]


def test_without_gguf_py_the_row_says_how_to_get_it(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize import libraries

    monkeypatch.setattr(libraries, "version_of", lambda name: None if name == "gguf" else "1")
    made = planner.plan(manifest.load_all(board), names=["q-gguf4"], quantizers=[resolve("reference")], controls=False,
                        check_references=False)  # fmt: skip
    assert made.jobs == ()
    ((job, reason),) = made.impossible
    assert job.spec.name == "submitted-gguf-q4_0"
    assert reason.endswith("run pip install 'quench-bench[quantizers]'.")
