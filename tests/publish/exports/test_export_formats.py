"""The board as files: whole, valid by their own schema, the same bytes twice, and without a word of a corpus."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pytest
import synthetic_board as synthetic
from written_files import everything_readable

from harness.errors import InputError, StoreError, UnknownNameError
from harness.publish.board import Board
from harness.publish.exports import columns as export_columns
from harness.publish.exports import formats as export_formats
from harness.publish.formatting import number
from harness.publish.pages import site as site_pages
from harness.publish.tables import rows as table_rows
from harness.records import CellResult
from harness.store.store import Store

SECRET = "zyzzyva"


def store_of(path: Path, cells: list[CellResult]) -> Path:
    with Store.open(path) as store:
        for cell in cells:
            store.add(cell)
    return path


def few_cells(*plans: synthetic.Plan, corpus: str = "mini") -> list[CellResult]:
    chosen = plans or (synthetic.Plan(name="lora", levels=synthetic.LORA),)
    return synthetic.cells([*synthetic.CONTROLS, *chosen], corpus=corpus, quantizers=("reference", "rtn-4bit-g128"))


@pytest.fixture(scope="module")
def data(site: Path) -> Path:
    return site / "data"


@pytest.fixture(scope="module")
def schema(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / "board.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def document(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_the_board_s_json_has_every_row_of_the_ranking(data: Path, page_board: Board) -> None:
    found = document(data, "board")
    assert found["schema"] == "quench.board/1"
    assert found["rows"] == json.loads(json.dumps(table_rows.ranked_rows(page_board, None)))


def test_the_cells_json_has_every_cell_with_its_key(data: Path, page_cells: list[CellResult]) -> None:
    rows = document(data, "cells")["rows"]
    assert [row["key"] for row in rows] == [cell.cell.key for cell in page_cells]
    assert {row["status"] for row in rows} == {"finished", "failed"}


@pytest.mark.parametrize("name", ["board", "cells"])
def test_a_json_file_is_valid_by_the_schema_beside_it(name: str, data: Path, schema: dict[str, Any]) -> None:
    jsonschema.validate(document(data, name), schema)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("board", lambda found: found["rows"][0].update(rho="0.5")),
        ("board", lambda found: found["rows"][0].pop("verdict")),
        ("board", lambda found: found["rows"][0].update(quantizers="rtn")),
        ("board", lambda found: found.update(schema="quench.board/0")),
        ("cells", lambda found: found["rows"][0].update(rouge1="high")),
        ("cells", lambda found: found["rows"][0].update(key=None)),
        ("cells", lambda found: found.update(store_sha256="")),
        # A row of the one is no row of the other.
        ("cells", lambda found: found.update(schema="quench.board/1")),
    ],
)
def test_the_schema_refuses_what_is_not_a_board(
    name: str, spoil: Callable[[dict[str, Any]], Any], data: Path, schema: dict[str, Any]
) -> None:
    found = document(data, name)
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema)


def test_the_schema_names_exactly_the_columns_that_there_are(page_board: Board, page_cells: list[CellResult]) -> None:
    for row in table_rows.ranked_rows(page_board, None):
        assert list(row) == list(export_columns.BOARD)
    secondary = {score.metric for cell in page_cells for score in cell.scores} - set(export_columns.CELLS)
    for row in table_rows.cell_rows(page_cells):
        assert set(row) - secondary == set(export_columns.CELLS)
        assert secondary <= set(row)


@pytest.mark.parametrize("name", ["board", "cells"])
def test_csv_and_json_hold_the_same_numbers(name: str, data: Path) -> None:
    rows = document(data, name)["rows"]
    lines = list(csv.DictReader(io.StringIO((data / f"{name}.csv").read_text(encoding="utf-8"))))
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        for key in ("rho", "rho_low", "knowmem_r"):
            assert line[key] == ("" if row[key] is None else repr(row[key]))


def test_parquet_has_the_cells_with_their_types(data: Path) -> None:
    rows = document(data, "cells")["rows"]
    found = duckdb.sql(f"SELECT * FROM '{data / 'cells.parquet'}'")
    types = dict(zip(found.columns, map(str, found.types), strict=True))
    assert (types["bits"], types["rho"], types["dirty"], types["remarks"]) == (
        "BIGINT", "DOUBLE", "BOOLEAN", "VARCHAR[]",
    )  # fmt: skip
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == rows


@pytest.mark.parametrize("ending", ["tex", "md"])
def test_the_tables_for_papers_rank_every_width_and_say_why_an_entry_has_no_rank(
    ending: str, data: Path, page_board: Board
) -> None:
    text = (data / f"board.{ending}").read_text(encoding="utf-8")
    for bits in page_board.widths:
        assert f"mini, {bits} bit, worst backend" in text
        for row in page_board.ranked(bits):
            at = row.by_bits[bits]
            assert at.remaining is not None
            assert number(at.remaining.value) in text
    assert "npo-limited has no rank" in text
    assert text.count(r"\begin{tabular}") == (len(page_board.widths) if ending == "tex" else 0)


def test_two_exports_of_one_store_are_the_same_bytes(tmp_path: Path, page_store: Path, data: Path) -> None:
    export_formats.export(page_store, tmp_path / "again")
    # The published results of others and the documents that pages load are the site's, no part of an export.
    of_the_site = {data / "published.csv", data / "documents.parquet", *(data / "documents").iterdir()}
    names = sorted(path.relative_to(data) for path in data.rglob("*") if path.is_file() and path not in of_the_site)
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for name in names:
        assert (data / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("corpus", ["mini", "news", "books"])
def test_no_file_holds_a_prompt_an_answer_or_a_reference(corpus: str, tmp_path: Path) -> None:
    cells = [
        replace(
            cell,
            documents=tuple(
                replace(d, prompt_excerpt=f"{SECRET} p", response=f"{SECRET} a", reference_excerpt=f"{SECRET} r")
                for d in cell.documents
            ),
        )
        for cell in few_cells(corpus=corpus)
    ]
    export_formats.export(store_of(tmp_path / "s.duckdb", cells), tmp_path / "out")
    text = everything_readable(tmp_path / "out")
    assert SECRET not in text
    assert "lora" in text
    assert SECRET.encode() not in (tmp_path / "out" / "board.duckdb").read_bytes()


def test_a_lone_surrogate_is_written_as_an_escape(page_cells: list[CellResult], page_board: Board) -> None:
    cell = replace(page_cells[0], remarks=("a\ud800b",), reason="c\ud800")
    made = export_formats._clean(table_rows.cell_rows([cell])[0])
    assert made["remarks"] == [r"a\ud800b"]
    assert made["reason"] == r"c\ud800"


def test_a_board_of_failures_only_can_be_exported(tmp_path: Path) -> None:
    cells = [
        replace(cell, status="failed", reason="out of memory", scores=(), documents=(), proof=None, survival=())
        for cell in few_cells()
    ]
    export_formats.export(store_of(tmp_path / "s.duckdb", cells), tmp_path / "out")
    jsonschema.validate(document(tmp_path / "out", "cells"), document(tmp_path / "out", "board.schema"))
    assert "out of memory" in everything_readable(tmp_path / "out")


def test_chosen_formats_are_written_and_no_others(tmp_path: Path, page_store: Path) -> None:
    written = export_formats.export(page_store, tmp_path / "out", ["csv", "bibtex"])
    assert {found.file for found in written} == {"board.csv", "cells.csv", "board.bib"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"board.csv", "cells.csv", "board.bib"}


def test_files_of_somebody_else_stay_and_own_ones_are_replaced(tmp_path: Path, page_store: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "board.bib").write_text("old", encoding="utf-8")
    export_formats.export(page_store, tmp_path, ["bibtex", "duckdb"])
    export_formats.export(page_store, tmp_path, ["duckdb"])
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "board.bib").read_text(encoding="utf-8").startswith("@misc")


def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path: Path, page_store: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no export format named 'cvs': did you mean csv"):
        export_formats.export(page_store, tmp_path / "out", ["cvs"])
    with pytest.raises(InputError, match="no web address"):
        export_formats.export(page_store, tmp_path / "out", base_url="ftp://x")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="Nothing can be written"):
        export_formats.export(page_store, tmp_path / "file")
    with pytest.raises(StoreError, match="holds no cell"):
        export_formats.export(store_of(tmp_path / "empty.duckdb", []), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_links_every_kind_of_file_and_the_foot_leads_there(site: Path) -> None:
    text = (site / "methodology.html").read_text(encoding="utf-8")
    listed = {line.split('"')[0] for line in text.split('href="data/')[1:]}
    assert listed >= {"board.csv", "cells.parquet", "board.duckdb", "feed.xml", "board.bib", "changes.json"}
    assert all((site / "data" / name).is_file() for name in listed)
    for page in site.rglob("*.html"):
        root = "../" * (len(page.relative_to(site).parts) - 1)
        source = page.read_text(encoding="utf-8")
        assert f'href="{root}methodology.html#data"' in source
        assert f'type="application/atom+xml" title="New entries" href="{root}data/feed.xml"' in source


def test_a_site_without_a_cell_offers_no_data_and_links_none(tmp_path: Path) -> None:
    out = site_pages.render(store_of(tmp_path / "s.duckdb", []), tmp_path / "out").parent
    assert [path.name for path in (out / "data").iterdir()] == ["published.csv"]
    for page in out.rglob("*.html"):
        assert "data/" not in page.read_text(encoding="utf-8").replace("data/published.csv", "")
    assert "There is nothing to download yet." in (out / "methodology.html").read_text(encoding="utf-8")
