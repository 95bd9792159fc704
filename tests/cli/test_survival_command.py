"""`quench survival` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from harness.cli.main import app

ROOT = Path(__file__).parents[2]
PAIR = ("survival", "mini-ga-gdr-full-lr2e-4", "--quantizers", "rtn-4bit-g128,rtn-8bit-g128")


def test_the_table_has_a_row_for_each_quantizer_and_the_likelihood() -> None:
    shown = CliRunner().invoke(app, [*PAIR, "--predict", "--format", "csv"], catch_exceptions=False)
    assert shown.exit_code == 0
    lines = shown.stdout.strip().splitlines()
    assert len(lines) == 3
    assert "chance_of_return" in lines[0]


def test_json_holds_every_layer_and_nothing_else_is_on_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *PAIR, "--against", "mini-target-4bit", "--json", "--predict"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["schema"] == "quench.survival/1"
    assert len(document["rows"]) == 2 * 29
    own = document["rows"][0]
    assert own["layer"] == "all layers"
    assert own["chance_of_return"] > 0.9
    assert {row["layer"].split(".")[2] for row in document["rows"] if row["layer"] != "all layers"} == set("0123")


def test_without_the_option_nothing_is_predicted() -> None:
    shown = CliRunner().invoke(app, [*PAIR, "--format", "csv"], catch_exceptions=False)
    assert "chance_of_return" not in shown.stdout


def test_a_control_without_target_is_one_sentence_and_exit_code_2() -> None:
    shown = CliRunner().invoke(app, ["survival", "mini-retrain", "--quantizers", "rtn-4bit-g64"])
    assert shown.exit_code == 2
    assert "--against" in shown.stderr
