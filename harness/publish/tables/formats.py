"""Rows as a table for a terminal, as CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from harness.publish.formatting import number, visible
from harness.publish.tables.rows import CELL_COLUMNS, DOCUMENT_COLUMNS
from harness.publish.thresholds import FEW_DOCUMENTS
from harness.score.metrics.formulas import PRIMARY

_WITH_INTERVAL = ("rho", "score", "change", "difference", "seeds_rho")
_NAMES = ("submission", "quantizer", "task")
_OPTIONAL = ("seeds_rho", "limit", "origin", "reason")
_POINTS = ("score", "change", *PRIMARY)
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def terminal_table(rows: Sequence[Mapping[str, Any]], *, title: str, columns: Sequence[str] | None = None) -> Table:
    """Returns rows as a table for a terminal; control characters in texts are shown as escapes.

    Args:
        rows: Flat rows, all with the same keys.
        title: Stands above.
        columns: Keys to show, in this order; None for the ones that suit the
            kind of row, leaving out what is empty everywhere.
    """
    rows, shown = _shown(rows, columns)
    table = Table(
        title=Text(visible(title)), title_justify="left", caption=_reasons(rows), caption_justify="left",
        header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for key in shown:
        cells = [_text(row, key) for row in rows]
        table.add_column(
            _heading(key),
            justify="right" if any(_is_number(row.get(key)) for row in rows) else "left",
            # A name that is cut off can't be typed again.
            min_width=max(map(len, cells), default=0) if key in _NAMES else None,
            # Else rich takes it for one that gives way, and the table is wider than asked for.
            no_wrap=key in _NAMES,
            overflow="fold",
        )
    if not shown:
        table.add_column("")
        table.add_row("nothing to show")
        return table
    for row in rows:
        table.add_row(*(Text(_text(row, key)) for key in shown))
    return table


def text_table(
    rows: Sequence[Mapping[str, Any]], form: Literal["csv", "markdown", "latex"], columns: Sequence[str] | None = None
) -> str:
    """Returns rows as text for a file or a paper; it ends with a line break.

    Args:
        rows: Flat rows, all with the same keys.
        form: ``csv`` has every key with unrounded numbers; ``markdown`` and
            ``latex`` (booktabs) have the terminal's columns and roundings.
        columns: As for ``terminal_table``.
    """
    if form == "csv":
        return _csv(rows)
    compact, shown = _shown(rows, columns)
    header = [_heading(key) for key in shown]
    body = [[_text(row, key) for key in shown] for row in compact]
    numeric = [any(_is_number(row.get(key)) for row in compact) for key in shown]
    return (_markdown if form == "markdown" else _latex)(header, body, numeric)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer.writerow(keys)
    for row in rows:
        values = (row.get(key) for key in keys)
        told = ("; ".join(map(str, value)) if isinstance(value, list) else value for value in values)
        writer.writerow([_no_formula(value) if isinstance(value, str) else value for value in told])
    return out.getvalue()


def _no_formula(text: str) -> str:
    """Returns a text that no spreadsheet calculates: a stranger's title may begin as a formula does.

    Source: OWASP, "CSV Injection" (a single quote before ``= + - @``, tab and line break).
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    lines = [
        header,
        ["---:" if right else "---" for right in numeric],
        *([_markdown_text(x) for x in row] for row in body),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _latex(header: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    escaped = [[latex_text(cell) for cell in line] for line in (header, *body)]
    first, *rest = (f"{' & '.join(line)} \\\\\n" for line in escaped)
    kinds = "".join("r" if right else "l" for right in numeric)
    return (
        f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{first}\\midrule\n{''.join(rest)}\\bottomrule\n\\end{{tabular}}\n"
    )


def paragraphs(sentences: Sequence[str], form: Literal["csv", "markdown", "latex"]) -> str:
    """Returns sentences below a table of ``text_table``; a blank line stands before them."""
    escape = _markdown_text if form == "markdown" else latex_text
    return "".join(f"\n{escape(sentence)}\n" for sentence in sentences)


def latex_text(text: str) -> str:
    """Returns a text in which nothing is a command of LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _shown(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Returns the rows as a person reads them, and the columns that are worth showing."""
    compact = [_compact(row) for row in rows]
    known = list(dict.fromkeys(key for row in compact for key in row))
    wanted = columns if columns is not None else _suiting(known)
    return compact, [
        key for key in wanted
        if key in known
        and (
            (columns is not None and key not in _OPTIONAL)
            or any(row.get(key) not in (None, [], "") for row in compact)
        )
    ]  # fmt: skip


def _heading(key: str) -> str:
    return {"utility_share": "utility", "seeds_rho": "rho over seeds"}.get(key, key.replace("_", " "))


def _suiting(known: Sequence[str]) -> Sequence[str]:
    if "prompt_sha256" in known:
        return DOCUMENT_COLUMNS
    if "scoring_version" in known:
        return CELL_COLUMNS
    return known


def _compact(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a cell's row with its one primary metric as ``score``; other rows as they are.

    That a cell was scored here is the rule, and goes without saying.
    """
    if "scoring_version" not in row:
        return row
    row = {**row, "origin": None if row.get("origin") == "scored" else row.get("origin")}
    metric = next((metric for metric in PRIMARY if row.get(metric) is not None), None)
    if metric is None:
        return row
    return {**row, **{f"score{end}": row[f"{metric}{end}"] for end in ("", "_low", "_high")}}


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns why rows have no rank and what else is to be known of them, as sentences without a full stop."""
    lines = [f"{row['submission']} has no rank: {row['unranked_reason']}" for row in rows if row.get("unranked_reason")]
    for row in rows:
        why = row.get("unranked_reason")
        # What cost it its rank is said already.
        told = (flag for flag in row.get("flags") or () if not why or not flag.endswith(f": {why}"))
        lines += [f"{row['submission']} is flagged {flag}" for flag in told]
    return lines


def _reasons(rows: Sequence[Mapping[str, Any]]) -> Text | None:
    lines = reasons(rows)
    if any(row.get("few_documents") for row in rows):
        lines.append(f"* carried by fewer than {FEW_DOCUMENTS} documents: the interval may be too narrow")
    return Text("\n".join(map(visible, lines))) if lines else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = 3 if key in ("p", "change_p") else row.get("digits", 1 if key in _POINTS else 2)
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        if key not in _WITH_INTERVAL or low is None or high is None:
            return number(value, digits)
        mark = "*" if key in (row.get("few_documents") or ()) else ""
        return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]{mark}"
    if isinstance(value, list | tuple):
        return visible("; ".join(str(item) for item in value))
    return visible(value)
