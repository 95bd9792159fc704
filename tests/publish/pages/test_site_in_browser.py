"""The built site in a real Chromium: what a reader sees and does, by mouse, by keyboard and without JavaScript."""

from __future__ import annotations

import re

import pytest
from browsing import OPEN, PAGES

from harness.publish.board import Board
from harness.publish.formatting import number

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1440, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_complains_asks_another_host_or_scrolls_sideways(visit, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    seen = visit(width, color_scheme=scheme)
    for name in PAGES:
        seen.go(name)
        seen.unfold()
        assert seen.hangs_over() <= 0, name
    assert seen.complaints == []
    assert all(address.startswith("file://") for address in seen.asked)


@pytest.mark.parametrize(("width", "drawing"), [(1440, "wide"), (360, "narrow")])
def test_each_screen_gets_one_drawing_made_for_it(visit, width: int, drawing: str) -> None:  # type: ignore[no-untyped-def]
    page = visit(width).go("index.html")
    for kind in ("wide", "narrow"):
        assert page.locator(f".figures .chart .{kind}").first.is_visible() == (kind == drawing)


def test_only_one_width_is_open_at_a_time_and_the_address_remembers_which(visit, page_board: Board) -> None:  # type: ignore[no-untyped-def]
    seen = visit()
    page = seen.go("index.html")
    assert page.locator(OPEN).get_attribute("data-bits") == str(page_board.headline_bits)
    for bits in page_board.widths:
        page.locator(f'.switch a[data-bits="{bits}"]').click()
        assert page.locator(OPEN).count() == 1
        assert page.locator(OPEN).get_attribute("data-bits") == str(bits)
        assert page.locator(".switch a[aria-current]").get_attribute("data-bits") == str(bits)
        assert page.url.endswith(f"#bits={bits}")
        assert seen.names() == [row.submission.name for row in page_board.ranked(bits)]


@pytest.mark.parametrize(
    ("fragment", "bits", "kind", "verdict", "search"),
    [
        ("#bits=8", "8", "", "", ""),
        ("#at-16", "16", "", "", ""),
        ("#bits=99", "4", "", "", ""),
        ("#bits=8&kind=LoRA&q=gdr", "8", "LoRA", "", "gdr"),
        ("#verdict=holds", "4", "", "holds", ""),
        ("#q=%3Cscript%3Ealert(1)%3C/script%3E", "4", "", "", "<script>alert(1)</script>"),
    ],
)
def test_an_address_opens_the_view_it_was_copied_from(  # type: ignore[no-untyped-def]
    visit, fragment: str, bits: str, kind: str, verdict: str, search: str
) -> None:
    seen = visit()
    page = seen.go("index.html", fragment)
    assert page.locator(OPEN).get_attribute("data-bits") == bits
    assert page.locator("select[data-filter=kind]").input_value() == kind
    assert page.locator("select[data-filter=verdict]").input_value() == verdict
    assert page.locator(".search").input_value() == search
    shown = page.locator(f"{OPEN} table.board tbody tr:not([hidden])")
    for index in range(shown.count()):
        assert kind in ("", shown.nth(index).get_attribute("data-kind"))
        assert verdict in ("", shown.nth(index).get_attribute("data-verdict"))
        assert search.lower() in shown.nth(index).inner_text().lower()
    assert seen.complaints == []


def test_search_narrows_the_tables_says_how_many_are_left_and_can_be_undone(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    rows = page.locator(f"{OPEN} table.board tbody tr")
    total = rows.count()
    page.locator(".search").fill("TEXT-ONLY")
    assert page.locator(f"{OPEN} table.board tbody tr:not([hidden])").count() == 1
    assert page.locator(".count").inner_text() == f"1 of {total} shown"
    assert "q=TEXT-ONLY" in page.url
    page.locator(".search").fill("")
    assert page.locator(f"{OPEN} table.board tbody tr:not([hidden])").count() == total
    assert page.locator(".count").inner_text() == ""
    assert "#" not in page.url


def test_filters_for_kind_and_verdict_work_together(visit, page_board: Board) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    page.locator("select[data-filter=kind]").select_option("LoRA")
    page.locator("select[data-filter=verdict]").select_option("never forgot")
    left = page.locator(f"{OPEN} table.board tbody tr:not([hidden]) th a").all_inner_texts()
    assert left == [
        row.submission.name for row in page_board.rows
        if row.submission.kind == "lora_adapter" and row.by_bits[4].verdict.word == "never forgot"
    ]  # fmt: skip
    assert "kind=LoRA&verdict=never+forgot" in page.url


@pytest.mark.parametrize("key", ["mouse", "Enter", "Space"])
def test_a_header_sorts_its_column_both_ways_and_says_so(visit, key: str) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    header = page.locator(f"{OPEN} table.sortable thead th", has_text="Utility")
    button = header.get_by_role("button")

    def press() -> list[float]:
        if key == "mouse":
            button.click()
        else:
            button.press(key)
        cells = page.locator(f"{OPEN} table.sortable tbody tr td:nth-child(8)").all()
        return [float(cell.get_attribute("data-v")) for cell in cells]

    for direction in ("ascending", "descending", "ascending"):
        values = press()
        assert len(values) > 2
        assert values == sorted(values, reverse=direction == "descending")
        assert header.get_attribute("aria-sort") == direction
        assert page.locator(f"{OPEN} thead th[aria-sort]").count() == 1


def test_text_is_sorted_as_people_do_and_what_is_missing_stays_last(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("cells.html")
    score = page.locator("thead th", has_text="Score")
    for direction in (1, -1):
        score.get_by_role("button").click()
        values = [cell.get_attribute("data-v") for cell in page.locator("table.cells tbody tr td:nth-child(5)").all()]
        assert values[-1] == ""
        numbers = [direction * float(value) for value in values if value]
        assert numbers == sorted(numbers)


def test_everything_in_the_head_is_reached_by_tab_with_a_visible_focus(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.className"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    assert reached[0] == "Skip to content"
    for wanted in ("Leaderboard", "Cells", "Method", "Theme: auto"):
        assert wanted in reached


def test_a_width_is_chosen_by_keyboard_alone(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    page.locator('.switch a[data-bits="8"]').focus()
    page.keyboard.press("Enter")
    assert page.locator(OPEN).get_attribute("data-bits") == "8"


def luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_theme_follows_the_system_until_a_reader_chooses(visit, scheme: str, dark: bool) -> None:  # type: ignore[no-untyped-def]
    page = visit(color_scheme=scheme).go("index.html")

    def is_dark() -> bool:
        return luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2

    assert is_dark() == dark
    button = page.locator("button.theme")
    for name, expected in (("light", False), ("dark", True), ("auto", dark)):
        button.click()
        assert button.inner_text() == f"Theme: {name}"
        assert is_dark() == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_badge_can_be_read_in_both_themes(visit, scheme: str) -> None:  # type: ignore[no-untyped-def]
    page = visit(color_scheme=scheme).go("index.html")
    for badge in page.locator(".legend .badge").all():
        ink, ground = badge.evaluate("node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]")
        light, deep = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, (badge.inner_text(), ink, ground)


def test_without_javascript_every_width_and_every_number_can_be_read(visit, page_board: Board) -> None:  # type: ignore[no-untyped-def]
    page = visit(java_script_enabled=False).go("index.html")
    for bits in page_board.widths:
        text = page.locator(f"#at-{bits}").inner_text()
        assert page.locator(f"#at-{bits}").is_visible()
        for row in page_board.ranked(bits):
            assert row.submission.name in text
            assert number(row.by_bits[bits].remaining.value) in text  # type: ignore[union-attr]
    assert not page.locator(".tools").first.is_visible()
    assert not page.locator("button.theme").is_visible()
    page.locator('.switch a[data-bits="8"]').click()
    assert page.url.endswith("#at-8")


def test_pointing_at_a_row_brings_its_line_forward_and_leaving_takes_it_back(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("index.html")
    row = page.locator(f"{OPEN} tr[data-colour]").first
    row.hover()
    assert page.locator(".chart").first.get_attribute("data-highlight") == row.get_attribute("data-colour")
    page.locator("h1").hover()
    assert page.locator(".chart").first.get_attribute("data-highlight") is None


def test_a_reader_gets_from_the_table_to_an_entry_and_back(visit) -> None:  # type: ignore[no-untyped-def]
    seen = visit()
    page = seen.go("index.html")
    page.locator(f"{OPEN} tbody th a").first.click()
    assert "/submission/" in page.url
    page.locator(".brand a").click()
    assert page.url.endswith("/index.html")
    page.locator("nav[aria-label=Pages] a", has_text="Cells").click()
    assert page.locator("nav[aria-label=Pages] a[aria-current]").inner_text() == "Cells"
    assert seen.complaints == []


def test_published_results_are_filtered_by_what_was_really_used_and_empty_works_disappear(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit().go("published.html", "#corpus=news")
    page.locator("select[data-filter=quantizer]").select_option("bnb-fp4")
    left = page.locator("table.published tbody tr:not([hidden])")
    assert {row.get_attribute("data-quantizer") for row in left.all()} == {"bnb-fp4"}
    assert {row.get_attribute("data-corpus") for row in left.all()} == {"news"}
    assert page.locator(".count").inner_text() == f"{left.count()} of 270 shown"
    assert "corpus=news&quantizer=bnb-fp4" in page.url
    for section in page.locator("section.work").all():
        assert section.is_visible() == (section.locator("tbody tr:not([hidden])").count() > 0)
    page.locator("select[data-filter=quantizer]").select_option("")
    page.locator("select[data-filter=corpus]").select_option("")
    assert page.locator("section.work:not([hidden])").count() == page.locator("section.work").count()
