"""The board's database: queries that run, no text, nothing to write, the same bytes."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harness.publish.board import Board
from harness.publish.exports import parquet_duckdb
from harness.records import CellResult


@pytest.fixture
def opened(site: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(site / "data" / "board.duckdb"), read_only=True) as connection:
        yield connection


def answer(connection: duckdb.DuckDBPyConnection, start: str) -> list[dict[str, Any]]:
    query = next(query for query in parquet_duckdb.QUERIES if query.question.startswith(start))
    found = connection.execute(query.sql)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_the_readme_shows_five_queries_and_each_of_them_runs(site: Path, opened: duckdb.DuckDBPyConnection) -> None:
    text = (site / "data" / "board-README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 5
    for sql in shown:
        assert opened.execute(sql).fetchall(), sql


def test_the_first_query_is_the_ranking(opened: duckdb.DuckDBPyConnection, page_board: Board) -> None:
    found = answer(opened, "Who still forgets")
    assert [row["submission"] for row in found] == [row.submission.name for row in page_board.ranked(4)]
    for row, ranked in zip(found, page_board.ranked(4), strict=True):
        at = ranked.by_bits[4]
        assert at.remaining is not None
        assert (row["rho"], row["verdict"]) == (at.remaining.value, at.verdict.word)


def test_the_backend_that_lies_on_the_update_s_grid_gives_most_back(opened: duckdb.DuckDBPyConnection) -> None:
    found = [row for row in answer(opened, "Which backend") if row["bits"] == 4]
    assert found[0]["quantizer"] == "rtn-4bit-g128"
    assert found[0]["mean_rho"] > found[-1]["mean_rho"]


def test_one_entry_is_followed_from_wide_to_narrow(opened: duckdb.DuckDBPyConnection) -> None:
    found = [row["bits"] for row in answer(opened, "What becomes") if row["submission"] == "ga-gdr-full"]
    assert found == [16, 8, 4]


def test_cells_without_a_result_are_found_with_their_reason(opened: duckdb.DuckDBPyConnection) -> None:
    (found,) = answer(opened, "Which cells")
    assert (found["submission"], found["status"], found["stage"]) == ("npo-crashed", "failed", "quantize")
    assert "17 levels" in found["reason"]


def test_layers_are_listed_from_least_survival_and_each_once(
    opened: duckdb.DuckDBPyConnection, page_cells: list[CellResult]
) -> None:
    found = answer(opened, "In which layers")
    assert found[0]["survival_ratio"] == 0.06
    places = opened.execute("SELECT submission, quantizer, layer FROM survival").fetchall()
    wanted = {
        (cell.cell.submission, cell.cell.quantizer, layer.layer) for cell in page_cells for layer in cell.survival
    }
    assert len(places) == len(set(places))
    assert set(places) == wanted
    columns = "submission, quantizer, layer, update_norm, norm_ratio, effective_rank"
    told = {tuple(row[:3]): tuple(row[3:]) for row in opened.execute(f"SELECT {columns} FROM survival").fetchall()}
    for cell in page_cells:
        for layer in cell.survival:
            shown = told[cell.cell.submission, cell.cell.quantizer, layer.layer]
            assert shown == (layer.update_norm, layer.norm_ratio, layer.effective_rank)


def test_a_table_holds_what_the_json_holds(site: Path, opened: duckdb.DuckDBPyConnection) -> None:
    for name in ("board", "cells"):
        rows = json.loads((site / "data" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        found = opened.execute(f"SELECT * FROM {name}")
        names = [column[0] for column in found.description]
        assert [dict(zip(names, row, strict=True)) for row in found.fetchall()] == rows


def test_no_table_and_no_column_is_there_for_texts(opened: duckdb.DuckDBPyConnection) -> None:
    found = opened.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    assert {table for table, _ in found} == {"board", "cells", "survival"}
    assert not {column for _, column in found} & {"response", "reference", "prompt", "prompt_excerpt", "log_tail"}


def test_nobody_may_write_into_the_file(site: Path, opened: duckdb.DuckDBPyConnection) -> None:
    mode = (site / "data" / "board.duckdb").stat().st_mode
    assert mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) == 0
    with pytest.raises(duckdb.Error, match="read-only"):
        opened.execute("DELETE FROM board")


def test_many_long_texts_give_the_same_bytes_too(tmp_path: Path, page_cells: list[CellResult]) -> None:
    rows = [
        {"submission": f"entry-{index % 91}", "reason": f"reason {index * 7919 % 1009} of many, " * 5, "rho": index / 7}
        for index in range(4000)
    ]  # fmt: skip
    made = []
    for name in ("a", "b", "c"):
        parquet_duckdb.write_duckdb(tmp_path / f"{name}.duckdb", [], rows, page_cells)
        made.append((tmp_path / f"{name}.duckdb").read_bytes())
    assert made[0] == made[1] == made[2]


def test_a_path_with_a_quote_is_written(tmp_path: Path) -> None:
    path = tmp_path / "it's.duckdb"
    parquet_duckdb.write_duckdb(path, [], [{"submission": "a", 'odd "metric': 1.5}], [])
    parquet_duckdb.write_parquet(tmp_path / "it's.parquet", [{"submission": "a"}])
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT * FROM cells").fetchall() == [("a", 1.5)]
    assert (tmp_path / "it's.parquet").stat().st_size > 0
