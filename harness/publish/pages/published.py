"""The page of published figures: each checked, our own cell beside it where there is one."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.paths import content_dir
from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow, QuantizerResult
from harness.publish.thresholds import REFERENCE
from harness.records import Kind, Role
from harness.score.metrics.formulas import METRICS, PRIMARY

FILE = "published.csv"
COLUMNS = (
    "work", "year", "where", "url", "corpus", "method", "kind", "quantizer", "stated_quantizer", "bits", "verbmem_f",
    "knowmem_f", "privleak", "knowmem_r", "remark",
)  # fmt: skip
"""Columns of the file: ROUGE times 100, PrivLeak in percent."""

_KINDS: dict[str, Kind] = {"full": "full_model", "LoRA": "lora_adapter"}
_CONTROLS: dict[str, Role] = {"target": "target", "retrain": "retrain"}
_FP4 = "bnb-fp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of a table that somebody has published.

    Attributes:
        work: Paper or repository.
        year: Of the work.
        where: Table or file of the work.
        url: Address of the work.
        corpus: As the board names it.
        method: As the board names it, or ``target`` and ``retrain``.
        kind: ``full`` or ``LoRA``.
        quantizer: What was really used, as the board names it; None where
            the source does not tell.
        stated_quantizer: What the source calls it, where that is another.
        bits: None where the source does not tell.
        scores: By metric key, as published: ROUGE times 100, PrivLeak in
            percent.
        remark: How it was measured, empty where there is nothing to say.
    """

    work: str
    year: int
    where: str
    url: str
    corpus: str
    method: str
    kind: str
    quantizer: str | None
    stated_quantizer: str | None
    bits: int | None
    scores: Mapping[str, float]
    remark: str


def shipped_file() -> Path:
    """Returns the file of published results that ships with Quench."""
    return content_dir("leaderboard") / "data" / FILE


def load(path: Path) -> list[Published]:
    """Returns all published rows, in the file's order.

    Args:
        path: A CSV file with ``COLUMNS``.

    Raises:
        InputError: A column is missing, or a row has a value that its unit
            does not allow.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path} has other columns than those expected: write {','.join(COLUMNS)}.")
        return [_read(row, f"Line {reader.line_num} of {path}") for row in reader]


def _read(row: dict[str, str], place: str) -> Published:
    for column in ("work", "where", "corpus", "method"):
        if not row[column]:
            raise InputError(f"{place} has no {column}: every published figure needs one.")
    if formatting.web_address(row["url"]) is None:
        raise InputError(f"{place} gives {row['url']!r} as url, which is no web address: give the work's own.")
    if row["kind"] not in _KINDS:
        raise InputError(f"{place} gives {row['kind']!r} as kind: write {' or '.join(_KINDS)}.")
    bits = int(_number(row, "bits", place, 1, 16)) if row["bits"] else None
    if bits is not None and (bits == 16) != (row["quantizer"] == REFERENCE):
        raise InputError(
            f"{place} gives {bits} bits to the quantizer {row['quantizer']!r}: {REFERENCE} has 16, others less."
        )
    return Published(
        work=row["work"], year=int(_number(row, "year", place, 2000, 2100)), where=row["where"], url=row["url"],
        corpus=row["corpus"], method=row["method"], kind=row["kind"], quantizer=row["quantizer"] or None,
        stated_quantizer=row["stated_quantizer"] or None, bits=bits, remark=row["remark"],
        scores={metric: _score(row, metric, place) for metric in PRIMARY if row[metric]},
    )  # fmt: skip


def _score(row: dict[str, str], metric: str, place: str) -> float:
    # PrivLeak is relative to a reference AUC, so it ends at -100 but may lie above 100.
    low, high = (-100, 1000) if METRICS[metric].direction == "toward_zero" else (0, 100)
    return _number(row, metric, place, low, high)


def _number(row: dict[str, str], column: str, place: str, low: float, high: float) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InputError(f"{place} gives {row[column]!r} as {column}: write a number from {low} to {high}.")
    return value


def context(
    rows: Sequence[Published], boards: Sequence[Board], links: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:  # fmt: skip
    """Returns the template's variables: one group of rows per work, with the board's cells of the same kind.

    Args:
        rows: Published rows; those of one work stand together.
        boards: Every corpus of the store.
        links: Pages by corpus and submission.
    """
    groups: list[dict[str, Any]] = [
        {
            "work": work, "year": year, "url": url,
            "rows": [{"published": row, "here": _here(row, boards, links)} for row in found],
        }
        for (work, year, url), found in groupby(rows, key=_work)
    ]  # fmt: skip
    named = Counter((group["work"], group["year"]) for group in groups)
    for group in groups:
        # Two sources of one name would have the same heading: there the first row's place tells them apart.
        more = f": {group['rows'][0]['published'].where}" if named[group["work"], group["year"]] > 1 else ""
        group["title"] = f"{group['work']}, {group['year']}{more}"
    matched = sum(bool(line["here"]) for group in groups for line in group["rows"])
    return {
        "groups": groups,
        "finding": finding(rows),
        "counts": f"{len(rows)} published results of {len(groups)} works; {_of_ours(matched)}.",
        "corpora": sorted({row.corpus for row in rows}),
        "quantizers": sorted({row.quantizer for row in rows if row.quantizer}),
        "bits": sorted({row.bits for row in rows if row.bits}, reverse=True),
        "kinds": list(_KINDS),
        "csv": f"data/{FILE}",
    }


def _work(row: Published) -> tuple[str, int, str]:
    return row.work, row.year, row.url


def _of_ours(matched: int) -> str:
    if not matched:
        return "this store has no cell of the same corpus, method, kind and quantizer as any of them"
    return f"{matched} of them {'stands' if matched == 1 else 'stand'} beside a cell of this store"


def finding(rows: Sequence[Published]) -> str:
    """Returns in one sentence which quantizer published 4-bit figures really rest on."""
    four = [row for row in rows if row.bits == 4]
    fp4 = [row for row in four if row.quantizer == _FP4]
    renamed = sum(row.stated_quantizer is not None for row in fp4)
    said = f"; for {renamed} of those the text says round-to-nearest" if renamed else ""
    return f"{len(fp4)} of {len(four)} published 4-bit results come from code that loads bitsandbytes FP4{said}."


def _here(
    row: Published, boards: Sequence[Board], links: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the cells scored here with the same corpus, method, kind and quantizer."""
    found = []
    for board in boards:
        if board.corpus != row.corpus:
            continue
        for ours in (*board.rows, *board.controls):
            result = ours.by_quantizer.get(row.quantizer or "")
            if result is not None and _is_same(row, ours) and _was_scored(result):
                name = ours.submission.name
                found.append({"name": name, "href": links[board.corpus][name], "metrics": result.metrics})
    return found


def _is_same(row: Published, ours: LeaderboardRow) -> bool:
    entry = ours.submission
    if row.method in _CONTROLS or entry.role != "entry":
        return _CONTROLS.get(row.method) == entry.role
    return entry.method.casefold() == row.method.casefold() and entry.kind == _KINDS[row.kind]


def _was_scored(result: QuantizerResult) -> bool:
    return bool(result.cells) and all(cell.origin == "scored" for cell in result.cells.values())
