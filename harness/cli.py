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
    cli_extending,
    cli_logs,
    cli_making,
    cli_relearning,
    cli_reproduce,
    cli_running,
    cli_showing,
    cli_submitting,
    cli_survival,
)
from harness.cli_options import DEFAULT_STORE, StoreOption, stderr
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
        except ModuleNotFoundError as error:
            from harness.quantize import libraries

            told = libraries.absent_module(error)
            if told is None:
                raise
            typer.echo(f"Error: {told}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_OneSentenceErrors,
    name="quench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Does unlearning survive quantization? Submit, compare and publish unlearned models.",
)
app.add_typer(cli_submitting.app)
app.add_typer(cli_running.app)
app.add_typer(cli_making.app)
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_logs.app)
app.add_typer(cli_backends.app, name="backends")
app.add_typer(cli_showing.app)
app.add_typer(cli_compare.app)
app.add_typer(cli_exporting.app)
app.add_typer(cli_survival.app)
app.add_typer(cli_relearning.app)
app.add_typer(cli_extending.app)
app.add_typer(cli_extending.corpus_app, name="corpus")
app.add_typer(cli_reproduce.app)
app.add_typer(cli_making.mini_app, name="mini")


def main() -> None:
    """Runs the command line."""
    app()


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
    from harness.publish.pages import site as site_pages
    from harness.publish.pages import watch as site_watch

    def build() -> Path:
        index = site_pages.render(store, out, title=title, base_url=base_url)
        stderr.print(f"Wrote {index}", highlight=False, soft_wrap=True)
        return index

    seen = site_watch.state(store)
    index = build()
    if open_page:
        typer.launch(str(index))
    if watch:
        site_watch.watch(store, build, seen, say=lambda text: stderr.print(text, highlight=False, soft_wrap=True))


if __name__ == "__main__":
    main()
