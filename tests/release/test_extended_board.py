"""The package of docs/extending on the whole way: its quantizer, metric and corpus from `quench run` to the pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from stranger_packages import EXAMPLE, write_package

ROOT = EXAMPLE.parent.parent


def quench(site: Path, *arguments: object, code: int = 0) -> str:
    """Runs the command line in a process of its own, where the packages of ``site`` are installed."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds what pip would install of docs/extending."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(EXAMPLE / project["name"].replace("-", "_"), folder / "quench_example", ignore=ignored)
    write_package(folder, project["name"], project["version"], project["entry-points"])
    return folder


@pytest.fixture(scope="module")
def submissions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's plain target twice: as it is, and as a target of the example's corpus."""
    folder = tmp_path_factory.mktemp("submissions")
    for name, corpus in (("mini-target-plain", "mini"), ("letters-target", "letters")):
        shutil.copytree(ROOT / "submissions" / "mini-target-plain", folder / name)
        path = folder / name / "submission.yaml"
        path.write_text(
            yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | {"name": name, "corpus": corpus}),
            encoding="utf-8",
        )
    return folder


TASKS = "muse_mini_knowmem_f,muse_mini_knowmem_r,muse_letters_verbmem_f,muse_letters_knowmem_f"


@pytest.fixture(scope="module")
def store(site: Path, submissions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store") / "store.duckdb"
    quench(site, "run", "--submissions", submissions, "--quantizers", "reference,pow2-4bit-g64", "--tasks", TASKS,
           "--store", place)  # fmt: skip
    return place


@pytest.fixture(scope="module")
def pages(site: Path, store: Path) -> Path:
    quench(site, "render", "--store", store, "--out", store.parent / "pages")
    return store.parent / "pages"


def cells(site: Path, store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(quench(site, "show", "--cells", "--store", store, "--json"))["rows"]
    return found


def test_every_cell_is_finished_with_the_quantizer_s_proof(site: Path, store: Path) -> None:
    found = cells(site, store)
    assert len(found) == 2 * 4
    assert {row["status"] for row in found} == {"finished"}, [row["reason"] for row in found]
    (bits,) = {round(row["bits_per_weight"], 2) for row in found if row["quantizer"] == "pow2-4bit-g64"}
    assert bits == pytest.approx(4.25, abs=0.01)


def test_the_metric_has_a_value_where_it_looks_and_nowhere_else(site: Path, store: Path) -> None:
    for row in cells(site, store):
        looked_at = row["task"].endswith(("verbmem_f", "knowmem_f"))
        assert (row["first_words"] is not None) == looked_at
        assert ("First words (first_words) is a metric of quench-example 0.1.0." in row["remarks"]) == looked_at
    known = [row["first_words"] for row in cells(site, store) if row["task"] == "muse_mini_knowmem_f"]
    assert max(known) > 20, "a model that was never unlearned begins its answers rightly"


def test_a_second_run_has_nothing_to_do(site: Path, store: Path, submissions: Path) -> None:
    planned = quench(site, "plan", "--submissions", submissions, "--quantizers", "reference,pow2-4bit-g64", "--tasks",
                     TASKS, "--store", store, "--json")  # fmt: skip
    assert json.loads(planned)["rows"] == []


def test_corpus_quantizer_and_metric_are_on_the_pages(pages: Path) -> None:
    index = (pages / "index.html").read_text(encoding="utf-8")
    assert {"MINI", "LETTERS"} <= set(re.findall(r">([A-Z]+)</a>", index))
    (home,) = [path for path in pages.glob("*.html") if path.name.startswith("index")
               and "Twelve invented letters" in path.read_text(encoding="utf-8")]  # fmt: skip
    own = (pages / "submission" / "letters-target.html").read_text(encoding="utf-8")
    assert f'href="../{home.name}">LETTERS</a>' in own
    quantizer = (pages / "quantizer" / "pow2-4bit-g64.html").read_text(encoding="utf-8")
    assert "Powers of two 4-bit, group 64, symmetric" in quantizer
    assert "mini-target-plain" in quantizer
    page = (pages / "submission" / "mini-target-plain.html").read_text(encoding="utf-8")
    assert "Metrics that packages add" in page
    assert "First words" in page
    assert "first five words that the answer begins with" in page
    assert "first_words" in (pages / "methodology.html").read_text(encoding="utf-8")
    assert "first_words" in (pages / "data" / "cells.csv").read_text(encoding="utf-8").splitlines()[0]


def test_pages_are_made_where_the_package_is_not_installed(store: Path, tmp_path: Path) -> None:
    quench(tmp_path, "render", "--store", store, "--out", tmp_path / "pages")
    page = (tmp_path / "pages" / "submission" / "mini-target-plain.html").read_text(encoding="utf-8")
    assert "Its package is not installed where this page was made." in page
    assert "pow2-4bit-g64" in page


def test_a_run_without_the_package_is_refused_in_one_sentence(store: Path, submissions: Path, tmp_path: Path) -> None:
    said = quench(tmp_path, "run", "--submissions", submissions, "--quantizers", "pow2-4bit-g64", "--store", store,
                  code=2)  # fmt: skip
    assert "There is no quantizer named 'pow2-4bit-g64'" in said
    said = quench(tmp_path, "run", "letters-target", "--submissions", submissions, "--quantizers", "reference",
                  "--store", store, code=2)  # fmt: skip
    assert "There is no corpus named 'letters'" in said
