"""A stranger's texts in a real Chromium: nothing of them runs, nothing of them stretches a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_board as synthetic
from browsing import OPEN, Visit
from site_faults import faults
from synthetic_board import CONTROLS, FULL, LORA, Plan
from test_hostile_texts import TWO, built

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]
SCRIPT = (
    '</script></title></textarea>"\'><script>document.title="taken"</script><img src=x onerror=document.title="taken">'
)
WORD = "w" * 3000
TURNED = "abc\u202edef\u200b\u2028ghi"


def evil(name: str, text: str, levels: Any) -> Plan:
    """Returns an entry whose every text is the same."""
    return Plan(
        name=name, levels=levels, method=text,
        more={
            "title": text, "authors": (text,), "notes": text * 4, "license": text, "revision": text,
            "weights_sha256": text, "paper_url": f"https://example.org/{text}", "hyperparameters": {text: text, "r": 8},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plans = [evil(SCRIPT, SCRIPT, LORA), evil(WORD, WORD, FULL), evil(TURNED, TURNED, FULL)]
    cells = []
    for cell in synthetic.cells([CONTROLS[0], CONTROLS[2], *plans], quantizers=TWO):
        text = cell.submission.title
        cells.append(
            replace(
                cell, remarks=(text,), proof=cell.proof and replace(cell.proof, remarks=(text,)),
                survival=tuple(replace(layer, layer=f"model.layers.0.{text}") for layer in cell.survival[:1]),
                provenance=replace(cell.provenance, device=text, versions={text: text}),
                documents=tuple(
                    replace(document, response=text, prompt_excerpt=text, reference_excerpt=text)
                    for document in cell.documents
                ),
            )
            if cell.submission.role == "entry"
            else cell
        )  # fmt: skip
    failed = replace(
        cells[-1], cell=replace(cells[-1].cell, key="f" * 64, task=SCRIPT), status="failed", scores=(), documents=(),
        reason=WORD, log_tail=SCRIPT * 9 + WORD, stage=SCRIPT, survival=(), proof=None,
    )  # fmt: skip
    return built(tmp_path_factory.mktemp("hostile"), [*cells, failed])


def names(site: Path) -> list[str]:
    return [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]


def test_texts_of_strangers_break_no_markup_link_or_attribute(board: Path) -> None:
    assert faults(board) == []


@pytest.mark.parametrize("width", [1440, 360])
def test_nothing_of_a_stranger_runs_or_makes_a_page_wider_than_its_window(visit: Open, board: Path, width: int) -> None:
    seen = visit(width, site=board)
    asked = []
    seen.page.on("dialog", lambda dialog: asked.append(dialog.message))
    for name in names(board):
        page = seen.go(name)
        seen.unfold()
        assert seen.hangs_over() <= 0, name
        assert page.title() != "taken", name
        assert page.locator("main img, main script, main iframe").count() == 0, name
        assert not set("\u202e\u200b\u2028") & set(page.content()), name
    assert (seen.complaints, asked) == ([], [])
    assert all(address.startswith("file://") for address in seen.asked)


@pytest.mark.parametrize("width", [1440, 360])
def test_scripts_and_long_words_stay_text_where_pages_are_filled_by_script(
    visit: Open, board: Path, width: int
) -> None:
    seen = visit(width, site=board)
    page = seen.go("compare.html")
    page.locator("select[data-entry=a]").select_option(index=1)
    page.locator("select[data-entry=b]").select_option(index=2)
    page.locator("select[data-entry=c]").select_option(index=3)
    page.locator("#chosen svg").first.wait_for()
    assert page.locator("#chosen thead th").count() == 4
    assert seen.hangs_over() <= 0
    pages = [name for name in names(board) if name.startswith("submission/") and "-documents" not in name]
    assert len(pages) == 5
    for name in pages:
        page = seen.go(name)
        page.locator(".viewer button").click()
        page.locator(".viewer .text").first.wait_for()
        assert seen.hangs_over() <= 0, name
        assert page.locator(".viewer img, .viewer script").count() == 0
        assert page.title() != "taken"
        assert not set("\u202e\u200b") & set(page.locator(".viewer").inner_text()), name
    assert seen.complaints == []


def test_a_stranger_is_searched_sorted_and_kept_in_the_address_like_anyone(visit: Open, board: Path) -> None:
    seen = visit(site=board)
    page = seen.go("index.html")
    rows = page.locator(f"{OPEN} table.board tbody tr:not([hidden])")
    assert rows.count() == 3
    page.locator("select[data-filter=method]").select_option(index=1)
    assert rows.count() == 1
    again = visit(site=board)
    other = again.go("index.html", f"#{page.url.split('#')[1]}")
    assert other.locator(f"{OPEN} table.board tbody tr:not([hidden])").all_inner_texts() == rows.all_inner_texts()
    assert seen.complaints + again.complaints == []
