"""Every kind of page before axe-core, in both themes and on both screens, and boards of every size in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import site_faults
import synthetic_board as synthetic
from browsing import OPEN, PAGES, Visit

from harness.publish.pages import index as index_page
from harness.publish.pages import site as site_pages
from harness.store.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def axe() -> Any:
    return pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()


def faults(axe: Any, page: Any) -> list[str]:
    """Returns what axe-core calls serious or critical, with the first place of each."""
    found = axe.run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:150]} ({len(fault['nodes'])} places)"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 360])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(axe: Any, visit: Callable[..., Visit], name: str, width: int, scheme: str) -> None:
    seen = visit(width, color_scheme=scheme)
    page = seen.go(name)
    seen.unfold()
    assert faults(axe, page) == []


def test_axe_does_find_a_fault_that_was_put_in(axe: Any, visit: Callable[..., Visit]) -> None:
    page = visit().go("index.html")
    page.evaluate("document.querySelector('.search').closest('label')?.replaceWith(document.querySelector('.search'))")
    page.evaluate("document.querySelector('.search').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('.search').removeAttribute('placeholder')")
    assert any(fault.startswith("label:") for fault in faults(axe, page))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_comparison_of_two(axe: Any, visit: Callable[..., Visit], scheme: str) -> None:
    page = visit(color_scheme=scheme).go("compare.html", "#a=ga-gdr-full&b=ga-gdr-lora")
    page.locator("#chosen svg").first.wait_for()
    assert faults(axe, page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_viewer_of_documents(
    axe: Any, visit: Callable[..., Visit], scheme: str
) -> None:
    page = visit(360, color_scheme=scheme).go("submission/ga-gdr-full.html")
    page.locator(".viewer button").click()
    page.locator(".viewer mark").first.wait_for()
    assert faults(axe, page) == []


@pytest.mark.parametrize("entries", [0, 1, 8, 100])
def test_a_board_of_any_size_can_be_used_on_a_phone(
    axe: Any, visit: Callable[..., Visit], tmp_path: Path, entries: int
) -> None:
    store = tmp_path / "board.duckdb"
    with Store.open(store) as opened:
        for cell in synthetic.cells(synthetic.many(entries), quantizers=("reference", "rtn-4bit-g128")):
            opened.add(cell)
    seen = visit(360, site=site_pages.render(store, tmp_path / "site").parent)
    page = seen.go("index.html")
    assert seen.hangs_over() <= 0
    if entries:
        assert page.locator(f"{OPEN} table.board tbody tr").count() > 0
        assert all(f"entry-{number:04d}" in page.content() for number in range(entries))
    assert seen.complaints == []
    assert faults(axe, page) == []


@pytest.mark.timeout(3600)
def test_a_board_of_a_thousand_entries_can_be_used_on_a_phone(
    visit: Callable[..., Visit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "DOCUMENTS", {name: count // 10 for name, count in synthetic.DOCUMENTS.items()})
    store = tmp_path / "board.duckdb"
    with Store.open(store) as opened:
        for cell in synthetic.cells(synthetic.many(1000), quantizers=("reference", "rtn-4bit-g128")):
            opened.add(cell)
    site = site_pages.render(store, tmp_path / "site").parent
    seen = visit(360, site=site)
    page = seen.go("index.html")
    page.set_default_timeout(120_000)
    assert page.locator(f"{OPEN} table.board tbody tr").count() <= index_page.MOST
    assert page.locator('a[href="all-index.html"]').count() > 0
    page = seen.go("all-index.html")
    text = page.content()
    assert all(f"entry-{number:04d}" in text for number in range(1000))
    assert seen.hangs_over() <= 0
    page.locator(".search").fill("entry-0734")
    assert page.locator(f"{OPEN} table.board tbody tr:not([hidden])").count() == 1
    assert page.locator(".count").inner_text() == "1 of 1000 shown"
    page.locator(f"{OPEN} table.board tbody tr:not([hidden]) th a").first.click()
    page.wait_for_url("**/submission/entry-0734.html")
    assert seen.complaints == []
    assert site_faults.faults(site) == []
