"""The log of a run: one line of JSON per event, readable while it runs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from harness.run.executors.local import Event
from harness.run.sandbox.redaction import redact


class RunLog:
    """An open log; use ``RunLog.begin`` and ``with``."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @classmethod
    def begin(cls, spool: Path, **facts: object) -> Self:
        """Returns the log of a run that begins now: ``logs/run-<UTC time>-<process>.jsonl`` beside the records.

        Args:
            spool: Folder of records.
            facts: What the first line tells.

        Raises:
            OSError: The folder can't be written.
        """
        folder = spool / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"run-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.jsonl"
        log = cls((folder / name).open("a", encoding="utf-8", buffering=1))
        log.write("began", process=os.getpid(), **facts)
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.write("broke off", error_type=type(error).__name__, reason=str(error))
        self._file.close()

    def take(self, event: Event) -> None:
        """Writes what an event of the executor says."""
        names = {"submission": event.job.submission.name, "quantizer": event.job.spec.name}
        if event.stage is not None:
            self.write("stage", **names, stage=event.stage)
        if (result := event.result) is not None:
            self.write("cell", **names, task=result.cell.task, key=result.cell.key, status=result.status,
                       stage=result.stage, error_type=result.error_type, reason=result.reason)  # fmt: skip
        if event.job_ended:
            self.write("job ended", **names)

    def write(self, event: str, **facts: object) -> None:
        """Writes one line: when, what, and the facts that are not None; secrets in them are hidden."""
        line: dict[str, object] = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        for name, fact in facts.items():
            if fact is not None:
                line[name] = redact(fact) if isinstance(fact, str) else fact
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError:
            # A full disk must not end a run for its log's sake: rows tell the same.
            return
