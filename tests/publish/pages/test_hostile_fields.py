"""Every text that a stranger's store can hold, one by one, and boards of one and of sixty entries."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, FULL, LORA, Plan
from test_site import all_pages

from harness.publish.pages import site as site_pages
from harness.records import CellResult
from harness.store.store import Store

TWO = ("reference", "rtn-4bit-g128")
HIDDEN = "\u202e"


def mark(field: str) -> str:
    """Markup that would name its field if a page took it for markup, with a mark that turns text around."""
    return f'"><b id="{field}">{HIDDEN}</b>'


def shown(field: str) -> str:
    return html.escape(mark(field).replace(HIDDEN, "\\u202e")).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


SUBMISSION = ("title", "method", "license", "notes", "weights_sha256", "base_model", "base_revision", "revision")
EVIDENCE = (
    "author", "paper", "key", "value", "device", "distribution", "version", "layer", "proof-remark", "response",
    "prompt", "reference",
)  # fmt: skip
CELLS = ("remark", "reason", "log", "stage", "task")


def hostile_cells() -> list[CellResult]:
    plan = Plan(
        name="stranger", levels=FULL, kind="lora_adapter",
        more={
            **{field: mark(field) for field in SUBMISSION}, "authors": ("An Author", mark("author")),
            "paper_url": f"https://example.org/{mark('paper')}", "hyperparameters": {mark("key"): [mark("value")]},
        },
    )  # fmt: skip
    return [
        spoiled(cell) if cell.cell.submission == "stranger" else cell
        for cell in synthetic.cells([CONTROLS[0], CONTROLS[2], plan], quantizers=TWO)
    ]


def spoiled(cell: CellResult) -> CellResult:
    texts = {"response": mark("response"), "prompt_excerpt": mark("prompt"), "reference_excerpt": mark("reference")}
    return replace(
        cell,
        remarks=(mark("remark"),),
        documents=tuple(replace(document, **texts) for document in cell.documents),  # type: ignore[arg-type]
        survival=tuple(replace(layer, layer=f"blocks.{n}.{mark('layer')}") for n, layer in enumerate(cell.survival)),
        proof=cell.proof and replace(cell.proof, remarks=(mark("proof-remark"),)),
        provenance=replace(cell.provenance, device=mark("device"), versions={mark("distribution"): mark("version")}),
    )


def built(folder: Path, cells: list[CellResult]) -> Path:
    with Store.open(folder / "s.duckdb") as store:
        for cell in cells:
            store.add(cell)
    return site_pages.render(folder / "s.duckdb", folder / "out").parent


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    cells = hostile_cells()
    failed = replace(
        cells[-1], cell=replace(cells[-1].cell, key="f" * 64, task=mark("task")), status="failed", scores=(),
        documents=(), reason=mark("reason"), log_tail=mark("log"), stage=mark("stage"), survival=(), proof=None,
    )  # fmt: skip
    out = built(tmp_path_factory.mktemp("hostile"), [*cells, failed])
    return {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}


@pytest.mark.parametrize(
    ("page", "field"),
    [
        *(("submission/stranger.html", field) for field in (*SUBMISSION, *EVIDENCE)),
        *(("cells.html", field) for field in CELLS),
        ("index.html", "method"),
    ],
)
def test_text_of_a_stranger_is_shown_as_text_with_its_hidden_marks_named(
    page: str, field: str, sources: Mapping[str, str]
) -> None:
    wanted = shown(field)
    if field == "value":  # a list is shown as Python writes it
        assert "id=&#34;value&#34;" in sources[page]
    elif field in ("response", "reference", "prompt"):  # words of the reference are marked in the answer
        assert wanted in re.sub(r"</?mark>", "", sources["submission/stranger-documents.html"])
    else:
        assert wanted in sources[page]


def test_no_field_of_a_stranger_becomes_an_element_an_id_or_turns_a_page_around(sources: Mapping[str, str]) -> None:
    ids = {*SUBMISSION, *EVIDENCE, *CELLS}
    for name, source in sources.items():
        assert not ids & set(re.findall(r'\bid="([^"]*)"', source)), name
        assert "<b " not in source, name
        assert HIDDEN not in source, name


def test_an_address_with_hidden_marks_is_shown_and_not_linked(sources: Mapping[str, str]) -> None:
    assert "https://example.org/" in sources["submission/stranger.html"]
    assert 'href="https://example.org' not in sources["submission/stranger.html"]


def test_no_page_names_another_host_or_lets_a_script_in(sources: Mapping[str, str]) -> None:
    for source in sources.values():
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)
        assert policy is not None
        rules = dict(part.strip().split(" ", 1) for part in policy.group(1).split(";"))
        assert rules.pop("default-src") == "'none'"
        assert set(rules.values()) == {"'self'", "'none'"}
        assert {"base-uri", "form-action"} <= set(rules)
        assert re.findall(r"<script\b[^>]*>", source) == re.findall(
            r'<script src="(?:\.\./)?static/(?:quench|compare|documents)\.js" defer>', source
        )


def test_a_board_of_one_entry_is_whole(sources: Mapping[str, str]) -> None:
    index = sources["index.html"]
    assert "1 entries" in index or "1 entry" in index
    assert index.count('<a href="submission/stranger.html">') >= 3
    assert {"submission/stranger.html", "submission/mini-retrain.html", "submission/mini-target-4bit.html"} <= set(
        sources
    )


@pytest.mark.slow
def test_a_board_of_sixty_entries_names_all_of_them_and_stays_light(tmp_path: Path) -> None:
    entries = [
        Plan(
            name=f"entry-{number:02d}", kind=("full_model", "lora_adapter")[number % 2],
            levels={name: (min(v + number, 97), k + number / 2, u, p) for name, (v, k, u, p) in LORA.items()},
        )
        for number in range(60)
    ]  # fmt: skip
    cells = synthetic.cells([CONTROLS[0], CONTROLS[2], *entries], quantizers=TWO)
    cells = [replace(cell, survival=(), documents=cell.documents) for cell in cells]
    out = built(tmp_path, cells)
    parsed = all_pages(out)
    assert len(parsed) == 2 * (60 + 2) + 6 + len(TWO)
    for plan in entries:
        assert f"submission/{plan.name}.html" in {link for _, link in parsed["index.html"].links}
    ranks = [int(found) for found in re.findall(r'<span class="rank">(\d+)</span>', parsed["index.html"].source)]
    first = ranks[: ranks.index(max(ranks)) + 1]
    assert first == list(range(1, len(first) + 1))
    assert len(parsed["index.html"].source.encode()) < 1_000_000
    used = set(re.findall(r'data-colour="(\d)"', parsed["index.html"].source))
    assert used <= set("12345678")
