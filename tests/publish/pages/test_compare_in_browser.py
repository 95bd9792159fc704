"""The page that compares, and the way to it from the first page, in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic
from browsing import OPEN, Visit

from harness.publish.board import Board
from harness.publish.comparison import all_pairs
from harness.publish.formatting import number
from harness.publish.pages import site as site_pages
from harness.records import CellResult
from harness.store.store import Store

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]


def pick(page: Any, **entries: str) -> None:
    for letter, name in entries.items():
        page.locator(f"select[data-entry={letter}]").select_option(name)


def test_two_chosen_entries_are_drawn_told_apart_and_kept_in_the_address(visit: Open, page_board: Board) -> None:
    seen = visit()
    page = seen.go("compare.html")
    assert page.locator("#chosen").inner_text() == "Choose two entries or more."
    pick(page, a="ga-gdr-full", b="ga-gdr-lora")
    page.locator("#chosen svg").first.wait_for()
    assert page.url.endswith("#a=ga-gdr-full&b=ga-gdr-lora")
    assert page.locator("#chosen svg").count() == 2
    said = page.locator("#chosen li").all_inner_texts()
    assert len(said) == 1
    assert "VerbMem remains, by 0." in said[0]
    rows = page.locator("#chosen tbody tr")
    assert rows.count() == len(page_board.widths) * (1 + len(all_pairs.QUANTITIES))
    full = next(row for row in page_board.rows if row.submission.name == "ga-gdr-full")
    for bits in page_board.widths:
        remaining = full.by_bits[bits].remaining
        assert remaining is not None
        assert number(remaining.value) in page.locator("#chosen table").inner_text()
    assert page.locator("#chosen strong.gap").count() > 0
    assert seen.complaints == []
    assert all(address.startswith("file://") for address in seen.asked)


def test_a_corpus_with_one_forget_metric_has_one_curve_and_two_rows_at_each_width(
    visit: Open, page_cells: list[CellResult], page_board: Board, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "s.duckdb") as store:
        for cell in synthetic.as_smol(page_cells):
            store.add(cell)
    site_pages.render(tmp_path / "s.duckdb", tmp_path / "site")
    seen = visit(site=tmp_path / "site")
    page = seen.go("compare.html", "#a=ga-gdr-full&b=ga-gdr-lora")
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen figure h3").all_inner_texts() == ["VerbMem remaining"]
    assert page.locator("#chosen tbody tr").count() == len(page_board.widths) * 3
    assert page.locator("#chosen strong.gap").count() > 0
    assert seen.complaints == []


def test_an_address_that_names_one_entry_twice_chooses_it_once(visit: Open) -> None:
    page = visit().go("compare.html", "#a=ga-gdr-full&b=ga-gdr-full&c=ga-gdr-lora")
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen thead th").count() == 3
    assert page.locator("select[data-entry=b]").input_value() == ""


@pytest.mark.parametrize(
    "form", ["?a=ga-gdr-full&b=ga-gdr-lora&c=text-only-lora", "#a=ga-gdr-full&b=ga-gdr-lora&c=text-only-lora"]
)
def test_an_address_opens_the_comparison_it_was_copied_from(visit: Open, form: str) -> None:
    page = visit().go("compare.html", form)
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen thead th").count() == 4
    assert page.locator("#chosen li").count() == 3
    assert page.locator("select[data-entry=c]").input_value() == "text-only-lora"


def test_swapping_two_entries_turns_every_difference_round(visit: Open) -> None:
    texts = []
    for first, second in (("ga-gdr-full", "ga-gdr-lora"), ("ga-gdr-lora", "ga-gdr-full")):
        page = visit().go("compare.html", f"#a={first}&b={second}")
        page.locator("#chosen svg").first.wait_for()
        texts.append([text.split()[0] for text in page.locator("#chosen .gap").all_inner_texts()])
    turned = [text.translate(str.maketrans("+-", "-+")) for text in texts[1]]
    assert texts[0] == turned
    assert len(texts[0]) > 8


def test_unknown_names_choose_nothing_and_one_entry_is_never_chosen_twice(visit: Open) -> None:
    seen = visit()
    page = seen.go("compare.html", "#a=%3Cscript%3E&b=..%2F..%2Fx")
    assert page.locator("select[data-entry=a]").input_value() == ""
    pick(page, a="ga-gdr-full")
    assert page.locator("select[data-entry=b] option:disabled").all_inner_texts() == ["ga-gdr-full"]
    assert page.locator("select[data-entry=a] option:disabled").count() == 0
    assert page.locator("#chosen").inner_text() == "Choose two entries or more."
    assert seen.complaints == []


def test_without_javascript_the_pairs_can_be_read(visit: Open) -> None:
    page = visit(java_script_enabled=False).go("compare.html")
    assert not page.locator("#compare").is_visible()
    assert page.locator("table.pairs tbody tr").count() > 2
    assert page.locator("table.pairs").is_visible()


def test_rows_are_picked_by_keyboard_on_the_first_page_and_compared(visit: Open) -> None:
    page = visit().go("index.html")
    boxes = page.locator(f"{OPEN} input.pick")
    for index in (0, 1):
        boxes.nth(index).focus()
        page.keyboard.press("Space")
    link = page.locator("a.compare")
    assert link.inner_text() == "Compare 2"
    page.locator('.switch a[data-bits="8"]').click()
    assert page.locator(f"{OPEN} input.pick:checked").count() == 2
    link.click()
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen thead th").count() == 3


def test_four_entries_at_most_are_picked_the_last_ones(visit: Open) -> None:
    page = visit().go("index.html")
    boxes = page.locator(f"{OPEN} input.pick")
    assert boxes.count() >= 5
    for index in range(5):
        boxes.nth(index).check()
    assert not boxes.nth(0).is_checked()
    assert page.locator("a.compare").inner_text() == "Compare 4"


def test_columns_sorting_and_backend_are_kept_in_the_address(visit: Open, page_board: Board) -> None:
    page = visit().go("index.html")
    page.locator(".columns summary").click()
    page.locator('.columns input[value="b8"]').check()
    page.locator('.columns input[value="privleak"]').uncheck()
    page.locator(f'{OPEN} thead th[data-key="utility"] button').click()
    page.locator("select.backend").select_option("bnb-nf4")
    heads = f"{OPEN} table.sortable thead th:visible"
    names = page.locator(heads).all_inner_texts()
    assert any(name.startswith("8 bit") for name in names)
    assert any(name.startswith("bnb-nf4") for name in names)
    assert not any(name.startswith("PrivLeak") for name in names)
    again = visit()
    other = again.go("index.html", f"#{page.url.split('#')[1]}")
    assert other.locator(heads).all_inner_texts() == names
    utility = [
        float(cell.get_attribute("data-v") or "nan")
        for cell in other.locator(f"{OPEN} table.sortable tbody tr td:nth-child(8)").all()
    ]
    assert utility == sorted(utility)
    assert again.complaints == []


def test_ranked_only_hides_what_has_no_rank(visit: Open, page_board: Board) -> None:
    page = visit().go("index.html")
    page.locator("input.eligible").check()
    assert page.url.endswith("#ranked=1")
    shown = page.locator(f"{OPEN} table.board tbody tr:visible")
    assert shown.count() == len(page_board.ranked(page_board.headline_bits))
    assert not page.locator(f"{OPEN} section.work").first.is_visible()


def test_the_comparison_fits_a_phone(visit: Open, site: Path) -> None:
    page = visit(360).go("compare.html", "#a=ga-gdr-full&b=ga-gdr-lora")
    page.locator("#chosen svg").first.wait_for()
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= shown
