"""Where jobs run: ``local`` worker processes of this machine, or the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from harness.records import Job, Submission
    from harness.run.job import Settings

Name = Literal["local", "ray"]

NO_LIMIT = 1_000_000
"""Jobs at a time where a cluster is to take as many as fit."""


class Executor(Protocol):
    """Runs jobs, tells every end of a cell exactly once in this process, and returns whether Ctrl-C was pressed."""

    def __call__(
        self, jobs: Sequence[Job], submissions: Mapping[str, Submission], settings: Settings, *, workers: int,
        spool: Path, on_event: Callable[[Any], None], timeout: float | None = None,
    ) -> bool:  # fmt: skip
        """Does what ``local.run`` says of its arguments."""


def chosen(name: Name, *, cards: Sequence[str] = (), address: str | None = None, memory: int | None = None) -> Executor:
    """Returns the executor of that name.

    Args:
        name: ``local`` or ``ray``.
        cards: Local only: GPUs to share out, one for each worker.
        address: Ray only: where the cluster is; None for the one of RAY_ADDRESS or of this machine.
        memory: Ray only: bytes of memory that a node must have left for a job.
    """
    if name == "ray":
        from harness.run.executors import ray_cluster

        return partial(ray_cluster.run, address=address, memory=memory)
    from harness.run.executors import local

    return partial(local.run, cards=cards)
