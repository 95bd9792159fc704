"""Every text that a stranger can send, once through submit, store, pages and exported data; boards of one and sixty."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import synthetic_board as synthetic
import yaml
from synthetic_board import CONTROLS, FULL, LORA, Plan
from test_site import Page, all_pages
from written_files import everything_readable

from harness.errors import ManifestError
from harness.publish.pages import site as site_pages
from harness.records import CellResult
from harness.store.store import Store
from harness.submit.manifest import load as manifest

TWO = ("reference", "rtn-4bit-g128")
HIDDEN = {"\u202e": "\\u202e", "\u200b": "\\u200b", "\u2028": "\\u2028", "\x1b": "\\u001b"}
"""Characters that turn text around, hide, break a line or steer a terminal, and how they are shown."""


def mark(field: str) -> str:
    """Markup that would run and name its field if a page took it for markup, with every hidden character."""
    return f'"><script id="{field}">alert(1)</script><img src=x onerror=alert(2)>{"".join(HIDDEN)}'


def shown(field: str) -> str:
    text = mark(field)
    for character, escape in HIDDEN.items():
        text = text.replace(character, escape)
    return html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


SUBMISSION = ("title", "method", "license", "notes", "weights_sha256", "base_model", "base_revision", "revision")
EVIDENCE = (
    "author", "paper", "key", "value", "device", "distribution", "version", "layer", "proof-remark", "response",
    "prompt", "reference",
)  # fmt: skip
CELLS = ("remark", "reason", "log", "stage", "task")
QUANTIZER = ("quantizer", "label", "backend", "option", "setting")
FIELDS = (*SUBMISSION, *EVIDENCE, *CELLS, *QUANTIZER, "name")
MANIFEST = ("title", "method", "license", "notes", "base_model", "authors", "hyperparameters", "paper_url", "weights")


def fields_of_a_stranger() -> dict[str, object]:
    return {
        **{field: mark(field) for field in SUBMISSION}, "authors": ("An Author", mark("author")),
        "paper_url": f"https://example.org/{mark('paper')}", "hyperparameters": {mark("key"): [mark("value")]},
    }  # fmt: skip


def hostile_cells() -> list[CellResult]:
    """Controls, an entry whose every text is hostile, and one with a hostile name and a quantizer of its own."""
    plan = Plan(name="stranger", levels=FULL, kind="lora_adapter", more=fields_of_a_stranger())
    named = Plan(
        name=f"../{mark('name')}", levels=LORA, more={"paper_url": "javascript:alert(3)", "notes": mark("notes") * 200}
    )
    cells = synthetic.cells([CONTROLS[0], CONTROLS[2], plan], quantizers=TWO)
    cells = [spoiled(cell) if cell.cell.submission == "stranger" else cell for cell in cells]
    return [*cells, *map(under_a_stranger_s_quantizer, synthetic.cells([named], quantizers=TWO))]


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


def under_a_stranger_s_quantizer(cell: CellResult) -> CellResult:
    if cell.spec.bits == 16:
        return cell
    name = f"../{mark('quantizer')}"
    options = {mark("option"): mark("setting")}
    return replace(
        cell,
        spec=replace(cell.spec, name=name, label=mark("label"), backend=mark("backend"), options=options),
        cell=replace(cell.cell, quantizer=name),
    )


def built(folder: Path, cells: list[CellResult], title: str | None = None) -> Path:
    with Store.open(folder / "s.duckdb") as store:
        for cell in cells:
            store.add(cell)
    return site_pages.render(folder / "s.duckdb", folder / "out", title=title).parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the hostile cells and of one that failed in hostile words."""
    cells = hostile_cells()
    stranger = next(cell for cell in cells if cell.cell.submission == "stranger")
    failed = replace(
        stranger, cell=replace(stranger.cell, key="f" * 64, task=mark("task")), status="failed", scores=(),
        documents=(), reason=mark("reason"), log_tail=mark("log"), stage=mark("stage"), survival=(), proof=None,
    )  # fmt: skip
    return built(tmp_path_factory.mktemp("hostile"), [*cells, failed], 'T&"<')


@pytest.fixture(scope="module")
def pages(out: Path) -> Mapping[str, Page]:
    return all_pages(out)


@pytest.fixture(scope="module")
def sources(pages: Mapping[str, Page]) -> Mapping[str, str]:
    return {name: page.source for name, page in pages.items()}


def test_a_manifest_of_such_texts_is_refused_field_by_field_in_printable_sentences(tmp_path: Path) -> None:
    given = fields_of_a_stranger() | {"weights": mark("weights"), "authors": [mark("author")]}
    folder = tmp_path / "stranger"
    folder.mkdir()
    content = {"name": "stranger", "corpus": "mini", "kind": "full_model", "target": "target", **given}
    (folder / "submission.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ManifestError) as refused:
        manifest.load(folder)
    faults = refused.value.faults
    assert all(fault.isprintable() for fault in faults)
    for field in MANIFEST:
        assert any(f"`{field}` holds the character U+" in fault for fault in faults), field


def test_a_store_gives_every_such_text_back_as_it_was(out: Path) -> None:
    with Store.open(out.parent / "s.duckdb", read_only=True) as store:
        found = {cell.cell.key: cell for cell in store.cells(with_documents=True)}
    for cell in hostile_cells():
        back = found[cell.cell.key]
        assert (back.submission, back.spec, back.remarks) == (cell.submission, cell.spec, cell.remarks)
        assert [one.response for one in back.documents] == [one.response for one in cell.documents]


@pytest.mark.parametrize(
    ("page", "field"),
    [
        *(("submission/stranger.html", field) for field in (*SUBMISSION, *EVIDENCE)),
        *(("cells.html", field) for field in (*CELLS, "name", "quantizer")),
        ("index.html", "method"),
        *(("quantizer", field) for field in QUANTIZER),
    ],
)
def test_text_of_a_stranger_is_shown_as_text_with_its_hidden_marks_named(
    page: str, field: str, sources: Mapping[str, str]
) -> None:
    wanted = shown(field)
    if page == "quantizer":
        (source,) = (source for name, source in sources.items() if re.fullmatch(r"quantizer/x-[0-9a-f]{12}.html", name))
        assert wanted in source
    elif field == "value":  # a list is shown as Python writes it
        assert "id=&#34;value&#34;" in sources[page]
    elif field in ("response", "reference", "prompt"):  # words of the reference are marked in the answer
        assert wanted in re.sub(r"</?mark>", "", sources["submission/stranger-documents.html"])
    else:
        assert wanted in sources[page]


def test_no_text_of_a_stranger_becomes_an_element_a_script_or_a_link(pages: Mapping[str, Page]) -> None:
    for name, page in pages.items():
        assert page.inline_scripts == [], name
        assert not set(FIELDS) & set(page.ids), name
        assert "<img" not in page.source, name
        assert "onerror" not in page.attributes, name
        assert not [link for _, link in page.links if link.startswith("javascript")], name


def test_no_file_of_the_site_holds_a_hidden_character_or_lies_outside_its_folder(out: Path) -> None:
    assert not set(HIDDEN) & set(everything_readable(out))
    assert {path.name for path in out.parent.iterdir()} == {"s.duckdb", "out"}
    for path in out.rglob("*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8"), path.name
    assert {path.name for path in (out / "submission").glob("*.html")} >= {"stranger.html", "mini-retrain.html"}
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in out.rglob("*"))


def test_the_data_of_such_a_board_obeys_its_schema_and_keeps_its_title(out: Path) -> None:
    board, schema = (
        json.loads((out / "data" / name).read_text(encoding="utf-8")) for name in ("board.json", "board.schema.json")
    )
    jsonschema.validate(board, schema)
    assert board["title"] == 'T&"<'


def test_a_board_of_one_entry_is_whole(tmp_path: Path) -> None:
    out = built(tmp_path, synthetic.cells([CONTROLS[0], CONTROLS[2], Plan(name="only", levels=FULL)], quantizers=TWO))
    index = (out / "index.html").read_text(encoding="utf-8")
    assert "1 entries" in index or "1 entry" in index
    assert index.count('<a href="submission/only.html">') >= 3
    assert {"only.html", "mini-retrain.html", "mini-target-4bit.html"} <= {
        path.name for path in (out / "submission").iterdir()
    }


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
