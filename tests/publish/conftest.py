"""One synthetic board, ranked and rendered once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic
from browsing import CHROMIUM, Visit

from harness.publish.board import Board
from harness.publish.pages import site as site_pages
from harness.publish.ranking import rank as ranking
from harness.publish.ranking import seeds
from harness.publish.statistics import bootstrap, quantities
from harness.records import CellResult
from harness.store.store import Store

STAMP = "1700000000"


@contextmanager
def fewer_draws() -> Iterator[None]:
    """1,000 draws instead of 10,000: for tests of what is made of intervals, not of how narrow they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "counts", partial(bootstrap.counts, resamples=1_000))
        patch.setattr(seeds, "RESAMPLES", 1_000)
        yield


@pytest.fixture(scope="module", autouse=True)
def draws() -> Iterator[None]:
    with fewer_draws():
        yield


@pytest.fixture(scope="session")
def board(demo_cells: list[CellResult]) -> Board:
    with fewer_draws():
        return ranking.rank(demo_cells, "mini")


@pytest.fixture(scope="session")
def page_cells() -> list[CellResult]:
    """A part of the demo board: building all of its pages would take a minute."""
    names = {"ga-gdr-full", "ga-gdr-lora", "text-only-lora", "ga-full-fast", "noop-lora", "npo-limited", "npo-crashed"}
    plans = [plan for plan in synthetic.demo_plans() if plan.role != "entry" or plan.name in names]
    return synthetic.cells(plans, quantizers=("reference", "rtn-8bit-g128", "rtn-4bit-g128", "bnb-nf4"))


@pytest.fixture(scope="session")
def page_board(page_cells: list[CellResult]) -> Board:
    with fewer_draws():
        return ranking.rank(page_cells, "mini")


@pytest.fixture(scope="session")
def page_store(tmp_path_factory: pytest.TempPathFactory, page_cells: list[CellResult]) -> Path:
    path = tmp_path_factory.mktemp("store") / "demo.duckdb"
    with Store.open(path) as store:
        for cell in page_cells:
            store.add(cell)
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, page_store: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, fewer_draws():
        patch.setenv("SOURCE_DATE_EPOCH", STAMP)
        return site_pages.render(page_store, tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, ended with this folder's tests: while it runs no other test can start an event loop."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def opened(width: int = 1440, site: Path = site, **options: Any) -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        return Visit(contexts[-1], site)

    yield opened
    for context in contexts:
        context.close()
