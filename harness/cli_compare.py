"""The command that compares entries."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from harness.cli_options import DEFAULT_STORE, FormatOption, JsonOption, StoreOption, print_rows, stdout

app = typer.Typer()


@app.command(
    epilog="Examples: `quench compare my-entry mini-npo-gdr-full --at 4` · "
    "`quench compare a b c --at 3 --json` · `quench compare a b --format latex`"
)
def compare(
    names: Annotated[list[str], typer.Argument(help="Two to four submissions: the first against each of the others.")],
    store: StoreOption = DEFAULT_STORE,
    at: Annotated[int, typer.Option("--at", help="Compare at this bit width.")] = 4,
    form: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether entries differ: paired differences with intervals, and what may be claimed of them."""
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
