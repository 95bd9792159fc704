"""The command that says what quantizers leave of an update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli_options import (
    DataDirOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    QuantizersOption,
    SubmissionsOption,
    chatter_on_stderr,
    chosen_quantizers,
    load_submissions,
    print_rows,
    stderr,
)

if TYPE_CHECKING:
    from harness.records import LayerSurvival

app = typer.Typer()

_POOLED = ("quantizer", "codes_changed", "survival_ratio", "cosine", "norm_ratio", "update_norm")
_BY_LAYER = ("quantizer", "layer", "codes_changed", "survival_ratio", "cosine", "norm_ratio", "effective_rank")


@app.command(
    epilog="Examples: `quench survival mini-npo-gdr-full --against mini-target-4bit` · "
    "`quench survival my-entry --quantizers rtn-4bit-g64,bnb-nf4 --layers --json` · "
    "`quench survival my-entry --predict`"
)
def survival(
    name: Annotated[str, typer.Argument(help="Submission whose update it is.")],
    against: Annotated[
        str | None, typer.Option("--against", help="What it was unlearned from. [default: its target]")
    ] = None,
    quantizers: QuantizersOption = None,
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, not only all of them pooled.")] = False,
    predict: Annotated[bool, typer.Option("--predict", help="How likely each quantizer brings the text back.")] = False,
    device: DeviceOption = "cpu",
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how much of an update each quantizer leaves, layer by layer, without scoring anything."""
    from rich.progress import Progress

    from harness import paths
    from harness.run import update_survival

    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, chatter_on_stderr():
        bar = progress.add_task("layers", total=None)
        found = update_survival.survive(
            name, against, chosen_quantizers(quantizers), load_submissions(submissions), cache=paths.cache_dir(),
            data_dir=data_dir, device=device,
            on_layer=lambda done, layers: progress.update(bar, completed=done, total=layers),
        )  # fmt: skip
    rows = [
        _row(quantizer, one, predict)
        for quantizer, all_rows in found.items()
        for one in (all_rows if layers or as_json else all_rows[:1])
    ]
    columns = [*(_BY_LAYER if layers else _POOLED), *(["chance_of_return"] if predict else [])]
    print_rows(rows, "survival", as_json, title=f"What is left of {name}'s update", columns=columns, form=form)


def _row(quantizer: str, told: LayerSurvival, predict: bool) -> dict[str, Any]:
    from harness.quantize.survival.measure import chance_of_return

    values: dict[str, Any] = {
        "quantizer": quantizer,
        "layer": told.layer,
        "codes_changed": told.codes_changed,
        "update_in_steps": told.update_in_steps,
        "survival_ratio": told.survival_ratio,
        "cosine": told.cosine,
        "norm_ratio": told.norm_ratio,
        "update_norm": told.update_norm,
        "relative_update": told.relative_update,
        "effective_rank": told.effective_rank,
        "num_weights": told.num_weights,
    }
    if predict:
        values["chance_of_return"] = chance_of_return(told.survival_ratio)
    return values
