"""The repository as a product: what installs, what ships, what CI and make call."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.publish import thresholds
from harness.run.plan.planner import DEFAULT_QUANTIZERS

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def tracked() -> list[Path]:
    """Returns every file that git knows and that is there."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts() -> dict[Path, str]:
    """Returns the text of every tracked file that is one."""
    found = {}
    for path in tracked():
        content = path.read_bytes()
        if path.suffix not in (".safetensors", ".duckdb") and b"\0" not in content:
            found[path] = content.decode("utf-8")
    return found


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in wanted}


def rules_of_make() -> dict[str, str]:
    """Returns the recipe of every target that a person can call."""
    return dict(re.findall(r"^([a-z-]+):(?!=).*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE))


def test_the_console_script_is_a_function_that_is_there() -> None:
    assert set(PROJECT["project"]["scripts"]) == {"quench"}
    module, _, function = PROJECT["project"]["scripts"]["quench"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_command_line_also_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "harness.cli.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Does unlearning survive quantization?" in done.stdout


def test_the_package_is_typed_and_says_so() -> None:
    assert (ROOT / "harness" / "py.typed").is_file()
    assert PROJECT["tool"]["mypy"]["strict"] is True


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_every_requirement_is_pinned_to_a_version_that_it_accepts(group: str) -> None:
    known = pins()
    for text in EXTRAS.get(group, PROJECT["project"]["dependencies"]):
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in known, f"{text} of {group} has no pin in constraints.txt"
        assert known[name] in wanted.specifier, f"{text} of {group} refuses its pin {known[name]}"


def test_constraints_pin_each_distribution_once_and_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            names.append(canonicalize_name(pin.name))
            assert [part.operator for part in pin.specifier] == ["=="], line
            assert pin.url is None, f"{line} is no name and version"
    assert len(names) == len(set(names))
    assert names


def test_no_requirement_is_listed_twice_in_a_group() -> None:
    for group, listed in {"dependencies": PROJECT["project"]["dependencies"], **EXTRAS}.items():
        names = [canonicalize_name(Requirement(text).name) for text in listed]
        assert len(names) == len(set(names)), group


def test_what_validating_and_publishing_need_is_no_extra() -> None:
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    assert {"typer", "rich", "pydantic", "pyyaml", "jinja2", "duckdb", "numpy", "scipy", "altair"} <= base
    assert not base & {"torch", "transformers", "peft", "lm-eval", "bitsandbytes", "datasets"}


def test_torch_has_one_version_in_pyproject_constraints_and_makefile() -> None:
    (required,) = [Requirement(text) for text in EXTRAS["score"] if text.startswith("torch==")]
    version = str(required.specifier).removeprefix("==")
    assert str(pins()["torch"]) == version
    assert set(re.findall(r"torch==([\w.+]+)", MAKEFILE)) == {version}
    installs = [line for line in MAKEFILE.splitlines() if "-e '.[" in line]
    assert installs
    assert all(f"torch=={version}" in line for line in installs), "pip would fetch CUDA libraries"


def test_every_install_line_of_make_uses_the_constraints_and_extras_that_are_there() -> None:
    assert "-c constraints.txt" in MAKEFILE
    named = {extra for listed in re.findall(r"'\.\[([\w,]+)\]'", MAKEFILE) for extra in listed.split(",")}
    assert named
    assert named <= set(EXTRAS)


def test_python_s_least_version_is_the_same_everywhere() -> None:
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == least
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{least.replace('.', '')}"
    assert f"Python {least}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^PYTHONS := .*,python{re.escape(least)} ", MAKEFILE, re.MULTILINE)
    assert f"({least.replace('.', ', ')}) <= sys.version_info" in MAKEFILE
    assert sys.version_info >= tuple(int(part) for part in least.split("."))


def test_the_license_is_apache_2_and_is_shipped() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text.splitlines()[0]
    assert "Version 2.0, January 2004" in text.splitlines()[1]
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Grant of Patent License" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    assert "Apache-2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_citation_is_complete_and_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cited)
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]
    assert cited["references"][0]["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_folder_that_the_wheel_takes_in_is_there_and_has_files() -> None:
    for place, inside in WHEEL["force-include"].items():
        assert any(path.is_file() for path in (ROOT / place).rglob("*")), place
        assert inside == f"harness/_content/{place}"


@pytest.mark.parametrize("name", ["tasks", "submissions", "leaderboard"])
def test_content_that_the_code_asks_for_is_in_the_wheel(name: str) -> None:
    included = [place for place in WHEEL["force-include"] if place.split("/")[0] == name]
    assert included
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "harness").rglob("*.py"))
    assert f'content_dir("{name}")' in sources


def test_make_offers_every_target_that_readme_and_contributing_name() -> None:
    targets = set(rules_of_make())
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
        assert named
        assert named <= targets, page


def test_every_target_is_phony_and_explained() -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert set(phony.split()) == set(rules_of_make()) == explained


_FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  *base_prefix*) echo "{version} of {maker}" ;;
  "-m venv") {venv} ;;
  *) echo {version}; exit {code} ;;
esac
"""
_MADE = 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"'
_HALF_MADE = 'mkdir -p "$3/bin"; exit 1'


def _fake_python(path: Path, version: str, *, venv: str = _MADE, maker: str = "here") -> None:
    supported = version.startswith(("3.11", "3.12", "3.13"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_FAKE_PYTHON.format(version=version, maker=maker, venv=venv, code=int(not supported)))
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The only folder on the path: what the Makefile calls beside Pythons. What it depends on lies beside it."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("rm", "mkdir", "cp", "cat", "touch"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def _make(folder: Path, *words: str, code: int) -> str:
    """Returns what `make` says of the environment in a folder: one line but for make's own last one."""
    command = [str(shutil.which("make")), "-s", "-f", str(ROOT / "Makefile"), *words]
    environment = {"PATH": str(folder / "tools")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1 or (not said and code == 0), said
    return "".join(said)


def test_make_takes_the_first_python_whose_environment_succeeds(tools: Path, tmp_path: Path) -> None:
    _fake_python(tools / "python3.11", "3.11.2", venv=_HALF_MADE)
    _fake_python(tools / "python3.12", "3.12.1")
    assert _make(tmp_path, ".venv/.python", code=0) == f"Using Python 3.12.1 ({tools}/python3.12)."
    assert _make(tmp_path, ".venv/.python", code=0) == ""


def test_make_says_what_each_python_lacks_and_repeats_the_target(tools: Path, tmp_path: Path) -> None:
    _fake_python(tools / "python3.11", "3.11.2", venv=_HALF_MADE)
    _fake_python(tools / "python3", "3.9.2")
    (tools / "python").write_text("#!/bin/sh\nexit 127\n")
    (tools / "python").chmod(0o755)
    said = _make(tmp_path, "test", code=2)
    for part in ("python3.11 is 3.11.2 and its venv fails", "python3.12 is not there", "python3 is 3.9.2",
                 "python does not start", "make PYTHON=/path/to/python3.12 test."):  # fmt: skip
        assert part in said
    assert not (tmp_path / ".venv").exists()


def test_make_takes_a_named_python_whose_path_has_a_space(tools: Path, tmp_path: Path) -> None:
    named = tmp_path / "my tools" / "python"
    _fake_python(named, "3.13.0")
    assert str(named) in _make(tmp_path, f"PYTHON={named}", ".venv/.python", code=0)
    assert f"{named}2 is not there" in _make(tmp_path, f"PYTHON={named}2", "build/sbom/.installed", code=2)


@pytest.mark.parametrize("broken", ["empty", "old", "dangling"])
def test_make_refuses_a_broken_environment_and_says_to_delete_it(broken: str, tools: Path, tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    if broken == "old":
        _fake_python(program, "3.9.2")
    elif broken == "dangling":
        program.symlink_to(tmp_path / "gone")
    _fake_python(tools / "python3.11", "3.11.2")
    said = _make(tmp_path, "check", code=2)
    assert "delete it (rm -rf .venv) and repeat: make check." in said


def test_make_refuses_an_environment_of_another_python_than_the_named_one(tools: Path, tmp_path: Path) -> None:
    _fake_python(tools / "python3.11", "3.11.2")
    _fake_python(tools / "other", "3.11.2", maker="elsewhere")
    _make(tmp_path, ".venv/.python", code=0)
    assert _make(tmp_path, f"PYTHON={tools}/python3.11", ".venv/.python", code=0) == ""
    for named in (f"{tools}/other", "/nonexistent"):
        said = _make(tmp_path, f"PYTHON={named}", "demo", code=2)
        assert f".venv holds Python 3.11.2, which is not that of {named}: delete it" in said


def test_the_help_of_make_has_its_texts_in_one_column() -> None:
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[1] for line in listed.splitlines()}
    assert targets == set(rules_of_make())
    assert len({len(re.match(r"  make \S+ +", line)[0]) for line in listed.splitlines()}) == 1  # type: ignore[index]


@pytest.mark.parametrize("target", ["demo", "test", "check", "site", "board"])
def test_make_would_run_the_programs_that_it_installs(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recipe = rules_of_make()[target]
    assert ".venv/bin/" in done.stdout
    # In a fresh clone nothing of this stands on the PATH.
    assert not re.search(r"^\t(?:quench|pytest|python|ruff|mypy)\b", recipe, re.MULTILINE)


def test_ci_calls_what_the_readme_calls_its_tests() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert script.stat().st_mode & stat.S_IXUSR, "CI can't start it"
    assert lines[0].startswith("#!")
    assert any("set -e" in line for line in lines), "a failure would not fail CI"
    called = [line for line in lines if line.startswith("make ")]
    assert called == ["make test", "make release-check"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(re.search(rf"^{line}\b", readme, re.MULTILINE) for line in called)


def test_the_demo_scores_the_default_quantizers() -> None:
    listed = re.search(r"^QUANTIZERS \?= (.+)$", MAKEFILE, re.MULTILINE)
    assert listed is not None
    assert tuple(sorted(listed[1].split(","))) == tuple(sorted(DEFAULT_QUANTIZERS))
    assert f"--at {thresholds.HEADLINE_BITS}" in rules_of_make()["demo"]


def test_the_demo_writes_what_git_ignores_and_the_board_s_store_is_not_ignored() -> None:
    store = re.search(r"^STORE +\?= (.+)$", MAKEFILE, re.MULTILINE)
    site = re.search(r"^SITE +\?= (.+)$", MAKEFILE, re.MULTILINE)
    assert store is not None
    assert site is not None

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0

    tracked()  # skips outside a checkout
    assert ignored(store[1])
    assert ignored(f"{site[1]}/index.html")
    assert ignored("results.records/x.json")
    assert not ignored("results.duckdb")


def test_cleaning_removes_neither_the_store_nor_submissions() -> None:
    removed = re.sub(r"\$\(SITE\)", "leaderboard/site", rules_of_make()["clean"]).split()
    assert removed[:2] == ["rm", "-rf"]
    assert not {"results.duckdb", "submissions", "tasks", ".venv", "leaderboard", "harness"} & set(removed)


def test_slow_tests_are_left_out_by_default_and_run_by_test_all() -> None:
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert "-m 'not slow'" in options["addopts"]
    assert "--strict-markers" in options["addopts"]
    assert "slow or not slow" in rules_of_make()["test-all"]
    assert "-m" not in rules_of_make()["test"].split()[2:]


def test_every_linted_module_level_ban_is_a_library_that_an_extra_installs() -> None:
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
    modules = {"sklearn": "scikit-learn", "optimum": "optimum-quanto", "huggingface_hub": "datasets"}
    installed = {canonicalize_name(Requirement(text).name) for listed in EXTRAS.values() for text in listed}
    assert {canonicalize_name(modules.get(name, name)) for name in banned} <= installed


def test_test_files_have_names_that_are_unique_in_the_tree() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names)), "pytest imports them by bare name"
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("a folder of a home", (r"/(?:home|Users)/\w+/", r"|/ro", r"ot/")),
        ("a folder of a build machine", (r"(?<![\w.$})])/wo", r"rk/")),
        ("the host of a package registry", (r"py", r"pi\.org|python", r"hosted\.org|registry\.np", r"mjs\.org")),
        ("an index option of pip", (r"--(?:extra-)?index", r"-url|--find-", r"links")),
        ("a token", (r"\b(?:hf_|gh", r"p_)[A-Za-z0-9]{20,}")),
        ("the marker of a merge conflict", (r"(?m)^(?:<{7}|>{7}) ",)),
    ],
)
def test_no_tracked_file_holds(what: str, parts: tuple[str, ...]) -> None:
    # In parts, so that this file does not hold it either.
    pattern = re.compile("".join(parts))
    found = {
        path.relative_to(ROOT).as_posix(): match[0] for path, text in texts().items() if (match := pattern.search(text))
    }
    assert found == {}, f"{what} is in {found}"


def test_no_tracked_file_is_a_pickle_a_link_or_unreadable() -> None:
    for path in tracked():
        assert not path.is_symlink(), path
        assert path.suffix not in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz"), path
        assert os.access(path, os.R_OK)


def test_tracked_texts_are_utf8_with_unix_line_ends_and_a_last_one() -> None:
    for path, text in texts().items():
        assert "\r" not in text, path
        assert not text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"), path
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".sql", ".j2", ".css", ".js"):
            assert text == "" or text.endswith("\n"), path


def test_tracked_weights_are_small_enough_for_a_clone() -> None:
    weights = [path for path in tracked() if path.suffix == ".safetensors"]
    assert weights
    assert sum(path.stat().st_size for path in weights) < 30 * 2**20
    assert all((ROOT / "submissions") in path.parents for path in weights)


def test_tracked_json_is_strict_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for path, text in texts().items():
        if path.suffix == ".json":
            json.loads(text, parse_constant=refuse)


def test_every_source_file_stays_short_enough_to_read_in_one_go() -> None:
    for path in (ROOT / "harness").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
