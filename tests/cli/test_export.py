"""`quench export`, as a user meets it: on the board's own results, and every mistake one sentence."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from harness.cli.main import app
from harness.publish.exports import formats as export_formats

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(board_store: Path) -> Path:
    return board_store


@pytest.fixture(scope="module")
def data(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "data"
    quench(store, "--out", out, "--base-url", "https://example.org/board")
    return out


def quench(store: Path, *arguments: str | Path, code: int = 0) -> Result:
    words = ["export", "--store", str(store), *map(str, arguments)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def test_the_board_s_own_results_are_valid_by_the_schema_beside_them(data: Path) -> None:
    schema = json.loads((data / "board.schema.json").read_text(encoding="utf-8"))
    for name in ("board", "cells"):
        found = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
        assert found["rows"]
        jsonschema.validate(found, schema)


def test_the_committed_store_still_gives_the_very_numbers_that_were_published(tmp_path: Path) -> None:
    """A change that moves a byte of these bumps SCORING_VERSION or the rules' version, and records new digests."""
    quench(ROOT / "results.duckdb", "--out", tmp_path / "data", "--format", "json,changes,every-eval-ever")
    recorded = json.loads((ROOT / "tests" / "fixtures" / "board_data_sha256.json").read_text(encoding="utf-8"))["files"]
    made = {
        path.relative_to(tmp_path / "data").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "data").rglob("*.json")
    }
    assert made == recorded


def test_the_address_ends_up_in_feed_citation_and_records(data: Path) -> None:
    for path in (data / "feed.xml", data / "board.bib", next((data / "every_eval_ever").iterdir())):
        assert "https://example.org/board/" in path.read_text(encoding="utf-8"), path.name


def test_a_list_of_formats_writes_these_and_says_so_on_stderr(store: Path, tmp_path: Path) -> None:
    result = quench(store, "--out", tmp_path / "out", "--format", "markdown, changes")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"board.md", "changes.json"}
    assert result.stdout == ""
    assert "Wrote 2 kinds of files" in result.stderr


def test_the_help_names_every_format(store: Path) -> None:
    shown = " ".join(quench(store, "--help").stdout.replace("│", " ").split())
    for name in export_formats.FORMATS:
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--format", "xlsx"), "There is no export format named 'xlsx'"),
        (("--base-url", "javascript:alert(1)"), "is no web address"),
        (("--store", "missing.duckdb"), "There is no store missing.duckdb"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments: tuple[str, str], sentence: str, store: Path, tmp_path: Path
) -> None:
    result = quench(store, "--out", tmp_path / "out", *arguments, code=2)
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "Traceback" not in quench(store, "--out", out, code=2).stderr


def test_exporting_never_imports_torch(store: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'lm_eval', 'datasets', 'sklearn', 'rouge_score'):\n"
        "    sys.modules[name] = None\n"
        "from harness.cli.main import app\n"
        "app(['export', '--store', sys.argv[1], '--out', sys.argv[2]], standalone_mode=False)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(store), str(tmp_path / "out")], check=True, capture_output=True)
    assert (tmp_path / "out" / "board.duckdb").is_file()
