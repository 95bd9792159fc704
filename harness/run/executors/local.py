"""Runs jobs in worker processes of this machine, one clean process for each job.

A forkserver that has imported torch, transformers and lm-eval once forks a
worker per job: importing them takes seconds, forking a fraction of one. A
worker that crashes, is killed or hangs ends its own job's cells as failed rows
and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness import provenance
from harness.errors import StoreError
from harness.records import Cell, CellResult, Job, Status, Submission
from harness.run.executors.worker import Work, be_worker, log_of, quote
from harness.run.job import Settings, run_job, unfinished
from harness.run.sandbox import fence
from harness.run.sandbox import network as network_fence
from harness.run.sandbox.redaction import redact_file
from harness.store import cell_files

# harness.cli.main as well: a worker imports the main module again, and the command line takes as long as a small cell.
_PRELOADED = ["torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "lm_eval.evaluator",
              "harness.score.evaluation", "harness.run.job", "harness.run.sandbox.fence", "harness.cli.main",
              "landlockpy", "pyseccomp"]  # fmt: skip
# They ask the card what it can when they are imported, and CUDA can't be used after a fork of a process that has.
_ASKS_THE_CARD = {"peft", "transformers.models.llama.modeling_llama"}
_OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}
_BATCH_OF_ONE = "Scored one row at a time, because larger batches ran out of memory."


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A job that waits, and what an attempt before this one has taught."""

    job: Job
    is_second: bool = False
    batch_of_one: bool = False


@dataclass(slots=True)
class _Running:
    attempt: _Try
    process: BaseProcess
    pipe: Connection
    log: Path
    deadline: float | None
    card: str | None
    stage: str = "run"
    ended: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    @property
    def job(self) -> Job:
        return self.attempt.job

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


def run(
    jobs: Sequence[Job], submissions: Mapping[str, Submission], settings: Settings, *, workers: int, spool: Path,
    on_event: Callable[[Event], None], timeout: float | None = None, cards: Sequence[str] = (), work: Work = run_job,
) -> bool:  # fmt: skip
    """Runs all jobs; returns, when every cell of every job has ended as an event, whether it was interrupted.

    The first Ctrl-C lets running jobs finish and starts no more; the second,
    SIGTERM and a closed terminal end them. Cells that were not reached end as
    ``cancelled``. A job whose worker was killed from outside, and cells that
    ran out of memory while they were scored (then one row at a time), are
    tried once more; nothing else is.

    Args:
        jobs: In the order to start them.
        submissions: All submissions by name.
        settings: The same for every job.
        workers: Jobs at the same time.
        spool: Folder for cell records and job logs.
        on_event: Told everything, in this process.
        timeout: Seconds a job may take; None means no limit.
        cards: GPUs as CUDA_VISIBLE_DEVICES names them; each worker sees the
            one that has the fewest jobs. Empty leaves the device to torch.
        work: What a worker does with its job.
    """
    (spool / "logs").mkdir(parents=True, exist_ok=True)
    needed = preloaded("cuda" if cards else settings.device, jobs, submissions)
    multiprocessing.get_context("forkserver").set_forkserver_preload(needed)
    crew = _Crew(dict(submissions), settings, spool, timeout, work, on_event)
    waiting, running = [_Try(job=job) for job in jobs], list[_Running]()
    with Interrupts() as interrupts:
        while waiting or running:
            if interrupts.count:
                for attempt in waiting:
                    crew.end(attempt.job, "cancelled", "The run was interrupted before this job began.")
                waiting.clear()
            while waiting and len(running) < workers:
                busy = Counter(worker.card for worker in running)
                card = min(cards, key=lambda each: busy[each]) if cards else None
                running.append(crew.start(waiting.pop(0), card))
            for worker in running:
                if worker.is_late or interrupts.count > 1:
                    worker.process.kill()
            ready = wait([worker.pipe for worker in running], timeout=0.2)
            for worker in [worker for worker in running if worker.pipe in ready]:
                if not crew.listen(worker):
                    running.remove(worker)
                    waiting[:0] = crew.bury(worker, interrupted=interrupts.count > 1)
        return interrupts.count > 0


def preloaded(device: str, jobs: Sequence[Job] = (), submissions: Mapping[str, Submission] | None = None) -> list[str]:
    """Returns the modules that are imported before workers for ``device`` are forked: what ``jobs`` will need."""
    left_out = set() if device == "cpu" else _ASKS_THE_CARD
    known = submissions or {}
    models = [each for job in jobs for each in (job.submission, known.get(job.submission.target or "")) if each]
    if models and not any(each.kind == "lora_adapter" for each in models):
        left_out = left_out | {"peft"}
    return [name for name in _PRELOADED if name not in left_out]


@dataclass(slots=True)
class _Crew:
    """Starts workers, hears what they say and sees to it that each of their cells ends."""

    submissions: dict[str, Submission]
    settings: Settings
    spool: Path
    timeout: float | None
    work: Work
    on_event: Callable[[Event], None]

    def start(self, attempt: _Try, card: str | None) -> _Running:
        job, settings = attempt.job, self.settings
        if card is not None:
            settings = replace(settings, device="cuda", card=card)
        if attempt.batch_of_one:
            settings = replace(settings, batch_size=1)
        context = multiprocessing.get_context("forkserver")
        receive, send = context.Pipe(duplex=False)
        log = log_of(job, self.spool)
        remark = _BATCH_OF_ONE if attempt.batch_of_one else None
        process = context.Process(
            target=be_worker,
            args=(self.work, job, self.submissions, settings, send, self.spool, log, remark, provenance.code_state()),
            daemon=True,
        )
        process.start()
        send.close()
        deadline = time.monotonic() + self.timeout if self.timeout is not None else None
        return _Running(attempt=attempt, process=process, pipe=receive, log=log, deadline=deadline, card=card)

    def listen(self, worker: _Running) -> bool:
        """Takes one message; returns False when the worker has closed its pipe."""
        try:
            kind, told = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if kind == "stage":
            worker.stage = told
            self.on_event(Event(job=worker.job, stage=told))
            return True
        if kind == "unwritten":
            return self._lose(worker, *told)
        try:
            result = cell_files.read(Path(told))
        except StoreError as error:
            return self._lose(worker, Path(told).stem, str(error), type(error).__name__)
        while_scoring = result.stage == result.cell.task
        if result.error_type in _OUT_OF_MEMORY and while_scoring and not worker.attempt.is_second:
            worker.again.add(result.cell.key)
        else:
            worker.ended.add(result.cell.key)
            self.on_event(Event(job=worker.job, result=result))
        return True

    def _lose(self, worker: _Running, key: str, why: str, error: str) -> bool:
        """Fails one cell whose record can't be written or read, and no other."""
        (cell,) = (cell for cell in worker.job.cells if cell.key == key)
        worker.ended.add(key)
        self.on_event(Event(job=worker.job, result=self._row(worker.job, cell, "failed", why, "store", error)))
        return True

    def bury(self, worker: _Running, *, interrupted: bool) -> list[_Try]:
        """Ends whatever cells the worker left behind, with the reason that fits; returns what is to be tried again."""
        late = worker.is_late
        worker.process.join(timeout=30)
        worker.pipe.close()
        left = tuple(cell for cell in worker.job.cells if cell.key not in worker.ended)
        again: list[_Try] = []
        code = worker.process.exitcode
        if interrupted:
            self.end(worker.job, "cancelled", "The run was interrupted while this job ran.", worker)
        elif late:
            reason = f"The job ran past its time limit of {self.timeout:g} s and was ended: raise --timeout."
            self.end(worker.job, "failed", reason, worker, error="TimeoutError")
        elif left and not worker.attempt.is_second and (worker.again or code == -signal.SIGKILL):
            job = replace(worker.job, cells=left)
            again.append(_Try(job=job, is_second=True, batch_of_one=bool(worker.again)))
        elif (why := network_fence.why_stopped(code, worker.log)) is not None:
            self.end(worker.job, "failed", why, worker, error="NetworkError")
        else:
            self.end(worker.job, "failed", _cause_of_death(code), worker, error="WorkerLost")
        fence.clear(worker.log)
        redact_file(worker.log)
        if not again:
            self.on_event(Event(job=worker.job, job_ended=True))
        return again

    def end(
        self, job: Job, status: Status, reason: str, worker: _Running | None = None, error: str | None = None
    ) -> None:
        """Makes a row without scores of every cell of ``job`` that has not ended yet."""
        ended = worker.ended if worker else set()
        tail = quote(worker.log) if worker and status == "failed" else None
        for cell in job.cells:
            if cell.key not in ended:
                row = self._row(job, cell, status, reason, worker.stage if worker else "run", error, tail)
                self.on_event(Event(job=job, result=row))

    def _row(
        self, job: Job, cell: Cell, status: Status, reason: str, stage: str, error: str | None, tail: str | None = None
    ) -> CellResult:
        return unfinished(job, cell, status, reason, stage=stage, error=error, log_tail=tail,
                          device=self.settings.device, seed=self.settings.seed)  # fmt: skip


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        more = " twice (often: the machine ran out of memory)" if name == "SIGKILL" else ""
        return f"The worker process was ended by {name}{more}."
    return f"The worker process ended early with exit code {code}."


class Interrupts:
    """Counts Ctrl-C instead of raising, so that a run always ends with a consistent store.

    SIGTERM and the end of the terminal count as two: whoever sends them won't
    wait. A signal that was ignored before (``nohup``) stays so.
    """

    count = 0
    _WEIGHT = {signal.SIGINT: 1, signal.SIGTERM: 2, signal.SIGHUP: 2}

    def __enter__(self) -> Interrupts:
        self._before = {}
        for number in self._WEIGHT:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._count)
            except ValueError:  # not the main thread: whoever is there handles signals
                return self
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: object) -> None:
        self.count += self._WEIGHT[signal.Signals(number)]
