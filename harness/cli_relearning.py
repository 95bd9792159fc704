"""The command that asks how fast forgotten text comes back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli_options import (
    DEFAULT_STORE,
    DataDirOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    StoreOption,
    SubmissionsOption,
    chatter_on_stderr,
    chosen_quantizers,
    load_submissions,
    print_rows,
    stderr,
)

if TYPE_CHECKING:
    from harness.store.relearning import Relearning

app = typer.Typer()

_COLUMNS = ("quantizer", "submission", "start", "end", "goal", "half_step", "reason", "seconds")


@app.command(
    epilog="Examples: `quench relearn mini-npo-gdr-full` · "
    "`quench relearn my-entry --quantizers reference,bnb-nf4 --device cuda --json`"
)
def relearn(
    name: Annotated[str, typer.Argument(help="Entry to probe; its retrain control is probed beside it.")],
    quantizers: Annotated[
        str, typer.Option("--quantizers", help="Names, separated by commas; see `quench backends`.")
    ] = "reference,rtn-4bit-g64",
    documents: Annotated[
        int | None, typer.Option("--documents", help="Documents to train on, and to ask about. [default: pinned, 16]")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps. [default: pinned, 40]")] = None,
    store: StoreOption = DEFAULT_STORE,
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    device: DeviceOption = "cpu",
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a quantized entry on some forget documents and say how fast the others come back; store the curve."""
    from rich.progress import Progress

    from harness import paths
    from harness.experiments.relearning import probe as relearning_probe
    from harness.experiments.relearning import runs as relearning_runs

    recipe = relearning_probe.load_recipe(documents=documents, steps=steps)
    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, chatter_on_stderr():
        bars: dict[tuple[str, str], Any] = {}

        def show(subject: str, quantizer: str, done: int, all_steps: int) -> None:
            if (subject, quantizer) not in bars:
                bars[subject, quantizer] = progress.add_task(f"{subject} x {quantizer}", total=all_steps)
            progress.update(bars[subject, quantizer], completed=done, total=all_steps)

        found = relearning_runs.relearn_all(
            name, chosen_quantizers(quantizers), load_submissions(submissions), recipe=recipe, store=store,
            cache=paths.cache_dir(), data_dir=data_dir, device=device, on_progress=show,
        )  # fmt: skip
    rows = [_row(probe, with_curve=as_json) for probe in found]
    print_rows(rows, "relearn", as_json, title=f"Relearning of {name}, VerbMem x 100", columns=_COLUMNS, form=form)


def _row(probe: Relearning, *, with_curve: bool) -> dict[str, Any]:
    told = asdict(probe)
    curve = list(told.pop("curve"))
    for name, value in (("start", probe.curve[0].verbmem), ("end", probe.curve[-1].verbmem), ("goal", probe.goal)):
        told[name] = 100 * value
    return {**told, "curve": curve} if with_curve else told
