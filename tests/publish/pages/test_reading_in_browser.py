"""Reading the built site in a real Chromium: without JavaScript, by keyboard alone, on paper, document by document."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from browsing import OPEN, PAGES, Visit

from harness.publish.board import Board
from harness.publish.formatting import number

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]
ENTRY = "submission/ga-gdr-full.html"


NUMBERS = """(visible) => {
    const found = new Set(), walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const around = walker.currentNode.parentElement;
        if (visible ? around.checkVisibility() : !around.closest(".narrow, label, legend"))
            for (const number of walker.currentNode.data.match(/[-+]?\\d+(\\.\\d+)?/g) || []) found.add(number);
    }
    return [...found];
}"""


@pytest.mark.parametrize("name", PAGES)
def test_without_javascript_a_page_shows_every_number_that_it_shows_with_it(visit: Open, name: str) -> None:
    with_it, without = visit(), visit(java_script_enabled=False)
    for seen in (with_it, without):
        seen.go(name)
        seen.unfold()
    numbers, readable = (set(seen.page.evaluate(NUMBERS, seen is without)) for seen in (with_it, without))
    assert len(numbers) > 5
    assert numbers <= readable


@pytest.mark.parametrize("name", ["index.html", "compare.html", "cells.html", "published.html", ENTRY])
def test_everything_that_can_be_used_is_reached_by_tab_and_shows_that_it_is(visit: Open, name: str) -> None:
    page = visit().go(name)
    page.evaluate(
        """() => document.querySelectorAll("a[href], button, input, select, summary, [tabindex]").forEach((node) => {
            if (node.checkVisibility({ visibilityProperty: true })) node.dataset.usable = ""; })"""
    )
    usable = page.locator("[data-usable]").count()
    assert usable > 10
    for _ in range(usable):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """() => { const node = document.activeElement, look = getComputedStyle(node); delete node.dataset.usable;
            return [look.outlineStyle, parseFloat(look.outlineWidth), node.outerHTML.slice(0, 120)]; }"""
        )
        assert outline[0] != "none", outline
        assert outline[1] >= 2, outline
    assert page.locator("[data-usable]").all_inner_texts() == []


def test_columns_are_chosen_by_keyboard_alone(visit: Open) -> None:
    page = visit().go("index.html")
    heads = page.locator(f"{OPEN} table.sortable thead th:visible")
    before = heads.count()
    page.locator(".columns summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert heads.count() == before - 1
    assert "columns=" in page.url
    page.keyboard.press("Space")
    assert heads.count() == before
    assert "columns=" not in page.url


def test_search_and_filters_are_used_by_keyboard_alone(visit: Open) -> None:
    page = visit().go("index.html")
    rows = page.locator(f"{OPEN} table.board tbody tr:not([hidden])")
    total = rows.count()
    page.locator(".search").focus()
    page.keyboard.type("lora")
    found = rows.count()
    assert 0 < found < total
    page.locator("select[data-filter=verdict]").focus()
    page.keyboard.type("never")
    assert page.locator("select[data-filter=verdict]").input_value() == "never forgot"
    assert 0 < rows.count() < found
    assert "q=lora&verdict=never+forgot" in page.url


def test_two_entries_are_compared_by_keyboard_alone(visit: Open) -> None:
    page = visit().go("compare.html")
    for letter, times in (("a", 1), ("b", 2)):
        page.locator(f"select[data-entry={letter}]").focus()
        for _ in range(times):
            page.keyboard.press("ArrowDown")
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen thead th").count() == 3


def test_a_chosen_theme_is_kept_on_the_next_page(visit: Open) -> None:
    page = visit().go("index.html")
    page.locator("button.theme").click()
    page.locator("button.theme").click()
    page.locator("nav[aria-label=Pages] a", has_text="Method").click()
    page.wait_for_url("**/methodology.html")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.locator("button.theme").inner_text() == "Theme: dark"


@pytest.mark.parametrize("chosen", ["system", "reader"])
def test_paper_gets_dark_ink_every_width_and_nothing_to_press(visit: Open, page_board: Board, chosen: str) -> None:
    page = visit(color_scheme="dark" if chosen == "system" else "light").go("index.html")
    if chosen == "reader":
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert max(int(part) for part in re.findall(r"\d+", ink)) < 64
    for pressed in ("nav[aria-label=Pages]", ".tools", ".switch", "button.theme", ".skip"):
        assert not page.locator(pressed).first.is_visible(), pressed
    for bits in page_board.widths:
        text = page.locator(f"#at-{bits}").inner_text()
        for row in page_board.ranked(bits):
            remaining = row.by_bits[bits].remaining
            assert remaining is not None
            assert number(remaining.value) in text


def test_a_document_is_picked_and_its_answers_stand_side_by_side_as_on_the_plain_page(visit: Open) -> None:
    seen = visit()
    page = seen.go(ENTRY)
    page.locator(".viewer button").focus()
    page.keyboard.press("Enter")
    columns = page.locator(".viewer section")
    columns.first.wait_for()
    choice = page.locator(".viewer select")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    assert choice.locator("option").count() > 100
    first = columns.all_inner_texts()
    page.keyboard.press("ArrowDown")
    assert choice.input_value() == "1"
    assert columns.all_inner_texts() != first
    shown = ["".join(column.locator("mark").all_inner_texts()) for column in columns.all()]
    assert any(shown)
    page.locator("a", has_text="The most recovered ones").click()
    assert page.url.endswith("ga-gdr-full-documents.html")
    rows = page.locator("section.document").nth(1).locator("tbody tr")
    assert ["".join(row.locator("mark").all_inner_texts()) for row in rows.all()] == shown
    assert seen.complaints == []
    assert all(address.startswith("file://") for address in seen.asked)


def test_a_missing_file_of_documents_is_told_and_can_be_asked_for_again(visit: Open, site: Any) -> None:
    page = visit().go(ENTRY)
    page.evaluate("document.querySelector('.viewer').dataset.slice = '../data/documents/gone.js'")
    page.locator(".viewer button").click()
    page.locator(".viewer", has_text="is missing").wait_for()
    assert page.locator(".viewer button").is_enabled()
