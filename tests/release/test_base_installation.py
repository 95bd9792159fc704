"""Without the extras: what reads, checks and publishes works, and the rest says in one sentence what to install."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import logged_runs
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from harness.cli.main import app
from harness.quantize import libraries

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
# Runs the commands of stdin where no module of an extra can be found and no distribution of one is known.
PROGRAM = """
import json, sys
from importlib import metadata
from importlib.machinery import PathFinder
from harness.quantize.libraries import EXTRA_OF
class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in EXTRA_OF else super().find_spec(name, path, target)
sys.meta_path[:] = [Base if finder is PathFinder else finder for finder in sys.meta_path]
commands, absent = json.load(sys.stdin)
version = metadata.version
def known(name):
    if name.lower().replace("_", "-") in absent:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = known
from typer.testing import CliRunner
from harness.cli.main import app
for words in commands:
    done = CliRunner().invoke(app, words)
    print(json.dumps([done.exit_code, done.stdout, done.stderr, repr(done.exception)]))
assert not set(sys.modules) & set(EXTRA_OF)
"""


def base(folder: Path, *commands: str) -> list[dict[str, Any]]:
    """Returns what commands answer where only the base is installed."""
    absent = [canonicalize_name(Requirement(text).name) for extra in ("score", "quantizers") for text in EXTRAS[extra]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder,
        input=json.dumps([[command.split() for command in commands], absent]),
        env={"PYTHONPATH": str(ROOT), "QUENCH_CACHE": str(folder / "cache"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        {"command": command, "code": code, "stdout": out, "stderr": err, "exception": error}
        for command, (code, out, err, error) in zip(commands, answers, strict=True)
    ]


def test_reading_checking_and_publishing_work_without_any_extra(tmp_path: Path) -> None:
    store = ROOT / "results.duckdb"
    answers = base(
        tmp_path, "validate --json", "validate --schema", f"show --store {store} --at 4",
        f"show mini-npo-gdr-lora --store {store} --json",
        f"compare mini-npo-gdr-lora mini-npo-gdr-full --store {store}", "plan --power --corpus mini",
        "plan mini-noop-lora --quantizers rtn-4bit-g128 --store new.duckdb",
        f"status --store {store}", f"export --store {store} --out data --format csv", "backends --json", "cache",
        "reproduce 2602.13151 --corpus mini --dry-run", "mini build --data-only --out generated",
    )  # fmt: skip
    assert {answer["command"]: answer["code"] for answer in answers} == {answer["command"]: 0 for answer in answers}
    assert len(json.loads(answers[3]["stdout"])["rows"]) > 10
    assert (tmp_path / "data" / "board.csv").stat().st_size > 1000


@pytest.mark.slow
def test_pages_are_built_without_any_extra(tmp_path: Path) -> None:
    (answer,) = base(tmp_path, f"render --store {ROOT / 'results.duckdb'} --out site")
    assert answer["code"] == 0, answer
    assert (tmp_path / "site" / "index.html").is_file()


def test_what_needs_an_extra_says_which_in_one_sentence(tmp_path: Path) -> None:
    logged_runs.muse_bench(tmp_path / "temp" / "ga")
    answers = base(
        tmp_path, "unlearn npo_gdr --target mini-target-plain --out mine", "mini build --out built",
        "rescore temp --corpus books", "reproduce 2602.13151 --corpus mini --out made",
    )  # fmt: skip
    for answer in answers:
        assert answer["code"] == 2, answer
        sentence = " ".join(answer["stderr"].split("Error: ")[-1].split())
        assert sentence.endswith("which is not installed here: run pip install 'quench-bench[score]'."), answer
        assert "Traceback" not in answer["stderr"]
    assert not (tmp_path / "mine").exists()


def test_every_module_that_code_imports_inside_functions_is_told_with_its_own_extra() -> None:
    distributions = {"sklearn": "scikit-learn", "optimum": "optimum-quanto"}
    # They come with others.
    carried = {"huggingface_hub": "datasets"}
    for module, extra in libraries.EXTRA_OF.items():
        name = canonicalize_name(distributions.get(module) or carried.get(module) or module)
        assert name in {canonicalize_name(Requirement(text).name) for text in EXTRAS[extra]}, module


def test_with_quantizers_alone_cells_are_skipped_with_what_scoring_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = libraries.version_of
    monkeypatch.setattr(libraries, "version_of", lambda name: None if name in ("peft", "lm_eval") else version(name))
    told = CliRunner().invoke(
        app, ["plan", "mini-noop-lora", "--quantizers", "rtn-4bit-g128", "--store", f"{tmp_path}/x.duckdb", "--json"]
    )  # fmt: skip
    assert {(row["state"], row["reason"]) for row in json.loads(told.stdout)["rows"]} == {
        (
            "impossible",
            "rtn-4bit-g128 needs peft and lm_eval, not installed here: run pip install 'quench-bench[score]'.",
        )
    }


def test_an_error_of_the_code_itself_is_not_taken_for_a_missing_extra() -> None:
    assert libraries.absent_module(ModuleNotFoundError("No module named 'harness.x'", name="harness.x")) is None
    assert libraries.absent_module(ModuleNotFoundError("made by hand")) is None
    told = libraries.absent_module(ModuleNotFoundError("x", name="optimum.quanto"))
    assert told is not None
    assert told.startswith("This needs optimum, ")
    assert "[quantizers]" in told
