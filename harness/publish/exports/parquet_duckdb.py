"""The board as a Parquet file and as a DuckDB file without a single text of a corpus, with queries to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from harness.publish.exports import columns as export_columns
from harness.publish.exports.columns import SQL_TYPES, Holds
from harness.publish.formatting import prose
from harness.records import CellResult

Rows = Sequence[Mapping[str, Any]]

# Newer formats begin with a random identifier, and FSST compresses by a random sample:
# two builds of one store would differ.
_FORMAT = "BLOCK_SIZE 16384, STORAGE_VERSION 'v1.2.0'"
_WITHOUT = "fsst,dict_fsst"

_SURVIVAL: Mapping[str, Holds] = {
    "corpus": "text", "submission": "text", "quantizer": "text", "layer": "text", "num_weights": "integer",
    "codes_changed": "number", "survival_ratio": "number", "cosine": "number", "norm_ratio": "number",
    "update_norm": "number", "relative_update": "number", "effective_rank": "number",
}  # fmt: skip
_DOCUMENTS: Mapping[str, Holds] = {
    "corpus": "text", "submission": "text", "quantizer": "text", "bits": "integer", "metric": "text",
    "document": "integer", "score": "number", "prompt": "text", "reference": "text", "response": "text",
    "prompt_sha256": "text", "reference_sha256": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question with the SQL that answers it from ``board.duckdb``."""

    question: str
    sql: str


QUERIES = (
    Query(
        question="Who still forgets at 4 bit, and at what cost?",
        sql="SELECT rank, submission, method, verdict, rho, utility_share\n"
        "FROM board WHERE bits = 4 AND rank IS NOT NULL ORDER BY corpus, rank;",
    ),
    Query(
        question="Which backend of each width gives most back, over all entries?",
        sql="SELECT corpus, bits, quantizer, avg(rho) AS mean_rho, count(*) AS cells\n"
        "FROM cells WHERE rho IS NOT NULL GROUP BY ALL ORDER BY corpus, bits DESC, mean_rho DESC;",
    ),
    Query(
        question="What becomes of one entry from wide to narrow codes?",
        sql="SELECT submission, bits, quantizer, verdict, rho, recovery, utility_share\n"
        "FROM board ORDER BY corpus, submission, bits DESC;",
    ),
    Query(
        question="Which cells have no result, and why?",
        sql="SELECT submission, quantizer, task, status, stage, reason\n"
        "FROM cells WHERE status <> 'finished' ORDER BY ALL;",
    ),
    Query(
        question="In which layers does least of the update survive?",
        sql="SELECT submission, quantizer, layer, survival_ratio, codes_changed\n"
        "FROM survival WHERE survival_ratio IS NOT NULL\n"
        "ORDER BY survival_ratio, submission, quantizer, layer LIMIT 20;",
    ),
)
"""What the README of the data shows; a test runs each."""


def write_parquet(path: Path, rows: Rows) -> None:
    """Writes cells as Parquet; the same rows give the same bytes."""
    with duckdb.connect(config={"threads": 1}) as connection:
        _table(connection, "cells", rows, export_columns.types_of(rows, export_columns.CELLS))
        connection.execute(f"COPY cells TO {_quoted(path)} (FORMAT parquet, COMPRESSION zstd)")


def write_documents(path: Path, rows: Rows) -> None:
    """Writes answered documents as Parquet; the same rows give the same bytes."""
    path.parent.mkdir(exist_ok=True)
    with duckdb.connect(config={"threads": 1}) as connection:
        _table(connection, "documents", rows, _DOCUMENTS)
        connection.execute(f"COPY documents TO {_quoted(path)} (FORMAT parquet, COMPRESSION zstd)")


def write_duckdb(path: Path, board: Rows, cells: Rows, results: Sequence[CellResult]) -> None:
    """Writes tables ``board``, ``cells`` and ``survival`` and makes the file read-only; its bytes repeat.

    Args:
        path: The file; one that is there is replaced.
        board: Rows of the ranking.
        cells: Rows of all cells.
        results: The same cells, for the survival of their layers.
    """
    path.unlink(missing_ok=True)
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(f"SET disabled_compression_methods = '{_WITHOUT}'")
        connection.execute(f"ATTACH {_quoted(path)} AS out ({_FORMAT})")
        connection.execute("USE out")
        _table(connection, "board", board, export_columns.types_of(board, export_columns.BOARD))
        _table(connection, "cells", cells, export_columns.types_of(cells, export_columns.CELLS))
        _table(connection, "survival", list(_survival_rows(results)), _SURVIVAL)
        connection.execute("USE memory")
        connection.execute("DETACH out")
    path.chmod(0o444)


def _survival_rows(results: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    seen = set()
    for result in sorted(results, key=lambda found: found.provenance.created_at, reverse=True):
        place = (result.corpus, result.cell.submission, result.cell.quantizer)
        if not result.survival or place in seen:
            continue
        seen.add(place)
        for layer in result.survival:
            # All cells of one quantized model share its layers.
            yield {
                "corpus": prose(place[0]), "submission": prose(place[1]), "quantizer": prose(place[2]),
                "layer": prose(layer.layer), "num_weights": layer.num_weights, "codes_changed": layer.codes_changed,
                "survival_ratio": layer.survival_ratio, "cosine": layer.cosine, "norm_ratio": layer.norm_ratio,
                "update_norm": layer.update_norm, "relative_update": layer.relative_update,
                "effective_rank": layer.effective_rank,
            }  # fmt: skip


def _table(connection: duckdb.DuckDBPyConnection, name: str, rows: Rows, columns: Mapping[str, Holds]) -> None:
    named = ", ".join(f"{_name(column)} {SQL_TYPES[holds]}" for column, holds in columns.items())
    connection.execute(f"CREATE TABLE {name} ({named})")
    if rows:
        values = [[row.get(column) for row in rows] for column in columns]
        picked = ", ".join(f"unnest(?::{SQL_TYPES[holds]}[])" for holds in columns.values())
        connection.execute(f"INSERT INTO {name} SELECT {picked}", values)


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
