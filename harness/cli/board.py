"""The commands around a board: show, compare, render, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from harness.cli.options import (
    COMPARE,
    DEFAULT_STORE,
    PUBLISH,
    CorpusOption,
    FormatOption,
    JsonOption,
    StoreOption,
    print_rows,
    stderr,
    stdout,
)

app = typer.Typer()


@app.command(
    rich_help_panel=COMPARE,
    epilog="Examples: `quench show --at 4` · `quench show my-entry` · `quench show --at 4 --ranked --format latex` · "
    "`quench show --cells --kind lora_adapter --verdict reverts --json` · "
    "`quench show my-entry --documents --task muse_mini_knowmem_f --quantizer rtn-4bit-g128`",
)
def show(
    submission: Annotated[str | None, typer.Argument(help="One submission: all its cells. [default: ranking]")] = None,
    store: StoreOption = DEFAULT_STORE,
    corpus: CorpusOption = None,
    at: Annotated[
        int | None, typer.Option("--at", help="Rank at this bit width, or cells of it alone. [default: rank at 4]")
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell with its scores.")] = False,
    documents: Annotated[bool, typer.Option("--documents", help="List one cell's documents.")] = False,
    task: Annotated[str | None, typer.Option("--task", help="Only cells of this task.")] = None,
    quantizer: Annotated[str | None, typer.Option("--quantizer", help="Only cells of this quantizer.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only submissions of this method.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only full_model, lora_adapter, ...")] = None,
    verdict: Annotated[str | None, typer.Option("--verdict", help="Only this verdict, e.g. holds.")] = None,
    ranked: Annotated[bool, typer.Option("--ranked", help="Only entries that have a rank.")] = False,
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the ranked table, one submission's cells, or one cell's documents."""
    from harness.publish.tables import views as table_views

    view = table_views.view(
        store,
        submission=submission,
        corpus=corpus,
        bits=at,
        cells=cells,
        documents=documents,
        task=task,
        quantizer=quantizer,
        filters=table_views.Filters(method=method, kind=kind, verdict=verdict, ranked=ranked),
    )
    print_rows(view.rows, "show", as_json, title=view.title, columns=view.columns, form=form)


def print_power(corpus: str | None, data_dir: Path | None, store: Path, limit: int | None, as_json: bool) -> None:
    """Prints what difference the documents of one corpus, or of all, can detect."""
    from harness.publish.comparison import power
    from harness.publish.thresholds import POWER
    from harness.score.corpora import catalogue
    from harness.store.store import Store

    cells = []
    if store.exists():
        with Store.open(store, read_only=True) as opened:
            cells = opened.cells(with_documents=True)
    rows = []
    for name in [corpus] if corpus else catalogue.corpus_names():
        known = catalogue.load_corpus(name, data_dir=data_dir)
        if corpus is None and known.hub_repo is None and not (known.folder / "data").is_dir():
            # Its texts are neither shipped nor on a hub: whoever has them names it with --data-dir.
            continue
        rows += power.rows(cells, name, power.documents_of(known, cells, limit))
    title = f"Differences found with {POWER:.0%} probability, in points (recovery: a fraction above tau)"
    print_rows(rows, "plan", as_json, title=title, columns=power.COLUMNS)


@app.command(
    rich_help_panel=PUBLISH,
    epilog="Examples: `quench render` · `quench render --store build/demo.duckdb --out public --open`",
)
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


@app.command(
    rich_help_panel=COMPARE,
    epilog="Examples: `quench compare my-entry mini-npo-gdr-full --at 4` · "
    "`quench compare a b c --at 3 --json` · `quench compare a b --format latex`",
)
def compare(
    names: Annotated[list[str], typer.Argument(help="Two to four submissions: the first against each of the others.")],
    store: StoreOption = DEFAULT_STORE,
    at: Annotated[int, typer.Option("--at", help="Compare at this bit width.")] = 4,
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether two to four entries differ: paired differences with intervals, Holm-corrected."""
    from harness.publish import formatting
    from harness.publish.comparison import sentences, two_entries
    from harness.publish.tables import formats as table_formats
    from harness.store.store import Store

    with Store.open(store, read_only=True) as opened:
        cells = opened.cells(with_documents=True)
    found = two_entries.compare(cells, names, at)
    if as_json or form == "csv":
        rows = [row for one in found for row in two_entries.rows(one, sentences.sentences(one))]
        print_rows(rows, "compare", as_json, title="", form=form)
        return
    for one in found:
        said = [formatting.visible(sentence) for sentence in sentences.sentences(one)]
        title = f"{one.first.submission.name} minus {one.second.submission.name}, {at} bit"
        if form is None:
            for sentence in said:
                stdout.print(Text(sentence))
        print_rows(two_entries.rows(one, said), "compare", False, title=title, columns=two_entries.COLUMNS, form=form)
        if form is not None:
            print(table_formats.paragraphs(said, form), end="")


@app.command(
    rich_help_panel=PUBLISH,
    epilog="Examples: `quench export --out data` · `quench export --store build/demo.duckdb --out data "
    "--format csv,json` · `quench export --out data --base-url https://example.org/board/`",
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
