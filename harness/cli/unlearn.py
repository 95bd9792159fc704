"""The commands that make models: unlearn, mini build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.library_chatter import off_stdout
from harness.cli.options import (
    DEFAULT_STORE,
    MAKE,
    DataDirOption,
    DeviceOption,
    SeedOption,
    StoreOption,
    SubmissionsOption,
    chosen_quantizers,
    load_submissions,
    print_rows,
    stderr,
)
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.records import LayerSurvival, QuantizerSpec, Submission

app = typer.Typer()
mini_app = typer.Typer(no_args_is_help=True, help="The embedded miniature: a generated corpus and its small models.",
                       epilog="Example: `quench mini build --out build/mini`")  # fmt: skip


@app.command(
    rich_help_panel=MAKE,
    epilog="Examples: `quench unlearn npo_gdr --target mini-target-4bit --lora r=8,alpha=16 --out submissions/mine` · "
    "`quench unlearn ga --target my-target --data-dir DIR --set max_steps=10 --out submissions/ga-short` · "
    "`quench unlearn npo_gdr --target my-target --rank auto --at rtn-4bit-g64 --out submissions/survives`",
)
def unlearn(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, e.g. ga, ga_gdr, npo, npo_gdr, or path of one.")],
    target: Annotated[str, typer.Option("--target", help="Control of role target to unlearn from.")],
    out: Annotated[Path, typer.Option("--out", help="New submission folder; its name becomes the submission's.")],
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    lora: Annotated[str | None, typer.Option("--lora", help="r=8,alpha=16[,dropout=0.05]")] = None,
    rank: Annotated[
        str | None,
        typer.Option("--rank", help="Rank of the adapters; auto: the smallest whose update survives --at, scored."),
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="Quantizer that --rank auto's update has to survive.")] = None,
    store: StoreOption = DEFAULT_STORE,
    full: Annotated[bool, typer.Option("--full", help="Train all parameters, whatever the recipe says.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of a setting of the recipe or the machine; may be repeated."),
    ] = None,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
) -> None:
    """Make a target forget its corpus's forget set, and write a submission folder ready to run."""
    from rich.progress import Progress

    from harness import paths
    from harness.unlearn import from_target

    options: dict[str, Any] = {"lora": lora, "full": full, "settings": settings or (), "rank": rank}
    making: dict[str, Any] = {"target": target, "out": out, "data_dir": data_dir, "seed": seed, "device": device}
    if from_target.asks_for_search(**options):
        _unlearn_at_smallest_rank(recipe, options, making, at, load_submissions(submissions, target), store)
        return
    if at is not None:
        raise InputError("--at goes with --rank auto, and the rank is given here: leave one of the two out.")
    chosen, how = from_target.recipe_from_options(recipe, **options)
    with Progress(console=stderr, disable=not stderr.is_terminal) as progress:
        steps = progress.add_task(f"{chosen.method}, {chosen.parameters}", total=None)
        made = from_target.make_entry(
            chosen, submissions=load_submissions(submissions, target), cache=paths.cache_dir(), execution=how, **making,
            on_progress=lambda done, all_steps: progress.update(steps, completed=done, total=all_steps),
        )  # fmt: skip
    stderr.print(f"Wrote {out}. Next: quench validate {out} and quench run {made.name}", highlight=False)


def _unlearn_at_smallest_rank(
    recipe: str, options: Mapping[str, Any], making: Mapping[str, Any], at: str | None, known: dict[str, Submission],
    store: Path,
) -> None:  # fmt: skip
    """Searches the rank, writes the submission, and scores it once at 16 bit and under the quantizer."""
    from rich.progress import Progress

    from harness import paths
    from harness.publish.tables import views as table_views
    from harness.run import sweep, update_survival
    from harness.unlearn import from_target, rank_search

    device, data_dir, out = making["device"], making["data_dir"], making["out"]
    spec = _to_survive(at, device)
    recipes, how = from_target.recipes_by_rank(recipe, rank_search.RANKS, **options)

    def measure(made: Submission) -> LayerSurvival | None:
        rows = update_survival.survive(
            made.name, None, [spec], {**known, made.name: made}, cache=paths.cache_dir(), data_dir=data_dir,
            device=device,
        )[spec.name]  # fmt: skip
        return rows[0] if rows else None

    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, off_stdout():
        bars: dict[int, Any] = {}

        def show(rank: int, done: int, steps: int) -> None:
            if rank not in bars:
                bars[rank] = progress.add_task(f"rank {rank}", total=steps)
            progress.update(bars[rank], completed=done, total=steps)

        made, log = rank_search.make_smallest(
            recipes, quantizer=spec.name, measure=measure, submissions=known, cache=paths.cache_dir(), execution=how,
            on_progress=show, **making,
        )  # fmt: skip
    print_rows([asdict(one) for one in log.tried], "unlearn", False,
               title=f"Rank {log.rank} is the smallest whose update survives {spec.name}")  # fmt: skip
    retrains = [one.name for one in known.values() if one.role == "retrain" and one.corpus == made.corpus]
    entry = replace(made, retrain=retrains[0] if len(retrains) == 1 else None)
    with off_stdout():
        counts = sweep.score(
            {entry.name: entry}, known, chosen_quantizers(f"reference,{spec.name}"), store=store,
            cache=paths.cache_dir(), console=stderr, data_dir=data_dir, device=device,
        )  # fmt: skip
    view = table_views.view(
        store, submission=entry.name, corpus=None, bits=None, cells=False, documents=False, task=None,
        quantizer=None,
    )  # fmt: skip
    print_rows(view.rows, "unlearn", False, title=view.title, columns=view.columns)
    stderr.print(f"Wrote {out}; scored in {store}. Next: quench validate {out}", highlight=False)
    if counts["failed"] or counts["cancelled"]:
        raise typer.Exit(1)


def _to_survive(at: str | None, device: str) -> QuantizerSpec:
    """Returns the quantizer that ``--at`` names."""
    from harness.quantize import backend_of

    if at is None or "," in at:
        raise InputError("--rank auto needs one quantizer that the update has to survive: add --at rtn-4bit-g64, say.")
    (spec,) = chosen_quantizers(at)
    if spec.backend == "reference":
        raise InputError(f"--at: {spec.name} rounds nothing, so any update survives it: name another quantizer.")
    if reason := backend_of(spec).unavailable_reason(spec, device):
        raise InputError(reason)
    return spec


@mini_app.command(
    "build",
    epilog="Examples: `quench mini build --out build/mini` · `quench mini build --data-only --out build/mini`",
)
def mini_build(
    out: Annotated[Path, typer.Option("--out", help="Root of the layout: tasks/ and submissions/ go below it.")] = Path(
        "build/mini"
    ),
    seed: SeedOption = 0,
    data_only: Annotated[bool, typer.Option("--data-only", help="Regenerate the corpus and train nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is there already.")] = False,
) -> None:
    """Regenerate the miniature's corpus and train its targets, retrain control and demo submissions on the CPU."""
    from rich.progress import Progress

    from harness.mini import models

    with Progress(console=stderr, disable=not stderr.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def show_steps(name: str, done: int, steps: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=steps)
                if not stderr.is_terminal:
                    stderr.print(f"{name} ...", highlight=False)
            progress.update(bars[name], completed=done, total=steps)

        report = models.build(out, seed=seed, data_only=data_only, fresh=fresh, on_progress=show_steps)
    stderr.print(f"Data digest {report.data_files_sha256}; trained {len(report.trained)}, kept {len(report.kept)}; "
                 f"written below {out}", highlight=False, soft_wrap=True)  # fmt: skip
