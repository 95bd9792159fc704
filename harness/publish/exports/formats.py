"""The board as files for other programs: what ``<site>/data`` holds and ``quench export`` writes.

Every file is a function of the store, the title and the address alone: two
exports of one store have the same bytes. No file holds a prompt, a response or
a reference: the texts of NEWS and BOOKS are somebody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError, StoreError, UnknownNameError
from harness.publish import release as releases
from harness.publish.exports import changes as score_changes
from harness.publish.exports import columns as export_columns
from harness.publish.exports import feed, other_leaderboards, parquet_duckdb
from harness.publish.formatting import prose
from harness.publish.ranking import rank as ranking
from harness.publish.release import Release
from harness.publish.tables import formats as table_formats
from harness.publish.tables import rows as table_rows
from harness.publish.thresholds import HEADLINE_BITS

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One file that an export has written.

    Attributes:
        file: Its path below the folder.
        says: What it holds, for pages.
    """

    file: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    board: Sequence[Row]
    cells: Sequence[Row]


def export(
    store: Path, out: Path, formats: Sequence[str] = (), *, title: str | None = None, base_url: str | None = None
) -> list[Exported]:
    """Writes the board as files for other programs, as below ``data/`` of the site.

    Args:
        store: The store to export; it is only read.
        out: Folder of the files; others in it stay.
        formats: Names of ``FORMATS``; none for all.
        title: Name of the board.
        base_url: Address of the site, for links to its pages.

    Raises:
        InputError: ``out`` can't be written to, ``base_url`` is no web address, or a format unknown.
        StoreError: The store can't be read, or holds nothing.
    """
    releases.check_address(base_url)
    check_formats(formats)
    cells = releases.stored_cells(store)
    if not cells:
        raise StoreError(f"The store {store} holds no cell: fill it with `quench run --store {store}`.")
    boards = [ranking.rank(cells, name) for name in releases.ordered_corpora(cells)]
    site = releases.site_facts(store, cells, title, base_url)
    release = releases.release_of(boards, cells, releases.page_links(boards), site)
    try:
        return write(out, release, formats)
    except OSError as error:
        raise InputError(
            f"Nothing can be written to {out} ({error.strerror}): name a folder with --out that may be written to."
        ) from error


def write(folder: Path, release: Release, formats: Sequence[str] = ()) -> list[Exported]:
    """Writes a board into a folder; files of the same names are replaced, others stay.

    Args:
        folder: Created when it is not there.
        release: The ranked store.
        formats: Names of ``FORMATS``; none for all.

    Returns:
        What was written, one item per file, or per folder of one file an entry.

    Raises:
        UnknownNameError: There is no such format.
    """
    check_formats(formats)
    folder.mkdir(parents=True, exist_ok=True)
    made = _tables(release)
    return [found for name, form in FORMATS.items() if not formats or name in formats
            for found in form(folder, release, made)]  # fmt: skip


def check_formats(formats: Sequence[str]) -> None:
    """Refuses a name that is not in ``FORMATS``.

    Raises:
        UnknownNameError: There is no such format.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("export format", name, FORMATS)


def _tables(release: Release) -> _Tables:
    cells = table_rows.cell_rows(release.cells, table_rows.judged_cells(release.boards))
    return _Tables(
        board=[_clean(row) for board in release.boards for row in table_rows.ranked_rows(board, None)],
        cells=[_clean(row) for row in cells],
    )


def _clean(row: Mapping[str, Any]) -> Row:
    """Returns a row whose texts can be written anywhere: what is invisible in them is shown as escapes."""
    return {
        key: prose(value) if isinstance(value, str)
        else [prose(item) for item in value] if isinstance(value, list)
        else value
        for key, value in row.items()
    }  # fmt: skip


def _put(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _csv(folder: Path, _: Release, made: _Tables) -> list[Exported]:
    for name, rows in (("board", made.board), ("cells", made.cells)):
        _put(folder, f"{name}.csv", table_formats.text_table(rows, "csv"))
    return [
        Exported(file="board.csv", says="The board, one row per entry and bit width."),
        Exported(file="cells.csv", says="Every cell with its scores and how it ended."),
    ]


def _as_json(folder: Path, release: Release, made: _Tables) -> list[Exported]:
    for name, rows in (("board", made.board), ("cells", made.cells)):
        head = {
            "schema": f"quench.{name}/{export_columns.VERSION}",
            "title": prose(release.title),
            "store_sha256": release.store_sha256,
            "scoring_version": release.scoring_version,
        }
        _put(folder, f"{name}.json", _json({**head, "rows": rows}))
    _put(folder, "board.schema.json", _json(export_columns.json_schema()))
    return [
        Exported(file="board.json", says="The board as JSON."),
        Exported(file="cells.json", says="Every cell as JSON."),
        Exported(file="board.schema.json", says="JSON Schema of both."),
    ]


def _parquet(folder: Path, _: Release, made: _Tables) -> list[Exported]:
    parquet_duckdb.write_parquet(folder / "cells.parquet", made.cells)
    return [Exported(file="cells.parquet", says="Every cell as Parquet.")]


def _duckdb(folder: Path, release: Release, made: _Tables) -> list[Exported]:
    parquet_duckdb.write_duckdb(folder / "board.duckdb", made.board, made.cells, release.cells)
    queries = "\n".join(f"{query.question}\n\n```sql\n{query.sql}\n```\n" for query in parquet_duckdb.QUERIES)
    _put(
        folder, "board-README.md",
        f"# Data of the board\n\nTables `board`, `cells` and `survival` in `board.duckdb`, from the store\n"
        f"`{release.store_sha256}`.\n\nScores are times 100, PrivLeak in percent; shares and recoveries fractions.\n"
        "No prompts, answers or references are in it. Open it with `duckdb -readonly board.duckdb`.\n\n"
        f"{queries}",
    )  # fmt: skip
    return [
        Exported(file="board.duckdb", says="Board, cells and survival per layer as a DuckDB database."),
        Exported(file="board-README.md", says="Five queries to begin with."),
    ]


def _feed(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    _put(folder, "feed.xml", feed.atom(release))
    return [Exported(file="feed.xml", says="Atom feed of entries, newest first.")]


def _badges(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    entries = list(release.entries())
    for entry in entries:
        _put(folder, f"badges/{entry.slug}.svg", feed.badge(entry))
    return _each(entries, "badges", "svg", f"Each entry's verdict at {HEADLINE_BITS} bit as an SVG badge.")


def _each(entries: Sequence[Any], folder: str, ending: str, says: str) -> list[Exported]:
    return [Exported(file=f"{folder}/{entries[0].slug}.{ending}", says=says)] if entries else []


def _bibtex(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    _put(folder, "board.bib", feed.bibtex(release))
    return [Exported(file="board.bib", says="BibTeX record of this state of the board.")]


def _latex(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    _put(folder, "board.tex", _paper_tables(release, "latex"))
    return [Exported(file="board.tex", says="The ranked tables in LaTeX.")]


def _markdown(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    _put(folder, "board.md", _paper_tables(release, "markdown"))
    return [Exported(file="board.md", says="The ranked tables in Markdown.")]


def _paper_tables(release: Release, form: Any) -> str:
    parts = []
    for board in release.boards:
        for bits in board.widths:
            rows = table_rows.ranked_rows(board, bits)
            said = [f"{prose(board.corpus)}, {bits} bit, worst backend; scoring version {board.scoring_version}."]
            said += [f"{reason}." for reason in table_formats.reasons(rows)]
            ranked = [row for row in rows if row["rank"] is not None]
            shown = [table_formats.text_table(ranked, form, table_rows.RANKED_COLUMNS)] if ranked else []
            parts.append("".join((*shown, table_formats.paragraphs([prose(line) for line in said], form))))
    return "\n".join(parts)


def _every_eval_ever(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    entries = list(release.entries())
    for entry in entries:
        _put(folder, f"every_eval_ever/{entry.slug}.json", _json(other_leaderboards.every_eval_ever(entry, release)))
    return _each(entries, "every_eval_ever", "json", "Each entry as a record of Every Eval Ever.")


def _hub(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    found = [(entry, other_leaderboards.hub_results(entry, release)) for entry in release.entries()]
    known = [(entry, text) for entry, text in found if text is not None]
    for entry, text in known:
        _put(folder, f"eval_results/{entry.slug}.yaml", text)
    return _each(
        [entry for entry, _ in known], "eval_results", "yaml",
        "Each entry's scores for .eval_results/ of its model repository on the Hugging Face hub.",
    )  # fmt: skip


def _changes(folder: Path, release: Release, _: _Tables) -> list[Exported]:
    _put(folder, "changes.json", _json({"schema": "quench.changes/1", **changes(release)}))
    return [Exported(file="changes.json", says="Entries added, and scores that a scoring version has changed.")]


def changes(release: Release) -> dict[str, list[Row]]:
    """Returns ``entries_added``, newest first, and ``scores_changed``."""
    return {
        "entries_added": score_changes.entries_added(release.cells),
        "scores_changed": score_changes.scores_changed(release.cells),
    }


FORMATS: Mapping[str, Callable[[Path, Release, _Tables], list[Exported]]] = {
    "csv": _csv, "json": _as_json, "parquet": _parquet, "duckdb": _duckdb, "latex": _latex, "markdown": _markdown,
    "bibtex": _bibtex, "feed": _feed, "badges": _badges, "every-eval-ever": _every_eval_ever, "eval-results": _hub,
    "changes": _changes,
}  # fmt: skip
"""What can be exported, by the name that ``quench export --format`` takes."""
