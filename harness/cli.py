"""The command line: one command, one call.

Exit codes: 0 done, 1 some cell failed, 2 bad input. Tables go to stdout, with
``--json`` as one JSON document; progress and errors go to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from harness import (
    cli_backends,
    cli_cache,
    cli_compare,
    cli_exporting,
    cli_logs,
    cli_making,
    cli_reproduce,
    cli_showing,
    cli_submitting,
    cli_survival,
)
from harness.cli_options import (
    DEFAULT_STORE,
    ControlsOption,
    CorpusOption,
    DataDirOption,
    DeviceOption,
    ExecutorName,
    JsonOption,
    LimitOption,
    QuantizersOption,
    SeedOption,
    StoreOption,
    SubmissionsOption,
    TasksOption,
    chosen_quantizers,
    chosen_tasks,
    load_submissions,
    print_rows,
    stderr,
)
from harness.errors import InputError, ManifestError, QuenchError


class _OneSentenceErrors(TyperGroup):
    """Turns an error raised on purpose into one sentence and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except QuenchError as error:
            for sentence in error.faults if isinstance(error, ManifestError) else (str(error),):
                typer.echo(f"Error: {sentence}", err=True)
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from error


app = typer.Typer(
    cls=_OneSentenceErrors,
    name="quench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Does unlearning survive quantization? Submit, compare and publish unlearned models.",
)
app.add_typer(cli_submitting.app)
app.add_typer(cli_making.app)
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_logs.app)
app.add_typer(cli_backends.app, name="backends")
app.add_typer(cli_showing.app)
app.add_typer(cli_compare.app)
app.add_typer(cli_exporting.app)
app.add_typer(cli_survival.app)
app.add_typer(cli_reproduce.app)
app.add_typer(cli_making.mini_app, name="mini")


def main() -> None:
    """Runs the command line."""
    app()


@app.command(
    epilog="Examples: `quench plan --corpus mini` · `quench plan my-entry --quantizers rtn-4bit-g64,bnb-nf4` · "
    "`quench plan --power --corpus mini`"
)
def plan(
    names: Annotated[list[str] | None, typer.Argument(help="Submissions. [default: all]")] = None,
    store: StoreOption = DEFAULT_STORE,
    submissions: SubmissionsOption = None,
    quantizers: QuantizersOption = None,
    tasks: TasksOption = None,
    corpus: CorpusOption = None,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    controls: ControlsOption = True,
    power: Annotated[
        bool, typer.Option("--power", help="Show what difference so many documents can detect instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what `quench run` with the same options would do, and do nothing."""
    from harness.run import board_run, planner

    if power:
        cli_showing.print_power(corpus, data_dir, store, limit, as_json)
        return
    planned = planner.plan(
        load_submissions(submissions),
        names=names or (),
        quantizers=chosen_quantizers(quantizers),
        tasks=chosen_tasks(tasks),
        corpus=corpus,
        finished=board_run.finished_keys(store),
        data_dir=data_dir,
        device=device,
        seed=seed,
        limit=limit,
        controls=controls,
    )
    rows = [
        {
            "submission": job.submission.name,
            "quantizer": job.spec.name,
            "state": state,
            "cells": len(job.cells),
            "tasks": [cell.task for cell in job.cells],
            "reason": reason,
        }
        for state, jobs in (("to do", [(job, None) for job in planned.jobs]), ("impossible", list(planned.impossible)))
        for job, reason in jobs
    ]
    print_rows(
        rows,
        "plan",
        as_json,
        title=f"{planned.cells_to_do} cells to do, {len(planned.done)} done already",
        columns=("submission", "quantizer", "state", "cells", "reason"),
    )


@app.command(epilog="Examples: `quench run --corpus mini` · `quench run my-entry --quantizers reference,rtn-4bit-g64`")
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Submissions. [default: all]")] = None,
    store: StoreOption = DEFAULT_STORE,
    submissions: SubmissionsOption = None,
    quantizers: QuantizersOption = None,
    tasks: TasksOption = None,
    corpus: CorpusOption = None,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    controls: ControlsOption = True,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Jobs at a time. [default: one per core, one on a GPU]")
    ] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds that one job may take.")] = None,
    executor: Annotated[ExecutorName, typer.Option("--executor", help="Where jobs run.")] = "local",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPUs per job. [default: its share; with Ray 1]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Ray cluster. [default: RAY_ADDRESS, else this machine's]")
    ] = None,
    ray_memory: Annotated[
        str | None, typer.Option("--ray-memory", help="Memory a node must have left for a job, e.g. 16GB.")
    ] = None,
    cache_limit: Annotated[
        str, typer.Option("--cache-limit", help="Room for kept quantized models; 0 keeps none.")
    ] = "32GB",
) -> None:
    """Score submissions under quantizers and store every cell. What is stored already is not done again."""
    from harness import paths
    from harness.run import board_run, cache_room, executors, fence, planner
    from harness.run.runner import Settings

    room = cache_room.parse_size(cache_limit)
    run_jobs = executors.chosen(
        executor, address=ray_address, memory=cache_room.parse_size(ray_memory) if ray_memory else None
    )
    known = load_submissions(submissions)
    planned = planner.plan(
        known,
        names=names or (),
        quantizers=chosen_quantizers(quantizers),
        tasks=chosen_tasks(tasks),
        corpus=corpus,
        finished=board_run.finished_keys(store),
        data_dir=data_dir,
        device=device,
        seed=seed,
        limit=limit,
        controls=controls,
    )
    if planned.added_controls:
        stderr.print(f"Controls added: {', '.join(planned.added_controls)}", highlight=False)
    at_a_time = workers or (executors.NO_LIMIT if executor == "ray" else board_run.default_workers(device))
    settings = Settings(
        cache=str(paths.cache_dir()),
        cache_limit=room,
        device=device,
        threads=threads or board_run.threads_for(device, at_a_time),
        seed=seed,
        data_dir=str(data_dir.resolve()) if data_dir else None,
    )
    if planned.jobs:
        stderr.print(fence.describe(), highlight=False, soft_wrap=True)
    counts = board_run.execute(
        planned, known, settings, store=store, workers=at_a_time, console=stderr, timeout=timeout, executor=run_jobs
    )
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing to do"
    stderr.print(f"{ended}; {len(planned.done)} done before. Store: {store}", highlight=False)
    if counts["failed"] or counts["cancelled"]:
        raise typer.Exit(1)


@app.command(epilog="Examples: `quench status` · `quench status --corpus mini --json`")
def status(
    names: Annotated[list[str] | None, typer.Argument(help="Submissions. [default: all]")] = None,
    store: StoreOption = DEFAULT_STORE,
    submissions: SubmissionsOption = None,
    quantizers: QuantizersOption = None,
    tasks: TasksOption = None,
    corpus: CorpusOption = None,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show how far each submission is under each quantizer: finished, failed, skipped, cancelled, to do."""
    from harness.run import board_run, planner

    planned = planner.plan(
        load_submissions(submissions),
        names=names or (),
        quantizers=chosen_quantizers(quantizers),
        tasks=chosen_tasks(tasks),
        corpus=corpus,
        data_dir=data_dir,
        device=device,
        seed=seed,
        limit=limit,
        check_references=False,
    )
    rows = board_run.progress_rows(planned, store)
    print_rows(rows, "status", as_json, title=str(store))


@app.command(epilog="Examples: `quench render` · `quench render --store build/demo.duckdb --out public --open`")
def render(
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", help="Folder of the site; replaced as a whole.")] = Path(
        "leaderboard/site"
    ),
    title: Annotated[str | None, typer.Option("--title", help="Title of the board.")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Address the site will have, for links.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Build again whenever the store changes, until Ctrl-C.")
    ] = False,
) -> None:
    """Build the leaderboard as static pages that work offline."""
    from harness.publish import pages, watching

    def build() -> Path:
        index = pages.render(store, out, title=title, base_url=base_url)
        stderr.print(f"Wrote {index}", highlight=False, soft_wrap=True)
        return index

    seen = watching.state(store)
    index = build()
    if open_page:
        typer.launch(str(index))
    if watch:
        watching.watch(store, build, seen, say=lambda text: stderr.print(text, highlight=False, soft_wrap=True))


@app.command(epilog="Example: `quench ingest other-machine/results.records --store results.duckdb`")
def ingest(
    folder: Annotated[Path, typer.Argument(help="Folder of cell records.", exists=True, file_okay=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Store cell records that another machine has written; the same record twice is stored once."""
    from harness.run import board_run

    new, known = board_run.ingest(store, folder)
    stderr.print(f"{new} new, {known} known already. Store: {store}", highlight=False)


if __name__ == "__main__":
    main()
