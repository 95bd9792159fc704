"""How much sooner three nodes of a Ray cluster are done than one: 24 jobs that wait instead of computing.

The nodes are processes of this machine, so this measures what the executor
costs and how well it keeps nodes busy, not what more machines compute. Each
node imports torch and its like once, which is in the times. Needs the extra
``ray``.

Usage: ``python -m benchmarks.ray_nodes [--jobs 24] [--seconds 4] [--nodes 1,3]``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.quantize import resolve
from harness.records import Cell, CellResult, Job, Submission
from harness.run.executors import local
from harness.run.job import Settings, unfinished

SECONDS = "QUENCH_RAY_NODES_SECONDS"
ROOT = Path(__file__).resolve().parents[1]


def wait_and_finish(
    job: Job, submissions: Mapping[str, Submission], settings: Settings, *, emit: Callable[[CellResult], None],
    on_stage: Callable[[str], None],
) -> None:  # fmt: skip
    """Does a job's work by waiting."""
    on_stage("wait")
    time.sleep(float(os.environ[SECONDS]))
    emit(unfinished(job, job.cells[0], "finished", "waited"))


def jobs_of(count: int, folder: Path) -> list[Job]:
    """Returns jobs of one cell each, whose submissions' folder is ``folder``."""
    made = []
    for number in range(count):
        name = f"waiting-{number:02d}"
        submission = Submission(
            name=name, title=name, method="none", corpus="mini", kind="full_model", role="entry", target=None,
            retrain=None, base_model=None, base_revision=None, weights=f"{folder}/weights", revision=None,
            weights_sha256=None, folder=str(folder),
        )  # fmt: skip
        cell = Cell(submission=name, quantizer="reference", task="muse_mini_verbmem_f", key=name)
        made.append(Job(submission=submission, spec=resolve("reference"), cells=(cell,)))
    return made


def measure(nodes: int, count: int) -> float:
    """Returns the seconds of wall time that ``count`` jobs take on so many nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    from harness.run.executors import ray_cluster

    ended: list[CellResult] = []

    def take(event: local.Event) -> None:
        if event.result is not None:
            ended.append(event.result)

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**small)
        cluster.wait_for_nodes()
        with tempfile.TemporaryDirectory() as folder:
            # Nodes find the function by this file's name, which no installation has.
            work = importlib.import_module("benchmarks.ray_nodes").wait_and_finish
            jobs = jobs_of(count, Path(folder))
            began = time.perf_counter()
            ray_cluster.run(
                jobs, {}, Settings(cache=folder, threads=1), workers=count, spool=Path(folder, "spool"), on_event=take,
                work=work, address=cluster.address,
            )  # fmt: skip
            seconds = time.perf_counter() - began
    finally:
        cluster.shutdown()
    if [result.status for result in ended] != ["finished"] * count:
        raise RuntimeError(f"Not every job finished: {[result.reason for result in ended]}")
    return seconds


def main() -> None:
    """Prints a line for each number of nodes, with its ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--nodes", default="1,3")
    asked = parser.parse_args()
    os.environ[SECONDS] = str(asked.seconds)
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    first = None
    for nodes in map(int, asked.nodes.split(",")):
        seconds = measure(nodes, asked.jobs)
        first = first or seconds
        waited = asked.jobs * asked.seconds / nodes
        print(f"{nodes} nodes: {seconds:.1f} s ({waited:.1f} s of it waiting), {first / seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
