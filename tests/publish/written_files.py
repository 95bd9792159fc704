"""What stands in the files that a board is written to."""

from __future__ import annotations

from pathlib import Path

import duckdb


def everything_readable(folder: Path) -> str:
    """Returns the text of every file, with tables of binary ones unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            parts.append(repr(duckdb.sql(f"SELECT * FROM '{path}'").fetchall()))
        elif path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as connection:
                for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                    parts.append(repr(connection.execute(f"SELECT * FROM {table}").fetchall()))
        elif path.is_file():
            parts.append(path.read_text(encoding="utf-8"))
    return "\n".join(parts)
