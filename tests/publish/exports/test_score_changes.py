"""What is new: entries by their first cell, and scores that nothing but a scoring version has moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic

from harness.publish.exports.changes import entries_added, scores_changed
from harness.publish.pages import site as site_pages
from harness.records import CellResult, Score
from harness.store.store import Store

OLD, NEW = "2026-11-02T10:00:00+00:00", "2026-11-20T10:00:00+00:00"


def cells(*, created_at: str = OLD, version: int = 1, shift: float = 0.0) -> list[CellResult]:
    """An entry and its controls under two quantizers, their VerbMem moved by ``shift``."""
    plan = synthetic.Plan(name="lora", levels=synthetic.LORA, method="NPO")
    plans = [replace(one, created_at=created_at) for one in (*synthetic.CONTROLS, plan)]
    return [
        replace(
            cell,
            scores=tuple(moved(score, shift) for score in cell.scores),
            provenance=replace(cell.provenance, scoring_version=version),
        )
        for cell in synthetic.cells(plans, quantizers=("reference", "rtn-4bit-g128"))
    ]


def moved(score: Score, shift: float) -> Score:
    if score.metric != "verbmem_f" or score.value is None:
        return score
    return replace(score, value=score.value + shift)


def both(shift: float = 0.01) -> list[CellResult]:
    return [*cells(), *cells(created_at=NEW, version=2, shift=shift)]


def test_an_entry_came_with_its_first_cell_and_controls_are_no_entries() -> None:
    assert entries_added(both()) == [
        {"added": OLD, "corpus": "mini", "submission": "lora", "title": "lora", "method": "NPO"}
    ]
    assert entries_added(both()[::-1]) == entries_added(both())


def test_the_last_entry_stands_first_and_those_of_one_moment_by_name() -> None:
    made = [
        replace(
            cell, submission=replace(cell.submission, name=name), provenance=replace(cell.provenance, created_at=at)
        )
        for name, at in (("b", OLD), ("a", OLD), ("c", NEW))
        for cell in cells()
        if cell.submission.role == "entry"
    ]
    assert [row["submission"] for row in entries_added(made)] == ["c", "a", "b"]


def test_old_and_new_scores_stand_side_by_side_in_display_units() -> None:
    rows = scores_changed(both())
    assert {row["metric"] for row in rows} == {"verbmem_f"}
    assert len(rows) == 4 * 2
    for row in rows:
        assert (row["old_version"], row["new_version"]) == (1, 2)
        assert row["difference"] == pytest.approx(1.0)
        assert row["new"] - row["old"] == pytest.approx(1.0)
        assert row["old"] > 1


def test_a_score_that_stayed_and_a_store_of_one_version_have_no_change() -> None:
    assert scores_changed(both(shift=0.0)) == []
    assert scores_changed([*cells(), *cells(created_at=NEW, shift=0.01)]) == []


def test_three_versions_give_two_steps_and_of_one_version_the_newest_cell_counts() -> None:
    made = [
        *both(),
        *cells(created_at=NEW, version=3, shift=0.03),
        *cells(created_at="2026-11-21", version=2, shift=0.02),
    ]
    steps = [row for row in scores_changed(made) if row["submission"] == "lora" and row["quantizer"] == "reference"]
    assert [(row["old_version"], row["new_version"]) for row in steps] == [(1, 2), (2, 3)]
    assert [row["difference"] for row in steps] == [pytest.approx(2.0), pytest.approx(1.0)]


@pytest.mark.parametrize(
    "other",
    [
        lambda cell: replace(cell, submission=replace(cell.submission, weights_sha256="f" * 64)),
        lambda cell: replace(cell, spec=replace(cell.spec, calibration="f" * 64)),
        lambda cell: replace(cell, spec=replace(cell.spec, options={"steps": 9})),
        lambda cell: replace(cell, provenance=replace(cell.provenance, seed=7)),
        lambda cell: replace(cell, origin="rescored from logs"),
        lambda cell: replace(cell, cell=replace(cell.cell, limit=4)),
        lambda cell: replace(cell, status="failed", scores=()),
    ],
    ids=["weights", "calibration", "options", "seed", "origin", "limit", "failed"],
)
def test_a_score_that_something_else_may_have_moved_is_not_blamed_on_the_version(other) -> None:  # type: ignore[no-untyped-def]
    assert scores_changed([*cells(), *map(other, cells(created_at=NEW, version=2, shift=0.01))]) == []


def test_a_value_that_is_missing_in_one_version_is_no_change() -> None:
    gone = [
        replace(cell, scores=tuple(replace(score, value=None, missing_reason="none") for score in cell.scores))
        for cell in cells(created_at=NEW, version=2)
    ]
    assert scores_changed([*cells(), *gone]) == []


def test_the_site_tells_old_and_new_scores_and_when_an_entry_came(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        for cell in both():
            store.add(cell)
    out = site_pages.render(tmp_path / "s.duckdb", tmp_path / "out").parent
    found = json.loads((out / "data" / "changes.json").read_text(encoding="utf-8"))
    assert found["schema"] == "quench.changes/1"
    assert found["scores_changed"] == scores_changed(both())
    assert found["entries_added"] == entries_added(both())
    text = " ".join((out / "methodology.html").read_text(encoding="utf-8").split())
    first = found["scores_changed"][0]
    assert "8 scores differ between scoring versions" in text
    assert f"VerbMem: {first['old']:.2f} (version 1), {first['new']:.2f} (version 2)" in text
    assert "2026-11-02: lora (mini, NPO)" in text


def test_the_site_of_one_version_says_that_nothing_differs(site: Path) -> None:
    assert "No stored score differs between scoring versions." in (site / "methodology.html").read_text(
        encoding="utf-8"
    )
