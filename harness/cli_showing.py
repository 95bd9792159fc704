"""The command that shows what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import DEFAULT_STORE, CorpusOption, FormatOption, JsonOption, StoreOption, print_rows

app = typer.Typer()


@app.command(
    epilog="Examples: `quench show --at 4` · `quench show my-entry` · `quench show --at 4 --ranked --format latex` · "
    "`quench show --cells --kind lora_adapter --verdict reverts --json` · "
    "`quench show my-entry --documents --task muse_mini_knowmem_f --quantizer rtn-4bit-g128`"
)
def show(
    submission: Annotated[str | None, typer.Argument(help="One submission: all its cells. [default: ranking]")] = None,
    store: StoreOption = DEFAULT_STORE,
    corpus: CorpusOption = None,
    at: Annotated[int, typer.Option("--at", help="Rank at this bit width.")] = 4,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell with its scores.")] = False,
    documents: Annotated[bool, typer.Option("--documents", help="List one cell's documents.")] = False,
    task: Annotated[str | None, typer.Option("--task", help="Task of the documents.")] = None,
    quantizer: Annotated[str | None, typer.Option("--quantizer", help="Only this quantizer.")] = None,
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
