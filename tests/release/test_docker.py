"""The images: what they are built from, as whom they run, and that nothing but the code gets in."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docker").glob("Dockerfile*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Returns every instruction with its text, continued lines joined and comments left out."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def all_of(file: Path, word: str) -> list[str]:
    return [text for known, text in instructions(file) if known == word]


def let_in(name: str) -> bool:
    """Returns whether .dockerignore lets a file into the build: its last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.lstrip("!").removeprefix("**/")
        parts = name.split("/")
        fits = any(fnmatch.fnmatch("/".join(parts[: end + 1]), pattern) for end in range(len(parts)))
        inside = line.startswith("**/") and any(fnmatch.fnmatch(part, pattern) for part in parts)
        if line and not line.startswith("#") and (fits or inside):
            kept = line.startswith("!")
    return kept


def test_there_is_an_image_for_cpus_and_one_for_cuda() -> None:
    assert [file.name for file in FILES] == ["Dockerfile", "Dockerfile.cuda"]
    assert all_of(FILES[0], "FROM")[0].startswith("python:3.11")
    assert re.match(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-", all_of(FILES[1], "FROM")[0])


@every_file
def test_a_base_image_has_a_version(file: Path) -> None:
    for image in all_of(file, "FROM"):
        assert re.search(r":[\w.-]*\d", image), image
        assert "latest" not in image


@every_file
def test_what_is_installed_is_pinned_by_the_constraints_and_comes_from_the_checkout(file: Path) -> None:
    (install,) = [text for text in all_of(file, "RUN") if "pip install" in text]
    (torch,) = [text for text in PROJECT["project"]["optional-dependencies"]["score"] if text.startswith("torch==")]
    assert f"-c /source/constraints.txt {torch}" in install
    assert '"/source[${EXTRAS}]"' in install
    assert "--mount=type=bind,target=/source" in install
    assert "EXTRAS=score" in all_of(file, "ARG")
    assert "QUENCH_COMMIT" in all_of(file, "ARG")
    assert any("QUENCH_COMMIT=${QUENCH_COMMIT}" in text for text in all_of(file, "ENV"))
    assert not all_of(file, "ADD")


@every_file
def test_an_image_runs_as_somebody_who_owns_only_the_board(file: Path) -> None:
    words = [word for word, _ in instructions(file)]
    (user,) = all_of(file, "USER")
    assert f"--uid {user} quench" in " ".join(all_of(file, "RUN"))
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")
    assert words[-2:] == ["ENTRYPOINT", "CMD"]
    assert json.loads(all_of(file, "ENTRYPOINT")[0]) == ["quench"]
    assert all_of(file, "WORKDIR") == ["/board"]
    assert "HEALTHCHECK" not in words, "nothing in it serves"


@every_file
def test_no_address_of_a_registry_and_no_secret_is_written_into_an_image(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"TOKEN|PASSWORD|SECRET", text)


def test_the_build_gets_what_the_wheel_is_made_of_and_nothing_else() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (*wheel["packages"], *wheel["force-include"]):
        assert let_in(f"{name}/file"), name
    for name in (
        "constraints.txt",
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
    ):
        assert let_in(name), name
    for name in (
        "results.duckdb", "results.records/x.json", ".git/config", ".venv/bin/python", "build/demo.duckdb",
        "leaderboard/site/index.html", "harness/run/__pycache__/x.pyc", "docs/cli.md", ".env", "tests/x.py",
    ):  # fmt: skip
        assert not let_in(name), name


@every_file
def test_hadolint_finds_nothing(file: Path) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
