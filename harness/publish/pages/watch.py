"""Builds a site again whenever its store changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep

from harness.errors import StoreError

State = tuple[tuple[int, int] | None, ...]
"""Time of the last change in nanoseconds and bytes of each file of a store; None for one that is not there."""


def state(store: Path) -> State:
    """Returns what a change of the store, or of what DuckDB has not yet merged into it, would alter."""
    found: list[tuple[int, int] | None] = []
    for path in (store, store.with_name(f"{store.name}.wal")):
        try:
            facts = path.stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def watch(
    store: Path, build: Callable[[], object], seen: State, *, say: Callable[[str], None], pause: float = 1.0
) -> None:
    """Calls ``build`` after each change of a store until the user stops it (Ctrl-C), which is no error.

    A store that can't be read just then, because a run is writing it, is tried again: the last site stays.

    Args:
        store: The store.
        build: Builds the site.
        seen: State of the store before it was last built.
        say: Shows one line to the user.
        pause: Seconds between two looks.
    """
    said = ""
    try:
        while True:
            sleep(pause)
            now = state(store)
            if now == seen:
                continue
            try:
                build()
                seen, said = now, ""
            except StoreError as error:
                if str(error) != said:
                    said = str(error)
                    say(f"Waiting: {said}")
    except KeyboardInterrupt:
        say("Stopped watching.")
