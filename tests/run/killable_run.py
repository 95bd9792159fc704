"""`quench run` over jobs without models: a program that tests start, kill and start again.

Usage: ``python killable_run.py STORE [--jobs N] [--die-in-write N]``. Everything is the real thing but the
plan and what a worker does with its job: command line, store, records, worker processes.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs_without_models import make_job

from harness.cli import main as cli
from harness.provenance import sha256_json
from harness.records import Cell, CellResult, DocumentRecord, Job, Score
from harness.run import sweep
from harness.run.executors import local
from harness.run.job import unfinished
from harness.run.plan import planner
from harness.store.store import Store

SECONDS_PER_CELL = 0.03


def result_of(job: Job, cell: Cell) -> CellResult:
    """Returns scores that follow from the cell's key alone, so that two runs must agree to the last bit."""
    number = int(sha256_json(cell.key)[:8], 16) / 2**32
    documents = tuple(
        DocumentRecord(index=index, split="forget_qa", prompt_sha256=f"{index:064d}", prompt_excerpt=f"Q {index}",
                       response=f"answer {number}", reference_sha256=None, reference_excerpt="",
                       scores={"knowmem_f": number / (index + 1)})
        for index in range(5)
    )  # fmt: skip
    row = replace(unfinished(job, cell, "finished", ""), reason=None, stage=None)
    return replace(row, scores=(Score(metric="knowmem_f", value=number, num_docs=5),), documents=documents)


def pretend(job: Job, *arguments: object, emit: Callable[[CellResult], None], on_stage: Callable[[str], None]) -> None:
    """What a worker does: its cells one after the other, or what the job's name asks for."""
    for cell in job.cells:
        on_stage(cell.task)
        time.sleep(SECONDS_PER_CELL)
        misbehave(job.submission.name)
        emit(result_of(job, cell))


def misbehave(name: str) -> None:
    """Goes wrong in the way that the job is named after."""
    if name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(3600)
    if name == "raise":
        raise ValueError("a mistake in the program")
    if name == "disk-full":
        # What the system refuses to write for lack of room, whatever writes it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    if name == "scratch-full":
        Path("/dev/full").write_text("no room for this")
    if name == "hungry":
        bytearray(2**34)


def jobs(names: list[str]) -> list[Job]:
    """Returns one job for each name, the plan of every run."""
    return [make_job(name) for name in names]


def main() -> None:
    store, names, *more = sys.argv[1:]
    every = jobs(names.split(","))

    def plan(*arguments: Any, finished: Any = (), **options: Any) -> planner.Plan:
        done = tuple(cell for job in every for cell in job.cells if cell.key in finished)
        left = [replace(job, cells=tuple(cell for cell in job.cells if cell.key not in finished)) for job in every]
        return planner.Plan(jobs=tuple(job for job in left if job.cells), done=done, impossible=(), added_controls=())

    planner.plan = plan
    sweep.local.run = functools.partial(local.run, work=pretend)  # type: ignore[assignment]
    # Nothing here needs torch, which takes seconds to import.
    local._PRELOADED[:] = ["harness.run.job", "harness.run.sandbox.fence"]
    if more and more[0] == "--die-in-write":
        die_in_write(int(more[1]))
        more = more[2:]
    print("begun", flush=True)
    cli.app(["run", "--store", store, "--workers", "2", *more])


def die_in_write(number: int) -> None:
    """Kills the whole process group in the middle of the store's so-many-th transaction."""
    insert, count = Store._insert, iter(range(1, sys.maxsize))

    def _insert(self: Store, result: CellResult) -> None:
        insert(self, result)
        if next(count) == number:
            os.killpg(0, signal.SIGKILL)

    Store._insert = _insert  # type: ignore[method-assign]


if __name__ == "__main__":
    # Where tests run in the background of a script, Ctrl-C is ignored, and a program would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(Path(__file__).parent))
    main()
