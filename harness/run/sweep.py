"""One whole run: plan, work, write, as `quench run` does it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from harness.errors import ManifestError, QuenchError, StoreError, first_line
from harness.records import Cell, CellResult, Job, QuantizerSpec, Status, Submission
from harness.run.executors import Executor, local
from harness.run.job import Settings, unfinished
from harness.run.plan import planner, reference_auc
from harness.run.plan.planner import Plan
from harness.run.progress import live_status
from harness.run.progress.display import RunProgress
from harness.run.progress.run_log import RunLog
from harness.score.corpora.catalogue import ReferenceAuc
from harness.store import cell_files
from harness.store.store import Store
from harness.submit.checkpoint import prepare
from harness.submit.weight_files import HUB

_Take = Callable[[local.Event], None]


def spool_of(store: Path) -> Path:
    """Returns the folder of cell records and logs beside a store: ``<name>.records``."""
    return store.with_suffix(".records")


def finished_keys(store: Path) -> frozenset[str]:
    """Returns the keys of finished cells: those in the store, and those that a killed run recorded and did not store.

    Raises:
        StoreError: The store can't be read.
    """
    known: Mapping[str, Status] = {}
    if store.exists():
        with Store.open(store, read_only=True) as opened:
            known = opened.statuses()
    stored = {key for key, status in known.items() if status == "finished"}
    # `execute` stores them before it begins: they must not be planned again.
    return frozenset(
        stored | {result.cell.key for result in _left_behind(known, spool_of(store)) if result.status == "finished"}
    )


def bring_up_to_date(store: Path) -> None:
    """Gives a store of an older program, or one whose making was cut off, this program's schema; makes no new one.

    Planning only reads, and would refuse such a store.

    Raises:
        StoreError: The store can't be opened for writing.
    """
    if store.exists():
        Store.open(store).close()


def default_workers(device: str, cards: int = 0) -> int:
    """Returns how many jobs run at a time: one per core on the CPU, one on each of so many GPUs."""
    return max(1, cards) if device.startswith("cuda") else max(1, os.cpu_count() or 1)


def execute(
    plan: Plan, submissions: Mapping[str, Submission], settings: Settings, *, store: Path, workers: int,
    console: Console, timeout: float | None = None, executor: Executor | None = None,
) -> Counter[str]:  # fmt: skip
    """Does what ``plan`` says and stores every outcome as it comes.

    Jobs that measure a reference AUC come first; what is relative to it waits
    until it is stored.

    Args:
        plan: What to do.
        submissions: All submissions by name.
        settings: The same for every job.
        store: DuckDB file, created when absent.
        workers: Jobs at the same time.
        console: Where progress is shown.
        timeout: Seconds a job may take.
        executor: Where jobs run; see ``executors.chosen``; None for workers of this machine.

    Returns:
        Number of cells by how they ended in this run.

    Raises:
        StoreError: The store can't be opened or written; outcomes that lie in records
            are stored by the next run.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    spool = spool_of(store)
    with (
        Store.open(store) as opened,
        RunProgress(console, jobs=len(plan.jobs)) as progress,
        RunLog.begin(spool, jobs=len(plan.jobs), cells=plan.cells_to_do, done=len(plan.done)) as log,
    ):
        log.write("recovered", cells=recover(opened, spool))
        unstored: list[str] = []

        def take(event: local.Event) -> None:
            log.take(event)
            progress.show(event)
            if event.result is None:
                return
            if event.result.status == "failed":
                # What a worker could not write, this process can't either where a disk is full: the row tells.
                with suppress(OSError):
                    cell_files.write(event.result, spool)
            try:
                opened.add(event.result)
            except StoreError as error:
                log.write("unstored", key=event.result.cell.key, reason=str(error))
                unstored.append(str(error))

        _skip(plan, opened, settings, take)
        live_status.write_snapshot(opened.statuses(), spool)
        unreachable = _fetch(plan.jobs, submissions, Path(settings.cache))
        for job in plan.jobs:
            if (why := unreachable.get(job.submission.name)) is not None:
                _end(job, job.cells, "failed", why, settings, take, stage="fetch", error="InputError")
        interrupted = False
        for jobs in _rounds([job for job in plan.jobs if job.submission.name not in unreachable], plan):
            if interrupted:
                for job in jobs:
                    _end(job, job.cells, "cancelled", "The run was interrupted before this job began.", settings, take)
                continue
            ready, told = _with_references(jobs, plan, opened, settings, take)
            if ready:
                interrupted = (executor or local.run)(
                    ready, submissions, told, workers=workers, spool=spool, on_event=take, timeout=timeout
                )
        log.write("ended", interrupted=interrupted, **progress.counts)
    if unstored:
        raise StoreError(
            f"{len(unstored)} outcomes are not in the store {store} but in {spool.name} ({unstored[0]}): free space or "
            "give rights there, and run the same command again, which stores them."
        )
    return progress.counts


def _skip(plan: Plan, store: Store, settings: Settings, take: _Take) -> None:
    """Ends what this machine can't do, and leaves alone what the store says already in the same words."""
    said = store.reasons("skipped")
    for job, reason in plan.impossible:
        for cell in job.cells:
            if said.get(cell.key) != reason:
                row = unfinished(job, cell, "skipped", reason, device=settings.device, seed=settings.seed)
                take(local.Event(job=job, result=row))


def _end(
    job: Job, cells: Sequence[Cell], status: Status, why: str, settings: Settings, take: _Take, *,
    stage: str = "run", error: str | None = None,
) -> None:  # fmt: skip
    """Ends cells that no worker will see; with all of its cells the job ends too."""
    for cell in cells:
        row = unfinished(job, cell, status, why, stage=stage, error=error, device=settings.device, seed=settings.seed)
        take(local.Event(job=job, result=row))
    if len(cells) == len(job.cells):
        take(local.Event(job=job, job_ended=True))


def _rounds(jobs: Sequence[Job], plan: Plan) -> Iterator[list[Job]]:
    """Yields the jobs that measure a reference AUC, then the others, which may be relative to it."""
    keys = {cell.key for cell in plan.references.values()}
    first = [any(cell.key in keys for cell in job.cells) for job in jobs]
    for wanted in (True, False):
        chosen = [job for job, is_first in zip(jobs, first, strict=True) if is_first is wanted]
        if chosen:
            yield chosen


def _with_references(
    jobs: Sequence[Job], plan: Plan, store: Store, settings: Settings, take: _Take
) -> tuple[list[Job], Settings]:
    """Returns the jobs that can begin, and settings that tell what each PrivLeak cell is relative to."""
    if not plan.references:
        return list(jobs), settings
    values = reference_auc.measured(store.cells(), plan.references.values())
    known: dict[str, ReferenceAuc] = {}
    ready = []
    for job in jobs:
        reference = plan.references.get(job.submission.name)
        if reference is None:
            ready.append(job)
            continue
        relative = [cell for cell in job.cells if cell.task == reference.task]
        known |= {cell.key: "own" if cell.key == reference.key else values.get(reference.key) for cell in relative}
        lost = [cell for cell in relative if known[cell.key] is None]
        if lost:
            why = f"The 16-bit AUC of {reference.submission}, which PrivLeak is relative to, could not be measured."
            _end(job, lost, "failed", why, settings, take)
        left = tuple(cell for cell in job.cells if cell not in lost)
        if left:
            ready.append(replace(job, cells=left))
    return ready, replace(settings, reference_aucs=known)


def _fetch(jobs: Sequence[Job], submissions: Mapping[str, Submission], cache: Path) -> dict[str, str]:
    """Downloads what lies on a hub, since workers have no network; returns why where that failed, by name."""
    reasons = {}
    for submission in {job.submission.name: job.submission for job in jobs}.values():
        needed = [submission, *(submissions[name] for name in (submission.base_model, submission.target)
                                if name and name in submissions)]  # fmt: skip
        if any((part or "").startswith(HUB) for one in needed for part in (one.weights, one.base_model)):
            try:
                prepare.prepare(submission, submissions, cache=cache)
            # Whatever ends this would end the run of all others.
            except Exception as error:
                reasons[submission.name] = str(error) if isinstance(error, QuenchError) else first_line(error)
    return reasons


def recover(store: Store, spool: Path) -> int:
    """Stores records that a run before this one wrote but could not store; returns how many."""
    known = store.statuses()
    return sum(store.add(result) for result in _left_behind(known, spool))


def _left_behind(known: Mapping[str, Status], spool: Path) -> Iterator[CellResult]:
    """Yields the records that a store of these outcomes lacks, finished ones also where it has another outcome."""
    for path in sorted(spool.glob("*.json")):
        if known.get(path.stem) == "finished":
            continue
        try:
            result = cell_files.read(path)
        except StoreError:
            continue  # a record cut short by a crash: its cell is still to do
        if result.status == "finished" or result.cell.key not in known:
            yield result


def threads_for(workers: int) -> int:
    """Returns torch threads per worker so that workers share the cores: much is counted on them on a GPU too."""
    return max(1, (os.cpu_count() or 1) // workers)


def score(
    made: Mapping[str, Submission], submissions: Mapping[str, Submission], specs: Sequence[QuantizerSpec], *,
    store: Path, cache: Path, console: Console, data_dir: Path | None = None, device: str = "cpu",
    limit: int | None = None,
) -> Counter[str]:  # fmt: skip
    """Scores submissions that were just made, and their controls; returns how many cells ended with each status."""
    known = {**submissions, **made}
    bring_up_to_date(store)
    planned = planner.plan(
        known, names=list(made), quantizers=specs, finished=finished_keys(store), data_dir=data_dir,
        device=device, limit=limit,
    )  # fmt: skip
    left_out = {**planned.refused, **planned.unknown}
    if lost := [why for name, why in left_out.items() if name in made]:
        raise ManifestError(lost)
    for why in left_out.values():
        console.print(f"Left out: {why}", highlight=False, soft_wrap=True)
    workers = default_workers(device)
    settings = Settings(
        cache=str(cache), device=device, threads=threads_for(workers),
        data_dir=str(data_dir.resolve()) if data_dir else None,
    )  # fmt: skip
    return execute(planned, known, settings, store=store, workers=workers, console=console)
