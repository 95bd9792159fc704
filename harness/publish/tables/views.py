"""The tables of `quench show`: a store's ranking, an entry's cells, or a cell's documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError, UnknownNameError
from harness.publish.ranking import rank as ranking
from harness.publish.tables import rows as table_rows
from harness.publish.thresholds import SYMBOLS
from harness.records import CellResult
from harness.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Rows to print, with the columns that fit a terminal (all of them go into JSON)."""

    rows: list[dict[str, Any]]
    title: str
    columns: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows of a table to keep; None keeps all.

    Attributes:
        ranked: Only entries that have a rank.
    """

    method: str | None = None
    kind: str | None = None
    verdict: str | None = None
    ranked: bool = False

    def keep(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row is to be shown."""
        return (
            self.method in (None, row["method"])
            and self.kind in (None, row["kind"])
            and self.verdict in (None, row["verdict"])
            and not (self.ranked and row.get("rank") is None)
        )


NO_FILTERS = Filters()
_AT = 4
# What each table can be narrowed by; an option that it would ignore is refused.
_NARROWS = {
    "the ranking": ({"corpus", "at", "method", "kind", "verdict", "ranked"},
                    "an entry's worst case is that of all quantizers and tasks; name a submission, or add --cells"),
    "a table of cells": ({"corpus", "at", "task", "quantizer", "method", "kind", "verdict"},
                         "cells have no rank; leave out --cells and the submission to see the ranking"),
    "the documents of one cell": ({"corpus", "task", "quantizer"}, "leave it out, or leave out --documents"),
}  # fmt: skip


def view(
    store: Path, *, submission: str | None, corpus: str | None, bits: int | None, cells: bool, documents: bool,
    task: str | None, quantizer: str | None, filters: Filters = NO_FILTERS,
) -> View:  # fmt: skip
    """Returns what was asked for; without a bit width the ranking is at 4 bit, and cells are those of every width.

    Raises:
        InputError: The store is not there, an option is missing, or one does not filter what was asked for.
        UnknownNameError: The store holds nothing of that name.
    """
    what = "the documents of one cell" if documents else "a table of cells" if cells or submission else "the ranking"
    asked = {"corpus": corpus, "at": bits, "task": task, "quantizer": quantizer, "method": filters.method,
             "kind": filters.kind, "verdict": filters.verdict, "ranked": filters.ranked or None}  # fmt: skip
    narrows, instead = _NARROWS[what]
    if surplus := [name for name, value in asked.items() if value is not None and name not in narrows]:
        raise InputError(f"--{surplus[0]} does not narrow {what}: {instead}.")
    if cells and documents:
        raise InputError("--cells and --documents exclude each other: give one of them.")
    if not store.exists():
        raise InputError(f"There is no store {store}: make one with `quench run --store {store}`.")
    with Store.open(store, read_only=True) as opened:
        results = opened.cells(with_documents=not documents)
        for kind, name, known in (
            ("submission", submission, {result.cell.submission for result in results}),
            ("quantizer", quantizer, {result.cell.quantizer for result in results}),
            ("task", task, {result.cell.task for result in results}),
            ("corpus", corpus, {result.corpus for result in results}),
            ("method", filters.method, {result.submission.method for result in results}),
            ("kind", filters.kind, {result.submission.kind for result in results}),
            ("verdict", filters.verdict, set(SYMBOLS)),
        ):
            if name is not None and name not in known and (kind in ("submission", "corpus") or not documents):
                where = "" if kind == "verdict" else " in the store"
                raise UnknownNameError(f"{kind}{where}", name, known)
        results = [result for result in results if corpus in (None, result.corpus)]
        widths = sorted({result.spec.bits for result in results}, reverse=True)
        if bits is not None and bits not in widths:
            raise InputError(f"Nothing in the store is of {bits} bit: --at takes {', '.join(map(str, widths))}.")
        if documents:
            cell = _one_cell(results, submission, task, quantizer)
            return View(
                rows=table_rows.document_rows(opened.documents(cell.cell.key)),
                title=f"{cell.cell.submission} x {cell.cell.quantizer} x {cell.cell.task}",
            )
    boards = [ranking.rank(results, name) for name in sorted({result.corpus for result in results})]
    if submission is None and not cells:
        at = _AT if bits is None else bits
        rows = [row for board in boards for row in table_rows.ranked_rows(board, at) if filters.keep(row)]
        # Each corpus has ranks of its own.
        corpus_too = ("corpus",) if len({row["corpus"] for row in rows}) > 1 else ()
        title = f"Ranking at {at} bit (worst backend)"
        return View(rows=rows, title=title, columns=(*corpus_too, *table_rows.RANKED_COLUMNS))
    chosen = [
        result for result in results
        if submission in (None, result.cell.submission) and quantizer in (None, result.cell.quantizer)
        and bits in (None, result.spec.bits) and task in (None, result.cell.task)
    ]  # fmt: skip
    rows = table_rows.cell_rows(sorted(chosen, key=_place), table_rows.judged_cells(boards))
    kept = [row for row in rows if filters.keep(row)]
    if submission is None:
        return View(rows=kept, title=f"{len(kept)} cells")
    columns = [column for column in table_rows.CELL_COLUMNS if column != "submission"]
    flags = [flag.word for board in boards for row in board.rows if row.submission.name == submission
             for flag in row.flags]  # fmt: skip
    flagged = f", flagged {', '.join(flags)}" if flags else ""
    return View(rows=kept, title=f"{submission}: {len(kept)} cells{flagged}", columns=columns)


def _place(result: CellResult) -> tuple[object, ...]:
    """Controls first, then by name; each from wide to narrow codes."""
    role = ("target", "retrain", "entry").index(result.submission.role)
    return result.corpus, role, result.cell.submission, -result.spec.bits, result.cell.quantizer, result.cell.task


def _one_cell(
    results: Sequence[CellResult], submission: str | None, task: str | None, quantizer: str | None
) -> CellResult:
    if submission is None or task is None or quantizer is None:
        raise InputError("Documents belong to one cell: name a submission, --task and --quantizer with --documents.")
    found = [r for r in results if (r.cell.submission, r.cell.task, r.cell.quantizer) == (submission, task, quantizer)]
    if not found:
        raise InputError(
            f"The store has no cell {submission} x {quantizer} x {task}:"
            f" `quench show {submission}` lists those that it has."
        )
    return max(found, key=lambda result: (result.status == "finished", result.provenance.created_at))
