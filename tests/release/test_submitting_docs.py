"""The worked example of docs/submitting.md, run as it stands there in a fresh copy of the code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from documented import ROOT, SLOW, Clone, blocks

PAGE = ROOT / "docs" / "submitting.md"


def documented() -> str:
    """Returns the commands of the worked example."""
    return blocks(PAGE)[0].commands


@pytest.fixture
def fresh(tmp_path: Path) -> Clone:
    """A clone with the three controls alone, and somebody's adapter beside them."""
    controls = ("mini-target-4bit", "mini-target-plain", "mini-retrain")
    clone = Clone(
        tmp_path / "quench", cache=tmp_path / "cache", store=ROOT / "results.duckdb", submissions=controls
    )  # fmt: skip
    shutil.copytree(ROOT / "submissions" / "mini-ga-gdr-lora" / "weights", clone.folder / "my-adapter")
    return clone


def test_the_example_goes_from_init_to_a_page_and_fits_a_minute_of_typing() -> None:
    lines = documented().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("quench ")] == [
        "init", "validate", "run", "show", "render",
    ]  # fmt: skip
    assert len(documented()) < 500
    assert not [line for line in lines if not re.match(r"(mkdir|cp|quench) ", line)]


@pytest.mark.slow
def test_the_documented_commands_lead_from_an_adapter_to_a_ranked_row_and_a_page(fresh: Clone) -> None:
    said = fresh.type(documented())
    assert "my-entry" in said
    assert "has no rank" not in said
    shown = json.loads(fresh.type("quench show --store my-entry.duckdb --json"))["rows"]
    (row,) = (row for row in shown if row["submission"] == "my-entry")
    assert (row["rank"], row["bits"], row["quantizer"]) == (1, 4, "rtn-4bit-g128")
    assert row["rho"] is not None
    page = (fresh.folder / "my-site" / "submission" / "my-entry.html").read_text(encoding="utf-8")
    assert "my-entry" in page
    assert "submission/my-entry.html" in (fresh.folder / "my-site" / "index.html").read_text(encoding="utf-8")
    # What the page says of sending results: the folder of records is there, one file for each cell.
    assert len(list((fresh.folder / "my-entry.records").glob("*.json"))) == 3 * 2 * 4
    # The other block of the page: only now, because what is scored in a checkout without a commit is not ranked.
    fresh.type("git init --quiet")
    fresh.type(blocks(PAGE)[1].commands)
    staged = fresh.type("git diff --cached --name-only").splitlines()
    assert "submissions/my-entry/submission.yaml" in staged
    assert sum(name.startswith("records/my-entry/") for name in staged) == 3 * 2 * 4


def test_every_block_of_the_page_is_typed_by_the_test_above() -> None:
    assert [block.mark for block in blocks(PAGE)] == [SLOW, SLOW]
