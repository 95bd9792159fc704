"""A worker process: one job behind the fence, its records in files; it ends when its parent ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import StoreError, first_line
from harness.records import CellResult, Job, Submission
from harness.run.job import Settings, unfinished
from harness.run.sandbox import fence
from harness.run.sandbox.redaction import forget_secrets, redact
from harness.store import cell_files

Work = Callable[..., None]
"""Does one job; ``job.run_job`` but for tests of the executor."""


def log_of(job: Job, spool: Path) -> Path:
    """Returns where a job's log stands below the folder of its run's records."""
    return spool / "logs" / f"{job.submission.name}--{job.spec.name}.log"


def be_worker(
    work: Work, job: Job, submissions: Mapping[str, Submission], settings: Settings, pipe: Connection, spool: Path,
    log: Path, remark: str | None, code: tuple[str | None, bool],
) -> None:  # fmt: skip
    """Does one job in this process; its records go to files and their paths through the pipe.

    Args:
        work: What does the job.
        job: The job.
        submissions: All submissions by name.
        settings: Of the run; the device is this worker's own.
        pipe: Told each stage, the path of each record, and the key and reason where one can't be written.
        spool: Folder for the records.
        log: File that takes standard output and error.
        remark: What readers of the job's finished cells must know, if anything.
        code: Commit and state of the checkout, as the run has found them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    provenance.take_code_state(code)
    # What was imported before the fork never dies here: collections need not look at it.
    gc.freeze()
    with log.open("w", buffering=1, encoding="utf-8") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        sys.stdout = sys.stderr = sink
        warnings.simplefilter("default")

        left, stage = {cell.key: cell for cell in job.cells}, "run"
        fenced: fence.Fence | None = None

        def on_stage(begins: str) -> None:
            nonlocal stage
            stage = begins
            pipe.send(("stage", begins))

        def emit(result: CellResult) -> None:
            left.pop(result.cell.key, None)
            message: tuple[str, Any]
            result = fenced.complete(result) if fenced else result
            if result.status == "failed":
                result = replace(result, reason=redact(result.reason or ""), log_tail=quote(log))
            elif remark is not None:
                result = replace(result, remarks=(*result.remarks, remark))
            try:
                message = ("result", str(_write(job, result, spool, log)))
            except OSError as error:
                message = ("unwritten", (result.cell.key, _no_record(spool, error), "OSError"))
            pipe.send(message)

        try:
            fenced = fence.enter(job, submissions, settings, log)
            _end_with_parent()
            forget_secrets()
            if settings.memory_limit is not None:
                fence.limit_memory(settings.memory_limit)
            if settings.card is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = settings.card
            work(job, submissions, settings, emit=emit, on_stage=on_stage)
        except Exception as error:
            # Here, while the log is open: the rows quote its end.
            traceback.print_exc()
            for cell in tuple(left.values()):
                emit(unfinished(job, cell, "failed", first_line(error)[:500], stage=stage, error=type(error).__name__,
                                device=settings.device, seed=settings.seed))  # fmt: skip
    pipe.close()


def _write(job: Job, result: CellResult, spool: Path, log: Path) -> Path:
    """Writes a record and returns its path; a result that no record can hold becomes its own cell's failure."""
    try:
        return cell_files.write(result, spool)
    except StoreError as error:
        why = str(error).encode(errors="backslashreplace").decode()
        failed = unfinished(job, result.cell, "failed", redact(why), result.provenance, stage="store",
                            error=type(error).__name__, log_tail=quote(log))  # fmt: skip
        return cell_files.write(failed, spool)


def quote(log: Path) -> str:
    """Returns where a job's log lies, relative to the folder of records, and its last lines without secrets."""
    last = tail(log)
    return f"{log.parent.name}/{log.name} ends with:\n{last}" if last else last


def tail(log: Path, lines: int = 20) -> str:
    """Returns the last lines of a log without secrets, at most 4,000 characters."""
    try:
        return redact("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]))[-4000:]
    except OSError:
        return ""


def _no_record(spool: Path, error: OSError) -> str:
    return (
        f"The cell was scored, but its record can't be written to {spool.name} ({error.strerror}): free space or give "
        "rights there, and run the same command again."
    )


def _end_with_parent() -> None:
    """Ends this process as soon as the run's own is gone, however it went: nobody would take its results."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
