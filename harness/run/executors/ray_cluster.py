"""Runs jobs on the nodes of a Ray cluster: one task for each job, its records streamed back to the driver.

On its node a job runs as ``local`` runs it, in a process of its own without
network: a crash, a time limit or a full disk there ends as it does here. What
Ray adds is the place. Records come back as bytes while the job runs, so nodes
share no folder with the store, and what has arrived outlives its node. A job
whose node is lost begins again elsewhere with the cells that have not arrived;
Ray's own retries are off, since a stream that is repeated could differ.
"""

from __future__ import annotations

import multiprocessing
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import InputError, first_line
from harness.records import Job, Status, Submission
from harness.run.executors import local
from harness.run.executors.local import Event
from harness.run.executors.worker import Work, log_of
from harness.run.job import Settings, run_job, unfinished
from harness.store import cell_files

_LIVES = 3
_LOG_BYTES = 256 * 1024
# A job more than fits waits in the cluster: nodes are never idle, and a cluster that can grow sees why it should.
_AHEAD = 1

_Message = tuple[str, bytes]


@dataclass(slots=True)
class _Sent:
    job: Job
    stream: Any
    life: int
    has_begun: bool = False
    ended: set[str] = field(default_factory=set)


def run(
    jobs: Sequence[Job], submissions: Mapping[str, Submission], settings: Settings, *, workers: int, spool: Path,
    on_event: Callable[[Event], None], timeout: float | None = None, work: Work = run_job,
    address: str | None = None, memory: int | None = None,
) -> bool:  # fmt: skip
    """Runs all jobs on a cluster; returns, when every cell has ended as an event, whether Ctrl-C was pressed.

    The first Ctrl-C lets running jobs finish and starts no more; the second
    ends them. A job asks for as many CPUs as it has threads, for one GPU where
    the device is CUDA, and for ``memory``.

    Args:
        jobs: In the order to start them.
        submissions: All submissions by name; their folders are at the same path on every node.
        settings: The same for every job; ``cache`` is a path on the node.
        workers: Jobs at the same time at most; as many run as fit the cluster.
        spool: Folder of this machine for cell records and job logs.
        on_event: Told everything, in this process.
        timeout: Seconds a job may take once it runs.
        work: What a job does on its node.
        address: The cluster, e.g. ``10.0.0.1:6379``; None for the one of
            RAY_ADDRESS or of this machine, which is started where there is none.
        memory: Bytes a node must have left for a job.

    Raises:
        InputError: Ray is not installed, there is no cluster at ``address``,
            the device names one card, or no node will ever have what a job asks for.
    """
    if settings.device.startswith("cuda:"):
        raise InputError(f"Ray chooses the card of each job, but --device says {settings.device}: say --device cuda.")
    (spool / "logs").mkdir(parents=True, exist_ok=True)
    ray = _connected(address)
    try:
        needs = _needs(settings, memory)
        _refuse_what_fits_nowhere(ray, needs)
        # Ray sets CUDA_VISIBLE_DEVICES for each task, but a forkserver keeps the one it has begun with.
        again: dict[str, int] = {"max_calls": 1} if "num_gpus" in needs else {}
        task = ray.remote(num_returns="streaming", max_retries=0, **again, **needs)(_on_node)
        shared = ray.put((dict(submissions), settings, timeout, work))
        crew = _Crew(ray, task, shared, spool, settings, on_event)
        return _drive(crew, list(jobs), workers, needs)
    finally:
        ray.shutdown()


def _drive(crew: _Crew, waiting: list[Job], workers: int, needs: Mapping[str, float]) -> bool:
    running: list[_Sent] = []
    with local.Interrupts() as interrupts:
        while waiting or running:
            if interrupts.count:
                for job in waiting:
                    crew.end(job, "cancelled", "The run was interrupted before this job began.")
                waiting.clear()
                for sent in [one for one in running if interrupts.count > 1 or not one.has_begun]:
                    running.remove(sent)
                    crew.cancel(sent)
            most = min(workers, _fitting(crew.ray, needs) + _AHEAD)
            while waiting and len(running) < most:
                running.append(crew.send(waiting.pop(0)))
            ready = crew.ready(running)
            for sent in [one for one in running if one.stream in ready]:
                if crew.listen(sent):
                    continue
                running.remove(sent)
                again = crew.bury(sent)
                if again is not None:
                    running.append(again)
        return interrupts.count > 0


@dataclass(slots=True)
class _Crew:
    """Sends jobs, hears what comes back and sees to it that each of their cells ends once."""

    ray: Any
    task: Any
    shared: Any
    spool: Path
    settings: Settings
    on_event: Callable[[Event], None]

    def send(self, job: Job, life: int = 1) -> _Sent:
        return _Sent(job=job, stream=self.task.remote(job, self.shared), life=life)

    def ready(self, running: Sequence[_Sent]) -> list[Any]:
        """Returns the streams that have something to say, or have ended, within a fifth of a second."""
        if not running:
            return []
        streams = [sent.stream for sent in running]
        return list(self.ray.wait(streams, num_returns=len(streams), timeout=0.2, fetch_local=False)[0])

    def listen(self, sent: _Sent) -> bool:
        """Takes one message; returns False when the stream has ended or its node is lost."""
        try:
            kind, body = self.ray.get(next(sent.stream))
        except (StopIteration, self.ray.exceptions.RayError):
            return False
        sent.has_begun = True
        if kind == "stage":
            self.on_event(Event(job=sent.job, stage=body.decode()))
        elif kind == "log":
            log_of(sent.job, self.spool).write_bytes(body)
        elif kind == "unfit":
            self.end(sent.job, "failed", body.decode(), sent.ended, error="InputError")
            sent.ended.update(cell.key for cell in sent.job.cells)
        else:
            result = cell_files.from_json(body.decode())
            cell_files.write(result, self.spool)
            sent.ended.add(result.cell.key)
            self.on_event(Event(job=sent.job, result=result))
        return True

    def bury(self, sent: _Sent) -> _Sent | None:
        """Ends the job, or sends what is left of it again where its node was lost before every cell had arrived."""
        left = tuple(cell for cell in sent.job.cells if cell.key not in sent.ended)
        if left and sent.life < _LIVES:
            return self.send(replace(sent.job, cells=left), sent.life + 1)
        reason = f"The node or the Ray worker of this job was lost {_LIVES} times: see the logs of the cluster."
        self.end(sent.job, "failed", reason, sent.ended, error="WorkerLost")
        self.on_event(Event(job=sent.job, job_ended=True))
        return None

    def cancel(self, sent: _Sent) -> None:
        """Ends a job that must not go on."""
        self.ray.cancel(sent.stream, force=False)
        when = "while this job ran" if sent.has_begun else "before this job began"
        self.end(sent.job, "cancelled", f"The run was interrupted {when}.", sent.ended)
        self.on_event(Event(job=sent.job, job_ended=True))

    def end(
        self, job: Job, status: Status, reason: str, ended: set[str] | None = None, error: str | None = None
    ) -> None:
        """Makes a row without scores of every cell of ``job`` that has not ended yet."""
        for cell in job.cells:
            if cell.key not in (ended or ()):
                row = unfinished(job, cell, status, reason, stage="run", error=error,
                                 device=self.settings.device, seed=self.settings.seed)  # fmt: skip
                self.on_event(Event(job=job, result=row))


def _on_node(
    job: Job, shared: tuple[dict[str, Submission], Settings, float | None, Work]
) -> Iterator[_Message]:  # fmt: skip
    """What a Ray task does: runs one job as this machine's ``local`` would, and yields what is heard of it."""
    submissions, settings, timeout, work = shared
    yield "stage", b"start"
    folder = Path(job.submission.folder)
    if not folder.is_dir():
        yield (
            "unfit",
            (
                f"The node {socket.gethostname()} has no folder {folder}: "
                "put submissions where every node finds them at the same path."
            ).encode(),
        )
        return
    heard: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()

    def take(event: Event) -> None:
        if event.stage is not None:
            heard.put(("stage", event.stage.encode()))
        elif event.result is not None:
            heard.put(("result", cell_files.to_json(event.result).encode()))

    def live(spool: Path) -> None:
        try:
            local.run([job], submissions, settings, workers=1, spool=spool, on_event=take, timeout=timeout, work=work)
            log = log_of(job, spool)
            if log.is_file():
                heard.put(("log", log.read_bytes()[-_LOG_BYTES:]))
        finally:
            heard.put(None)

    with tempfile.TemporaryDirectory(prefix="quench-ray-") as spool:
        thread = threading.Thread(target=live, args=(Path(spool),))
        thread.start()
        try:
            while (message := _next(heard)) is not None:
                yield message
        finally:
            # After a cancel nobody waits for the job's process: it must not outlive its task.
            for process in multiprocessing.active_children():
                process.kill()
            thread.join()


def _next(heard: queue.SimpleQueue[_Message | None]) -> _Message | None:
    while True:
        try:
            # In short waits, because Ray's cancel is only seen between them.
            return heard.get(timeout=0.2)
        except queue.Empty:
            continue


def _connected(address: str | None) -> Any:
    """Returns the ray module, connected."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs Ray: pip install 'quench-bench[ray]'.") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            f"There is no Ray cluster to be reached at {address or 'the address of RAY_ADDRESS'} "
            f"({first_line(error)}): start one with `ray start --head`, or name another with --ray-address."
        ) from error
    return ray


def _knock(address: str | None) -> None:
    """Fails at once where nobody listens at ``host:port``: Ray itself tries for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _needs(settings: Settings, memory: int | None) -> dict[str, float]:
    """Returns what one job asks Ray for."""
    needs: dict[str, float] = {"num_cpus": settings.threads or 1}
    if settings.device.startswith("cuda"):
        needs["num_gpus"] = 1
    if memory:
        needs["memory"] = memory
    return needs


_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def _fitting(ray: Any, needs: Mapping[str, float]) -> int:
    """Returns how many jobs fit the nodes that are alive, at least one while a lost node may come back."""
    return max(1, sum(_on_one(node, needs) for node in ray.nodes() if node["Alive"]))


def _on_one(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    return min(int(node["Resources"].get(_RESOURCES[name], 0) // amount) for name, amount in needs.items())


def _refuse_what_fits_nowhere(ray: Any, needs: Mapping[str, float]) -> None:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(_on_one(node, needs) for node in nodes):
        wanted = ", ".join(f"{_RESOURCES[name]} {amount:g}" for name, amount in needs.items())
        raise InputError(
            f"A job asks for {wanted}, which none of the cluster's {len(nodes)} nodes has: "
            "lower --threads or --ray-memory, choose another --device, or add such a node."
        )
