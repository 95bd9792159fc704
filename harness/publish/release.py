"""One state of a board as it is given away: what every export needs to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from harness.publish.board import Board, LeaderboardRow
from harness.records import CellResult
from harness.score.corpora.catalogue import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of one corpus with the name that its files have.

    Attributes:
        slug: Safe as a file name, and the same as its page's.
        page: Its page, relative to the site.
        came: Time of its first cell.
        changed: Time of its newest cell.
    """

    board: Board
    row: LeaderboardRow
    slug: str
    page: str
    came: str
    changed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A ranked store.

    Attributes:
        base_url: Address of the site, with a slash at its end; None where nobody has named one.
        boards: One per corpus.
        links: Page of every submission, by corpus and name.
        corpora: What is known of the corpora here, by name.
    """

    title: str
    base_url: str | None
    store_sha256: str
    scoring_version: int
    boards: Sequence[Board]
    cells: Sequence[CellResult]
    links: Mapping[str, Mapping[str, str]]
    corpora: Mapping[str, Corpus]

    @property
    def newest(self) -> str:
        """The time of the newest cell: what stands for "now", so that two builds of one store are the same."""
        return max((cell.provenance.created_at for cell in self.cells), default="1970-01-01T00:00:00+00:00")

    def entries(self) -> Iterator[Entry]:
        """Yields the entries of all boards, in the boards' order."""
        times: dict[tuple[str, str], list[str]] = {}
        for cell in self.cells:
            times.setdefault((cell.corpus, cell.submission.name), []).append(cell.provenance.created_at)
        for board in self.boards:
            for row in board.rows:
                name = row.submission.name
                page, known = self.links[board.corpus][name], times[board.corpus, name]
                yield Entry(
                    board=board, row=row, slug=PurePosixPath(page).stem, page=page, came=min(known), changed=max(known)
                )
