"""The viewer of documents across bits in a real Chromium, from file://: mouse, keyboard, no JavaScript."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Visit
from test_documents import row_of

from harness.publish.board import Board
from harness.publish.formatting import number
from harness.publish.pages import documents

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]
PAGE = "submission/ga-gdr-full.html"


def test_a_reader_picks_a_document_and_sees_every_width_with_the_words_that_came_back(
    visit: Open, page_board: Board
) -> None:
    seen = visit()
    page = seen.go(PAGE)
    assert not any("data/documents" in address for address in seen.asked)
    page.get_by_role("button", name="Pick a document").click()
    page.locator(".viewer h3").first.wait_for()
    found = documents.across_bits(row_of(page_board))
    assert page.locator(".viewer option").count() == len(found)
    for place in (0, len(found) - 1):
        page.locator(".viewer select").select_option(str(place))
        told = page.locator(".viewer h3").all_inner_texts()
        assert told == [f"{a['bits']} bit: {number(a['score'])}" for a in found[place]["answers"]]
        assert found[place]["reference"] in page.locator(".answers-by-bits").inner_text()
    page.locator(".viewer select").select_option("0")
    assert page.locator(".viewer mark").count() > 0
    assert seen.complaints == []
    assert all(address.startswith("file://") for address in seen.asked)


def test_the_viewer_works_by_keyboard_alone_and_keeps_the_focus(visit: Open) -> None:
    seen = visit()
    page = seen.go(PAGE)
    page.locator(".viewer button").focus()
    page.keyboard.press("Enter")
    page.locator(".viewer h3").first.wait_for()
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    before = page.locator(".answers-by-bits").inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator(".viewer select").input_value() == "1"
    assert page.locator(".answers-by-bits").inner_text() != before
    assert seen.complaints == []


def test_without_javascript_the_most_recovered_documents_are_a_link_away(visit: Open) -> None:
    page = visit(java_script_enabled=False).go(PAGE)
    assert not page.locator(".viewer").is_visible()
    page.get_by_role("link", name="The most recovered ones").click()
    assert page.locator("section.document").count() == 20
    assert page.locator("section.document mark").count() > 0
    page.get_by_role("link", name="ga-gdr-full").first.click()
    assert page.url.endswith(PAGE)


@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_with_documents_scrolls_sideways(visit: Open, width: int) -> None:
    page = visit(width).go(PAGE)
    page.locator(".viewer button").click()
    page.locator(".viewer h3").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("a[href$='-documents.html']").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_reader_is_told_where_the_file_of_documents_is_missing(visit: Open, site: Path, tmp_path: Path) -> None:
    for name in (PAGE, "static/documents.js", "static/quench.js", "static/quench.css"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((site / name).read_bytes())
    page = visit(site=tmp_path).go(PAGE)
    page.locator(".viewer button").click()
    page.get_by_text("The file of documents beside this page is missing.").wait_for()
    assert page.locator(".viewer button").is_enabled()
