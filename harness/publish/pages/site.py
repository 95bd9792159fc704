"""Builds the static site from a store; it works offline, from a server or a ``file://`` address.

The site is built beside its place and moved there as a whole. Two builds of
one store differ in nothing but the build stamp, which ``SOURCE_DATE_EPOCH``
fixes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jinja2
import rjsmin

from harness.paths import content_dir
from harness.publish import formatting, thresholds
from harness.publish import release as releases
from harness.publish.board import Board, LeaderboardRow
from harness.publish.charts import svg as svg_charts
from harness.publish.comparison import all_pairs
from harness.publish.exports import formats as export_formats
from harness.publish.exports import parquet_duckdb
from harness.publish.pages import atomic_swap, documents
from harness.publish.pages import cells as cells_page
from harness.publish.pages import compare as compare_page
from harness.publish.pages import index as index_page
from harness.publish.pages import published as published_page
from harness.publish.pages import quantizer as quantizer_page
from harness.publish.pages import submission as submission_page
from harness.publish.pages import submit as submit_page
from harness.publish.ranking import rank as ranking
from harness.publish.ranking.headline import KINDS
from harness.publish.release import Site
from harness.records import CellResult
from harness.score.corpora.catalogue import corpus_facts
from harness.score.metrics.formulas import METRICS, PRIMARY
from harness.store import gc_pause
from harness.submit.manifest.fields import schema_text

MOST_RECOVERED = 20
"""Documents on a submission's page of them that needs no script."""
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "toward_zero": "0 is ideal"}


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
    releases.check_address(base_url)
    atomic_swap.check_replaceable(out)
    with gc_pause.paused():
        cells = releases.stored_cells(store)
        site = releases.site_facts(store, cells, title, base_url)
        with atomic_swap.replaced(out) as building:
            _build(building, cells, site, submission_page.relearning(store))
    svg_charts.trim()
    return out / "index.html"


@lru_cache(maxsize=1)
def _templates(folder: Path) -> jinja2.Environment:
    """Returns an environment that compiles each template once a process."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def environment() -> jinja2.Environment:
    """Returns the template environment: everything is escaped, an unknown name is an error."""
    made = _templates(content_dir("leaderboard") / "templates")
    made.filters.update(formatting.FILTERS)
    constants = {name: getattr(thresholds, name) for name in dir(thresholds) if name.isupper()}
    made.globals.update(
        rules=SimpleNamespace(**constants, KINDS=KINDS),
        metrics=METRICS,
        primary=PRIMARY,
        forget_metrics=thresholds.FORGET_METRICS,
        directions=DIRECTIONS,
        excerpt_length=formatting.EXCERPT,
    )
    return made


def _build(folder: Path, cells: Sequence[CellResult], site: Site, relearning: submission_page.Relearned) -> None:
    shutil.copytree(content_dir("leaderboard") / "static", folder / "static")
    for script in (folder / "static").glob("*.js"):
        # What only readers of the source need weighs a quarter.
        script.write_text(str(rjsmin.jsmin(script.read_text(encoding="utf-8"))), encoding="utf-8")
    env = environment()
    boards = [ranking.rank(cells, name) for name in releases.ordered_corpora(cells)]
    homes = {
        board.corpus: f"index-{formatting.slug(board.corpus)}.html" if number else "index.html"
        for number, board in enumerate(boards)
    }  # fmt: skip
    links = releases.page_links(boards)
    env.globals.update(quantizer_pages=quantizer_page.pages(cells), relearning=relearning)
    if not boards:
        _write(folder, env, "empty.html.j2", "index.html", site, section="Leaderboard")
    for board in boards:
        _index(folder, env, site, board, homes, links[board.corpus])
        for row in (*board.rows, *board.controls):
            _submission(folder, env, site, board, homes, links[board.corpus], row.submission.name)
    if boards:
        parquet_duckdb.write_documents(folder / "data" / "documents.parquet", list(documents.rows(cells)))
    facts = [found for found in (corpus_facts(board.corpus) for board in boards) if found is not None]
    release = releases.release_of(boards, cells, links, site)
    _write(
        folder, env, "methodology.html.j2", "methodology.html", site, section="Method", corpora=facts,
        data=export_formats.write(folder / "data", release) if boards else [], changes=export_formats.changes(release),
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
        gaps = all_pairs.gaps(cells, board)
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
    path.write_text(svg_charts.standalone(str(figure["wide"])), encoding="utf-8")


def _write(
    folder: Path, env: jinja2.Environment, template: str, page: str, site: Site, *, section: str, root: str = "",
    **context: Any,
) -> None:  # fmt: skip
    path = folder / page
    path.parent.mkdir(exist_ok=True)
    text = env.get_template(template).render(site=site, page=page, section=section, root=root, **context)
    # A lone surrogate can't be written; everything else a stranger wrote is escaped already.
    path.write_text(text, encoding="utf-8", errors="replace")
