"""The state of a store that pages and exports both start from: its boards, their cells, title and links."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from harness import provenance
from harness.errors import InputError
from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow
from harness.records import CellResult
from harness.score.corpora import catalogue
from harness.score.corpora.catalogue import Corpus
from harness.store.store import Store


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every page's head and foot say."""

    title: str
    base_url: str | None
    built: str
    store_sha256: str
    cells: int
    scoring_version: int
    commits: tuple[str, ...]
    commit: str | None


def release_of(
    boards: Sequence[Board], cells: Sequence[CellResult], links: Mapping[str, Mapping[str, str]], site: Site
) -> Release:
    """Returns a store's boards, cells and pages as one release."""
    facts = {board.corpus: catalogue.corpus_facts(board.corpus) for board in boards}
    return Release(
        title=site.title, base_url=site.base_url, store_sha256=site.store_sha256,
        scoring_version=site.scoring_version, boards=boards, cells=cells, links=links,
        corpora={name: known for name, known in facts.items() if known is not None},
    )  # fmt: skip


def check_address(base_url: str | None) -> None:
    """Refuses a base URL that is no web address.

    Raises:
        InputError: It is none.
    """
    if base_url is not None and formatting.web_address(base_url) is None:
        raise InputError(f"The base URL {base_url!r} is no web address: give one such as https://example.org/board/.")


def stored_cells(store: Path) -> list[CellResult]:
    """Returns every cell of a store with its documents.

    Raises:
        StoreError: The store can't be read.
    """
    with Store.open(store, read_only=True) as opened:
        return opened.cells(with_documents=True)


def site_facts(store: Path, cells: Sequence[CellResult], title: str | None, base_url: str | None) -> Site:
    """Returns what head and foot of every page show; ``SOURCE_DATE_EPOCH`` fixes the build stamp."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch and epoch.isdigit() else datetime.now(UTC)
    commits = Counter(cell.provenance.git_commit for cell in cells if cell.provenance.git_commit)
    return Site(
        title=title or "Quench",
        base_url=base_url.rstrip("/") + "/" if base_url else None,
        built=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        store_sha256=provenance.sha256_file(store),
        cells=len(cells),
        scoring_version=max((cell.provenance.scoring_version for cell in cells), default=0),
        commits=tuple(commit for commit, _ in commits.most_common(3)),
        commit=provenance.code_state()[0],
    )


def ordered_corpora(cells: Sequence[CellResult]) -> list[str]:
    """Returns the corpora of the store; the one with most cells finished here opens the site."""
    finished = Counter(cell.corpus for cell in cells if cell.status == "finished" and cell.origin == "scored")
    return sorted({cell.corpus for cell in cells}, key=lambda name: (-finished[name], name))


def page_links(boards: Sequence[Board]) -> dict[str, dict[str, str]]:
    """Returns the page of every submission, by corpus and name; two of one name get two pages."""
    taken: set[str] = set()
    links: dict[str, dict[str, str]] = {}
    for board in boards:
        links[board.corpus] = {}
        for row in (*board.rows, *board.controls):
            slug = formatting.slug(row.submission.name)
            while {slug, f"{slug}-documents"} & taken:
                slug = f"{slug}.{formatting.slug(board.corpus)}"
            taken |= {slug, f"{slug}-documents"}
            links[board.corpus][row.submission.name] = f"submission/{slug}.html"
    return links
