"""Merges records from elsewhere into a store; a contradiction is reported and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records import CellResult, Score
from harness.store import cell_files
from harness.store.store import Store
from harness.store.withheld_texts import without_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of records from elsewhere.

    Attributes:
        new: Records that were stored.
        known: Records whose result the store had already, and unfinished ones of cells that it knows.
        conflicts: One row for each record with another result than the store's.
    """

    new: int
    known: int
    conflicts: tuple[dict[str, Any], ...]


def ingest(store: Path, source: Path, *, texts: bool = True) -> Merged:
    """Stores the cell records of a folder or the cells of another store, e.g. from another machine.

    A finished cell stays as it is. A record of it with other scores is a
    conflict; another one is what the store has already.

    Args:
        store: The store to add to.
        source: A folder of cell records, or a store's file.
        texts: Whether answers and excerpts come along; otherwise digests stand for them.

    Raises:
        StoreError: The store can't be written, or the source can't be read whole; then nothing is stored.
    """
    if source.is_dir():
        results = [cell_files.read(path) for path in sorted(source.glob("*.json"))]
    else:
        with Store.open(source, read_only=True) as other:
            results = other.cells(with_documents=True)
    if not texts:
        results = [without_texts(result) for result in results]
    with Store.open(store) as opened:
        clashing = tuple(conflicts(results, opened.scores("finished")))
        statuses = opened.statuses()
        # A failure elsewhere takes nothing from what this store knows of the cell.
        new = sum(
            opened.add(result) for result in results if result.status == "finished" or result.cell.key not in statuses
        )
    return Merged(new=new, known=len(results) - new - len(clashing), conflicts=clashing)


def conflicts(results: list[CellResult], stored: Mapping[str, Mapping[str, float | None]]) -> Iterator[dict[str, Any]]:
    """Yields a row for each finished result whose scores are not, to the last bit, those stored under its key.

    Args:
        results: Records.
        stored: Of finished cells the value of each metric, by key.
    """
    for result in results:
        kept = stored.get(result.cell.key)
        if result.status != "finished" or kept is None:
            continue
        differing = [score for score in result.scores if kept.get(score.metric, score) != score.value]
        if differing or set(kept) != {score.metric for score in result.scores}:
            yield _row(result, differing, kept)


def _row(result: CellResult, differing: list[Score], kept: Mapping[str, float | None]) -> dict[str, Any]:
    told = "; ".join(f"{score.metric} {kept.get(score.metric)} here, {score.value} there" for score in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    cell = result.cell
    return {
        "submission": cell.submission, "quantizer": cell.quantizer, "task": cell.task, "key": cell.key[:12],
        "differs": (told or "other metrics") + more,
    }  # fmt: skip
