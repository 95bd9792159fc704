"""The commands that look after a store and the cache: ingest, verify, doctor, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from harness.cli.options import (
    DEFAULT_STORE,
    LOOK_AFTER,
    DataDirOption,
    JsonOption,
    StoreOption,
    SubmissionsOption,
    load_submissions,
    print_rows,
    stderr,
)

app = typer.Typer()
cache_app = typer.Typer(help="What is kept to save work: downloads, merged and quantized models.")

_MIB = 2**20


@cache_app.callback(
    invoke_without_command=True,
    epilog="Examples: `quench cache` · `quench cache trim --to 20GB` · `quench cache clear quantized`",
)
def cache(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show what the cache holds and how much room it takes."""
    if context.invoked_subcommand is not None:
        return
    from harness import paths
    from harness.run.maintenance import cache as cache_folder

    rows = [
        {"kind": room.kind, "what": cache_folder.KINDS[room.kind], "entries": room.entries, "bytes": room.size_bytes,
         "MB": round(room.size_bytes / _MIB, 1)}
        for room in cache_folder.rooms(paths.cache_dir())
    ]  # fmt: skip
    print_rows(rows, "cache", as_json, title=str(paths.cache_dir()), columns=("kind", "what", "entries", "MB"))


@cache_app.command(epilog="Examples: `quench cache clear quantized` · `quench cache clear 'left over' merged`")
def clear(kinds: Annotated[list[str], typer.Argument(help="Kinds, as `quench cache` names them.")]) -> None:
    """Remove everything of some kinds; it is made or downloaded again when it is needed."""
    from harness import paths
    from harness.run.maintenance import cache as cache_folder

    freed = cache_folder.clear(paths.cache_dir(), kinds)
    stderr.print(f"Freed {freed / _MIB:.1f} MB", highlight=False)


@cache_app.command(epilog="Example: `quench cache trim --to 20GB`")
def trim(to: Annotated[str, typer.Option("--to", help="Room that quantized models may take, such as 20GB.")]) -> None:
    """Drop the least recently used quantized models until the rest fits."""
    from harness import lru_folder, paths
    from harness.quantize import model_cache
    from harness.run.maintenance import cache as cache_folder

    freed = lru_folder.trim(paths.cache_dir() / model_cache.FOLDER, cache_folder.parse_size(to))
    stderr.print(f"Freed {freed / _MIB:.1f} MB", highlight=False)


@app.command(
    rich_help_panel=LOOK_AFTER,
    epilog="Examples: `quench ingest other-machine/results.records --store results.duckdb` · "
    "`quench ingest news.duckdb --no-texts`",
)
def ingest(
    source: Annotated[Path, typer.Argument(help="Folder of cell records, or another store.", exists=True)],
    store: StoreOption = DEFAULT_STORE,
    no_texts: Annotated[
        bool,
        typer.Option(
            "--no-texts",
            help="Leave prompts' ends, answers and references out and keep digests of them: "
            "for corpora whose texts may not be published.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Store cells that another machine has scored; a cell with two results is shown and keeps its first."""
    from harness.store import merging

    merged = merging.ingest(store, source, texts=not no_texts)
    if as_json:
        print_rows(merged.conflicts, "ingest", True, title="")
    elif merged.conflicts:
        print_rows(merged.conflicts, "ingest", False, title="Cells with another result than the store's, which stays")
    stderr.print(
        f"{merged.new} new, {merged.known} known already, {len(merged.conflicts)} in conflict. Store: {store}",
        highlight=False,
    )
    if merged.conflicts:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=LOOK_AFTER,
    epilog="Examples: `quench verify mini-npo-gdr-lora` · `quench verify my-entry --quantizer bnb-nf4 --documents 10`",
)
def verify(
    name: Annotated[str, typer.Argument(help="Submission whose stored cells are doubted.")],
    quantizer: Annotated[str | None, typer.Option("--quantizer", help="Only this quantizer. [default: all]")] = None,
    documents: Annotated[int, typer.Option("--documents", min=1, help="Documents of each task to score again.")] = 3,
    store: StoreOption = DEFAULT_STORE,
    submissions: SubmissionsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a few documents again by plain means that share no code with scoring; exit code 1 on a difference."""
    from collections import Counter
    from dataclasses import asdict

    from harness import paths, quantize
    from harness.score.corpora import catalogue
    from harness.submit.checkpoint import hub
    from harness.submit.scan import folder as folder_scan
    from harness.submit.weight_files import HUB
    from harness.verify import check

    known = load_submissions(submissions, name)

    def place(reference: str, revision: str | None) -> Path:
        if not reference.startswith(HUB):
            return Path(reference)
        folder = hub.download(reference, revision or "", paths.cache_dir())
        folder_scan.scan_folder(folder, adapter=(folder / "adapter_config.json").is_file())
        return folder

    def corpus(name: str) -> catalogue.Corpus:
        return catalogue.load_corpus(name, data_dir=data_dir)

    if name in known:
        folder_scan.scan(known[name], known)
    sources = check.Sources(
        known=known, folder=place, settings=catalogue.task_settings, quantizer=quantize.resolve,
        texts=lambda name, config, split: catalogue.load_split(corpus(name), config, split),
        reference_auc=lambda name: corpus(name).reference_auc,
    )  # fmt: skip
    checks = list(check.verify(store, name, sources, quantizer=quantizer, documents=documents))
    counts = Counter(one.result for one in checks)
    title = f"{name}: " + ", ".join(f"{counts[state]} {state}" for state in get_args(check.State))
    print_rows(list(map(asdict, checks)), "verify", as_json, title=title, columns=check.COLUMNS)
    if counts["different"]:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=LOOK_AFTER, epilog="Examples: `quench doctor` · `quench doctor --store results.duckdb --repair`"
)
def doctor(
    store: StoreOption = DEFAULT_STORE,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without losing a result.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a store, its records and what killed runs left behind; exit code 1 where something is left to mend."""
    from harness import paths
    from harness.run.maintenance import doctor as doctors

    findings = doctors.examine(store, cache=paths.cache_dir())
    if repair:
        doctors.repair(store, findings, cache=paths.cache_dir())
    rows = [
        {"what": found.what, "where": str(found.where), "found": found.sentence, "repair": found.remedy,
         "repaired": repair and found.remedy is not None}
        for found in findings
    ]  # fmt: skip
    print_rows(rows, "doctor", as_json, title=f"{store}: {len(rows) or 'nothing'} found")
    if any(not row["repaired"] for row in rows):
        raise typer.Exit(1)
