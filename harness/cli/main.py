"""The command line: every command, its panel in the help, and one sentence for each error.

Exit codes: 0 done, 1 some cell failed or something asked for was left out, 2 bad input. Tables go to stdout, with
``--json`` as one JSON document; progress and errors go to stderr.
"""

from __future__ import annotations

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


class _Commands(TyperGroup):
    """Lists commands by panel, and turns an error raised on purpose into one sentence and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of all commands, panel by panel in the order of ``PANELS``."""
        panel = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(self.commands, key=lambda name: PANELS.index(panel[name]))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except QuenchError as error:
            for sentence in error.faults if isinstance(error, ManifestError) else (str(error),):
                typer.echo(f"Error: {sentence}", err=True)
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from error
        except ModuleNotFoundError as error:
            from harness.quantize import libraries

            told = libraries.absent_module(error)
            if told is None:
                raise
            typer.echo(f"Error: {told}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    name="quench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for module in (submissions, run, rescore, board, quantizers, experiments, unlearn, maintenance, plugins):
    app.add_typer(module.app)
app.add_typer(plugins.corpus_app, name="corpus", rich_help_panel=MAKE)
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Does unlearning survive quantization? Submit, compare and publish unlearned models."""


def main() -> None:
    """Runs the command line."""
    library_chatter.hush()
    app()


if __name__ == "__main__":
    main()
