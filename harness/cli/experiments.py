"""The commands that run whole experiments: reproduce a paper, relearn forgotten text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.library_chatter import off_stdout
from harness.cli.options import (
    COMPARE,
    DEFAULT_STORE,
    MAKE,
    CorpusOption,
    DataDirOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    LimitOption,
    StoreOption,
    SubmissionsOption,
    chosen_quantizers,
    load_submissions,
    print_rows,
    stderr,
    stdout,
)
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.experiments.arxiv_2602_13151.models import Model
    from harness.store.relearning import Relearning
    from harness.unlearn.execution import Execution

app = typer.Typer()


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--seeds: {text!r} is no list of different whole numbers such as 0,1.")
    return tuple(int(part) for part in parts)


def _execution(settings: Sequence[str]) -> Execution:
    from harness.unlearn.execution import FIELDS, execution_from

    given = dict(setting.partition("=")[::2] for setting in settings)
    if unknown := sorted(set(given) - set(FIELDS)):
        raise InputError(f"--set: there is no {', '.join(unknown)}; accepted are {', '.join(FIELDS)}.")
    return execution_from(given)


def _print_plan(wanted: Sequence[Model], quantizers: Sequence[str], as_json: bool) -> None:
    rows = [
        {
            "submission": model.name, "method": model.recipe.method, "parameters": model.recipe.parameters,
            "recipe": model.recipe.name, "target": model.target, "seed": model.seed,
            "quantizers": ", ".join(quantizers),
        }
        for model in wanted
    ]  # fmt: skip
    title = f"{len(wanted)} models x {len(quantizers)} quantizers"
    print_rows(rows, "reproduce", as_json, title=title, columns=("submission", "recipe", "target", "seed"))


@app.command(
    rich_help_panel=MAKE,
    epilog="Examples: `quench reproduce 2602.13151 --corpus mini` · "
    "`quench reproduce 2602.13151 --corpus mini --seeds 0,1 --json` · "
    "`quench reproduce 2602.13151 --corpus books --target my-books-target --device cuda --dry-run`",
)
def reproduce(
    paper: Annotated[str, typer.Argument(help="arXiv number of the paper: 2602.13151.")],
    corpus: CorpusOption = "mini",
    target: Annotated[
        str | None, typer.Option("--target", help="Control to unlearn from. [default: the corpus's]")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of training, separated by commas.")] = "0",
    steps: Annotated[int, typer.Option("--steps", min=0, help="Stop each training early; 0 follows the recipe.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made and scored, and do nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of models and store. [default: build/...]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for the machine, e.g. mixed_precision=bf16.")
    ] = None,
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Make a paper's eight models, score them at 16, 8 and 4 bit, and say which of its claims hold in the numbers."""
    from rich.progress import Progress

    from harness import paths
    from harness.experiments.arxiv_2602_13151 import models as paper_models
    from harness.experiments.arxiv_2602_13151 import report as paper_report
    from harness.publish.pages import published as published_page
    from harness.publish.ranking import rank as ranking
    from harness.run import sweep
    from harness.store.store import Store

    if paper != paper_models.PAPER:
        raise InputError(f"There is no experiment of the paper {paper!r}: accepted is {paper_models.PAPER}.")
    execution = _execution(settings or ())
    chosen = str(corpus)
    known = load_submissions(submissions, target)
    base = paper_models.target_of(chosen, known, target)
    contrast = paper_models.CONTRAST if chosen == "mini" and paper_models.CONTRAST in known and target is None else None
    wanted = paper_models.models(chosen, base.name, seeds=_seeds(seeds), steps=steps, contrast=contrast)
    specs, missing = paper_models.available(paper_models.QUANTIZERS, device)
    for reason in missing.values():
        stderr.print(f"Left out: {reason}", highlight=False, soft_wrap=True)
    if dry_run:
        _print_plan(wanted, [spec.name for spec in specs], as_json)
        return
    place = out or Path("build") / f"reproduce-{paper}-{chosen}"
    retrain = next((one.name for one in known.values() if one.role == "retrain" and one.corpus == chosen), None)
    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, off_stdout():
        bars: dict[str, Any] = {}

        def show(name: str, done: int, all_steps: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=all_steps)
            progress.update(bars[name], completed=done, total=all_steps)

        made = paper_models.make(
            wanted, known, place, cache=paths.cache_dir(), retrain=retrain, data_dir=data_dir, device=device,
            execution=execution, on_progress=show,
        )  # fmt: skip
    store = place / "results.duckdb"
    with off_stdout():
        counts = sweep.score(
            made, known, specs, store=store, cache=paths.cache_dir(), console=stderr, data_dir=data_dir, device=device,
            limit=limit,
        )  # fmt: skip
    with Store.open(store, read_only=True) as opened:
        board = ranking.rank(opened.cells(with_documents=True), chosen)
    published = published_page.load(published_page.shipped_file())
    rows = paper_report.table(board, wanted, paper_report.figures(published, chosen))
    said = paper_report.paragraph(rows, base.name)
    if as_json:
        document = {"schema": "quench.reproduce/1", "rows": rows, "paragraph": said}
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        print_rows(rows, "reproduce", False, title=f"arXiv {paper} on {chosen}", columns=paper_report.COLUMNS)
        stdout.print(said, highlight=False)
    if counts["failed"] or counts["cancelled"]:
        raise typer.Exit(1)


_RELEARNING_COLUMNS = ("quantizer", "submission", "start", "end", "goal", "half_step", "reason", "seconds")


@app.command(
    rich_help_panel=COMPARE,
    epilog="Examples: `quench relearn mini-npo-gdr-full` · "
    "`quench relearn my-entry --quantizers reference,bnb-nf4 --device cuda --json`",
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
    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, off_stdout():
        bars: dict[tuple[str, str], Any] = {}

        def show(subject: str, quantizer: str, done: int, all_steps: int) -> None:
            if (subject, quantizer) not in bars:
                bars[subject, quantizer] = progress.add_task(f"{subject} x {quantizer}", total=all_steps)
            progress.update(bars[subject, quantizer], completed=done, total=all_steps)

        found = relearning_runs.relearn_all(
            name, chosen_quantizers(quantizers), load_submissions(submissions, name), recipe=recipe, store=store,
            cache=paths.cache_dir(), data_dir=data_dir, device=device, on_progress=show,
        )  # fmt: skip
    rows = [_relearning_row(probe, with_curve=as_json) for probe in found]
    print_rows(
        rows, "relearn", as_json, title=f"Relearning of {name}, VerbMem x 100", columns=_RELEARNING_COLUMNS, form=form
    )


def _relearning_row(probe: Relearning, *, with_curve: bool) -> dict[str, Any]:
    told = asdict(probe)
    curve = list(told.pop("curve"))
    for name, value in (("start", probe.curve[0].verbmem), ("end", probe.curve[-1].verbmem), ("goal", probe.goal)):
        told[name] = 100 * value
    return {**told, "curve": curve} if with_curve else told
