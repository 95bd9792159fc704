"""Status of each cell, from the store if it is free and from records while a run holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from harness.errors import StoreError, StoreInUseError
from harness.records import Status
from harness.run.plan.planner import Plan
from harness.store import cell_files
from harness.store.store import Store

_SNAPSHOT = "stored.keys"
_STATUSES = get_args(Status)


def write_snapshot(statuses: Mapping[str, Status], spool: Path) -> None:
    """Leaves beside the records what the store held when a run began, for those who watch it."""
    spool.mkdir(parents=True, exist_ok=True)
    partial = spool / f".{_SNAPSHOT}.partial"
    partial.write_text("".join(f"{status} {key}\n" for key, status in statuses.items()), encoding="utf-8")
    partial.replace(spool / _SNAPSHOT)


class LiveStatus:
    """How each cell of a store has ended so far; asks again cheaply, because a record is read once."""

    def __init__(self, store: Path, spool: Path) -> None:
        self._store = store
        self._spool = spool
        self._read: dict[Path, tuple[int, Status]] = {}

    def statuses(self) -> dict[str, Status]:
        """Returns how each cell has ended, by key, without waiting for a run that holds the store.

        Raises:
            StoreError: The store is free but can't be read.
        """
        if not self._store.exists():
            return {}
        try:
            with Store.open(self._store, read_only=True) as opened:
                return opened.statuses()
        except StoreInUseError:
            return self._from_records()

    def _from_records(self) -> dict[str, Status]:
        try:
            lines = (self._spool / _SNAPSHOT).read_text(encoding="utf-8").splitlines()
            began = (self._spool / _SNAPSHOT).stat().st_mtime_ns
        except OSError:
            lines, began = [], 0
        found = {key: cast(Status, status) for status, key in (line.split(" ", 1) for line in lines)}
        for entry in os.scandir(self._spool) if self._spool.is_dir() else ():
            changed = entry.stat().st_mtime_ns if entry.name.endswith(".json") else -1
            if changed < began:
                continue
            path = Path(entry.path)
            if self._read.get(path, (None,))[0] != changed:
                try:
                    self._read[path] = changed, cell_files.read(path).status
                except StoreError:
                    continue  # cut short by a crash: its cell is still to do
            found[path.stem] = self._read[path][1]
        return found


def progress_rows(plan: Plan, statuses: Mapping[str, Status]) -> list[dict[str, Any]]:
    """Returns how many cells of a full plan have ended how, by submission and quantizer.

    Args:
        plan: A plan made with no finished keys, so that it holds every cell.
        statuses: How each cell has ended, by key.
    """
    rows = []
    for job in (*plan.jobs, *(job for job, _ in plan.impossible)):
        ended = [statuses[cell.key] for cell in job.cells if cell.key in statuses]
        rows.append({
            "submission": job.submission.name, "quantizer": job.spec.name,
            **{status: ended.count(status) for status in _STATUSES}, "to_do": len(job.cells) - len(ended),
        })  # fmt: skip
    return rows
