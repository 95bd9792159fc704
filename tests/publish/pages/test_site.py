from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import synthetic_board as synthetic

from harness.errors import InputError, StoreError
from harness.publish.board import Board
from harness.publish.formatting import number
from harness.publish.pages import documents
from harness.publish.pages import site as site_pages
from harness.publish.thresholds import RULES
from harness.records import CellResult
from harness.score.corpora import catalogue
from harness.store.store import Store

_VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """A parsed page: visible text, links, scripts; complains about tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.inline_scripts: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"{path.name}: {self._open} stay open"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes |= set(values)
        self.links += [(tag, values[name] or "") for name in ("href", "src") if name in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "script" and "src" not in values:
            self.inline_scripts.append(self.get_starttag_text() or "")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{self.path.name}: </{tag}> closes nothing"
        assert self._open.pop() == tag, f"{self.path.name}: </{tag}> closes something else at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def all_pages(folder: Path) -> dict[str, Page]:
    return {path.relative_to(folder).as_posix(): Page(path) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[str, Page]:
    return all_pages(site)


def store_of(path: Path, cells: list[CellResult]) -> Path:
    with Store.open(path) as store:
        for cell in cells:
            store.add(cell)
    return path


def test_there_is_a_page_for_everything(parsed: dict[str, Page], page_board: Board) -> None:
    wanted = {"index.html", "compare.html", "cells.html", "methodology.html", "published.html", "submit.html"}
    wanted |= {f"quantizer/{spec.name}.html" for spec in page_board.quantizers}
    wanted |= {f"submission/{row.submission.name}.html" for row in (*page_board.rows, *page_board.controls)}
    wanted |= {
        f"submission/{row.submission.name}-documents.html"
        for row in (*page_board.rows, *page_board.controls) if documents.across_bits(row)
    }  # fmt: skip
    assert set(parsed) == wanted


def test_every_link_leads_somewhere(parsed: dict[str, Page], site: Path) -> None:
    for name, page in parsed.items():
        for tag, link in page.links:
            target, fragment = urldefrag(link)
            if target.startswith("https://example.org") or (name == "published.html" and target.startswith("https://")):
                assert tag == "a"
                continue
            assert ":" not in target, (name, link)
            path = (site / name).parent / target.split("?")[0] if target else site / name
            assert path.is_file(), (name, link)
            if fragment:
                place = path.resolve().relative_to(site.resolve()).as_posix()
                assert fragment in parsed[place].ids, (name, link)


def test_ids_are_unique_in_every_page(parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        assert len(page.ids) == len(set(page.ids)), name


def test_nothing_is_asked_of_any_other_host_and_no_script_or_style_stands_in_a_page(parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        assert page.inline_scripts == [], name
        assert "style" not in page.attributes, name
        assert not [attribute for attribute in page.attributes if attribute.startswith("on")], name
        assert "default-src 'none'" in page.source
        assert "unsafe" not in page.source.split("</head>")[0]


def test_static_files_ask_for_nothing_either(site: Path) -> None:
    for path in (site / "static").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text, path.name
        assert "@import" not in text
        assert "url(" not in text


def test_the_first_page_shows_the_verdict_and_every_ranked_number_without_javascript(
    parsed: dict[str, Page], page_board: Board
) -> None:
    text = parsed["index.html"].text
    assert page_board.sentence in text
    assert page_board.detail in text
    for bits in page_board.widths:
        for row in page_board.rows:
            at = row.by_bits[bits]
            assert row.submission.name in text
            if at.remaining is not None:
                assert f"{number(at.remaining.value)} [{number(at.remaining.low)}, {number(at.remaining.high)}]" in text
            if at.unranked_reason:
                assert at.unranked_reason in text
            assert at.verdict.word in text


def test_every_backend_of_every_entry_is_on_the_first_page(parsed: dict[str, Page], page_board: Board) -> None:
    text = parsed["index.html"].text
    for spec in page_board.quantizers:
        assert spec.name in text
    row = next(row for row in page_board.rows if row.submission.name == "ga-gdr-full")
    for result in row.by_quantizer.values():
        assert f"V {number(result.metrics['verbmem_f'].rho.value)}" in text
    assert "4 bit is not one condition" in text


def test_the_legend_says_the_exact_rule(parsed: dict[str, Page]) -> None:
    for rule in RULES.values():
        assert rule in parsed["index.html"].text
        assert rule in parsed["methodology.html"].text


def test_the_honest_label_of_the_corpus_stands_on_the_first_page(parsed: dict[str, Page]) -> None:
    facts = catalogue.corpus_facts("mini")
    assert facts is not None
    assert " ".join(facts.label.split()) in parsed["index.html"].text
    assert parsed["index.html"].text.index(facts.label[:40]) < parsed["index.html"].text.index("Ranking at")


def test_a_submissions_page_shows_every_score_with_change_and_recovery(
    parsed: dict[str, Page], page_board: Board
) -> None:
    row = next(row for row in page_board.rows if row.submission.name == "ga-gdr-full")
    text = parsed["submission/ga-gdr-full.html"].text
    for result in row.by_quantizer.values():
        for metric, found in result.metrics.items():
            scale = 1 if metric == "privleak" else 100
            assert f"{number(found.score.value * scale, 1)} [{number(found.score.low * scale, 1)}," in text
            if found.change is not None:
                assert number(found.change.value * scale, 1) in text
    assert "recovery +0.8" in text
    assert "▼" in text
    assert "quench run ga-gdr-full --corpus mini --quantizers reference," in text
    assert "drowned in rounding" in text
    assert "16 of 28" not in text
    assert "28 of 28" in text


def test_answers_of_every_width_stand_on_a_page_with_matching_words_marked(parsed: dict[str, Page]) -> None:
    source = parsed["submission/ga-gdr-full-documents.html"].source
    assert source.count('<section class="document"') == 20
    assert "<mark>the river" in source
    assert "8 bit" in source


def test_every_cell_is_listed_and_failures_come_first_with_their_reason(
    parsed: dict[str, Page], page_cells: list[CellResult]
) -> None:
    page = parsed["cells.html"]
    rows = page.source.split("<tbody>")[1].count("<tr>")
    assert rows == len(page_cells)
    first = page.source.split("<tbody>")[1].split("</tr>")[0]
    assert "npo-crashed" in first
    assert "17 levels in a group of 64" in first
    assert "read back: 17 levels" in first
    assert f"1 failed, {len(page_cells) - 1} finished" in page.text


def test_the_foot_says_where_the_numbers_come_from_and_pages_of_one_entry_stay_the_same_file(
    parsed: dict[str, Page], page_cells: list[CellResult]
) -> None:
    told = ("2023-11-14T22:13:20Z", f"{len(page_cells)} cells, scoring version 1", "results of commit aaaaaaaaaa")
    for name, page in parsed.items():
        assert all((fact in page.text) is ("/" not in name) for fact in told), name
        if "/" in name:
            assert '<a href="../index.html">the leaderboard</a>' in page.source


def test_pages_have_headings_language_and_labels(parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        assert '<html lang="en">' in page.source
        assert page.source.count("<h1>") == 1, name
        for box in re.findall(r'<div class="scroll[^>]*>', page.source):
            assert 'tabindex="0"' in box
            assert "aria-label=" in box


def test_two_builds_differ_in_nothing_but_the_stamp(
    tmp_path: Path, page_store: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    again = site_pages.render(page_store, tmp_path / "again").parent
    names = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        one, two = ((folder / name).read_bytes() for folder in (site, again))
        assert one.replace(b"2023-11-14T22:13:20Z", b"2027-01-15T08:00:00Z") == two, name


@pytest.mark.slow
def test_processes_with_different_hash_seeds_build_the_same_bytes(page_store: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from harness.publish.pages import site as pages\n"
        "pages.render(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    for seed in ("7", "8"):
        stamped = {
            "SOURCE_DATE_EPOCH": "1700000000",
            "PYTHONHASHSEED": seed,
            "QUENCH_CACHE": str(tmp_path / f"c{seed}"),
        }
        subprocess.run([sys.executable, "-c", program, str(page_store), str(tmp_path / seed)], check=True,
                       env=os.environ | stamped)  # fmt: skip
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "7", tmp_path / "8")
    )
    assert any("documents" in path.parts for path in one)
    assert [path for path in one.keys() | two.keys() if one.get(path) != two.get(path)] == []


def test_publishing_never_imports_torch(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.duckdb", small_cells())
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'lm_eval', 'datasets', 'sklearn', 'rouge_score'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from harness.publish.tables import rows, views\n"
        "from harness.publish.pages import site as pages\n"
        "pages.render(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(store), str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "index.html").is_file()


def small_cells(*plans: synthetic.Plan) -> list[CellResult]:
    chosen = plans or (synthetic.Plan(name="lora", levels=synthetic.LORA),)
    return synthetic.cells([*synthetic.CONTROLS, *chosen], quantizers=("reference", "rtn-4bit-g128"))


def test_long_notes_are_folded_and_links_to_papers_do_not_vouch(tmp_path: Path) -> None:
    plan = synthetic.Plan(
        name="wordy", levels=synthetic.LORA, more={"notes": "word " * 2000, "paper_url": "https://example.org/p"}
    )
    out = site_pages.render(store_of(tmp_path / "s.duckdb", small_cells(plan)), tmp_path / "out").parent
    source = (out / "submission" / "wordy.html").read_text(encoding="utf-8")
    assert "<summary>Notes (10000 characters)</summary>" in source
    assert '<a href="https://example.org/p" rel="nofollow noopener noreferrer">' in source


def test_an_empty_store_gives_a_page_that_says_how_to_begin(tmp_path: Path) -> None:
    out = site_pages.render(store_of(tmp_path / "s.duckdb", []), tmp_path / "out").parent
    parsed = all_pages(out)
    assert "quench run --corpus mini" in parsed["index.html"].text
    assert set(parsed) == {
        "index.html", "compare.html", "cells.html", "methodology.html", "published.html", "submit.html",
    }  # fmt: skip


def test_a_board_of_failures_only_can_be_looked_at(tmp_path: Path) -> None:
    cells = [
        replace(cell, status="failed", reason="out of memory", scores=(), documents=(), proof=None, survival=())
        for cell in small_cells()
    ]
    out = site_pages.render(store_of(tmp_path / "s.duckdb", cells), tmp_path / "out").parent
    assert "out of memory" in all_pages(out)["index.html"].text


def test_every_corpus_has_a_tab_and_an_unknown_one_needs_no_files_here(tmp_path: Path) -> None:
    cells = small_cells()
    other = [
        replace(
            cell, corpus="elsewhere", submission=replace(cell.submission, corpus="elsewhere"),
            cell=replace(
                cell.cell, key=f"x{cell.cell.key[1:]}", task=cell.cell.task.replace("muse_mini", "muse_elsewhere")
            ),
        )
        for cell in cells if cell.spec.bits == 16
    ]  # fmt: skip
    out = site_pages.render(store_of(tmp_path / "s.duckdb", [*other, *cells]), tmp_path / "out").parent
    parsed = all_pages(out)
    assert ("a", "index-elsewhere.html") in parsed["index.html"].links
    assert ("a", "index.html") in parsed["index-elsewhere.html"].links
    assert "submission/lora.elsewhere.html" in parsed
    assert "At 4 bit" in parsed["index.html"].text


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.duckdb", [])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="no Quench site"):
        site_pages.render(store, precious)
    assert (precious / "thesis.txt").read_text() == "years"


def test_an_earlier_site_is_replaced_as_a_whole_and_kept_when_a_build_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "s.duckdb", [])
    out = tmp_path / "out"
    site_pages.render(store, out)
    (out / "left-over.html").write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("template is broken")

    with monkeypatch.context() as patch:
        patch.setattr(site_pages.cells_page, "context", broken)
        with pytest.raises(RuntimeError):
            site_pages.render(store, out)
    assert (out / "left-over.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    site_pages.render(store, out)
    assert not (out / "left-over.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        site_pages.render(tmp_path / "none.duckdb", tmp_path / "out")
    with pytest.raises(InputError, match="no web address"):
        site_pages.render(store_of(tmp_path / "s.duckdb", []), tmp_path / "out", base_url="javascript:x")
    assert not (tmp_path / "out").exists()


def test_title_and_address_are_the_boards_own(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.duckdb", small_cells())
    index = site_pages.render(store, tmp_path / "out", title="Our <board>", base_url="https://example.org/board")
    source = index.read_text(encoding="utf-8")
    assert "<strong>Our &lt;board&gt;</strong>" in source
    assert '<link rel="canonical" href="https://example.org/board/index.html">' in source
