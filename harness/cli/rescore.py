"""The command that scores the logs of past evaluations again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from harness.cli.options import SCORE, DataDirOption, JsonOption, print_rows, stderr, stdout

app = typer.Typer()


@app.command(
    rich_help_panel=SCORE,
    epilog="Examples: `quench rescore temp --corpus books` · "
    "`quench rescore saves/eval/my-model/MUSE_EVAL.json --corpus news --json` · "
    "`quench rescore temp/ga --corpus books --quantizer bnb-fp4 --data-dir DIR --store past.duckdb`",
)
def rescore(
    paths: Annotated[
        list[Path], typer.Argument(help="Logs: folders of models as muse_bench writes them, or *_EVAL.json files.")
    ],
    corpus: Annotated[str, typer.Option("--corpus", help="Corpus of the evaluation: news, books or mini.")],
    quantizer: Annotated[
        str | None, typer.Option("--quantizer", help="What the models were quantized with. [default: reference]")
    ] = None,
    data_dir: DataDirOption = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Keep the rows in this store, marked and never ranked.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every metric of past MUSE evaluations from their logs, with intervals and flags."""
    from harness import quantize
    from harness.publish import formatting
    from harness.publish.thresholds import REFERENCE
    from harness.rescore import find as log_finder
    from harness.rescore import results as rescored_results
    from harness.score.corpora import catalogue

    texts = catalogue.load_corpus(corpus, data_dir=data_dir)
    precision = rescored_results.Precision(spec=quantize.resolve(quantizer or REFERENCE), stated=quantizer is not None)
    models = log_finder.find(paths)
    found = rescored_results.rescore(models, texts, precision)
    if store is not None:
        new, known = rescored_results.keep(found, store)
        stderr.print(f"{new} new, {known} known already. Store: {store}", highlight=False)
    rows = rescored_results.rows(found, models)
    print_rows(rows, "rescore", as_json, title=f"Rescored from logs, {corpus}", columns=rescored_results.COLUMNS)
    if not as_json:
        for line in rescored_results.notes(found, models):
            stdout.print(Text(formatting.visible(line)))
