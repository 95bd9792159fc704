"""Migrations of the store's schema: numbered SQL files, and the table that counts them."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from harness.errors import StoreError

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
"""Folder of ``NNNN_words.sql`` files; each runs once, in order, in its own transaction."""


def scripts(folder: Path = MIGRATIONS) -> tuple[Path, ...]:
    """Returns the migration files, first to last.

    Raises:
        StoreError: The numbers have a gap or a double: the installation is damaged.
    """
    found = sorted(path for path in folder.glob("*.sql") if re.fullmatch(r"\d{4}_\w+\.sql", path.name))
    numbers = [int(path.name[:4]) for path in found]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise StoreError(f"The store's migrations are numbered {numbers}, not 1, 2, 3, ...: reinstall quench-bench.")
    return tuple(found)


def version_of(connection: duckdb.DuckDBPyConnection) -> int | None:
    """Returns the schema version of an open database; 0 where it is empty, None where it is another program's."""
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "schema_version" not in tables or "cells" not in tables:
        return None
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0]) if row is not None and row[0] is not None else None


def bring_up_to_date(
    connection: duckdb.DuckDBPyConnection, path: Path, *, read_only: bool, folder: Path = MIGRATIONS
) -> int:
    """Runs the migrations that a store has not seen yet and returns its schema version.

    Args:
        connection: The open database.
        path: Its file, for messages.
        read_only: Whether nothing may be written; then an older schema is refused.
        folder: Where the migrations lie.

    Raises:
        StoreError: The file is another program's database, has a newer schema, or an older one
            while it is open for reading only.
    """
    found = scripts(folder)
    version = version_of(connection)
    if version is None or (version == 0 and read_only):
        raise StoreError(f"{path} is a DuckDB file but no Quench store: name a file that `quench run` has written.")
    if version > len(found):
        raise StoreError(
            f"The store {path} has schema {version} and this Quench knows schemas up to {len(found)}: "
            "update quench-bench, or use another store."
        )
    if version < len(found) and read_only:
        raise StoreError(
            f"The store {path} has schema {version} and needs {len(found)}: "
            "let a writing command such as `quench run` bring it up to date first."
        )
    for script in found[version:]:
        _run(connection, script, path)
    return len(found)


def _run(connection: duckdb.DuckDBPyConnection, script: Path, path: Path) -> None:
    connection.execute("BEGIN")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, script VARCHAR)")
        connection.execute(script.read_text(encoding="utf-8"))
        connection.execute("INSERT INTO schema_version VALUES (?, ?)", [int(script.name[:4]), script.name])
        connection.execute("COMMIT")
    except duckdb.Error as error:
        connection.execute("ROLLBACK")
        raise StoreError(
            f"Migration {script.name} of the store {path} failed and was undone ({error}): report this with the file."
        ) from error


def version_of_file(path: Path) -> int | None:
    """Returns the schema version of a file, None where it is no Quench store or can't be opened."""
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            return version_of(connection)
    except duckdb.Error:
        return None
