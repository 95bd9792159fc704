"""The same rows as CSV, Markdown and LaTeX: every number, and nothing that a stranger wrote as a command."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest

from harness.publish.board import Board
from harness.publish.tables import formats as table_formats
from harness.publish.tables import rows as table_rows

ROW: dict[str, Any] = {
    "submission": "a_b", "verdict": "holds", "rho": 0.5, "rho_low": 0.25, "rho_high": 0.75, "score": 12.345,
    "reasons": ["one", "two"], "empty": None, "few_documents": [],
}  # fmt: skip


def test_csv_holds_every_key_with_unrounded_numbers() -> None:
    found = list(csv.DictReader(io.StringIO(table_formats.text_table([ROW, {**ROW, "score": None}], "csv"))))
    assert [list(row) for row in found] == [list(ROW), list(ROW)]
    assert found[0]["score"] == "12.345"
    assert found[0]["reasons"] == "one; two"
    assert (found[1]["score"], found[0]["empty"]) == ("", "")


@pytest.mark.parametrize("title", ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", "\t=1", "\n=1"])
def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(title: str) -> None:
    rows = [{"title": title, "flags": [title, "b"], "score": -0.5, "note": "a=1", "none": None}]
    (found,) = csv.DictReader(io.StringIO(table_formats.text_table(rows, "csv")))
    assert found == {
        "title": f"'{title}", "flags": f"'{title}; b", "score": "-0.5", "note": "a=1", "none": "",
    }  # fmt: skip


def test_csv_keeps_commas_quotes_and_line_ends_inside_a_field() -> None:
    odd = 'x, "y"\nz'
    (found,) = csv.DictReader(io.StringIO(table_formats.text_table([{"a": odd, "b": 1}], "csv")))
    assert found == {"a": odd, "b": "1"}


def test_markdown_has_one_line_per_row_and_intervals_beside_values() -> None:
    text = table_formats.text_table([ROW], "markdown", ("submission", "verdict", "rho"))
    assert text.splitlines() == [
        "| submission | verdict | rho |", "| --- | --- | ---: |", r"| a\_b | holds | 0.50 \[0.25, 0.75\] |",
    ]  # fmt: skip


@pytest.mark.parametrize("hostile", ["a|b", "<script>", "[x](y)", "`code`", "*b*", "back\\slash"])
def test_markdown_of_a_stranger_is_text(hostile: str) -> None:
    line = table_formats.text_table([{"name": hostile}], "markdown", ("name",)).splitlines()[2]
    assert not re.search(r"(?<!\\)[|`*_<>\[\]]", line.removeprefix("|").removesuffix("|"))
    assert re.sub(r"\\(.)", r"\1", line[2:-2]) == hostile


def test_latex_is_a_booktabs_table_with_numbers_on_the_right() -> None:
    text = table_formats.text_table([ROW], "latex", ("submission", "rho"))
    assert text.splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"submission & rho \\", r"\midrule", r"a\_b & 0.50 [0.25, 0.75] \\",
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hostile", "written"),
    [
        (r"\input{x}", r"\textbackslash{}input\{x\}"), ("100%", r"100\%"), ("a&b", r"a\&b"), ("$x$", r"\$x\$"),
        ("#1", r"\#1"), ("x^2~y", r"x\textasciicircum{}2\textasciitilde{}y"), ("<b>", r"\textless{}b\textgreater{}"),
    ],
)  # fmt: skip
def test_latex_of_a_stranger_is_text(hostile: str, written: str) -> None:
    assert table_formats.latex_text(hostile) == written
    assert f"{written} \\\\" in table_formats.text_table([{"name": hostile}], "latex", ("name",))


def test_control_characters_are_escapes_in_every_form_for_people() -> None:
    for form in ("markdown", "latex"):
        assert "\x1b" not in table_formats.text_table([{"name": "a\x1b[31m"}], form, ("name",))  # type: ignore[arg-type]


def test_what_few_documents_carry_is_marked_and_explained() -> None:
    marked = {**ROW, "few_documents": ["rho"]}
    assert "[0.25, 0.75]*" in table_formats.text_table([marked], "latex", ("rho",))
    table = table_formats.terminal_table([marked], title="T", columns=("rho",))
    assert "* carried by fewer than 5 documents" in str(table.caption)
    assert table_formats.terminal_table([ROW], title="T", columns=("rho",)).caption is None


def test_seeds_have_a_column_only_where_there_are_some(board: Board) -> None:
    rows = table_rows.ranked_rows(board, 4)
    heads = table_formats.text_table(rows, "markdown", table_rows.RANKED_COLUMNS).splitlines()[0]
    assert "seeds" not in heads
    some = [{**row, "seeds_rho": 0.5, "seeds_rho_low": 0.4, "seeds_rho_high": 0.6} for row in rows]
    text = table_formats.text_table(some, "markdown", table_rows.RANKED_COLUMNS)
    assert "rho over seeds" in text.splitlines()[0]
    assert r"0.50 \[0.40, 0.60\]" in text


def test_a_ranking_says_the_same_in_every_form(board: Board) -> None:
    rows = table_rows.ranked_rows(board, 4)
    texts = [table_formats.text_table(rows, form, table_rows.RANKED_COLUMNS) for form in ("csv", "markdown", "latex")]  # type: ignore[arg-type]
    for row in rows:
        for text in texts:
            assert row["submission"] in text
            assert row["verdict"] in text


def test_paragraphs_below_a_table_are_escaped_and_apart() -> None:
    assert table_formats.paragraphs(["a_b is 5% more."], "latex") == "\na\\_b is 5\\% more.\n"
    assert table_formats.paragraphs(["a_b", "c"], "markdown") == "\na\\_b\n\nc\n"


def test_no_rows_make_an_empty_table() -> None:
    assert table_formats.text_table([], "csv") == "\n"
    assert table_formats.text_table([], "markdown", ("a",)).splitlines()[0].startswith("|")
