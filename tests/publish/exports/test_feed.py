"""What others embed: a feed that readers take, badges that say the verdict, a citation that names the state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import synthetic_board as synthetic

from harness.publish.board import Board
from harness.publish.exports import feed
from harness.publish.ranking import rank as ranking
from harness.publish.release import Release
from harness.publish.thresholds import SYMBOLS
from harness.records import CellResult

ATOM = {"a": "http://www.w3.org/2005/Atom"}
URL = "https://example.org/board/"
HOSTILE = '"><script>alert(1)</script>&\u202e\x1b]]>'


def release(boards: list[Board], cells: list[CellResult], **more: Any) -> Release:
    links: Mapping[str, Mapping[str, str]] = {
        board.corpus: {row.submission.name: f"submission/s{number}.html" for number, row in enumerate(board.rows)}
        for board in boards
    }
    facts: dict[str, Any] = {
        "title": "Quench", "base_url": None, "store_sha256": "ab" * 32, "scoring_version": 3, "corpora": {}, **more,
    }  # fmt: skip
    return Release(boards=boards, cells=cells, links=links, **facts)


@pytest.fixture(scope="module")
def plain(page_board: Board, page_cells: list[CellResult]) -> Release:
    return release([page_board], page_cells)


def parsed(found: Release) -> ElementTree.Element:
    return ElementTree.fromstring(feed.atom(found))


def text(element: ElementTree.Element, path: str) -> str:
    found = element.find(path, ATOM)
    assert found is not None, path
    return found.text or ""


def test_a_feed_has_what_the_standard_asks_for(plain: Release, page_board: Board) -> None:
    root = parsed(plain)
    entries = root.findall("a:entry", ATOM)
    assert len(entries) == len(page_board.rows)
    assert text(root, "a:author/a:name") == "Quench"
    ids = [text(element, "a:id") for element in (root, *entries)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", found) for found in ids)
    for element in (root, *entries):
        assert text(element, "a:title")
        assert datetime.fromisoformat(text(element, "a:updated")).tzinfo is not None


def test_the_entry_that_came_last_stands_first() -> None:
    plans = [
        synthetic.Plan(name=name, levels=synthetic.LORA, created_at=f"2026-11-{day}T10:00:00+00:00")
        for name, day in (("early", "03"), ("late", "20"), ("between", "09"))
    ]
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128"))
    root = parsed(release([ranking.rank(cells, "mini")], cells))
    assert [text(entry, "a:title") for entry in root.findall("a:entry", ATOM)] == [
        "late (mini)", "between (mini)", "early (mini)",
    ]  # fmt: skip
    assert text(root, "a:updated") == "2026-11-20T10:00:00+00:00"


def test_links_are_absolute_with_an_address_and_relative_without(plain: Release) -> None:
    for found, start in ((plain, "../"), (replace(plain, base_url=URL), URL)):
        links = [link.attrib["href"] for link in parsed(found).findall(".//a:link", ATOM)]
        assert links[:2] == [f"{start}data/feed.xml", f"{start}index.html"]
        assert all(link.startswith(f"{start}submission/") for link in links[2:])


def test_an_entry_keeps_its_id_when_the_site_moves_or_its_scores_change(plain: Release) -> None:
    one, two = (
        {text(entry, "a:title"): text(entry, "a:id") for entry in parsed(found).findall("a:entry", ATOM)}
        for found in (plain, replace(plain, base_url=URL, scoring_version=9, cells=plain.cells[::-1]))
    )
    assert one == two


def test_the_summary_says_verdict_remaining_share_and_utility(plain: Release) -> None:
    (found,) = [
        text(entry, "a:summary") for entry in parsed(plain).findall("a:entry", ATOM)
        if text(entry, "a:title") == "GA+GDR, all weights (mini)"
    ]  # fmt: skip
    assert re.fullmatch(
        r"GA\+GDR at 4 bit: reverts; 0\.\d\d of the knowledge remains under rtn-4bit-g128; "
        r"\d\.\d\d of the target's utility is kept\.",
        found,
    )


def test_hostile_text_stays_text_in_feed_badge_and_citation() -> None:
    plan = synthetic.Plan(
        name="evil", levels=synthetic.LORA, method=HOSTILE, more={"title": HOSTILE, "authors": (HOSTILE,)}
    )
    cells = [
        replace(cell, corpus=HOSTILE)
        for cell in synthetic.cells([*synthetic.CONTROLS, plan], quantizers=("reference", "rtn-4bit-g128"))
    ]
    found = release([ranking.rank(cells, HOSTILE)], cells, title=f"{HOSTILE}}}\\input{{x}}")
    for written in (feed.atom(found), *(feed.badge(entry) for entry in found.entries())):
        assert "<script" not in written
        assert not set("\u202e\x1b") & set(written)
        ElementTree.fromstring(written)
    assert text(parsed(found), "a:entry/a:author/a:name").startswith('"><script>')
    assert r"\input" not in feed.bibtex(found)


@pytest.mark.parametrize("name", ["ga-gdr-full", "ga-gdr-lora", "npo-limited", "ga-full-fast", "noop-lora"])
def test_a_badge_says_the_verdict_at_4_bit_in_words(name: str, plain: Release) -> None:
    entry = next(entry for entry in plain.entries() if entry.row.submission.name == name)
    word = entry.row.by_bits[4].verdict.word
    root = ElementTree.fromstring(feed.badge(entry))
    assert root.attrib["aria-label"] == f"quench mini, 4 bit: {word}"
    assert f"{SYMBOLS[word]} {word}" in [found.text for found in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.attrib["height"] == "20"


def test_badges_of_every_verdict_have_a_colour_that_white_text_can_be_read_on() -> None:
    assert set(feed._COLOURS) == set(SYMBOLS)
    for colour in feed._COLOURS.values():
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 4.5, colour


def test_an_entry_without_a_cell_at_4_bit_is_not_measured() -> None:
    cells = synthetic.cells(
        [*synthetic.CONTROLS, synthetic.Plan(name="lora", levels=synthetic.LORA)],
        quantizers=("reference", "rtn-8bit-g128"),
    )
    found = release([ranking.rank(cells, "mini")], cells)
    (entry,) = found.entries()
    assert ">○ not measured<" in feed.badge(entry)
    assert "at 4 bit: not measured." in feed.atom(found)


def test_the_site_has_one_badge_per_entry_and_none_for_controls(site: Path, page_board: Board) -> None:
    names = {path.stem for path in (site / "data" / "badges").iterdir()}
    assert names == {row.submission.name for row in page_board.rows}


def test_the_citation_names_year_scoring_version_and_store(plain: Release) -> None:
    text = feed.bibtex(replace(plain, base_url=URL))
    assert text.startswith("@misc{quench-abababab,\n")
    assert "year = {2026}" in text
    assert "note = {Scoring version 3, store abababababababab}" in text
    assert f"url = {{{URL}}}" in text
    assert "url" not in feed.bibtex(plain)
    assert text.count("{") == text.count("}")


def test_braces_in_an_address_cannot_end_the_field(plain: Release) -> None:
    text = feed.bibtex(replace(plain, base_url="https://example.org/a}b{/"))
    assert "url = {https://example.org/a%7Db%7B/}" in text
