from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic
from test_site import Page, all_pages, store_of

from harness.paths import content_dir
from harness.publish import thresholds
from harness.publish.board import Board
from harness.publish.comparison import all_pairs
from harness.publish.formatting import number
from harness.publish.pages import index as index_page
from harness.publish.pages import site as site_pages
from harness.publish.ranking import headline
from harness.publish.ranking import rank as ranking


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[str, Page]:
    return all_pages(site)


def test_the_first_screen_says_what_was_tested_how_it_ended_and_how_sure_that_is(
    parsed: dict[str, Page], page_board: Board
) -> None:
    text = parsed["index.html"].text
    told = [headline.question(page_board), page_board.sentence, page_board.detail, headline.certainty(page_board)]
    places = [text.index(sentence) for sentence in told]
    assert places == sorted(places)
    assert places[-1] < text.index("Ranking at")


def test_a_verdict_that_backends_disagree_on_counts_them_and_folds_their_names(
    tmp_path: Path, page_board: Board
) -> None:
    cells = synthetic.cells(
        [*synthetic.CONTROLS, synthetic.Plan(name="torn", levels=synthetic.FULL)],
        quantizers=("reference", "rtn-4bit-g128", "rtn-4bit-g64", "bnb-nf4"),
    )
    more = [
        replace(
            cell, spec=replace(cell.spec, name="bnb-fp4"),
            cell=replace(cell.cell, quantizer="bnb-fp4", key=f"{cell.cell.key[:-1]}x"),
        )
        for cell in cells if cell.spec.name == "bnb-nf4"
    ]  # fmt: skip
    out = site_pages.render(store_of(tmp_path / "s.duckdb", [*cells, *more]), tmp_path / "out").parent
    source = Page(out / "index.html").source
    assert "<summary>on 2 of 4 quantizers</summary>" in source
    assert "reverts under rtn-4bit-g128, rtn-4bit-g64; holds under bnb-fp4, bnb-nf4" in source


def test_other_widths_stand_in_columns_that_are_folded_until_asked_for(
    parsed: dict[str, Page], page_board: Board
) -> None:
    source = parsed["index.html"].source
    for bits in page_board.widths:
        assert f'<input type="checkbox" value="b{bits}"> {bits} bit' in source
    row = next(row for row in page_board.rows if row.submission.name == "ga-gdr-full")
    at = row.by_bits[8]
    assert at.remaining is not None
    assert at.utility_share is not None
    word = at.verdict.word
    said = f"{thresholds.SYMBOLS[word]} {word} {number(at.remaining.value)}, {at.utility_share.value:.0%}"
    assert f'data-says="{said}"' in source.split('id="at-8"')[1].split("</section>")[0]


def test_every_row_that_can_be_compared_can_be_picked(parsed: dict[str, Page], page_board: Board) -> None:
    source = parsed["index.html"].source
    known = {row.submission.name for row in all_pairs.compared(page_board)}
    for row in page_board.rows:
        picked = source.count(f'class="pick" value="{row.submission.name}"')
        assert picked == (len(page_board.widths) if row.submission.name in known else 0)
    assert ("a", "compare.html") in parsed["index.html"].links
    assert ("a", "../compare.html?a=ga-gdr-full") in parsed["submission/ga-gdr-full.html"].links


def test_the_method_tells_of_few_documents_the_reference_seeds_and_many_tests_with_the_constants(
    parsed: dict[str, Page],
) -> None:
    page = parsed["methodology.html"]
    for wanted in (
        f"Below {thresholds.FEW_DOCUMENTS}, scores", f"at least {thresholds.UNSEEN:.2f} / n", "uncertainty of A",
        "seed_of",
        f"adjusted p is at most {1 - thresholds.CONFIDENCE:.2f}", "after Holm",
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert {"few-documents", "reference-auc", "many", "seeds"} <= set(page.ids)


def test_scripts_stay_under_15_kb_in_all(site: Path) -> None:
    source = content_dir("leaderboard") / "static"
    built = {path.name: path.read_text(encoding="utf-8") for path in (site / "static").glob("*.js")}
    assert set(built) == {path.name for path in source.glob("*.js")}
    assert all(text for text in built.values())
    assert sum(len(text.encode()) for text in built.values()) < 15 * 1024


def small_board(*plans: synthetic.Plan) -> Board:
    cells = synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference", "rtn-4bit-g128"))
    return ranking.rank(cells, "mini")


def test_the_question_counts_models_widths_and_ways() -> None:
    one = small_board(synthetic.Plan(name="alone", levels=synthetic.LORA))
    assert headline.question(one).startswith(
        "One model that had been made to forget a set of texts was rounded to 4 bit"
    )
    assert "in one way" in headline.question(one)
    assert headline.question(ranking.rank([], "mini")).endswith("come back when it is quantized?")


def test_certainty_tells_the_most_that_may_have_come_back_of_what_holds() -> None:
    board = small_board(synthetic.Plan(name="steady", levels=synthetic.LORA))
    result = board.rows[0].by_quantizer["rtn-4bit-g128"]
    assert result.verdict.word == "holds"
    most = max(found.recovery.high for found in result.metrics.values() if found.recovery is not None)  # type: ignore[type-var]
    said = headline.certainty(board)
    assert f"at most {max(most, 0.0):.0%} of the target's KnowMem and VerbMem may have come back" in said
    assert "32 to 144 documents each, with 95% intervals" in said


def test_certainty_promises_nothing_where_everything_comes_back() -> None:
    board = small_board(synthetic.Plan(name="gone", levels=synthetic.FULL))
    assert board.rows[0].by_bits[4].verdict.word == "reverts"
    assert "come back" not in headline.certainty(board)
    assert headline.certainty(ranking.rank([], "mini")) == ""


def test_of_many_entries_the_first_stand_on_the_first_page_and_all_on_one_of_their_own(
    tmp_path: Path, page_store: Path, page_board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_page, "MOST", 3)
    out = site_pages.render(page_store, tmp_path / "out").parent
    names = [row.submission.name for row in page_board.rows]
    first, everything = (Page(out / name) for name in ("index.html", "all-index.html"))
    assert "The first 3 of 7 entries" in first.text
    assert '<a href="all-index.html">All entries on one page</a>' in first.source
    assert "All entries on one page" not in everything.source
    for page, there in ((first, names[:3]), (everything, names)):
        assert [name for name in names if f'href="submission/{name}.html"' in page.source] == there
        assert all(sentence in page.text for sentence in (page_board.sentence, f"{len(names)} entries;"))
        assert [page.source.count(f'id="at-{bits}"') for bits in page_board.widths] == [1] * len(page_board.widths)


def test_a_board_of_few_entries_has_no_second_page(site: Path) -> None:
    assert not (site / "all-index.html").exists()
    assert "All entries on one page" not in (site / "index.html").read_text(encoding="utf-8")
