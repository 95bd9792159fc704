"""Commands on a board that lies on a hub: what they ask it for, what they say, and what they keep off the screen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import COMMIT, Fault, Hub, point_at, serving
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli.main import app
from harness.submit.weight_files import folder_digest

SHIPPED = paths.content_dir("submissions")
_QUENCH = "from harness.cli.main import main; main()"
PACKED = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def quench(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def rows(*arguments: str | Path, code: int = 0) -> dict[str, dict[str, Any]]:
    told = json.loads(quench(*arguments, "--json", code=code).stdout)["rows"]
    return {row["submission"]: row for row in told}


def submit(board: Path, name: str, **fields: str) -> None:
    (board / name).mkdir(parents=True)
    told = {"name": name, "method": "GA", "corpus": "mini", "kind": "full_model", "revision": COMMIT} | fields
    if told.get("role", "entry") == "entry":
        told["target"] = "mini-target-4bit"
    (board / name / "submission.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    for name in ("mini-target-4bit", "mini-retrain"):
        shutil.copytree(SHIPPED / name, tmp_path / "board" / name)
    submit(tmp_path / "board", "far", weights="hf://owner/model")
    submit(tmp_path / "board", "far-packed", weights="hf://owner/packed", kind="quantized_checkpoint")
    return tmp_path / "board"


@pytest.fixture
def there(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.add("owner/model", SHIPPED / "mini-target-4bit" / "weights")
        server.add("owner/packed", small_model)
        config = json.loads(server.repositories["owner/packed"]["config.json"])
        server.repositories["owner/packed"]["config.json"] = json.dumps(
            config | {"quantization_config": PACKED}
        ).encode()
        point_at(server.address, monkeypatch)
        yield server


@pytest.mark.parametrize("command", ["plan", "status"])
def test_commands_that_look_download_nothing(command: str, there: Hub, board: Path, tmp_path: Path) -> None:
    told = rows(command, "--submissions", board, "--store", tmp_path / "s.duckdb", "--quantizers", "reference")
    assert there.requests == []
    assert not any((tmp_path / "cache").rglob("owner*"))
    if command == "plan":
        assert (told["far"]["state"], told["far"]["disk"], told["far"]["disk_bytes"]) == ("to do", "unknown", None)
        assert (told["far-packed"]["state"], told["far-packed"]["cells"]) == ("unknown", None)
        assert told["far-packed"]["reason"].endswith("is not here, and this command downloads nothing.")


def test_a_plan_of_unknown_sizes_says_so_and_not_0_mb(there: Hub, board: Path, tmp_path: Path) -> None:
    shown = quench("plan", "far", "--no-controls", "--submissions", board, "--store", tmp_path / "s.duckdb").stdout
    assert "take is unknown: their weights are on a hub and not here" in " ".join(shown.split())
    assert "0 MB" not in shown


def test_validate_gives_the_digest_that_the_same_files_have_here_and_the_plan_then_knows_sizes(
    there: Hub, board: Path, tmp_path: Path
) -> None:
    told = rows("validate", board / "far", board / "mini-target-4bit")
    assert told["far"]["weights_sha256"] == told["mini-target-4bit"]["weights_sha256"]
    assert told["far"]["weights_sha256"] == folder_digest(SHIPPED / "mini-target-4bit" / "weights")
    there.requests.clear()
    planned = rows("plan", "far", "--submissions", board, "--store", tmp_path / "s.duckdb")
    assert planned["far"]["memory"].endswith("MB")
    assert there.requests == []


def test_one_checkpoint_that_can_t_be_planned_ends_no_run_of_the_others(
    there: Hub, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.run import sweep

    planned: list[Any] = []
    monkeypatch.setattr(
        sweep, "execute", lambda plan, *rest, **options: planned.append(plan) or {"failed": 0, "cancelled": 0}
    )
    there.faults = [Fault("/owner/packed", 404, {"X-Error-Code": "RepoNotFound"})]
    store = tmp_path / "s.duckdb"
    ran = quench("run", "--submissions", board, "--store", store, "--quantizers", "reference", code=1)
    assert "Left out: hf://owner/packed at" in ran.stderr
    assert {job.submission.name for job in planned[0].jobs} == {"far", "mini-target-4bit", "mini-retrain"}
    # Who asks for it alone has nothing else to do.
    refused = quench("run", "far-packed", "--submissions", board, "--store", store, code=2)
    assert refused.stderr.startswith("Error: hf://owner/packed at")


@pytest.mark.slow
def test_no_bar_and_no_warning_of_a_library_reaches_the_screen(there: Hub, board: Path, tmp_path: Path) -> None:
    there.faults = [Fault("/api/", headers={"X-HF-Warning": "x; set a token"}, status=503, times=1)]
    shutil.rmtree(board / "far-packed")
    submit(board, "far-lora", kind="lora_adapter", weights="hf://owner/lora", base_model="hf://owner/model",
           base_revision=COMMIT)  # fmt: skip
    there.add("owner/lora", next(SHIPPED.glob("*lora*/weights")))
    for command in (
        ["validate"],
        ["plan"],
        ["run", "far-lora", "--no-controls", "--quantizers", "reference", "--tasks", "muse_mini_knowmem_r"],
    ):
        rest = ["--store", str(tmp_path / "s.duckdb")] if command != ["validate"] else []
        done = subprocess.run(
            [sys.executable, "-c", _QUENCH, *command, "--submissions", str(board), *rest],
            capture_output=True, text=True, check=False, cwd=paths.content_dir("tasks").parent,
            env={**os.environ, "HF_ENDPOINT": there.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for sign in ("it/s", "%|", "Warning", "huggingface_hub", "transformers"):
            assert sign not in done.stdout + done.stderr, done.stderr
