"""Jobs on a real Ray cluster of several nodes: nothing is lost with a node, and nothing is stored twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_without_models import TASKS, make_job

from harness.errors import InputError
from harness.records import CellResult, Job, Submission
from harness.run import executors
from harness.run.executors import local
from harness.run.job import Settings, unfinished
from harness.store import cell_files
from harness.store.store import Store

ray = pytest.importorskip("ray")
ray_cluster = pytest.importorskip("harness.run.executors.ray_cluster")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Emit = Callable[[CellResult], None]
NODES = 3


def wait_and_finish(
    job: Job, submissions: Mapping[str, Submission], settings: Settings, *, emit: Emit, on_stage: Callable[[str], None]
) -> None:
    process = Path(job.submission.folder, "process")
    process.write_text(str(os.getpid()), encoding="utf-8")
    for cell in job.cells:
        on_stage(cell.task)
        time.sleep(0.5)
        if cell is job.cells[-1]:
            process.unlink()  # as long as the file is there, a cell is still to be made
        emit(unfinished(job, cell, "finished", f"made by process {os.getppid()}"))


def hang(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    Path(job.submission.folder, "process").write_text(str(os.getpid()), encoding="utf-8")
    emit(unfinished(job, job.cells[0], "finished", "no reason"))
    time.sleep(3600)


def crash(job: Job, *arguments: object, emit: Emit, on_stage: object) -> None:
    print("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def jobs_of(folder: Path, count: int) -> list[Job]:
    jobs = []
    for number in range(count):
        job = make_job(f"entry-{number}")
        home = folder / job.submission.name
        home.mkdir(parents=True, exist_ok=True)
        jobs.append(replace(job, submission=replace(job.submission, folder=str(home))))
    return jobs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # Tasks find this module as a node of a cluster finds an installed one.
    places = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    for _ in range(NODES - 1):
        made.add_node(num_cpus=1, object_store_memory=80 << 20)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class Ends:
    """How each cell ended; a cell that ends twice fails the test."""

    def __init__(self) -> None:
        self.results: dict[str, CellResult] = {}
        self.jobs: Counter[str] = Counter()
        self.on_result: Callable[[CellResult], None] = lambda result: None

    def take(self, event: local.Event) -> None:
        if event.result is not None:
            assert event.result.cell.key not in self.results
            self.results[event.result.cell.key] = event.result
            self.on_result(event.result)
        self.jobs[event.job.submission.name] += event.job_ended

    def by_task(self) -> list[CellResult]:
        return [self.results[f"entry-0-reference-{task}"] for task in TASKS]


def go(cluster: Any, folder: Path, jobs: list[Job], work: local.Work, ends: Ends | None = None, **options: Any) -> Ends:
    ends = ends or Ends()
    settings = options.pop("settings", Settings(cache=str(folder), threads=1))
    options = {"workers": 100, "address": cluster.address, **options}
    ends.interrupted = ray_cluster.run(  # type: ignore[attr-defined]
        jobs, {}, settings, spool=folder / "spool", on_event=ends.take, work=work, **options
    )
    assert set(ends.results) == {cell.key for job in jobs for cell in job.cells}
    assert max(ends.jobs.values()) <= 1, "a job ended twice"
    return ends


def test_a_node_killed_while_it_runs_a_job_costs_no_cell_and_doubles_none(cluster: Any, tmp_path: Path) -> None:
    victim = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    [raylet] = [information.process.pid for information in victim.all_processes["raylet"]]
    ends, jobs = Ends(), jobs_of(tmp_path, 24)
    lost: dict[str, int] = {}

    def kill_the_node_once_it_runs_a_job(result: CellResult) -> None:
        if lost or len(ends.results) < 9:
            return
        for job in jobs:
            process = _process_of(job)
            if raylet in _ancestors(process):
                lost[job.cells[-1].key] = _parent(process)
                # As a machine is lost: the node's agent with all that runs below it.
                for below in [raylet, *_descendants(raylet)]:
                    _kill(below)
                return

    ends.on_result = kill_the_node_once_it_runs_a_job
    go(cluster, tmp_path, jobs, wait_and_finish, ends)
    [(key, killed)] = lost.items()
    assert ends.results[key].reason != f"made by process {killed}", "the lost cell was made on another node"
    assert {result.status for result in ends.results.values()} == {"finished"}
    assert len(ends.results) == 48
    assert {path.stem for path in (tmp_path / "spool").glob("*.json")} == set(ends.results)
    assert len({result.reason for result in ends.results.values()}) >= NODES, "several nodes have worked"
    cluster.remove_node(victim)


def _process_of(job: Job) -> int:
    """Returns 0 where the job has not begun or has made its last cell."""
    try:
        return int(Path(job.submission.folder, "process").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return 0


def _ancestors(process: int) -> Iterator[int]:
    while process and (process := _parent(process)):
        yield process


def _descendants(process: int) -> list[int]:
    alive = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [other for other in alive if process in _ancestors(other)]


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _parent(process: int) -> int:
    """Returns 0 for the first process and for one that is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.split("PPid:")[1].split()[0])


def test_a_crash_on_a_node_is_the_failed_cell_that_it_is_on_one_machine(cluster: Any, tmp_path: Path) -> None:
    ends = go(cluster, tmp_path, jobs_of(tmp_path, 1), crash)
    for result in ends.results.values():
        assert result.status == "failed"
        assert "SIGSEGV" in (result.reason or "")
        assert "about to crash" in (result.log_tail or "")
    [log] = (tmp_path / "spool" / "logs").iterdir()
    assert "about to crash" in log.read_text(encoding="utf-8")


def test_a_job_whose_worker_is_lost_every_time_fails_and_keeps_what_had_arrived(cluster: Any, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 1)
    jobs = [replace(jobs[0], cells=tuple(
        replace(cell, key=f"{cell.key}-{number}") for number in range(3) for cell in jobs[0].cells
    ))]  # fmt: skip
    ends = Ends()

    def kill_the_ray_worker(result: CellResult) -> None:
        if result.status == "finished":
            # A job's parent is the forkserver, its parent the Ray worker. From inside, the fence refuses the signal.
            _kill(_parent(_parent(_process_of(jobs[0]))))

    ends.on_result = kill_the_ray_worker
    go(cluster, tmp_path, jobs, hang, ends)
    statuses = Counter(result.status for result in ends.results.values())
    assert statuses == {"finished": 3, "failed": 3}, "one cell arrives in each of three lives"
    lost = [result for result in ends.results.values() if result.status == "failed"]
    assert all(result.error_type == "WorkerLost" and "lost 3 times" in (result.reason or "") for result in lost)


def test_a_job_past_its_time_limit_ends_and_its_process_with_it(cluster: Any, tmp_path: Path) -> None:
    done, late = go(cluster, tmp_path, jobs_of(tmp_path, 1), hang, timeout=5.0).by_task()
    assert done.status == "finished"
    assert late.status == "failed"
    assert "time limit of 5 s" in (late.reason or "")


def test_the_first_ctrl_c_finishes_what_runs_and_cancels_the_rest(cluster: Any, tmp_path: Path) -> None:
    ends = Ends()

    def press(result: CellResult) -> None:
        if len(ends.results) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    ends.on_result = press
    go(cluster, tmp_path, jobs_of(tmp_path, 8), wait_and_finish, ends)
    statuses = Counter(result.status for result in ends.results.values())
    assert set(statuses) == {"finished", "cancelled"}
    assert statuses["finished"] % len(TASKS) == 0, "a job that runs is finished as a whole"
    assert ends.interrupted  # type: ignore[attr-defined]


def test_the_second_ctrl_c_ends_what_runs_and_leaves_no_process_behind(cluster: Any, tmp_path: Path) -> None:
    ends = Ends()

    def press_twice(result: CellResult) -> None:
        if len(ends.results) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    ends.on_result = press_twice
    done, ended = go(cluster, tmp_path, jobs_of(tmp_path, 1), hang, ends).by_task()
    assert (done.status, ended.status) == ("finished", "cancelled")
    process = int((tmp_path / "entry-0" / "process").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 30
    while _is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _is_alive(process)


def _is_alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_submissions_that_a_node_can_not_see_are_named(cluster: Any, tmp_path: Path) -> None:
    job = make_job()
    job = replace(job, submission=replace(job.submission, folder=str(tmp_path / "only-on-the-driver")))
    for result in go(cluster, tmp_path, [job], wait_and_finish).results.values():
        assert result.status == "failed"
        assert "only-on-the-driver" in (result.reason or "")


def test_what_no_node_can_offer_is_refused_before_anything_waits_for_it(cluster: Any, tmp_path: Path) -> None:
    for settings, memory, said in (
        (Settings(cache="", threads=64), None, "CPU 64"),
        (Settings(cache="", device="cuda", threads=1), None, "GPU 1"),
        (Settings(cache="", threads=1), 1 << 60, "memory"),
        (Settings(cache="", device="cuda:1"), None, "--device cuda"),
    ):
        with pytest.raises(InputError, match=said):
            go(cluster, tmp_path, jobs_of(tmp_path, 1), wait_and_finish, settings=settings, memory=memory)


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    run = executors.chosen("ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match="no Ray cluster to be reached at"):
        run(jobs_of(tmp_path, 1), {}, Settings(cache=""), workers=1, spool=tmp_path, on_event=lambda event: None)


def command(store: Path, *more: str, quantizers: str = "reference") -> list[str]:
    asked = ["mini-noop-lora", "--no-controls", "--quantizers", quantizers, "--threads", "1", "--store", str(store)]
    return [sys.executable, "-m", "harness.cli.main", "run", *asked, *more]


def stored(store: Path) -> list[CellResult]:
    with Store.open(store, read_only=True) as opened:
        return sorted(opened.cells(with_documents=True), key=lambda result: result.cell.task)


def test_a_real_job_by_the_command_line_has_the_scores_of_one_machine_bit_for_bit(cluster: Any, tmp_path: Path) -> None:
    near, far = tmp_path / "near.duckdb", tmp_path / "far.duckdb"
    subprocess.run(command(near, "--workers", "1"), check=True, capture_output=True)
    subprocess.run(command(far, "--executor", "ray", "--ray-address", cluster.address), check=True, capture_output=True)
    assert len(stored(far)) == 4
    for here, there in zip(stored(near), stored(far), strict=True):
        assert (there.status, there.cell) == ("finished", here.cell)
        assert there.scores == here.scores
        assert there.documents
        assert there.documents == here.documents


def test_a_driver_that_is_killed_and_started_again_finishes_every_cell_once(cluster: Any, tmp_path: Path) -> None:
    store, few = tmp_path / "board.duckdb", ("--tasks", "muse_mini_knowmem_f,muse_mini_knowmem_r", "--limit", "8")
    quantizers = "reference,rtn-8bit-g128,rtn-4bit-g128,rtn-4bit-g64,rtn-3bit-g64"
    again = command(store, *few, "--executor", "ray", "--ray-address", cluster.address, quantizers=quantizers)
    driver = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "board.records"
    while not list(records.glob("*.json")):
        assert driver.poll() is None, "the driver has ended before anything was made"
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    before = {path.stem: cell_files.read(path) for path in records.glob("*.json")}
    assert 0 < len(before) < 10, "the driver was killed in the middle"
    subprocess.run(again, check=True, capture_output=True)
    results = {result.cell.key: result for result in stored(store)}
    assert len(results) == 10
    assert {result.status for result in results.values()} == {"finished"}
    for key, record in before.items():
        assert results[key].provenance == record.provenance, "what had arrived stays"
