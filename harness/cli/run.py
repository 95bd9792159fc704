"""The commands around a run: plan, run, status."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from harness.cli import board
from harness.cli.grid import Grid, with_grid
from harness.cli.options import (  # fmt: skip
    SCORE,
    ExecutorName,
    JsonOption,
    StreamOption,
    print_rows,
    stderr,
    stdout,
)
from harness.errors import InputError

app = typer.Typer()

_WATCH_SECONDS = 2.0


@app.command(
    rich_help_panel=SCORE,
    epilog="Examples: `quench plan --corpus mini` · `quench plan my-entry --quantizers rtn-4bit-g64,bnb-nf4` · "
    "`quench plan --power --corpus mini`",
)
@with_grid
def plan(
    grid: Grid,
    power: Annotated[
        bool, typer.Option("--power", help="Show what difference so many documents can detect instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what `quench run` with the same options would do and take, and do nothing."""
    from harness import paths
    from harness.run.plan import cost_estimates

    if power:
        grid.refuse_other_than("corpus", "data_dir", "store", "limit", command="plan --power")
        board.print_power(grid.corpus, grid.data_dir, grid.store, grid.limit, as_json)
        return
    with paths.without_downloads():
        planned = grid.plan()
    costs = cost_estimates.estimate(planned.jobs, grid.known, cost_estimates.past_costs(grid.store), device=grid.device)
    told = cost_estimates.total(costs, free=cost_estimates.free_memory(grid.device))
    rows = [
        {"submission": job.submission.name, "quantizer": job.spec.name, "state": state, "cells": len(job.cells),
         "tasks": [cell.task for cell in job.cells], **(cost.as_row() if cost else cost_estimates.NOTHING),
         "reason": reason}
        for state, jobs in (
            ("to do", [(job, cost, None) for job, cost in zip(planned.jobs, costs, strict=True)]),
            ("impossible", [(job, None, reason) for job, reason in planned.impossible]),
        )
        for job, cost, reason in jobs
    ]  # fmt: skip
    rows += [
        {"submission": name, "quantizer": None, "state": state, "cells": None, "tasks": [],
         **cost_estimates.NOTHING, "reason": reason}
        for state, reasons in (("left out", planned.refused), ("unknown", planned.unknown))
        for name, reason in reasons.items()
    ]  # fmt: skip
    print_rows(
        rows,
        "plan",
        as_json,
        title=f"{planned.cells_to_do} cells to do, {len(planned.done)} done already; {told}",
        columns=("submission", "quantizer", "state", "cells", "time", "memory", "disk", "basis", "reason"),
    )


@app.command(
    rich_help_panel=SCORE,
    epilog="Examples: `quench run --corpus mini` · `quench run my-entry --quantizers reference,rtn-4bit-g64`",
)
@with_grid
def run(
    grid: Grid,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Jobs at a time. [default: one per core, one on each GPU]")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="torch threads of a job. [default: its share of the cores; with Ray 1]"),
    ] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds that one job may take.")] = None,
    executor: Annotated[ExecutorName, typer.Option("--executor", help="Where jobs run.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Ray cluster. [default: RAY_ADDRESS, else this machine's]")
    ] = None,
    ray_memory: Annotated[
        str | None, typer.Option("--ray-memory", help="Memory a node must have left for a job, e.g. 16GB.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", help="Memory for data that one job may take, such as 8GB.")
    ] = None,
    cache_limit: Annotated[
        str, typer.Option("--cache-limit", help="Room for kept quantized models; 0 keeps none.")
    ] = "32GB",
    stream: StreamOption = "auto",
) -> None:
    """Score submissions under quantizers and store every cell. What is stored already is not done again."""
    from harness import paths
    from harness.run import devices, executors, sweep
    from harness.run.job import Settings
    from harness.run.maintenance import cache as cache_folder
    from harness.run.sandbox import fence

    room = cache_folder.parse_size(cache_limit)
    memory = cache_folder.parse_size(memory_limit) if memory_limit is not None else None
    cards = devices.cards(grid.device) if executor == "local" else ()
    run_jobs = executors.chosen(
        executor, cards=cards, address=ray_address, memory=cache_folder.parse_size(ray_memory) if ray_memory else None
    )
    sweep.bring_up_to_date(grid.store)
    planned = grid.plan()
    if planned.added_controls:
        stderr.print(f"Controls added: {', '.join(planned.added_controls)}", highlight=False)
    at_a_time = workers or (executors.NO_LIMIT if executor == "ray" else sweep.default_workers(grid.device, len(cards)))
    settings = Settings(
        cache=str(paths.cache_dir()),
        cache_limit=room,
        device=grid.device,
        threads=threads or sweep.threads_for(at_a_time),
        seed=grid.seed,
        data_dir=str(grid.data_dir.resolve()) if grid.data_dir else None,
        stream=stream,
        memory_limit=memory,
    )
    if planned.jobs:
        stderr.print(fence.describe(), highlight=False, soft_wrap=True)
    counts = sweep.execute(
        planned, grid.known, settings, store=grid.store, workers=at_a_time, console=stderr, timeout=timeout,
        executor=run_jobs,
    )  # fmt: skip
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing to do"
    stderr.print(f"{ended}; {len(planned.done)} done before. Store: {grid.store}", highlight=False)
    if counts["failed"] or counts["cancelled"] or planned.refused:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=SCORE,
    epilog="Examples: `quench status` · `quench status --corpus mini --json` · `quench status --watch`",
)
@with_grid
def status(
    grid: Grid,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every two seconds until all is done, or Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far each submission is under each quantizer: finished, failed, skipped, cancelled, to do."""
    from harness import paths
    from harness.run import sweep
    from harness.run.progress import live_status

    if watch and as_json:
        raise InputError("--watch and --json exclude each other: give one of them.")
    with paths.without_downloads():
        planned = grid.plan(all_cells=True)
    live = live_status.LiveStatus(grid.store, sweep.spool_of(grid.store))

    def rows() -> list[dict[str, Any]]:
        return live_status.progress_rows(planned, live.statuses())

    if watch:
        _watch(rows, str(grid.store))
    else:
        print_rows(rows(), "status", as_json, title=str(grid.store))


def _watch(rows: Any, title: str) -> None:
    from rich.live import Live

    from harness.publish.tables import formats as table_formats

    shown: list[dict[str, Any]] = []
    try:
        with Live(console=stdout, auto_refresh=False, vertical_overflow="visible") as screen:
            while not shown or any(row["to_do"] for row in shown):
                if shown:
                    time.sleep(_WATCH_SECONDS)
                shown = rows()
                screen.update(table_formats.terminal_table(shown, title=title, columns=None), refresh=True)
    except KeyboardInterrupt:
        return
