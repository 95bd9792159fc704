"""The wheel and the source archive: what is in them, and what they do where nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
VERSION = PROJECT["project"]["version"]
CONTENT = ("tasks", "submissions", "leaderboard/templates", "leaderboard/static", "leaderboard/data")
VERSIONS = [text.rsplit(" ", 1)[1] for text in PROJECT["project"]["classifiers"] if " :: Python :: 3." in text]
# Of the four metrics' figures, in percent: other processors add in another order, which can turn one answer of many.
NEAR = 2.0

pytestmark = pytest.mark.slow


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


def build(source: Path, folder: Path, kind: str) -> Path:
    """Builds a ``wheel`` or ``sdist`` of a folder, and returns the archive."""
    code = f"import sys; from hatchling.build import build_{kind} as build; print(build(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone, as a fresh clone has them."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("clone") / "source"
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


def test_the_wheel_holds_every_file_of_code_and_content_and_no_other(wheel: Path) -> None:
    about = f"quench_bench-{VERSION}.dist-info"
    wanted = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    for path in tracked():
        place = path.as_posix()
        if path.parts[0] == "harness":
            wanted.add(place)
        elif place.startswith(tuple(f"{folder}/" for folder in CONTENT)):
            wanted.add(f"harness/_content/{place}")
    with zipfile.ZipFile(wheel) as opened:
        assert set(opened.namelist()) == wanted
    assert "harness/py.typed" in wanted
    assert wheel.stat().st_size < 25 * 2**20


def test_the_wheel_s_metadata_are_the_project_s(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        fields = Parser().parsestr(opened.read(f"quench_bench-{VERSION}.dist-info/METADATA").decode("utf-8"))
    assert fields["Name"] == "quench-bench"
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert set(fields.get_all("Provides-Extra") or ()) == set(EXTRAS)
    assert fields.get_all("Classifier") == PROJECT["project"]["classifiers"]
    assert len(fields.get_all("Project-URL") or ()) == len(PROJECT["project"]["urls"])


def test_the_source_archive_holds_every_tracked_file_but_the_board_s_results(sdist: Path) -> None:
    with tarfile.open(sdist) as opened:
        names = {Path(name).relative_to(f"quench_bench-{VERSION}").as_posix() for name in opened.getnames()}
    assert names - {"PKG-INFO"} == {path.as_posix() for path in tracked()} - {"results.duckdb"}


def test_a_wheel_built_from_the_source_archive_is_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path / "unpacked")
    again = build(tmp_path / "unpacked" / f"quench_bench-{VERSION}", tmp_path, "wheel")
    assert again.name == wheel.name
    with zipfile.ZipFile(again) as ours, zipfile.ZipFile(wheel) as theirs:
        assert {file.filename: file.CRC for file in ours.infolist()} == {
            file.filename: file.CRC for file in theirs.infolist()
        }


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QUENCH"))}


def python_of(version: str) -> str | None:
    """Returns a Python of that version: on the path, or beside the one that runs this as version managers keep them."""
    beside = Path(sys.base_prefix).resolve().parent.glob(f"*{version}*/bin/python{version}")
    code = "import sys, venv; print(sys.executable)"
    for found in (shutil.which(f"python{version}"), *map(str, sorted(beside))):
        # A manager's stand-in for a version that isn't chosen is on the path and only says so.
        done = subprocess.run([found, "-c", code], capture_output=True, text=True, env=_clean()) if found else None
        if done and done.returncode == 0:
            return done.stdout.strip()
    return None


class Installed:
    """A clean environment with the wheel in it, used from a folder that has nothing else."""

    def __init__(self, wheel: Path, folder: Path, extra: str = "", made_by: str = sys.executable) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        subprocess.run([made_by, "-m", "venv", str(folder / "venv")], check=True, env=_clean())
        # Named beside what needs it: alone, pip could choose another build of it.
        torch = [text for text in EXTRAS["score"] if text.startswith("torch==")] if extra else []
        wanted = f"quench-bench{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"
        self("-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *torch, wanted)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(self.python), *arguments], cwd=self.folder, capture_output=True, text=True, check=False,
            env=_clean() | {"QUENCH_CACHE": str(self.folder / "cache"), "SOURCE_DATE_EPOCH": "1764000000"},
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def quench(self, *arguments: str, code: int = 0) -> str:
        return self(str(self.python.parent / "quench"), *arguments, code=code)

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        rows = json.loads(self.quench(*arguments, "--json"))["rows"]
        assert isinstance(rows, list)
        return rows


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def score(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("score"), "score")


@pytest.mark.timeout(1800)
def test_the_base_alone_validates_plans_shows_and_builds_pages(base: Installed) -> None:
    base("-m", "pip", "check")
    base("-c", "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ('torch', 'transformers', 'peft'))))")
    assert "Does unlearning survive quantization?" in base.quench("--help")
    assert [row["valid"] for row in base.rows("validate")] == [True] * 12
    shutil.copy(ROOT / "results.duckdb", base.folder)
    shown = base.rows("show", "--at", "4", "--corpus", "mini")
    assert len({row["submission"] for row in shown}) == 9
    assert len(base.rows("plan", "mini-noop-lora", "--quantizers", "rtn-4bit-g128", "--store", "new.duckdb")) == 3
    base.quench("render", "--out", "site")
    assert "mini-npo-gdr-lora" in (base.folder / "site" / "index.html").read_text(encoding="utf-8")
    base.quench("unlearn", "npo_gdr", "--target", "mini-target-plain", "--out", "mine", code=2)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "version", [name for name in VERSIONS if name != f"{sys.version_info[0]}.{sys.version_info[1]}"]
)
def test_other_pythons_say_the_same_and_build_the_same_pages(
    base: Installed, wheel: Path, tmp_path: Path, version: str
) -> None:
    made_by = python_of(version)
    if made_by is None:
        pytest.skip(f"this machine has no Python {version}")
    other = Installed(wheel, tmp_path, made_by=made_by)
    assert other("-c", "import sys; print(*sys.version_info[:2], sep='.')").strip() == version
    other("-m", "pip", "check")
    sites = []
    for one in (base, other):
        shutil.copy(ROOT / "results.duckdb", one.folder)
        one.quench("render", "--out", "pages")
        site = one.folder / "pages"
        sites.append({path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()})
    assert len(sites[0]) > 50
    assert sorted(path for path in sites[0] if sites[0][path] != sites[1].get(path)) == []
    assert sites[0].keys() == sites[1].keys()
    assert other.rows("validate") == base.rows("validate")
    assert other.rows("show", "--cells") == base.rows("show", "--cells")


@pytest.mark.timeout(1800)
def test_with_the_score_extra_a_shipped_submission_gets_the_board_s_figures(score: Installed) -> None:
    score("-m", "pip", "check")
    name, quantizer = "mini-noop-lora", "rtn-4bit-g128"
    score.quench("run", name, "--quantizers", quantizer, "--workers", "1", "--store", "mine.duckdb")
    shutil.copy(ROOT / "results.duckdb", score.folder / "board.duckdb")
    mine, board = (
        {row["task"].removeprefix("muse_mini_"): row for row in score.rows("show", name, "--cells", "--store", store)
         if row["quantizer"] == quantizer and row["submission"] == name}
        for store in ("mine.duckdb", "board.duckdb")
    )  # fmt: skip
    assert set(mine) == set(board) == {"verbmem_f", "knowmem_f", "knowmem_r", "privleak"}
    for metric, row in mine.items():
        assert row["status"] == "finished"
        assert row[metric] == pytest.approx(board[metric][metric], abs=NEAR), metric
    score.quench("render", "--store", "mine.duckdb", "--out", "site")
    assert (score.folder / "site" / "submission" / f"{name}.html").is_file()
