"""The workflows of pull requests: what they may do, and their shell steps run on a sample change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import paths
from harness.store import cell_files
from harness.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SHIPPED = paths.content_dir("submissions")
MAY_WRITE = {
    "publish": {"deploy": {"pages": "write", "id-token": "write"}},
    "comment": {"comment": {"actions": "read", "contents": "read", "pull-requests": "write"}},
}
COMMIT = "c" * 40
# Answers as GitHub does, through the filter that the workflow gives; what is posted is kept.
GH = """#!/bin/sh
set -eu
here=$(dirname "$0")
echo "$*" >> "$here/calls"
case "$*" in
  *"/zip") cat "$here/artifact.zip"; exit ;;
  "pr comment"*) while [ "$1" != --body-file ]; do shift; done; cp "$2" "$here/posted.md"; exit ;;
  *"/artifacts"*) answer="$here/artifacts.json" ;;
  *"/pulls"*) answer="$here/pulls.json" ;;
  *) exit 1 ;;
esac
while [ "$1" != --jq ]; do shift; done
exec jq -r "$2" "$answer"
"""
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


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
    assert {"validate", "comment", "publish"} <= {path.stem for path in WORKFLOWS}


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
    done = step(workspace, "validate", "validate the changed submissions")
    file = workspace / "validation.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else None
    return done.returncode, rows, done.stdout + done.stderr


def step(workspace: Path, workflow: str, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one shell step as a runner does, with this tree's `quench`."""
    tools = workspace / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "quench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness.cli.main "$@"\n', encoding="utf-8")
    (tools / "quench").chmod(0o755)
    return subprocess.run(
        ["bash", "-e", "-c", script(workflow, name)], cwd=workspace, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


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


def test_a_run_over_a_stranger_s_change_is_only_listened_to_after_it_has_ended() -> None:
    path = ROOT / ".github" / "workflows" / "comment.yml"
    assert parsed(path)[True] == {"workflow_run": {"workflows": ["validate"], "types": ["completed"]}}
    assert parsed(ROOT / ".github" / "workflows" / "validate.yml")["name"] == "validate"
    # Without `ref` the checkout is the default branch's, never the change.
    assert not [one["with"] for one in steps(path) if "ref" in one.get("with", {})]


def test_the_token_is_seen_by_the_steps_that_call_github_and_by_no_other() -> None:
    for one in steps(ROOT / ".github" / "workflows" / "comment.yml"):
        assert ("GH_TOKEN" in one.get("env", {})) == ("gh " in one.get("run", "")), one


def sent(workspace: Path) -> None:
    """Puts a board with two controls and one entry into the base, and a new entry's records into the change."""
    with Store.open(ROOT / "results.duckdb", read_only=True) as store:
        cells = [cell for cell in store.cells(with_documents=True) if cell.spec.name in ("reference", "rtn-4bit-g128")]
    (workspace / "base").mkdir()
    with Store.open(workspace / "base" / "results.duckdb") as board:
        for cell in cells:
            if cell.submission.name in ("mini-target-4bit", "mini-retrain", "mini-ga-gdr-lora"):
                board.add(cell)
    for cell in cells:
        if cell.submission.name == "mini-npo-gdr-lora":
            own = replace(
                cell, cell=replace(cell.cell, submission="good-entry"),
                submission=replace(cell.submission, name="good-entry"),
            )  # fmt: skip
            cell_files.write(own, workspace / "change" / "records" / "good-entry")


def commented(workspace: Path, head: str = COMMIT) -> str | None:
    """Uploads what `validate` left, runs the steps of `comment` and returns what was posted."""
    tools = workspace / "tools"
    (tools / "gh").write_text(GH, encoding="utf-8")
    (tools / "gh").chmod(0o755)
    left = [workspace / name for name in ("validation.json", "standing.json") if (workspace / name).exists()]
    with zipfile.ZipFile(tools / "artifact.zip", "w") as archive:
        for file in left:
            archive.write(file, file.name)
    artifacts = [{"id": 41, "name": "other", "expired": False}, {"id": 42, "name": "validation", "expired": False}]
    (tools / "artifacts.json").write_text(json.dumps({"artifacts": artifacts[: 2 if left else 1]}), encoding="utf-8")
    pulls = [{"number": 6, "head": {"sha": "a" * 40}}, {"number": 7, "head": {"sha": head}}]
    (tools / "pulls.json").write_text(json.dumps(pulls), encoding="utf-8")
    known = {
        "GH_TOKEN": "token", "REPOSITORY": "owner/board", "RUN": "5", "LINK": "https://example.org/runs/5",
        "HEAD": "someone:a branch; $(touch pwned)", "COMMIT": COMMIT,
    }  # fmt: skip
    for name in ("fetch the artifact", "write the comment", "post the comment"):
        done = step(workspace, "comment", name, **known)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not list(workspace.rglob("pwned"))
    posted = tools / "posted.md"
    return posted.read_text(encoding="utf-8") if posted.exists() else None


@needs_jq
def test_records_that_came_along_are_ranked_and_the_pull_request_of_that_commit_is_told(workspace: Path) -> None:
    sent(workspace)
    entry(workspace, "good-entry")
    assert validated(workspace)[0] == 0
    done = step(workspace, "validate", "rank the records that came along")
    assert done.returncode == 0, done.stdout + done.stderr
    told = commented(workspace)
    assert told is not None
    assert "**1 submissions checked, 0 with faults**" in told
    assert "<code>good&#45;entry</code> at 4 bit: rank" in told
    assert "https://example.org/runs/5" in told
    calls = (workspace / "tools" / "calls").read_text(encoding="utf-8")
    assert "pr comment 7 --repo owner/board" in calls
    assert "actions/artifacts/42/zip" in calls
    # The base's own board is what it was.
    with Store.open(workspace / "base" / "results.duckdb", read_only=True) as board:
        assert "good-entry" not in {cell.submission.name for cell in board.cells()}


@needs_jq
def test_faults_are_posted_and_records_of_others_or_of_nobody_are_left_alone(workspace: Path) -> None:
    sent(workspace)
    (workspace / "change" / "records" / "good-entry").rename(workspace / "change" / "records" / "$(touch pwned)")
    entry(workspace, "broken-entry", ("kind: lora_adapter", "kind: pickle"))
    assert validated(workspace)[0] == 2
    done = step(workspace, "validate", "rank the records that came along")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (workspace / "standing.json").exists()
    told = commented(workspace)
    assert told is not None
    assert "| <code>broken&#45;entry</code> | <code>kind</code> |" in told


@needs_jq
def test_nothing_is_posted_without_an_artifact_or_where_the_branch_has_moved_on(workspace: Path) -> None:
    assert validated(workspace)[:2] == (0, None)
    assert commented(workspace) is None
    (workspace / "validation.json").write_text('{"schema": "quench.validate/1", "rows": []}', encoding="utf-8")
    assert commented(workspace, head="b" * 40) is None
