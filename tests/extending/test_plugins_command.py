"""`quench plugins`: everything that packages declare, with the reason where it can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from harness import plugins
from harness.cli.main import app


def listed() -> dict[tuple[str, str], dict[str, Any]]:
    result = CliRunner().invoke(app, ["plugins", "--json"])
    assert result.exit_code == 0, result.output
    return {(row["kind"], row["name"]): row for row in json.loads(result.stdout)["rows"]}


def test_without_packages_nothing_is_listed_and_the_page_is_named() -> None:
    result = CliRunner().invoke(app, ["plugins"])
    assert result.exit_code == 0
    assert "No installed package adds anything; see docs/extending.md." in result.stderr
    assert listed() == {}


def test_all_three_of_the_example_are_usable(example: Path) -> None:
    found = listed()
    assert set(found) == {("quantizer", "pow2"), ("metric", "first_words"), ("corpus", "letters")}
    for row in found.values():
        assert (row["package"], row["version"], row["usable"], row["reason"]) == ("quench-example", "0.1.0", True, None)
    assert found["metric", "first_words"]["module"] == "quench_example.first_words:score"
    assert "quench-example" in CliRunner().invoke(app, ["plugins"]).stdout


def test_each_broken_one_says_why(declare: Any) -> None:
    groups = {
        plugins.QUANTIZERS: {"rtn": "own", "own": "nowhere_to_be"},
        plugins.CORPORA: {"words": "own.muse_words"},
        plugins.METRICS: {"half": "own:half", "rouge1": "own:half"},
    }
    site = declare("own-package", groups, own="")
    (site / "own.yaml").write_text(
        "{label: H, description: d, source: s, direction: lower, range: [0, 1]}", encoding="utf-8"
    )
    reasons = {key: row["reason"] for key, row in listed().items()}
    assert "takes a name of Quench itself" in reasons["quantizer", "rtn"]
    assert "can't be imported" in reasons["quantizer", "own"]
    assert "corpus.json" in reasons["corpus", "words"]
    assert "can't be imported (AttributeError" in reasons["metric", "half"]
    assert "takes a name of Quench itself" in reasons["metric", "rouge1"]
    assert not any(row["usable"] for row in listed().values())
