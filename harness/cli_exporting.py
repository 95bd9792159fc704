"""The command that writes the board as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import DEFAULT_STORE, StoreOption, stderr

app = typer.Typer()


@app.command(
    epilog="Examples: `quench export --out data` · `quench export --store build/demo.duckdb --out data "
    "--format csv,json` · `quench export --out data --base-url https://example.org/board/`"
)
def export(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; what else is in it stays.")],
    store: StoreOption = DEFAULT_STORE,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Names, separated by commas: csv, json, parquet, duckdb, latex, markdown, bibtex, feed, badges, "
            "every-eval-ever, eval-results, changes. [default: all]",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the board.")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Address of the site, for links.")] = None,
) -> None:
    """Write the board as CSV, JSON, Parquet, DuckDB, feed, badges and records for other collections of results."""
    from harness.publish.exports import formats as export_formats

    chosen = [name.strip() for name in (formats or "").split(",") if name.strip()]
    written = export_formats.export(store, out, chosen, title=title, base_url=base_url)
    stderr.print(f"Wrote {len(written)} kinds of files to {out}", highlight=False, soft_wrap=True)
