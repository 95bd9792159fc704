"""The commands for people who extend Quench: plugins, corpus list, corpus check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from harness.cli.options import LOOK_AFTER, JsonOption, print_rows, stderr, stdout

if TYPE_CHECKING:
    from harness.plugins import Plugin

app = typer.Typer()
corpus_app = typer.Typer(
    no_args_is_help=True,
    help="List the corpora, or check one of your own.",
    epilog="Examples: `quench corpus list` · `quench corpus check my_package/muse_own`",
)


@app.command(rich_help_panel=LOOK_AFTER, epilog="Examples: `quench plugins` · `quench plugins --json`")
def plugins(as_json: JsonOption = False) -> None:
    """List what installed packages add to Quench, and why anything of it can't be used."""
    from harness import plugins as installed

    faults = _faults()
    rows = [
        {
            "kind": group.rpartition(".")[2].rstrip("s") if group != installed.CORPORA else "corpus",
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "module": plugin.value,
            "usable": not (reason := _reason(plugin, faults[group])),
            "reason": reason,
        }
        for group in installed.GROUPS
        for plugin in installed.found(group)
    ]
    if rows or as_json:
        print_rows(rows, "plugins", as_json, title="What packages add")
    else:
        stderr.print("No installed package adds anything; see docs/extending.md.", highlight=False)


def _faults() -> dict[str, Mapping[str, str]]:
    """Returns by group the sentences why declared names can't be used."""
    from harness import plugins as installed
    from harness import quantize
    from harness.score.corpora import catalogue
    from harness.score.metrics import table as metric_table

    return {
        installed.QUANTIZERS: quantize.broken(),
        installed.CORPORA: catalogue.broken(),
        installed.METRICS: metric_table.broken(),
    }


def _reason(plugin: Plugin, faults: Mapping[str, str]) -> str | None:
    from harness import plugins as installed
    from harness.errors import PluginError

    told = faults.get(plugin.name) or faults.get(f"{plugin.name} ({plugin.package})")
    if told is None and plugin.group == installed.METRICS:
        try:
            installed.load(plugin)
        except PluginError as error:
            told = str(error)
    return told


@corpus_app.callback()
def corpus() -> None:
    """List the corpora, or check one of your own."""


@corpus_app.command("list", epilog="Examples: `quench corpus list` · `quench corpus list --json`")
def list_corpora(as_json: JsonOption = False) -> None:
    """List every corpus, where its folder and its texts lie, and why any of a package can't be used."""
    from harness import plugins as installed
    from harness.score.corpora import catalogue, places

    packages = {plugin.name: plugin.package for plugin in installed.found(installed.CORPORA)}
    rows = []
    for name in catalogue.corpus_names():
        corpus = catalogue.load_corpus(name)
        named = f"package {packages[name]}" if name in packages else places.VARIABLE
        on_hub = f"hf://{corpus.hub_repo}@{corpus.revision}" if corpus.hub_repo else "--data-dir"
        own = corpus.folder / "data"
        rows.append(
            {"corpus": name, "title": corpus.title, "comes_with": "Quench" if corpus.ships else named,
             "folder": str(corpus.folder), "texts": str(own) if own.is_dir() else on_hub, "license": corpus.license,
             "reason": None}
        )  # fmt: skip
    for name, reason in catalogue.broken().items():
        rows.append(
            dict.fromkeys(rows[0]) | {"corpus": name, "comes_with": f"package {packages.get(name)}", "reason": reason}
        )
    columns = ["corpus", "comes_with", "folder", "texts", *(["reason"] if catalogue.broken() else [])]
    print_rows(rows, "corpus.list", as_json, title="Corpora", columns=columns)


@corpus_app.command(
    epilog="Examples: `quench corpus check my_package/muse_own` · `quench corpus check tasks/muse_mini --json`"
)
def check(
    folder: Annotated[Path, typer.Argument(help="Folder with corpus.json, a YAML for each task, and data/.")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder in MUSE's local form to look at instead of data/.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a folder is a corpus: facts, tasks, texts, overlaps, digests. No code of it is run."""
    from harness.score.corpora import check as corpus_check

    found = corpus_check.check(folder, data_dir=data_dir)
    rows = [dataclasses.asdict(split) for split in found.splits]
    if as_json:
        document = {"schema": "quench.corpus.check/1", "rows": rows, "faults": found.faults, "remarks": found.remarks}
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        if rows:
            print_rows(rows, "corpus.check", False, title=f"Texts of {folder}")
        for remark in found.remarks:
            stdout.print(Text(f"Note: {remark}"), soft_wrap=True)
        for fault in found.faults:
            typer.echo(f"Error: {fault}", err=True)
        if not found.faults:
            stdout.print(Text(f"{folder} can be scored."), soft_wrap=True)
    if found.faults:
        raise typer.Exit(2)
