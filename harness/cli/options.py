"""Options that several commands share, their values, and the printing of tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from harness.errors import InputError, ManifestError
from harness.memory import Streaming

if TYPE_CHECKING:
    from harness.records import QuantizerSpec, Submission

Form = Literal["csv", "markdown", "latex"]
ExecutorName = Literal["local", "ray"]

_PIPE_WIDTH = 120

PANELS = SUBMIT, SCORE, COMPARE, PUBLISH, MAKE, LOOK_AFTER = (
    "Submit", "Score", "Compare", "Publish", "Make", "Look after",
)  # fmt: skip
"""Groups of commands in `quench --help`, in the order of a user's day."""

stdout = Console()
stderr = Console(stderr=True)

StoreOption = Annotated[Path, typer.Option("--store", help="DuckDB file that holds the results.")]
SubmissionsOption = Annotated[
    Path | None, typer.Option("--submissions", help="Folder of submissions. [default: ./submissions, else the shipped]")
]
QuantizersOption = Annotated[
    str | None, typer.Option("--quantizers", help="Names, separated by commas; see `quench backends`.")
]
TasksOption = Annotated[str | None, typer.Option("--tasks", help="Task or group names, separated by commas.")]
CorpusOption = Annotated[str | None, typer.Option("--corpus", help="Only this corpus, e.g. mini, news or books.")]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the corpus in MUSE's local form, instead of the hub.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Documents per task; such rows are not ranked.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="torch device: cpu, cuda, cuda:1.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
StreamOption = Annotated[
    Streaming,
    typer.Option("--stream", help="Read models layer by layer; auto: those that memory doesn't hold whole."),
]
ControlsOption = Annotated[bool, typer.Option("--controls/--no-controls", help="Add the controls that entries need.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
FormatOption = Annotated[
    Form | None, typer.Option("--format", help="Print the table as CSV, Markdown or LaTeX instead.")
]
DEFAULT_STORE = Path("results.duckdb")


def submissions_dir(chosen: Path | None) -> Path:
    """Returns the folder of submissions: the chosen one, ./submissions, or the one that ships.

    Raises:
        InputError: The chosen folder is not there.
    """
    from harness import paths

    if chosen is not None:
        if not chosen.is_dir():
            raise InputError(f"There is no folder {chosen}: name one with --submissions that holds submission folders.")
        return chosen
    local = Path("submissions")
    return local if local.is_dir() else paths.content_dir("submissions")


def submission_folders(directory: Path) -> list[Path]:
    """Returns every folder below ``directory`` that holds a submission.yaml.

    Raises:
        InputError: There is none.
    """
    found = sorted(path.parent for path in directory.glob("*/submission.yaml"))
    if not found:
        raise InputError(f"There is no submission.yaml below {directory}: add a folder with one for each submission.")
    return found


def usable_submissions(chosen: Path | None) -> tuple[dict[str, Submission], dict[str, list[str]]]:
    """Returns the submissions of a folder without faults by name, and the faults of the others."""
    from harness.submit.manifest import load as manifest

    return manifest.load_usable(submissions_dir(chosen))


def load_submissions(chosen: Path | None, *names: str | None) -> dict[str, Submission]:
    """Returns the submissions of a folder without faults by name.

    Raises:
        ManifestError: One of ``names`` has faults.
    """
    usable, faults = usable_submissions(chosen)
    if asked := [sentence for name in names if name for sentence in faults.get(name, ())]:
        raise ManifestError(asked)
    return usable


def chosen_quantizers(text: str | None) -> list[QuantizerSpec]:
    """Returns the quantizers that a comma-separated list names; the default set without one."""
    from harness import quantize
    from harness.run.plan.planner import DEFAULT_QUANTIZERS

    names = _split(text) or list(DEFAULT_QUANTIZERS)
    return [quantize.resolve(name) for name in dict.fromkeys(names)]


def chosen_tasks(text: str | None) -> tuple[str, ...]:
    """Returns the tasks that a comma-separated list of tasks and groups names; none without one."""
    from harness.score.corpora import catalogue

    names = _split(text)
    return catalogue.resolve_tasks(names) if names else ()


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def print_rows(
    rows: Sequence[dict[str, Any]], command: str, as_json: bool, *, title: str, columns: Sequence[str] | None = None,
    form: Form | None = None,
) -> None:  # fmt: skip
    """Prints rows as a table, as the one JSON document that ``--json`` promises, or in the form asked for.

    Raises:
        InputError: Both JSON and another form are asked for.
    """
    if as_json and form is not None:
        raise InputError(f"--json and --format {form} exclude each other: give one of them.")
    if as_json:
        print(json.dumps({"schema": f"quench.{command}/1", "rows": list(rows)}, ensure_ascii=False, allow_nan=False))
        return
    from harness.publish.tables import formats as table_formats

    if form is None:
        _print_whole(table_formats.terminal_table(rows, title=title, columns=columns))
    else:
        print(table_formats.text_table(rows, form, columns), end="")


def _print_whole(table: Table) -> None:
    """Prints a table with no column cut off; in a pipe or file, which has no width of its own, 120 columns wide."""
    from rich.measure import Measurement

    least, natural = Measurement.get(stdout, stdout.options.update_width(10_000), table)
    table.width = min(natural, max(least, stdout.width if stdout.is_terminal else _PIPE_WIDTH))
    stdout.print(table, crop=False)
