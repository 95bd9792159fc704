"""The commands around quantizers: support matrix, installation, survival of an update."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from harness.cli.library_chatter import off_stdout
from harness.cli.options import (
    COMPARE,
    DataDirOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    QuantizersOption,
    SubmissionsOption,
    chosen_quantizers,
    load_submissions,
    print_rows,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from harness.quantize.support_matrix import Row
    from harness.records import LayerSurvival

app = typer.Typer()
backends_app = typer.Typer()

_SHOWN = {"runs here": "yes", "needs a GPU": "GPU", "needs install": "lib", "cannot": "-"}
_LEGEND = (
    "yes: runs here; GPU: needs a CUDA card; lib: its library is missing; -: it can't; any: other groups by name. "
    "Presets: quench backends --presets. One backend: quench backends show NAME."
)


@backends_app.callback(
    invoke_without_command=True,
    epilog="Examples: `quench backends` · `quench backends --presets` · `quench backends --device cuda --json` · "
    "`quench backends show gptq` · `quench backends install autogptq autoawq`",
)
def backends(
    context: typer.Context,
    presets: Annotated[bool, typer.Option("--presets", help="List every preset instead of the matrix.")] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show which backend quantizes to which width, and whether it runs on this machine."""
    if context.invoked_subcommand is not None:
        return
    from harness.quantize import support_matrix

    if as_json:
        document = {
            "schema": "quench.backends/1",
            "rows": _preset_rows(device),
            "matrix": [dataclasses.asdict(row) for row in support_matrix.matrix(device)],
        }
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    elif presets:
        columns = ("quantizer", "bits", "label", "runs_here", "reason")
        print_rows(_preset_rows(device), "backends", False, title="Quantizers", columns=columns)
    else:
        found = support_matrix.matrix(device)
        print_rows(
            [_table_row(row) for row in found],
            "backends",
            False,
            title="Backends and the widths in bits that they make",
        )
        for line in (_LEGEND, *(line for row in found for line in _reasons(row))):
            stdout.print(Text(line))


def _preset_rows(device: str) -> list[dict[str, Any]]:
    from harness import quantize
    from harness.quantize import support_matrix

    rows = []
    for spec in quantize.presets():
        state, reason = support_matrix.state_of(spec, device)
        rows.append(
            {
                "quantizer": spec.name,
                "backend": spec.backend,
                "bits": spec.bits,
                "group_size": spec.group_size,
                "symmetric": spec.symmetric,
                "label": spec.label,
                "runs_here": state == "runs here",
                "state": state,
                "reason": reason,
            }
        )
    return rows


def _table_row(row: Row) -> dict[str, Any]:
    return {
        "backend": row.backend,
        **{str(entry.bits): _SHOWN[entry.state] for entry in row.entries},
        "calibrated": row.calibrated,
        "groups": row.group_text,
    }


def _reasons(row: Row) -> list[str]:
    """Returns one line per reason why a backend does not run here, with the widths that it holds for."""
    from harness.quantize import support_matrix

    gaps = support_matrix.gaps(row, "cannot", "needs a GPU")
    lines = [f"{row.backend} at {', '.join(map(str, bits))} bit: {told}" for told, bits in gaps.items()]
    if any(entry.state == "needs install" for entry in row.entries):
        lines.insert(0, f"{row.backend}: run {row.install}")
    return lines


@backends_app.command(epilog="Examples: `quench backends show gptq` · `quench backends show rtn --json`")
def show(
    name: Annotated[str, typer.Argument(help="Backend, as the matrix names it.")],
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show all about one backend: its presets, what it needs, what it leaves in 16 bit."""
    from harness.errors import UnknownNameError
    from harness.quantize import support_matrix

    known = {row.backend: row for row in support_matrix.matrix(device)}
    if name not in known:
        raise UnknownNameError("quantization backend", name, known)
    rows = [row for row in _preset_rows(device) if row["backend"] == name]
    columns = ("quantizer", "bits", "label", "runs_here", "reason")
    print_rows(rows, "backends.show", as_json, title=f"Presets of {name}", columns=columns)
    if not as_json:
        for line in _facts(known[name]):
            stdout.print(Text(line))


def _facts(row: Row) -> list[str]:
    """Returns what a reader should know about a backend, one line a fact."""
    twice = "the same codes each time" if row.deterministic else "other codes each time"
    return [
        *([f"Added by: {row.package}"] if row.package else []),
        f"Needs: {row.install}" + (f" (here: version {row.library_version})" if row.library_version else ""),
        f"Groups: {row.group_text or 'none'}",
        f"Calibrated on the corpus's retain texts: {'yes' if row.calibrated else 'no'}",
        f"Run twice it gives {twice}",
        f"Left in 16 bit: {row.dense}",
        *_reasons(row),
    ]


@backends_app.command(epilog="Example: `quench backends install autogptq autoawq`")
def install(
    names: Annotated[list[str], typer.Argument(help="Backends that run in an interpreter of their own.")],
) -> None:
    """Install unmaintained quantization libraries into an interpreter of their own, apart from Quench's."""
    from harness.quantize.legacy import environments

    place = environments.install(names, on_line=lambda line: stderr.print(Text(line), soft_wrap=True))
    stderr.print(f"Installed {', '.join(names)} in {place}. Next: quench backends", highlight=False, soft_wrap=True)


_POOLED = ("quantizer", "codes_changed", "survival_ratio", "cosine", "norm_ratio", "update_norm")
_BY_LAYER = ("quantizer", "layer", "codes_changed", "survival_ratio", "cosine", "norm_ratio", "effective_rank")


@app.command(
    rich_help_panel=COMPARE,
    epilog="Examples: `quench survival mini-npo-gdr-full --against mini-target-4bit` · "
    "`quench survival my-entry --quantizers rtn-4bit-g64,bnb-nf4 --layers --json` · "
    "`quench survival my-entry --predict`",
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
    """Measure how much of the unlearning update survives each quantizer, layer by layer; nothing is scored."""
    from rich.progress import Progress

    from harness import paths
    from harness.run import update_survival

    with Progress(console=stderr, disable=not stderr.is_terminal) as progress, off_stdout():
        bar = progress.add_task("layers", total=None)
        found = update_survival.survive(
            name, against, chosen_quantizers(quantizers), load_submissions(submissions, name, against),
            cache=paths.cache_dir(),
            data_dir=data_dir, device=device,
            on_layer=lambda done, layers: progress.update(bar, completed=done, total=layers),
        )  # fmt: skip
    rows = [
        _survival_row(quantizer, one, predict)
        for quantizer, all_rows in found.items()
        for one in (all_rows if layers or as_json else all_rows[:1])
    ]
    columns = [*(_BY_LAYER if layers else _POOLED), *(["chance_of_return"] if predict else [])]
    print_rows(rows, "survival", as_json, title=f"What is left of {name}'s update", columns=columns, form=form)


def _survival_row(quantizer: str, told: LayerSurvival, predict: bool) -> dict[str, Any]:
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
