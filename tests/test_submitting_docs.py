"""The worked example of docs/submitting.md, run as it stands there in a fresh copy of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTION = "## From an adapter to a ranked row"


def documented() -> str:
    """Returns the commands of the worked example."""
    page = (ROOT / "docs" / "submitting.md").read_text(encoding="utf-8")
    found = re.search(r"^```bash\n(.*?)^```", page.split(SECTION)[1], re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The code as a release has it, without a history that could be dirty, and somebody's adapter beside it."""
    folder = tmp_path / "quench"
    for name in ("harness", "tasks", "leaderboard"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("mini-target-4bit", "mini-target-plain", "mini-retrain"):
        shutil.copytree(ROOT / "submissions" / name, folder / "submissions" / name)
    shutil.copytree(ROOT / "submissions" / "mini-ga-gdr-lora" / "weights", folder / "my-adapter")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "quench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness.cli "$@"\n', encoding="utf-8")
    (tools / "quench").chmod(0o755)
    return folder


def bash(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Runs commands as a person in ``folder`` would; fails with their output where one fails."""
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, env=os.environ | {
            "PATH": f"{folder.parent / 'tools'}:{os.environ['PATH']}", "PYTHONPATH": str(folder),
            "QUENCH_CACHE": str(folder.parent / "cache"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_example_goes_from_init_to_a_page_and_fits_a_minute_of_typing() -> None:
    lines = documented().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("quench ")] == [
        "init", "validate", "run", "show", "render",
    ]  # fmt: skip
    assert len(documented()) < 500
    assert not [line for line in lines if not re.match(r"(mkdir|cp|quench) ", line)]


@pytest.mark.slow
def test_the_documented_commands_lead_from_an_adapter_to_a_ranked_row_and_a_page(fresh: Path) -> None:
    done = bash(fresh, documented())
    assert "my-entry" in done.stdout
    assert "has no rank" not in done.stdout
    shown = json.loads(bash(fresh, "quench show --store my-entry.duckdb --json").stdout)["rows"]
    (row,) = (row for row in shown if row["submission"] == "my-entry")
    assert (row["rank"], row["bits"], row["quantizer"]) == (1, 4, "rtn-4bit-g128")
    assert row["rho"] is not None
    page = (fresh / "my-site" / "submission" / "my-entry.html").read_text(encoding="utf-8")
    assert "my-entry" in page
    assert "submission/my-entry.html" in (fresh / "my-site" / "index.html").read_text(encoding="utf-8")
    # What the page says of sending results: the folder of records is there, one file for each cell.
    assert len(list((fresh / "my-entry.records").glob("*.json"))) == 3 * 2 * 4
