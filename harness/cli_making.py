"""Commands that make submissions: unlearning a target, and building the miniature."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli_options import DataDirOption, DeviceOption, SeedOption, SubmissionsOption, load_submissions, stderr

app = typer.Typer()
mini_app = typer.Typer(no_args_is_help=True, help="The embedded miniature: a generated corpus and its small models.")


@app.command(
    epilog="Examples: `quench unlearn npo_gdr --target mini-target-4bit --lora r=8,alpha=16 --out submissions/mine` · "
    "`quench unlearn ga --target my-target --data-dir DIR --set max_steps=10 --out submissions/ga-short`"
)
def unlearn(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, e.g. ga, ga_gdr, npo, npo_gdr, or path of one.")],
    target: Annotated[str, typer.Option("--target", help="Control of role target to unlearn from.")],
    out: Annotated[Path, typer.Option("--out", help="New submission folder; its name becomes the submission's.")],
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    lora: Annotated[str | None, typer.Option("--lora", help="r=8,alpha=16[,dropout=0.05]")] = None,
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

    _hush_libraries()
    chosen, how = from_target.recipe_from_options(recipe, lora=lora, full=full, settings=settings or ())
    with Progress(console=stderr, disable=not stderr.is_terminal) as progress:
        steps = progress.add_task(f"{chosen.method}, {chosen.parameters}", total=None)
        made = from_target.make_entry(
            chosen, target=target, submissions=load_submissions(submissions), out=out, cache=paths.cache_dir(),
            data_dir=data_dir, seed=seed, device=device, execution=how,
            on_progress=lambda done, all_steps: progress.update(steps, completed=done, total=all_steps),
        )  # fmt: skip
    stderr.print(f"Wrote {out}. Next: quench validate {out} and quench run {made.name}", highlight=False)


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

    _hush_libraries()
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


def _hush_libraries() -> None:
    """Keeps transformers' deprecation notes out of a person's way: they are for Quench, not for its users."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
