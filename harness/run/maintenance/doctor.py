"""Finds faults of a store, its records and its folders, and repairs them without losing a result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import StoreError, StoreInUseError
from harness.run.maintenance import cache as cache_folder
from harness.run.sweep import recover, spool_of
from harness.store import cell_files, merging, schema
from harness.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        what: Kind of the finding, in two or three words.
        where: File or folder.
        sentence: What was found.
        remedy: What ``repair`` does about it; None where only a person can decide.
    """

    what: str
    where: Path
    sentence: str
    remedy: str | None


def examine(store: Path, *, cache: Path, site: Path = Path("leaderboard/site")) -> list[Finding]:
    """Returns everything that is wrong; nothing is changed.

    Args:
        store: DuckDB file; its records lie beside it.
        cache: Folder of merged and quantized models.
        site: Folder of the rendered pages.

    Raises:
        StoreError: There is neither a store nor a record, another process holds the
            store, or it belongs to a newer program.
    """
    spool = spool_of(store)
    if not store.exists() and not spool.is_dir():
        raise StoreError(f"There is no store {store} and no folder {spool}: name a file that `quench run` has written.")
    return [*_of_store(store, spool), *_of_places(spool, cache, site)]


def repair(store: Path, findings: list[Finding], *, cache: Path) -> None:
    """Mends every finding that has a remedy.

    Args:
        store: The DuckDB file that was examined.
        findings: Of ``examine``.
        cache: The folder that was examined.

    Raises:
        StoreError: The store can't be written.
    """
    mend: dict[str, Callable[[Path], object]] = {
        "damaged store": lambda place: place.replace(place.with_name(f"{place.name}.damaged")),
        "broken record": lambda place: place.replace(place.with_name(f"{place.name}.broken")),
        "left over": _remove,
    }
    for found in findings:
        if found.what in mend:
            mend[found.what](found.where)
    if any(found.what == "left in the cache" for found in findings):
        cache_folder.clear(cache, ["left over"])
    if any(found.what in {"damaged store", "no store", "older schema", "unwritten end", "not stored"}
           for found in findings):  # fmt: skip
        # Opening for writing brings schema and write-ahead log up to date.
        with Store.open(store) as opened:
            recover(opened, spool_of(store))


def _of_store(store: Path, spool: Path) -> Iterator[Finding]:
    records, broken = list[Path](), list[Path]()
    results = []
    for path in sorted(spool.glob("*.json")):
        try:
            results.append(cell_files.read(path))
            records.append(path)
        except StoreError:
            broken.append(path)
    for path in broken:
        yield Finding(what="broken record", where=path, sentence="A record that was cut short or changed.",
                      remedy="renamed to .broken; its cell is still to do")  # fmt: skip
    if not store.exists():
        yield Finding(what="no store", where=store, sentence=f"No store, but {len(records)} records.",
                      remedy="made anew from the records")  # fmt: skip
        return
    wal = store.with_name(f"{store.name}.wal")
    if wal.exists():
        yield Finding(what="unwritten end", where=wal, remedy="written to the store",
                      sentence="A run was killed: its last cells are in this file alone.")  # fmt: skip
    try:
        with Store.open(store, read_only=True) as opened:
            statuses = opened.statuses()
            clashing = list(merging.conflicts(results, opened.scores("finished")))
            altered = opened.altered_snapshots()
    except StoreInUseError:
        raise
    except StoreError as error:
        version = schema.version_of_file(store)
        if version is not None and version > len(schema.scripts()):
            raise
        if version:
            yield Finding(what="older schema", where=store, sentence=str(error), remedy="brought up to date")
        else:
            yield Finding(what="damaged store", where=store, sentence=str(error),
                          remedy=f"renamed to .damaged and made anew from {len(records)} records")  # fmt: skip
        return
    absent = [result for result in results if result.cell.key not in statuses
              or (result.status == "finished" and statuses[result.cell.key] != "finished")]  # fmt: skip
    if absent:
        yield Finding(what="not stored", where=spool, sentence=f"{len(absent)} records are not in the store.",
                      remedy="stored")  # fmt: skip
    for row in clashing:
        told = f"{row['submission']} x {row['quantizer']} x {row['task']}: {row['differs']} (store, then record)."
        yield Finding(what="digest mismatch", where=spool / f"{row['key']}...json", sentence=told, remedy=None)
    for name in altered:
        told = f"The row of {name} was changed: it has not the digest that it was stored under."
        yield Finding(what="digest mismatch", where=store, sentence=told, remedy=None)


def _of_places(spool: Path, cache: Path, site: Path) -> Iterator[Finding]:
    left = [*spool.glob(".*.partial"), *(spool / "logs").glob("*.tmp"), *site.parent.glob(f".{site.name}.*")]
    for path in sorted(left):
        yield Finding(what="left over", where=path, sentence="What a killed process was writing.", remedy="removed")
    (room,) = (room for room in cache_folder.rooms(cache) if room.kind == "left over")
    if room.entries:
        told = f"{room.entries} scratch folders of more than a day, {room.size_bytes / 2**20:.0f} MB."
        yield Finding(what="left in the cache", where=cache, sentence=told, remedy="removed")
    if spool.is_dir() and not os.access(spool, os.W_OK):
        yield Finding(what="no rights", where=spool, sentence="Records can't be written here.", remedy=None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
