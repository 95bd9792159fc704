"""Progress of a run: a live bar on a terminal, one line per job elsewhere."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.records import Job
from harness.run.executors.local import Event


class RunProgress:
    """Shows jobs done, what runs at the moment and the time left; counts how cells ended.

    Attributes:
        counts: Cells by status so far.
    """

    def __init__(self, console: Console, *, jobs: int) -> None:
        self.counts: Counter[str] = Counter()
        self._console = console
        self._jobs = jobs
        self._jobs_done = 0
        self._stages: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("jobs"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("Scoring", total=jobs, now="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Takes one event of the run."""
        name = _name(event.job)
        if event.stage is not None:
            self._stages[name] = event.stage
        if event.result is not None:
            self.counts[event.result.status] += 1
            if event.result.status == "failed" and event.result.reason:
                self._failed[name] = event.result.reason
        if event.job_ended:
            self._jobs_done += 1
            self._stages.pop(name, None)
            self._end_line(name)
        now = " | ".join(f"{job}: {stage}" for job, stage in self._stages.items())
        self._bar.update(self._task, completed=self._jobs_done, now=now)

    def _end_line(self, name: str) -> None:
        failure = self._failed.get(name)
        if failure is not None:
            self._console.print(f"[red]failed[/red] {name}: ", end="")
            self._console.print(failure, markup=False, highlight=False, emoji=False)
        elif not self._console.is_terminal:
            self._console.print(f"{self._jobs_done}/{self._jobs} {name}", markup=False, highlight=False)


def _name(job: Job) -> str:
    return f"{job.submission.name} x {job.spec.name}"
