"""The command that shows and empties the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli_options import JsonOption, print_rows, stderr

app = typer.Typer(help="What is kept to save work: downloads, merged and quantized models.")

_MIB = 2**20


@app.callback(
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


@app.command(epilog="Examples: `quench cache clear quantized` · `quench cache clear 'left over' merged`")
def clear(kinds: Annotated[list[str], typer.Argument(help="Kinds, as `quench cache` names them.")]) -> None:
    """Remove everything of some kinds; it is made or downloaded again when it is needed."""
    from harness import paths
    from harness.run.maintenance import cache as cache_folder

    freed = cache_folder.clear(paths.cache_dir(), kinds)
    stderr.print(f"Freed {freed / _MIB:.1f} MB", highlight=False)


@app.command(epilog="Example: `quench cache trim --to 20GB`")
def trim(to: Annotated[str, typer.Option("--to", help="Room that quantized models may take, such as 20GB.")]) -> None:
    """Drop the least recently used quantized models until the rest fits."""
    from harness import paths
    from harness.quantize import model_cache
    from harness.run.maintenance import cache as cache_folder

    freed = model_cache.trim(paths.cache_dir() / model_cache.FOLDER, cache_folder.parse_size(to))
    stderr.print(f"Freed {freed / _MIB:.1f} MB", highlight=False)
