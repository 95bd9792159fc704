"""Published results: the shipped rows are plausible, faults are named, our own cells stand beside the right ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic
from test_site import Page, store_of

from harness.errors import InputError
from harness.publish.formatting import number
from harness.publish.pages import published as published_page
from harness.publish.pages import site as site_pages
from harness.publish.pages.published import COLUMNS, Published
from harness.publish.ranking import rank as ranking
from harness.quantize import resolve
from harness.records import CellResult

ROW = {
    "work": "A paper", "year": "2025", "where": "Table 1", "url": "https://example.org/paper", "corpus": "mini",
    "method": "GA+GDR", "kind": "full", "quantizer": "rtn-4bit-g128", "stated_quantizer": "", "bits": "4",
    "verbmem_f": "34.2", "knowmem_f": "54.4", "privleak": "-99.8", "knowmem_r": "48.2", "remark": "greedy",
}  # fmt: skip

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def written(path: Path, *rows: Mapping[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**ROW, **row} for row in rows)
    return path


def read(tmp_path: Path, **changed: str) -> Published:
    return published_page.load(written(tmp_path / "p.csv", changed))[0]


@pytest.fixture(scope="module")
def shipped() -> list[Published]:
    return published_page.load(published_page.shipped_file())


@pytest.fixture(scope="module")
def published(site: Path) -> Page:
    return Page(site / "published.html")


def test_a_row_keeps_its_figures_and_says_nothing_where_the_source_says_nothing(tmp_path: Path) -> None:
    row = read(tmp_path, quantizer="", bits="", stated_quantizer="", remark="", privleak="")
    assert row.scores == {"verbmem_f": 34.2, "knowmem_f": 54.4, "knowmem_r": 48.2}
    assert (row.quantizer, row.bits, row.stated_quantizer, row.remark) == (None, None, None, "")
    assert read(tmp_path, bits="4").bits == 4


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("verbmem_f", "100.1", "number from 0 to 100"),
        ("knowmem_r", "-0.1", "number from 0 to 100"),
        ("knowmem_f", "nan", "number from 0 to 100"),
        ("knowmem_f", "forty", "'forty' as knowmem_f"),
        ("privleak", "-100.5", "number from -100"),
        ("year", "25", "number from 2000"),
        ("bits", "32", "number from 1 to 16"),
        ("bits", "16", "reference has 16"),
        ("quantizer", "reference", "reference has 16"),
        ("kind", "lora", "write full or LoRA"),
        ("url", "javascript:alert(1)", "no web address"),
        ("work", "", "has no work"),
        ("where", "", "has no where"),
    ],
)
def test_a_value_that_its_unit_does_not_allow_is_refused_with_its_line(
    tmp_path: Path, column: str, value: str, told: str
) -> None:
    path = written(tmp_path / "p.csv", {}, {column: value})
    with pytest.raises(InputError, match=r"Line 3 of .*p\.csv") as caught:
        published_page.load(path)
    assert told in str(caught.value)


def test_privleak_may_lie_above_a_hundred_percent(tmp_path: Path) -> None:
    assert read(tmp_path, privleak="109.6").scores["privleak"] == 109.6


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("work,year\nA,2025\n", encoding="utf-8")
    with pytest.raises(InputError, match="has other columns"):
        published_page.load(path)


def test_every_shipped_row_has_a_source_and_the_directions_that_controls_must_have(shipped: list[Published]) -> None:
    assert len(shipped) == 270
    for row in shipped:
        assert row.url.startswith("https://")
        assert set(row.scores) == {"verbmem_f", "knowmem_f", "knowmem_r", "privleak"}
        if row.method == "target":
            assert row.scores["privleak"] < -50, row
            assert row.scores["verbmem_f"] > 30, row
        if row.method == "retrain":
            assert row.scores["privleak"] == 0, row
            assert row.scores["verbmem_f"] < 25, row


def test_a_shipped_quantizer_is_named_as_the_board_names_it(shipped: list[Published]) -> None:
    for row in shipped:
        if row.quantizer is not None:
            spec = resolve(row.quantizer)
            assert spec.name == row.quantizer
            assert row.bits in (spec.bits, None)


def test_rows_of_one_work_stand_together(shipped: list[Published]) -> None:
    order = [(row.work, row.year, row.url) for row in shipped]
    seen = list(dict.fromkeys(order))
    assert [work for work, before in zip(order, [None, *order], strict=False) if work != before] == seen


@pytest.mark.parametrize(
    ("work", "corpus", "method", "kind", "quantizer", "figures"),
    [
        ("Quantization-robust unlearning via LoRA", "books", "NPO+GDR", "LoRA", "bnb-fp4", (20.3, 36.64, 58.1, -58.91)),
        ("Zhang et al. (ICLR)", "news", "GA+GDR", "full", "bnb-fp4", (25.0, 50.1, 47.7, -99.1)),
        ("MUSE", "news", "NPO+GDR", "full", "reference", (1.2, 54.6, 40.5, 105.8)),
        ("OpenUnlearning", "news", "RMU", "full", "reference", (5, 48, 51, 56.36)),
    ],
)
def test_a_figure_of_each_of_the_main_works_is_the_published_one(
    shipped: list[Published], work: str, corpus: str, method: str, kind: str, quantizer: str,
    figures: tuple[float, float, float, float],
) -> None:  # fmt: skip
    found = [
        row for row in shipped
        if (row.work, row.corpus, row.method, row.kind, row.quantizer) == (work, corpus, method, kind, quantizer)
    ]  # fmt: skip
    assert len(found) == 1
    assert tuple(found[0].scores[metric] for metric in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")) == figures


def test_the_finding_counts_what_four_bits_rest_on(tmp_path: Path) -> None:
    fp4 = {"quantizer": "bnb-fp4"}
    rows = published_page.load(
        written(tmp_path / "p.csv", {}, fp4, {**fp4, "stated_quantizer": "RTN"}, {"quantizer": "bnb-int8", "bits": "8"})
    )
    assert published_page.finding(rows).startswith("2 of 3 published 4-bit results come from code that loads")
    assert "for 1 of those the text says round-to-nearest" in published_page.finding(rows)
    assert "round-to-nearest" not in published_page.finding(rows[:2])


def own_names(rows: list[Published], cells: list[CellResult]) -> list[list[str]]:
    board = ranking.rank(cells, "mini")
    names = [row.submission.name for row in (*board.rows, *board.controls)]
    made = published_page.context(rows, [board], {"mini": {name: f"submission/{name}.html" for name in names}})
    return [[ours["name"] for ours in line["here"]] for group in made["groups"] for line in group["rows"]]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, ["ga-gdr-full"]),
        ({"method": "ga+gdr"}, ["ga-gdr-full"]),
        ({"kind": "LoRA"}, ["ga-gdr-lora"]),
        ({"corpus": "news"}, []),
        ({"method": "NPO"}, []),  # scored on four documents only
        ({"method": "NPO+GDR"}, []),
        ({"quantizer": "rtn-4bit-g128-sym"}, []),
        ({"quantizer": "reference", "bits": "16"}, ["ga-gdr-full"]),
        ({"quantizer": "", "bits": ""}, []),
        ({"method": "retrain"}, ["mini-retrain"]),
        ({"method": "target"}, ["mini-target-4bit"]),
        ({"method": "none"}, []),
    ],
)
def test_only_a_whole_cell_of_the_same_corpus_method_kind_and_quantizer_stands_beside(
    tmp_path: Path, changed: dict[str, str], names: list[str]
) -> None:
    plans = [
        synthetic.CONTROLS[0], synthetic.CONTROLS[2], synthetic.Plan(name="ga-gdr-full", levels=synthetic.FULL),
        synthetic.Plan(name="ga-gdr-lora", levels=synthetic.LORA, kind="lora_adapter"),
        synthetic.Plan(name="npo-limited", levels=synthetic.FULL, limit=4, method="NPO"),
    ]  # fmt: skip
    cells = synthetic.cells(plans, quantizers=("reference", "rtn-4bit-g128"))
    assert own_names([read(tmp_path, **changed)], cells) == [names]


def test_a_row_recomputed_from_somebody_s_log_is_not_ours(tmp_path: Path) -> None:
    cells = synthetic.cells(
        [*synthetic.CONTROLS, synthetic.Plan(name="logged", levels=synthetic.FULL)],
        quantizers=("reference", "rtn-4bit-g128"),
    )
    foreign = [
        replace(cell, origin="rescored from logs") if cell.cell.submission == "logged" else cell for cell in cells
    ]
    assert own_names([read(tmp_path)], cells) == [["logged"]]
    assert own_names([read(tmp_path)], foreign) == [[]]


def test_every_published_figure_is_readable_without_javascript(published: Page, shipped: list[Published]) -> None:
    assert published_page.finding(shipped) in published.text
    assert published.source.count("<tr data-corpus=") == len(shipped)
    for row in shipped:
        for value in row.scores.values():
            assert f">{number(value, 1)}<" in published.source
        assert ("a", row.url) in published.links
        assert row.where.split("'")[0] in published.text
    assert "called RTN" in published.text
    assert "this store has no cell of the same corpus" in published.text


def test_the_csv_can_be_had_byte_for_byte(published: Page, site: Path) -> None:
    assert ("a", "data/published.csv") in published.links
    assert (site / "data/published.csv").read_bytes() == published_page.shipped_file().read_bytes()


def test_our_own_score_and_its_interval_stand_beside_a_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_page, "shipped_file", lambda: written(tmp_path / "p.csv", {}, {"corpus": "news"}))
    cells = synthetic.cells(
        [*synthetic.CONTROLS, synthetic.Plan(name="mine", levels=synthetic.FULL)],
        quantizers=("reference", "rtn-4bit-g128"),
    )
    out = site_pages.render(store_of(tmp_path / "s.duckdb", cells), tmp_path / "out").parent
    page = Page(out / "published.html")
    row = next(row for row in ranking.rank(cells, "mini").rows if row.submission.name == "mine")
    score = row.by_quantizer["rtn-4bit-g128"].metrics["verbmem_f"].score
    assert score.low is not None
    assert f"34.2 {number(score.value * 100, 1)} [{number(score.low * 100, 1)}," in page.text
    assert page.text.count("here: mine") == 1
    assert ("a", "submission/mine.html") in page.links
    assert ("a", "quantizer/rtn-4bit-g128.html") in page.links
    assert "1 of them stands beside a cell of this store" in page.text


def test_hostile_text_in_a_row_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("work", "where", "corpus", "method", "quantizer", "stated_quantizer", "remark")
    bad = {**dict.fromkeys(fields, f"{HOSTILE}\u202e"), "url": f"https://example.org/{HOSTILE.replace(' ', '')}"}
    monkeypatch.setattr(published_page, "shipped_file", lambda: written(tmp_path / "p.csv", bad))
    out = site_pages.render(store_of(tmp_path / "s.duckdb", []), tmp_path / "out").parent
    page = Page(out / "published.html")
    assert page.inline_scripts == []
    assert "<img" not in page.source
    assert "\u202e" not in page.source
    assert not {"onerror", "onload"} & page.attributes
    assert page.text.count("alert(1)") >= len(fields)
