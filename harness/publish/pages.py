"""A store -> a folder of static pages that work offline, from any server or a ``file://`` address.

The site is built beside its place and moved there as a whole. Two builds of
one store differ in nothing but the build stamp, which ``SOURCE_DATE_EPOCH``
fixes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jinja2
import rjsmin

from harness import provenance
from harness.errors import InputError, StoreError
from harness.paths import content_dir
from harness.publish import (
    cells_page,
    compare_page,
    database,
    documents,
    drawing,
    exports,
    index_page,
    page_text,
    pairs,
    published_page,
    quantizer_page,
    ranking,
    replacing,
    rules,
    submission_page,
    submit_page,
)
from harness.publish.board import Board, LeaderboardRow
from harness.publish.headline import KINDS
from harness.publish.measurements import corpus_facts
from harness.publish.release import Release
from harness.records import CellResult
from harness.score.metrics.formulas import METRICS, PRIMARY
from harness.store import gc_pause
from harness.store.store import Store
from harness.submit.manifest.fields import schema_text

MOST_RECOVERED = 20
"""Documents on a submission's page of them that needs no script."""
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "toward_zero": "0 is ideal"}


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


def render(store: Path, out: Path, *, title: str | None = None, base_url: str | None = None) -> Path:
    """Builds the leaderboard and returns its ``index.html``.

    Args:
        store: The store to show; it is only read.
        out: Folder of the site, replaced as a whole; a folder that holds
            anything but an earlier site is refused.
        title: Name of the board.
        base_url: Address the site will have, for canonical links.

    Raises:
        InputError: ``out`` holds other files, or ``base_url`` is no web address.
        StoreError: The store can't be read.
    """
    _check_address(base_url)
    replacing.check_replaceable(out)
    with gc_pause.paused():
        cells = _stored(store)
        site = _site(store, cells, title, base_url)
        with replacing.replaced(out) as building:
            _build(building, cells, site, submission_page.relearning(store))
    drawing.trim()
    return out / "index.html"


def export(
    store: Path, out: Path, formats: Sequence[str] = (), *, title: str | None = None, base_url: str | None = None
) -> list[exports.Exported]:
    """Writes the board as files for other programs, as below ``data/`` of the site.

    Args:
        store: The store to export; it is only read.
        out: Folder of the files; others in it stay.
        formats: Names of ``exports.FORMATS``; none for all.
        title: Name of the board.
        base_url: Address of the site, for links to its pages.

    Raises:
        InputError: ``out`` can't be written to, ``base_url`` is no web address, or a format unknown.
        StoreError: The store can't be read, or holds nothing.
    """
    _check_address(base_url)
    exports.check_formats(formats)
    cells = _stored(store)
    if not cells:
        raise StoreError(f"The store {store} holds no cell: fill it with `quench run --store {store}`.")
    boards = [ranking.rank(cells, name) for name in _ordered_corpora(cells)]
    release = _release(boards, cells, _links(boards), _site(store, cells, title, base_url))
    try:
        return exports.write(out, release, formats)
    except OSError as error:
        raise InputError(
            f"Nothing can be written to {out} ({error.strerror}): name a folder with --out that may be written to."
        ) from error


def _release(
    boards: Sequence[Board], cells: Sequence[CellResult], links: Mapping[str, Mapping[str, str]], site: Site
) -> Release:
    facts = {board.corpus: corpus_facts(board.corpus) for board in boards}
    return Release(
        title=site.title, base_url=site.base_url, store_sha256=site.store_sha256,
        scoring_version=site.scoring_version, boards=boards, cells=cells, links=links,
        corpora={name: known for name, known in facts.items() if known is not None},
    )  # fmt: skip


def _check_address(base_url: str | None) -> None:
    if base_url is not None and page_text.web_address(base_url) is None:
        raise InputError(f"The base URL {base_url!r} is no web address: give one such as https://example.org/board/.")


def _stored(store: Path) -> list[CellResult]:
    with Store.open(store, read_only=True) as opened:
        return opened.cells(with_documents=True)


def _site(store: Path, cells: Sequence[CellResult], title: str | None, base_url: str | None) -> Site:
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


def environment() -> jinja2.Environment:
    """Returns the template environment: everything is escaped, an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(content_dir("leaderboard") / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(page_text.FILTERS)
    constants = {name: getattr(rules, name) for name in dir(rules) if name.isupper()}
    made.globals.update(
        rules=SimpleNamespace(**constants, KINDS=KINDS),
        metrics=METRICS,
        primary=PRIMARY,
        forget_metrics=rules.FORGET_METRICS,
        directions=DIRECTIONS,
        excerpt_length=page_text.EXCERPT,
    )
    return made


def _ordered_corpora(cells: Sequence[CellResult]) -> list[str]:
    """Returns the corpora of the store; the one with most cells finished here opens the site."""
    finished = Counter(cell.corpus for cell in cells if cell.status == "finished" and cell.origin == "scored")
    return sorted({cell.corpus for cell in cells}, key=lambda name: (-finished[name], name))


def _build(folder: Path, cells: Sequence[CellResult], site: Site, relearning: submission_page.Relearned) -> None:
    shutil.copytree(content_dir("leaderboard") / "static", folder / "static")
    for script in (folder / "static").glob("*.js"):
        # What only readers of the source need weighs a quarter.
        script.write_text(str(rjsmin.jsmin(script.read_text(encoding="utf-8"))), encoding="utf-8")
    env = environment()
    boards = [ranking.rank(cells, name) for name in _ordered_corpora(cells)]
    homes = {
        board.corpus: f"index-{page_text.slug(board.corpus)}.html" if number else "index.html"
        for number, board in enumerate(boards)
    }  # fmt: skip
    links = _links(boards)
    env.globals.update(quantizer_pages=quantizer_page.pages(cells), relearning=relearning)
    if not boards:
        _write(folder, env, "empty.html.j2", "index.html", site, section="Leaderboard")
    for board in boards:
        _index(folder, env, site, board, homes, links[board.corpus])
        for row in (*board.rows, *board.controls):
            _submission(folder, env, site, board, homes, links[board.corpus], row.submission.name)
    if boards:
        database.write_documents(folder / "data" / "documents.parquet", list(documents.rows(cells)))
    facts = [found for found in (corpus_facts(board.corpus) for board in boards) if found is not None]
    release = _release(boards, cells, links, site)
    _write(
        folder, env, "methodology.html.j2", "methodology.html", site, section="Method", corpora=facts,
        data=exports.write(folder / "data", release) if boards else [], changes=exports.changes(release),
    )  # fmt: skip
    _write(
        folder, env, "cells.html.j2", "cells.html", site, section="Cells",
        **cells_page.context(boards, cells, links),
    )  # fmt: skip
    for name, page in quantizer_page.pages(cells).items():
        _write(
            folder, env, "quantizer.html.j2", page, site, section="Leaderboard", root="../", links=links,
            **quantizer_page.context(name, boards, cells, homes),
        )  # fmt: skip
    _compare(folder, env, site, boards, cells, homes, links)
    _submit(folder, env, site)
    _published(folder, env, site, boards, links)


def _compare(
    folder: Path, env: jinja2.Environment, site: Site, boards: Sequence[Board], cells: Sequence[CellResult],
    homes: Mapping[str, str], links: Mapping[str, Mapping[str, str]],
) -> None:  # fmt: skip
    addresses = {corpus: compare_page.address(home) for corpus, home in homes.items()}
    tabs = [{"corpus": name, "href": href} for name, href in addresses.items()]
    if not boards:
        _write(
            folder, env, "compare.html.j2", "compare.html", site, section="Compare", board=None, tabs=tabs,
            **compare_page.context(None, {}, {}),
        )  # fmt: skip
    for board in boards:
        gaps = pairs.gaps(cells, board)
        _write(
            folder, env, "compare.html.j2", addresses[board.corpus], site, section="Compare", board=board, tabs=tabs,
            links=links[board.corpus], **compare_page.context(board, gaps, links[board.corpus]),
        )  # fmt: skip
        for name, text in compare_page.files(board, gaps, links[board.corpus]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")


def _submit(folder: Path, env: jinja2.Environment, site: Site) -> None:
    context = submit_page.context()
    _write(folder, env, "submit.html.j2", "submit.html", site, section="Submit", **context)
    (folder / context["schema_file"]).write_text(schema_text(), encoding="utf-8")


def _published(
    folder: Path, env: jinja2.Environment, site: Site, boards: Sequence[Board], links: Mapping[str, Mapping[str, str]]
) -> None:
    source = published_page.shipped_file()
    context = published_page.context(published_page.load(source), boards, links)
    _write(folder, env, "published.html.j2", "published.html", site, section="Published", **context)
    copied = folder / context["csv"]
    copied.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, copied)


def _links(boards: Sequence[Board]) -> dict[str, dict[str, str]]:
    """Returns the page of every submission, by corpus and name; two of one name get two pages."""
    taken: set[str] = set()
    links: dict[str, dict[str, str]] = {}
    for board in boards:
        links[board.corpus] = {}
        for row in (*board.rows, *board.controls):
            slug = page_text.slug(row.submission.name)
            while {slug, f"{slug}-documents"} & taken:
                slug = f"{slug}.{page_text.slug(board.corpus)}"
            taken |= {slug, f"{slug}-documents"}
            links[board.corpus][row.submission.name] = f"submission/{slug}.html"
    return links


def _index(
    folder: Path, env: jinja2.Environment, site: Site, board: Board, homes: Mapping[str, str], links: Mapping[str, str]
) -> None:
    home = homes[board.corpus]
    more = f"all-{home}" if len(board.rows) > index_page.MOST else None
    for page, most in ((home, index_page.MOST), (more, len(board.rows))):
        if page is None:
            continue
        context = index_page.context(board, links, most=most)
        for figure in (*context["figures"], *(width["figure"] for width in context["widths"] if width["figure"])):
            _write_chart(folder, figure)
        _write(
            folder, env, "index.html.j2", page, site, section="Leaderboard", board=board,
            links=_or_none(links), tabs=[{"corpus": name, "href": href} for name, href in homes.items()],
            corpus=corpus_facts(board.corpus), compare=compare_page.address(home),
            more=more if page == home else None, forget_metrics=board.forget_metrics, primary=board.primary, **context,
        )  # fmt: skip


def _submission(
    folder: Path, env: jinja2.Environment, site: Site, board: Board, homes: Mapping[str, str],
    links: Mapping[str, str], name: str,
) -> None:  # fmt: skip
    row = next(row for row in (*board.rows, *board.controls) if row.submission.name == name)
    slug = PurePosixPath(links[name]).stem
    told = _documents(folder, env, site, board, row, slug, home=homes[board.corpus])
    context = submission_page.context(board, row, slug=slug, documents=told)
    for figure in context["figures"]:
        _write_chart(folder, figure)
    _write(
        folder, env, "submission.html.j2", links[name], site, section="Leaderboard", root="../", board=board, row=row,
        links=_or_none(links), home=homes[board.corpus], corpus=corpus_facts(board.corpus),
        forget_metrics=board.forget_metrics, primary=board.primary, **context,
    )  # fmt: skip


def _documents(
    folder: Path, env: jinja2.Environment, site: Site, board: Board, row: LeaderboardRow, slug: str, *, home: str
) -> int:
    found = documents.across_bits(row)
    if found:
        script = folder / "data" / "documents" / f"{slug}.js"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(documents.as_script(found), encoding="utf-8")
        _write(
            folder, env, "documents.html.j2", f"submission/{slug}-documents.html", site, section="Leaderboard",
            root="../", board=board, row=row, home=home, entry=f"submission/{slug}.html", total=len(found),
            documents=found[:MOST_RECOVERED],
        )  # fmt: skip
    return len(found)


def _or_none(links: Mapping[str, str]) -> Mapping[str, str | None]:
    """Returns links that answer None for a name without a page, where a strict template would fail."""

    class Links(dict[str, str | None]):
        def __missing__(self, _: str) -> None:
            return None

    return Links(links)


def _write_chart(folder: Path, figure: Mapping[str, Any]) -> None:
    path = folder / figure["file"]
    path.parent.mkdir(exist_ok=True)
    path.write_text(drawing.standalone(str(figure["wide"])), encoding="utf-8")


def _write(
    folder: Path, env: jinja2.Environment, template: str, page: str, site: Site, *, section: str, root: str = "",
    **context: Any,
) -> None:  # fmt: skip
    path = folder / page
    path.parent.mkdir(exist_ok=True)
    text = env.get_template(template).render(site=site, page=page, section=section, root=root, **context)
    # A lone surrogate can't be written; everything else a stranger wrote is escaped already.
    path.write_text(text, encoding="utf-8", errors="replace")
