"""The command line: every command, its panel in the help, and one sentence for each error.

Exit codes: 0 done, 1 some cell failed or something asked for was left out, 2 bad input. Tables go to stdout, with
``--json`` as one JSON document; progress and errors go to stderr.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from harness.cli import (
    board,
    experiments,
    library_chatter,
    maintenance,
    plugins,
    quantizers,
    rescore,
    run,
    submissions,
    unlearn,
)
from harness.cli.options import LOOK_AFTER, MAKE, PANELS, SCORE
from harness.errors import InputError, ManifestError, QuenchError

# What Typer raises for a wrong call; it exports this one of its kinds alone.
_UsageError: Any = typer.BadParameter.__base__


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns an error raised on purpose, a wrong call and a full or closed stdout into one sentence and an exit code."""
    sentences, code = list[str](), 2
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except QuenchError as error:
        sentences = list(error.faults) if isinstance(error, ManifestError) else [str(error)]
        code = 2 if isinstance(error, InputError) else 1
    except _UsageError as error:
        # Help, for a call without arguments.
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        sentences = [_wrong_call(error)]
    except OSError as error:
        if not _stdout_is_lost():
            raise
        sentences, code = [f"Not all of the output could be written to stdout: {error.strerror}."], 1
    except ModuleNotFoundError as error:
        from harness.quantize import libraries

        absent = libraries.absent_module(error)
        if absent is None:
            raise
        sentences = [absent]
    for sentence in sentences:
        typer.echo(f"Error: {sentence}", err=True)
    if sentences:
        raise typer.Exit(code)


def _stdout_is_lost() -> bool:
    """Returns whether stdout takes nothing more; then what Python would still write at its end goes nowhere."""
    try:
        os.write(1, b"\n")
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return True
    return False


def _wrong_call(error: Any) -> str:
    """Returns what is wrong with a call and what its command accepts, as one sentence."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "")
    # Typer guesses among commands or among options; here `help` leads to --help.
    said = re.sub(r"[.?]? (?:Did you mean|\(Possible options).*", "", said).rstrip(".")
    if error.ctx is None:
        return f"{said}; `quench --help` lists what is accepted."
    command, said = error.ctx.command, f"{error.ctx.command_path}: {said}"
    if text := getattr(getattr(error, "param", None), "help", None):
        return f"{said} ({text.rstrip('.')})."
    unknown = re.search(r"No such (command|option):? '?([^']+)", said)
    if unknown is None:
        return f"{said}; the call is: {' '.join(error.ctx.get_usage().split()).removeprefix('Usage: ')}."
    options = [name for parameter in command.get_params(error.ctx) for name in parameter.opts if name.startswith("-")]
    commands = command.list_commands(error.ctx) if hasattr(command, "commands") else []
    near = difflib.get_close_matches(unknown[2], [*commands, *options], n=1)
    accepted = commands if unknown[1] == "command" else options
    return f"{said}{f' (did you mean {near[0]}?)' if near else ''}; accepted are {', '.join(accepted)}."


class _Commands(TyperGroup):
    """Lists commands by panel, and says in one sentence what is wrong."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of all commands, panel by panel in the order of ``PANELS``."""
        panel = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(self.commands, key=lambda name: PANELS.index(panel[name]))

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        with _one_sentence():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _one_sentence():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    name="quench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for module in (submissions, run, rescore, board, quantizers, experiments, unlearn, maintenance, plugins):
    app.add_typer(module.app)
app.add_typer(plugins.corpus_app, name="corpus", rich_help_panel=LOOK_AFTER)
app.add_typer(unlearn.mini_app, name="mini", rich_help_panel=MAKE)
app.add_typer(quantizers.backends_app, name="backends", rich_help_panel=SCORE)
app.add_typer(maintenance.cache_app, name="cache", rich_help_panel=LOOK_AFTER)


def _print_version(wanted: bool) -> None:
    if wanted:
        from harness import provenance
        from harness.score.metrics.formulas import SCORING_VERSION

        commit, changed = provenance.code_state()
        at_commit = f", commit {commit[:10]}{' with changes' if changed else ''}" if commit else ""
        release = provenance.version_of("quench-bench") or "(not installed)"
        typer.echo(f"quench {release}, scoring version {SCORING_VERSION}{at_commit}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print release, scoring version and commit, and exit.",
        ),
    ] = False,
) -> None:
    """Does unlearning survive quantization? Submit, compare and publish unlearned models."""


def main() -> None:
    """Runs the command line."""
    library_chatter.hush()
    app(prog_name="quench")


if __name__ == "__main__":
    main()
