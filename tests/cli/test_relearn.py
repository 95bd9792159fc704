"""`quench relearn` from the outside: one short probe of the miniature, and every mistake one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness.cli.main import app
from harness.store.store import Store

ROOT = Path(__file__).parents[2]
SHORT = ("mini-npo-gdr-lora", "--quantizers", "rtn-4bit-g64", "--documents", "1", "--steps", "1")


def relearn(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["relearn", *map(str, arguments)])


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    store = tmp_path_factory.mktemp("relearn") / "s.duckdb"
    # A process of its own: what libraries print on being imported must not be among the JSON.
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", "relearn", *SHORT, "--store", str(store), "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["schema"] == "quench.relearn/1"
    return store, document["rows"]


def test_an_entry_and_its_retrain_control_are_probed_under_each_quantizer(
    probed: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, rows = probed
    assert [(row["submission"], row["quantizer"]) for row in rows] == [
        ("mini-npo-gdr-lora", "rtn-4bit-g64"), ("mini-retrain", "rtn-4bit-g64"),
    ]  # fmt: skip
    assert all([point["step"] for point in row["curve"]] == [0, 1] for row in rows)
    assert rows[0]["goal"] == rows[1]["goal"] > rows[0]["start"] > 0
    assert all(row["reason"] == "not within 1 steps" or row["half_step"] == 1 for row in rows)


def test_the_store_has_the_probes_and_a_second_call_trains_nothing(probed: tuple[Path, list[dict[str, Any]]]) -> None:
    store, rows = probed
    with Store.open(store, read_only=True) as opened:
        assert {probe.key for probe in opened.relearnings()} == {row["key"] for row in rows}
    again = relearn(*SHORT, "--store", store, "--format", "csv")
    assert again.exit_code == 0
    lines = again.stdout.strip().splitlines()
    assert len(lines) == 3
    assert "half_step" in lines[0]
    assert "curve" not in lines[0]
    with Store.open(store, read_only=True) as opened:
        assert [probe.created_at for probe in opened.relearnings()] == [row["created_at"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mini-npo-gdr-lor",), "There is no submission named 'mini-npo-gdr-lor': did you mean"),
        (("mini-retrain",), "mini-retrain was unlearned from no target here: name an entry"),
        (("mini-target-4bit",), "mini-target-4bit was unlearned from no target here"),
        (("mini-npo-gdr-lora", "--documents", "17"), "Corpus mini has 32 documents of VerbMem"),
        (("mini-npo-gdr-lora", "--documents", "17"), "give at most --documents 16"),
        (("mini-npo-gdr-lora", "--documents", "0"), "--documents is 0; accepted is a whole number from 1 up"),
        (("mini-npo-gdr-lora", "--steps", "0"), "--steps is 0"),
        (("mini-npo-gdr-lora", "--quantizers", "rtn-5bit"), "rtn-5bit"),
    ],
)
def test_what_can_not_be_probed_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = relearn(*arguments, "--store", tmp_path / "s.duckdb")
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "s.duckdb").exists()
