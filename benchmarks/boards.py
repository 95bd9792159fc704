"""The board of a store's corpus, for programs that make pages and pictures of it."""

from __future__ import annotations

from pathlib import Path

from harness.publish.board import Board
from harness.publish.ranking import rank as ranking
from harness.store.store import Store


def ranked(store: Path, corpus: str) -> Board:
    """Returns the board of one corpus, ranked from a store that is only read."""
    with Store.open(store, read_only=True) as opened:
        return ranking.rank(opened.cells(with_documents=True), corpus)
