"""The workflows of pull requests: what they may do, and their shell steps run on a sample change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import paths

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SHIPPED = paths.content_dir("submissions")
MAY_WRITE = {"publish": {"deploy": {"pages": "write", "id-token": "write"}}}


def parsed(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def events(path: Path) -> set[str]:
    # YAML 1.1 reads the key `on` as true.
    return set(parsed(path)[True])


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in parsed(path)["jobs"].values() for step in job["steps"]]


def script(workflow: str, name: str) -> str:
    path = ROOT / ".github" / "workflows" / f"{workflow}.yml"
    return str(next(step["run"] for step in steps(path) if step.get("name") == name))


def test_there_are_workflows_to_look_at() -> None:
    assert {"validate", "publish"} <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_workflow_runs_a_stranger_s_change_with_the_rights_of_the_base(path: Path) -> None:
    assert "pull_request_target" not in events(path)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_commit_with_its_tag_beside_it(path: Path) -> None:
    lines = re.findall(r"uses:(.*)", path.read_text(encoding="utf-8"))
    assert lines
    for line in lines:
        assert re.fullmatch(r" [\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", line), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_no_more_rights_than_are_listed_here(path: Path) -> None:
    found = parsed(path)
    assert found["permissions"] == {}
    for name, job in found["jobs"].items():
        assert job["permissions"] == MAY_WRITE.get(path.stem, {}).get(name, {"contents": "read"})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_from_outside_is_pasted_into_a_shell(path: Path) -> None:
    assert not [step["run"] for step in steps(path) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_checkout_leaves_its_token_behind(path: Path) -> None:
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_a_pull_request_is_checked_without_secrets_and_by_the_base_s_code() -> None:
    path = ROOT / ".github" / "workflows" / "validate.yml"
    assert events(path) == {"pull_request"}
    assert "secrets" not in path.read_text(encoding="utf-8")
    base = next(step["with"] for step in steps(path) if step.get("with", {}).get("path") == "base")
    assert base["ref"] == "${{ github.event.pull_request.base.sha }}"
    installed = script("validate", "install the base branch's code")
    assert "./base" in installed
    assert "change" not in installed


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A checkout as the workflow has it: `change` is on a branch that the base was left for."""
    change = tmp_path / "change"
    for name in ("mini-target-4bit", "mini-retrain"):
        shutil.copytree(SHIPPED / name, change / "submissions" / name)
    git(tmp_path, "init", "-q", "-b", "main", str(change))
    git(change, "add", "-A")
    git(change, "commit", "-q", "-m", "base")
    git(change, "checkout", "-q", "-b", "entry")
    return tmp_path


def entry(workspace: Path, name: str, change: tuple[str, str] = ("", "")) -> None:
    folder = workspace / "change" / "submissions" / name
    shutil.copytree(SHIPPED / "mini-npo-gdr-lora", folder)
    manifest = folder / "submission.yaml"
    written = manifest.read_text(encoding="utf-8").replace("name: mini-npo-gdr-lora", f"name: {name}")
    manifest.write_text(written.replace(*change), encoding="utf-8")


def validated(workspace: Path) -> tuple[int, list[dict[str, Any]] | None, str]:
    """Merges the branch as GitHub does and runs the workflow's step; returns exit code, rows and output."""
    change = workspace / "change"
    git(change, "add", "-A")
    git(change, "commit", "-q", "--allow-empty", "-m", "entry")
    git(change, "checkout", "-q", "main")
    git(change, "merge", "-q", "--no-ff", "-m", "merge", "entry")
    tools = workspace / "tools"
    tools.mkdir()
    (tools / "quench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness.cli "$@"\n', encoding="utf-8")
    (tools / "quench").chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", script("validate", "validate the changed submissions")], cwd=workspace,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    file = workspace / "validation.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else None
    return done.returncode, rows, done.stdout + done.stderr


def test_a_good_and_a_broken_submission_are_told_apart_and_the_job_fails(workspace: Path) -> None:
    entry(workspace, "good-entry")
    entry(workspace, "broken-entry", ("kind: lora_adapter", "kind: pickle"))
    code, rows, output = validated(workspace)
    assert code == 2, output
    assert rows is not None
    assert {row["submission"]: row["valid"] for row in rows} == {"broken-entry": False, "good-entry": True}
    assert [row["details"][0]["field"] for row in rows if not row["valid"]] == ["kind"]


def test_a_good_submission_passes_and_what_was_there_before_is_not_checked_again(workspace: Path) -> None:
    entry(workspace, "good-entry")
    code, rows, output = validated(workspace)
    assert code == 0, output
    assert rows is not None
    assert [row["submission"] for row in rows] == ["good-entry"]


def test_a_change_that_only_removes_a_submission_leaves_nothing_to_validate(workspace: Path) -> None:
    shutil.rmtree(workspace / "change" / "submissions" / "mini-retrain")
    assert validated(workspace)[:2] == (0, None)


def test_a_folder_s_name_is_never_read_as_shell_or_as_an_option(workspace: Path) -> None:
    for name in ("--schema", "a $(touch pwned)", "line\nbreak"):
        entry(workspace, name)
    code, rows, output = validated(workspace)
    assert code == 2, output
    assert rows is not None
    assert len(rows) == 3
    assert not any(row["valid"] for row in rows)
    assert not list(workspace.rglob("pwned"))
