"""The store: one DuckDB file, one writer, one transaction per cell.

A cell that has finished stays; anything else (failed, skipped, cancelled)
gives way to a later outcome of the same key. Reading returns the very records
that were added, so pages and tables need nothing but this file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from harness.errors import StoreError, StoreInUseError
from harness.records import CellResult, DocumentRecord, Status
from harness.store import cell_files, gc_pause, rows, schema
from harness.store import relearning as relearning_store

# 16 KiB instead of 256 KiB: a store of few hundred cells is committed to git, and a
# table of ten rows should not take a quarter of a megabyte per column.
_CONFIG = {"default_block_size": "16384"}

_INSERT_DOCUMENTS = """
INSERT INTO document_rows
SELECT $cell, position, document, split, prompt_id, answer_id, reference_id, reference_excerpt,
       map(metrics, numbers), invalid_reason
FROM (SELECT unnest($position::INTEGER[]) AS position, unnest($document::INTEGER[]) AS document,
             unnest($split::VARCHAR[]) AS split, unnest($prompt::INTEGER[]) AS prompt_id,
             unnest($answer::INTEGER[]) AS answer_id, unnest($reference::INTEGER[]) AS reference_id,
             unnest($excerpt::VARCHAR[]) AS reference_excerpt, unnest($metrics::VARCHAR[][]) AS metrics,
             unnest($numbers::DOUBLE[][]) AS numbers, unnest($invalid::VARCHAR[]) AS invalid_reason)
"""


class Store:
    """An open store; use ``Store.open`` and ``with``."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._texts: dict[tuple[str, str], int] | None = None
        self._answers: dict[str, int] | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Self:
        """Returns an open store; close it, or use it in a ``with`` block.

        Args:
            path: The DuckDB file; created when absent, unless only read.
            read_only: Open for reading only; several processes may do so
                while nobody writes.

        Raises:
            StoreError: The file is missing, in use, no store, or newer than
                this program.
        """
        path = Path(path)
        if read_only and not path.exists():
            raise StoreError(f"There is no store {path}: name a file that `quench run` has written.")
        if path.is_dir():
            raise StoreError(f"{path} is a folder, not a store: name a DuckDB file such as results.duckdb.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = duckdb.connect(str(path), read_only=read_only, config={} if read_only else dict(_CONFIG))
        except (duckdb.Error, OSError) as error:
            raise _refusal(path, error) from error
        try:
            schema.bring_up_to_date(connection, path, read_only=read_only)
        except duckdb.Error as error:
            connection.close()
            raise StoreError(f"The store {path} can't be read ({error}): restore it from its cell records.") from error
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; everything added is in it."""
        self._connection.close()

    def keys(self, *statuses: Status) -> frozenset[str]:
        """Returns the keys of stored cells that ended in one of ``statuses``; of all cells when none is named."""
        query = "SELECT key FROM cells" + (" WHERE list_contains($1::VARCHAR[], status)" if statuses else "")
        found = self._connection.execute(query, [list(statuses)] if statuses else []).fetchall()
        return frozenset(row[0] for row in found)

    def statuses(self) -> dict[str, Status]:
        """Returns how each stored cell ended, by key."""
        return dict(self._connection.execute("SELECT key, status FROM cells").fetchall())

    def scores(self, status: Status) -> dict[str, dict[str, float | None]]:
        """Returns the value of each metric of the cells that ended in ``status``, by key."""
        found: dict[str, dict[str, float | None]] = {key: {} for key in self.keys(status)}
        query = "SELECT key, metric, value FROM scores JOIN cells ON cells.id = cell_id WHERE status = ?"
        for key, metric, value in self._connection.execute(query, [status]).fetchall():
            found[key][metric] = value
        return found

    def costs(self) -> list[dict[str, Any]]:
        """Returns what each finished cell took: submission, quantizer, task, timings in s, peak memory in bytes."""
        found = rows.fetch(
            self._connection,
            "SELECT submission, quantizer, task, document_limit, device, timings, peak_memory_bytes FROM cells"
            " WHERE status = 'finished' AND origin = 'scored'",
        )
        return [{**row, "timings": json.loads(row["timings"])} for row in found]

    def altered_snapshots(self) -> list[str]:
        """Returns the submissions and quantizers whose row has no longer the digest that it was stored under."""
        found = []
        digests = dict(self._connection.execute("SELECT id, digest FROM submissions").fetchall())
        for number, submission in rows.read_submissions(self._connection).items():
            if rows.submission_row(submission)["digest"] != digests[number]:
                found.append(submission.name)
        digests = dict(self._connection.execute("SELECT id, digest FROM quantizers").fetchall())
        for number, spec in rows.read_quantizers(self._connection).items():
            if rows.quantizer_row(spec)["digest"] != digests[number]:
                found.append(spec.name)
        return found

    def reasons(self, status: Status) -> dict[str, str | None]:
        """Returns why cells ended in ``status``, by key."""
        found = self._connection.execute("SELECT key, reason FROM cells WHERE status = ?", [status]).fetchall()
        return dict(found)

    def add(self, result: CellResult) -> bool:
        """Stores one outcome in one transaction.

        Returns:
            True when it was stored; False when the cell has finished before,
            in which case nothing changes.

        Raises:
            StoreError: A number is NaN or infinite, or the file can't be written.
        """
        cell_files.refuse_nan(result)
        known = self._connection.execute("SELECT id, status FROM cells WHERE key = ?", [result.cell.key]).fetchone()
        if known is not None and known[1] == "finished":
            return False
        try:
            self._connection.execute("BEGIN")
            if known is not None:
                self._remove(known[0])
            self._insert(result)
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._texts = self._answers = None
            self._undo()
            if isinstance(error, duckdb.Error | UnicodeError):
                raise StoreError(
                    f"Cell {result.cell.key[:12]} can't be written to the store {self._path} ({error}): "
                    "free space and rights there, then run the same command again."
                ) from error
            raise
        return True

    def cells(self, *, with_documents: bool = False) -> list[CellResult]:
        """Returns every stored outcome, in the order they were added.

        Args:
            with_documents: Whether ``CellResult.documents`` are filled.
        """
        with gc_pause.paused():
            submissions = rows.read_submissions(self._connection)
            specs = rows.read_quantizers(self._connection)
            models = rows.read_models(self._connection)
            scores = rows.read_scores(self._connection)
            documents = rows.read_documents(self._connection) if with_documents else {}
            return [
                rows.read_cell(
                    row,
                    submissions[row["submission_id"]],
                    specs[row["quantizer_id"]],
                    models[row["model_id"]],
                    scores.get(row["id"], ()),
                    documents.get(row["id"], ()),
                )
                for row in rows.fetch(self._connection, "SELECT * FROM cells ORDER BY id")
            ]

    def documents(self, key: str) -> tuple[DocumentRecord, ...]:
        """Returns what one cell's model made of each document.

        Raises:
            StoreError: The store has no cell of that key.
        """
        found = self._connection.execute("SELECT id FROM cells WHERE key = ?", [key]).fetchone()
        if found is None:
            raise StoreError(f"The store {self._path} has no cell {key[:12]}: `quench show --cells` lists what it has.")
        return tuple(rows.read_documents(self._connection, "cell_id = ?", found).get(found[0], ()))

    def add_relearning(self, probe: relearning_store.Relearning) -> None:
        """Stores a relearning probe; one of the same key gives way."""
        relearning_store.insert(self._connection, probe)

    def relearnings(self) -> list[relearning_store.Relearning]:
        """Returns every relearning probe, by corpus, quantizer and submission."""
        return relearning_store.read(self._connection)

    def _undo(self) -> None:
        try:
            self._connection.execute("ROLLBACK")
        except duckdb.Error:
            # The transaction had not begun, or the failure has ended it.
            return

    def _remove(self, cell_id: int) -> None:
        for table in ("scores", "document_rows"):
            self._connection.execute(f"DELETE FROM {table} WHERE cell_id = ?", [cell_id])
        self._connection.execute("DELETE FROM cells WHERE id = ?", [cell_id])

    def _insert(self, result: CellResult) -> None:
        cell_id = self._next_id("cells")
        model = rows.model_row(result)
        row = {
            "id": cell_id,
            **rows.cell_row(result),
            "submission_id": self._shared("submissions", rows.submission_row(result.submission)),
            "quantizer_id": self._shared("quantizers", rows.quantizer_row(result.spec)),
            "model_id": None if model is None else self._model(model, result),
        }
        rows.insert(self._connection, "cells", [row])
        scores = [{"cell_id": cell_id, **score} for score in rows.score_rows(result.scores)]
        rows.insert(self._connection, "scores", scores)
        if result.documents:
            self._insert_documents(cell_id, result.documents)

    def _insert_documents(self, cell_id: int, documents: tuple[DocumentRecord, ...]) -> None:
        pairs = [(document.reference_sha256, document.reference_excerpt) for document in documents]
        ids = self._text_ids(
            [(document.prompt_sha256, document.prompt_excerpt) for document in documents]
            + [(sha, excerpt) for sha, excerpt in pairs if sha is not None]
        )
        prompts, rest = ids[: len(documents)], iter(ids[len(documents) :])
        self._connection.execute(
            _INSERT_DOCUMENTS,
            {
                "cell": cell_id,
                "position": list(range(len(documents))),
                "document": [document.index for document in documents],
                "split": [document.split for document in documents],
                "prompt": prompts,
                "answer": self._answer_ids([document.response for document in documents]),
                "reference": [None if sha is None else next(rest) for sha, _ in pairs],
                "excerpt": [excerpt if sha is None else None for sha, excerpt in pairs],
                "metrics": [list(document.scores) for document in documents],
                "numbers": [list(document.scores.values()) for document in documents],
                "invalid": [document.invalid_reason for document in documents],
            },
        )

    def _next_id(self, table: str) -> int:
        found = self._connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()
        assert found is not None  # an aggregate always has a row
        return int(found[0])

    def _shared(self, table: str, row: rows.Row) -> int:
        """Returns the id of a row that many cells share, inserting it when it is new."""
        found = self._connection.execute(f"SELECT id FROM {table} WHERE digest = ?", [row["digest"]]).fetchone()
        if found is not None:
            return int(found[0])
        new = self._next_id(table)
        rows.insert(self._connection, table, [{"id": new, **row}])
        return new

    def _model(self, row: rows.Row, result: CellResult) -> int:
        before = self._next_id("quantized_models")
        model_id = self._shared("quantized_models", row)
        if model_id == before:
            layers = [{"model_id": model_id, **layer} for layer in rows.layer_rows(result.survival)]
            rows.insert(self._connection, "survival", layers)
        return model_id

    def _text_ids(self, texts: list[tuple[str, str]]) -> list[int]:
        """Returns ids of (digest, excerpt) pairs; what is new is inserted in one statement."""
        if self._texts is None:
            found = self._connection.execute("SELECT id, sha256, excerpt FROM texts").fetchall()
            self._texts = {(sha, text): number for number, sha, text in found}
        known = self._texts
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            first = len(known) + 1
            known.update(zip(new, range(first, first + len(new)), strict=True))
            self._connection.execute(
                "INSERT INTO texts SELECT unnest(?::INTEGER[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
                [[known[text] for text in new], [text[0] for text in new], [text[1] for text in new]],
            )
        return [known[text] for text in texts]

    def _answer_ids(self, answers: list[str]) -> list[int]:
        """Returns ids of responses; what is new is inserted in one statement."""
        if self._answers is None:
            found = self._connection.execute("SELECT id, response FROM answers").fetchall()
            self._answers = {text: number for number, text in found}
        known = self._answers
        new = [answer for answer in dict.fromkeys(answers) if answer not in known]
        if new:
            first = len(known) + 1
            known.update(zip(new, range(first, first + len(new)), strict=True))
            self._connection.execute(
                "INSERT INTO answers SELECT unnest(?::INTEGER[]), unnest(?::VARCHAR[])",
                [[known[answer] for answer in new], new],
            )
        return [known[answer] for answer in answers]


def _refusal(path: Path, error: Exception) -> StoreError:
    text = str(error)
    if "set lock" in text.lower() or "different configuration" in text or "already attached" in text:
        return StoreInUseError(
            f"The store {path} is in use by {_holder(text)}: DuckDB lets one program write at a time, "
            "so wait until it ends, or copy the file and read the copy."
        )
    if "not a valid DuckDB" in text or "not a DuckDB" in text:
        return StoreError(
            f"{path} is no DuckDB file: name a file that `quench run` has written, or one that is not there yet."
        )
    return StoreError(f"The store {path} can't be opened ({text.splitlines()[0]}): check the path and its rights.")


def _holder(refusal: str) -> str:
    """Returns the process that DuckDB's refusal names, with its command line where the system shows it."""
    found = re.search(r"\(PID (\d+)\)", refusal)
    if found is None:
        return "another process"
    try:
        words = Path(f"/proc/{found[1]}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        words = []
    # The interpreter and the folders of scripts tell nothing; the command is what the holder was asked.
    asked = " ".join(Path(word).name if "/" in word and number < 2 else word for number, word in enumerate(words))
    return f"process {found[1]} ({asked.strip()[:200]})" if asked.strip() else f"process {found[1]}"
