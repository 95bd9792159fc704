"""Runs jobs in worker processes of this machine, one clean process for each job.

A forkserver that has imported torch, transformers and lm-eval once forks a
worker per job: importing them takes seconds, forking a fraction of one. A
worker that crashes, is killed or hangs ends its own job's cells as failed rows
and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.records import CellResult, Job, Status, Submission
from harness.run import fence, offline
from harness.run.runner import Settings, run_job, unfinished
from harness.store import cell_files

_PRELOADED = ["torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "lm_eval.evaluator",
              "harness.score.evaluation", "harness.run.runner", "harness.run.fence", "landlockpy",
              "pyseccomp"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """News from a run: a stage has begun, or a cell has ended.

    Attributes:
        job: The job it is about.
        stage: Stage that begins, None where ``result`` is given.
        result: How a cell ended.
        job_ended: Whether the job's process is gone.
    """

    job: Job
    stage: str | None = None
    result: CellResult | None = None
    job_ended: bool = False


Work = Callable[..., None]
"""Does one job; ``runner.run_job`` but for tests of this module."""


@dataclass(slots=True)
class _Running:
    job: Job
    process: BaseProcess
    pipe: Connection
    log: Path
    deadline: float | None
    ended: set[str] = field(default_factory=set)

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


def run(
    jobs: Sequence[Job], submissions: Mapping[str, Submission], settings: Settings, *, workers: int, spool: Path,
    on_event: Callable[[Event], None], timeout: float | None = None, work: Work = run_job,
) -> bool:  # fmt: skip
    """Runs all jobs; returns, when every cell of every job has ended as an event, whether Ctrl-C was pressed.

    The first Ctrl-C lets running jobs finish and starts no more; the second
    ends them. Cells that were not reached end as ``cancelled``.

    Args:
        jobs: In the order to start them.
        submissions: All submissions by name.
        settings: The same for every job.
        workers: Jobs at the same time.
        spool: Folder for cell records and job logs.
        on_event: Told everything, in this process.
        timeout: Seconds a job may take; None means no limit.
        work: What a worker does with its job.
    """
    (spool / "logs").mkdir(parents=True, exist_ok=True)
    crew = _Crew(dict(submissions), settings, spool, timeout, work, on_event)
    waiting, running = list(jobs), list[_Running]()
    with _Interrupts() as interrupts:
        while waiting or running:
            if interrupts.count:
                for job in waiting:
                    crew.end(job, "cancelled", "The run was interrupted before this job began.")
                waiting.clear()
            while waiting and len(running) < workers:
                running.append(crew.start(waiting.pop(0)))
            for worker in running:
                if worker.is_late or interrupts.count > 1:
                    worker.process.kill()
            ready = wait([worker.pipe for worker in running], timeout=0.2)
            for worker in [worker for worker in running if worker.pipe in ready]:
                if not crew.listen(worker):
                    running.remove(worker)
                    crew.bury(worker, interrupted=interrupts.count > 1)
        return interrupts.count > 0


@dataclass(slots=True)
class _Crew:
    """Starts workers, hears what they say and sees to it that each of their cells ends."""

    submissions: dict[str, Submission]
    settings: Settings
    spool: Path
    timeout: float | None
    work: Work
    on_event: Callable[[Event], None]

    def start(self, job: Job) -> _Running:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        receive, send = context.Pipe(duplex=False)
        log = self.spool / "logs" / f"{job.submission.name}--{job.spec.name}.log"
        process = context.Process(
            target=_be_worker,
            args=(self.work, job, self.submissions, self.settings, send, self.spool, log),
            daemon=True,
        )
        process.start()
        send.close()
        deadline = time.monotonic() + self.timeout if self.timeout is not None else None
        return _Running(job=job, process=process, pipe=receive, log=log, deadline=deadline)

    def listen(self, worker: _Running) -> bool:
        """Takes one message; returns False when the worker has closed its pipe."""
        try:
            kind, text = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if kind == "stage":
            self.on_event(Event(job=worker.job, stage=text))
        else:
            result = cell_files.read(Path(text))
            worker.ended.add(result.cell.key)
            self.on_event(Event(job=worker.job, result=result))
        return True

    def bury(self, worker: _Running, *, interrupted: bool) -> None:
        """Ends whatever cells the worker left behind, with the reason that fits."""
        late = worker.is_late
        worker.process.join(timeout=30)
        worker.pipe.close()
        if interrupted:
            self.end(worker.job, "cancelled", "The run was interrupted while this job ran.", worker)
        elif late:
            reason = f"The job ran past its time limit of {self.timeout:g} s and was ended: raise --timeout."
            self.end(worker.job, "failed", reason, worker, error="TimeoutError")
        elif (why := offline.why_stopped(worker.process.exitcode, worker.log)) is not None:
            self.end(worker.job, "failed", why, worker, error="NetworkError")
        else:
            self.end(worker.job, "failed", _cause_of_death(worker.process.exitcode), worker, error="WorkerLost")
        fence.clear(worker.log)
        self.on_event(Event(job=worker.job, job_ended=True))

    def end(
        self, job: Job, status: Status, reason: str, worker: _Running | None = None, error: str | None = None
    ) -> None:
        """Makes a row without scores of every cell of ``job`` that has not ended yet."""
        ended = worker.ended if worker else set()
        tail = _tail(worker.log) if worker and status == "failed" else None
        for cell in job.cells:
            if cell.key not in ended:
                row = unfinished(job, cell, status, reason, stage="run", error=error, log_tail=tail,
                                 device=self.settings.device, seed=self.settings.seed)  # fmt: skip
                self.on_event(Event(job=job, result=row))


def _be_worker(
    work: Work, job: Job, submissions: Mapping[str, Submission], settings: Settings, pipe: Connection, spool: Path,
    log: Path,
) -> None:  # fmt: skip
    """What a worker process does: one job; its records go to files and their paths through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("w", buffering=1, encoding="utf-8") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        sys.stdout = sys.stderr = sink

        def emit(result: CellResult) -> None:
            result = fenced.complete(result)
            if result.status == "failed":
                result = replace(result, log_tail=_tail(log))
            pipe.send(("result", str(cell_files.write(result, spool))))

        try:
            fenced = fence.enter(job, submissions, settings, log)
            work(job, submissions, settings, emit=emit, on_stage=lambda stage: pipe.send(("stage", stage)))
        except BaseException:
            # Here, while the log is open: the row of a lost worker quotes its end.
            traceback.print_exc()
            raise
    pipe.close()


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        more = " (often: the machine ran out of memory)" if name == "SIGKILL" else ""
        return f"The worker process was ended by {name}{more}."
    return f"The worker process ended early with exit code {code}."


def _tail(log: Path, lines: int = 20) -> str:
    """Returns the last lines of a log, at most 4,000 characters."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])[-4000:]
    except OSError:
        return ""


class _Interrupts:
    """Counts Ctrl-C instead of raising, so that a run always ends with a consistent store."""

    count = 0

    def __enter__(self) -> _Interrupts:
        try:
            self._before = signal.signal(signal.SIGINT, self._count_one)
        except ValueError:  # not the main thread: whoever is there handles Ctrl-C
            self._before = None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _count_one(self, *arguments: object) -> None:
        self.count += 1
