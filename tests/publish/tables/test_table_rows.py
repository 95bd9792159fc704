from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import synthetic_board as synthetic
from rich.console import Console

from harness.publish.board import Board
from harness.publish.tables import formats as table_formats
from harness.publish.tables import rows as table_rows
from harness.records import CellResult, DocumentRecord


def printed(rows: list[dict[str, Any]], width: int = 120, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table_formats.terminal_table(rows, title="Title", **options))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_ranked_rows_are_flat_json_with_the_same_keys(board: Board) -> None:
    rows = table_rows.ranked_rows(board, 4)
    assert len(rows) == len(board.rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len({tuple(row) for row in rows}) == 1
    assert {row["bits"] for row in rows} == {4}
    assert {row["corpus"] for row in rows} == {"mini"}


def test_ranked_rows_come_best_first_and_then_those_without_a_rank(board: Board) -> None:
    rows = table_rows.ranked_rows(board, 4)
    ranks = [row["rank"] for row in rows]
    ranked = [rank for rank in ranks if rank is not None]
    assert ranks == list(range(1, len(ranked) + 1)) + [None] * (len(rows) - len(ranked))
    assert all((row["rank"] is None) == (row["unranked_reason"] is not None) for row in rows)
    assert all((row["rank"] is None) == (row["tier"] is None) for row in rows)


def test_scores_are_shown_times_100_and_shares_as_fractions_with_their_ends(board: Board) -> None:
    row = next(row for row in table_rows.ranked_rows(board, 4) if row["submission"] == "ga-gdr-full")
    at = next(row for row in board.rows if row.submission.name == "ga-gdr-full").by_quantizer["rtn-4bit-g128"]
    assert row["quantizer"] == "rtn-4bit-g128"
    assert row["verbmem_f"] == pytest.approx(100 * at.metrics["verbmem_f"].score.value)
    assert row["knowmem_r_low"] == pytest.approx(100 * at.metrics["knowmem_r"].score.low)
    assert -100 <= row["privleak_low"] <= row["privleak"] <= row["privleak_high"] < -50
    assert row["rho_verbmem_f"] == at.metrics["verbmem_f"].rho.value
    assert row["rho_verbmem_f_low"] < row["rho_verbmem_f"] < row["rho_verbmem_f_high"]
    assert row["recovery_knowmem_f"] == at.metrics["knowmem_f"].recovery.value
    assert row["rho"] == max(row["rho_verbmem_f"], row["rho_knowmem_f"])
    assert row["worst_rho_verbmem_f"] >= row["rho_verbmem_f"]
    assert 0 < row["utility_share"] < 1.2
    assert row["verdict"] == "reverts"
    assert row["verdict_basis"] == "VerbMem, KnowMem"


def test_no_width_means_every_width_and_an_unknown_one_has_only_reasons(board: Board) -> None:
    assert len(table_rows.ranked_rows(board, None)) == len(board.rows) * len(board.widths)
    assert {row["unranked_reason"] for row in table_rows.ranked_rows(board, 5)} == {"not measured at 5 bit"}


def test_cell_rows_hold_primary_metrics_with_ends_and_secondary_ones(demo_cells: list[CellResult]) -> None:
    rows = table_rows.cell_rows(demo_cells[:8])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len({tuple(row) for row in rows}) == 1
    first = rows[0]
    assert first["task"] == "muse_mini_verbmem_f"
    assert first["verbmem_f_low"] < first["verbmem_f"] < first["verbmem_f_high"]
    assert first["verbmem_f"] > 50
    assert first["knowmem_f"] is None
    assert first["rouge1"] > 50
    assert first["auc"] is None
    assert rows[3]["privleak"] == pytest.approx(demo_cells[3].scores[0].value)
    assert 0 < rows[3]["auc"] < 100


def test_a_failed_cell_and_a_cell_without_documents_keep_all_keys(demo_cells: list[CellResult]) -> None:
    failed = next(cell for cell in demo_cells if cell.status == "failed")
    bare = replace(demo_cells[0], documents=())
    rows = table_rows.cell_rows([failed, bare])
    assert rows[0]["status"] == "failed"
    assert rows[0]["stage"] == "quantize"
    assert "17 levels" in rows[0]["reason"]
    assert rows[0]["verbmem_f"] is None
    assert rows[1]["verbmem_f"] is not None
    assert rows[1]["verbmem_f_low"] is None


def test_document_rows_scale_scores_and_keep_membership_scores_as_they_are(demo_cells: list[CellResult]) -> None:
    answers, texts = (
        table_rows.document_rows(demo_cells[1].documents),
        table_rows.document_rows(demo_cells[3].documents),
    )
    assert answers[0]["knowmem_f"] == pytest.approx(100 * demo_cells[1].documents[0].scores["knowmem_f"])
    assert answers[0]["response"] == demo_cells[1].documents[0].response
    assert texts[0]["min_k_40"] == demo_cells[3].documents[0].scores["min_k_40"]
    assert texts[0]["split"] == "forget"


def test_documents_with_different_scores_have_the_same_keys() -> None:
    base = DocumentRecord(
        index=0, split="forget", prompt_sha256="a", prompt_excerpt="p", response="", reference_sha256=None,
        reference_excerpt="", scores={"min_k_40": 1.0},
    )  # fmt: skip
    rows = table_rows.document_rows([base, replace(base, index=1, scores={}, invalid_reason="too short")])
    assert set(rows[0]) == set(rows[1])
    assert rows[1]["min_k_40"] is None
    assert rows[1]["invalid_reason"] == "too short"


def test_no_rows_are_no_rows() -> None:
    assert table_rows.cell_rows([]) == table_rows.document_rows([]) == []
    assert "nothing to show" in printed([])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_are_whole_at_any_width_of_the_terminal(board: Board, width: int) -> None:
    text = printed(table_rows.ranked_rows(board, 4), width=width, columns=table_rows.RANKED_COLUMNS)
    for row in board.rows:
        assert row.submission.name in text


def test_why_an_entry_has_no_rank_stands_below_the_table(board: Board) -> None:
    text = printed(table_rows.ranked_rows(board, 4), columns=table_rows.RANKED_COLUMNS)
    assert "npo-limited has no rank: npo-limited was run with --limit 4" in text
    assert "0.95" in text or "0.9" in text


def test_cells_show_their_one_score_with_its_interval(demo_cells: list[CellResult]) -> None:
    text = printed(table_rows.cell_rows(demo_cells[:4]))
    assert "score" in text
    assert "git" not in text
    value = 100 * demo_cells[0].scores[0].value
    assert f"{value:.1f} [" in text


def test_any_rows_make_a_table_and_control_characters_are_shown_as_escapes() -> None:
    text = printed([{"name": "a\x1b[31mb", "ok": True, "no": False, "list": ["x", "y"], "empty": None, "n": 3}])
    assert "a\\u001b[31mb" in text
    assert "\x1b" not in text
    assert "yes" in text
    assert "x; y" in text
    assert "empty" not in text


def test_markup_in_names_is_not_markup() -> None:
    assert "[bold]x[/bold]" in printed([{"name": "[bold]x[/bold]"}])


def test_the_columns_that_are_named_exist(board: Board, demo_cells: list[CellResult]) -> None:
    assert set(table_rows.RANKED_COLUMNS) <= set(table_rows.ranked_rows(board, 4)[0])
    assert set(table_rows.CELL_COLUMNS) - {"score"} <= set(table_rows.cell_rows(demo_cells[:1])[0])
    assert synthetic.ORDER[0] == "reference"
