"""Relearning probes on a submission's page: where they are stored, with their control, and nowhere else."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.publish.board import Board
from harness.publish.pages import site as site_pages
from harness.store.relearning import Relearning, RelearningStep
from harness.store.store import Store


def curve(*values: float) -> tuple[RelearningStep, ...]:
    return tuple(
        RelearningStep(step=20 * place, verbmem=value, extraction_strength=0.1, reference_nll=1.0, verbmem_shown=0.9)
        for place, value in enumerate(values)
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, page_store: Path, page_board: Board) -> tuple[str, str, str]:
    """The pages of a probed entry, of its retrain control and of another entry; the entry's name."""
    entry = next(row.submission for row in page_board.rows if row.submission.retrain)
    other = next(row.submission for row in page_board.rows if row.submission.name != entry.name)
    assert entry.retrain is not None
    probe = Relearning(
        key="a" * 64, submission=entry.name, weights_sha256=entry.weights_sha256 or "f" * 64, target="t",
        corpus="mini", quantizer="rtn-4bit-g64", recipe_sha256="e" * 64, documents=16, goal=0.936, half_step=40,
        reason=None, curve=curve(0.28, 0.469, 0.893), device="cpu", seconds=30.0,
        created_at="2026-11-27T04:24:07+00:00",
    )  # fmt: skip
    control = replace(probe, key="b" * 64, submission=entry.retrain, curve=curve(0.184, 0.19, 0.221), half_step=None,
                      reason="not within 40 steps")  # fmt: skip
    alone = replace(probe, key="c" * 64, quantizer="bnb-nf4", half_step=None, reason="not within 40 steps <b>")
    stale = replace(probe, key="d" * 64, quantizer="hqq-4bit-g64", weights_sha256="0" * 64)
    folder = tmp_path_factory.mktemp("probed")
    shutil.copy(page_store, folder / "s.duckdb")
    with Store.open(folder / "s.duckdb") as store:
        for one in (probe, control, alone, *([stale] if entry.weights_sha256 else [])):
            store.add_relearning(one)
    site = site_pages.render(folder / "s.duckdb", folder / "site").parent
    texts = [(site / "submission" / f"{name}.html").read_text() for name in (entry.name, entry.retrain, other.name)]
    return texts[0], texts[1], texts[2]


def rows_of(page: str) -> list[list[str]]:
    section = re.search(r'<section aria-labelledby="relearning-title">.*?</section>', page, re.DOTALL)
    if section is None:
        return []
    body = section[0].split("<tbody>")[1]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]


def test_a_probe_stands_with_its_half_and_its_control(shown: tuple[str, str, str]) -> None:
    found = {row[0]: row[1:] for row in rows_of(shown[0])}
    assert found["rtn-4bit-g64"] == ["16", "40", "28.0", "89.3", "93.6", "40", "18.4, 22.1"]


def test_without_half_the_reason_stands_there_escaped_and_without_a_control_a_dash(shown: tuple[str, str, str]) -> None:
    found = {row[0]: row[1:] for row in rows_of(shown[0])}
    assert found["bnb-nf4"][-2:] == ["not within 40 steps &lt;b&gt;", "\u2013"]


def test_a_probe_of_other_weights_is_not_shown(shown: tuple[str, str, str]) -> None:
    assert "hqq-4bit-g64" not in {row[0] for row in rows_of(shown[0])}


def test_controls_and_entries_without_a_probe_have_no_such_table(shown: tuple[str, str, str], site: Path) -> None:
    assert rows_of(shown[1]) == rows_of(shown[2]) == []
    assert not any("relearning-title" in path.read_text() for path in (site / "submission").glob("*.html"))
