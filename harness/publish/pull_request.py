"""The Markdown comment on a pull request, written from the artifact of the workflow `validate`.

The artifact comes from a run over a stranger's change, so nothing in it is
believed but its numbers, and every text of it ends inside ``<code>``, where
GitHub links nothing and mentions nobody, with all but ASCII letters, digits
and spaces as character references, which no Markdown is read from.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import InputError, first_line
from harness.publish.formatting import number, signed, visible, web_address
from harness.submit.strict_parsing import parse_json

CHECKED, STANDING = "validation.json", "standing.json"
"""Members of the artifact: what `quench validate --json` and, with records, `quench show --json` printed."""

MOST_CHARACTERS = 60_000
"""GitHub takes 65,536 characters."""
MOST_BYTES = 8_000_000
"""Of one member; a board of 1,000 entries has half of it."""
MOST_TEXT = 400
MOST_ROWS = 20

Text = Annotated[str, Field(max_length=20_000)]
Number = Annotated[float, Field(allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Fault(_Part):
    field: Text | None
    sentence: Text


class _Checked(_Part):
    submission: Text
    valid: bool
    details: list[_Fault]


class _Validation(_Part):
    document: Literal["quench.validate/1"] = Field(alias="schema")
    rows: list[_Checked]


class _Ranked(_Part):
    submission: Text
    corpus: Text
    bits: Count
    rank: Count | None
    tier: Count | None
    verdict: Text
    verdict_reason: Text | None
    unranked_reason: Text | None
    rho: Number
    rho_low: Number
    rho_high: Number
    utility_share: Number
    few_documents: list[Text]
    flags: list[Text]


class _Standing(_Part):
    document: Literal["quench.show/1"] = Field(alias="schema")
    rows: list[_Ranked]


Document = TypeVar("Document", _Validation, _Standing)


def comment(artifact: Path, link: str | None = None) -> str:
    """Returns the comment for a pull request as Markdown of at most ``MOST_CHARACTERS`` characters.

    Faults come first, in one table; then, for each valid submission whose
    cells are in ``standing.json``, its row among those of its tier. A
    difference is the entry's figure minus the other's.

    Args:
        artifact: The zip archive that the workflow `validate` has uploaded.
        link: Address of that run, for the log.

    Raises:
        InputError: The file is no such archive, a member is too large or no
            document of its schema, or ``link`` is no web address.
    """
    if link is not None and (web_address(link) is None or re.search(r"[()<>\[\]]", link)):
        raise InputError(f"The link {link!r} is no web address: give one such as https://example.org/runs/1.")
    checked, standing = _read(artifact)
    faulty = sum(not row.valid for row in checked.rows)
    head = f"**{len(checked.rows)} submissions checked, {faulty} with faults**, by the base branch's code."
    foot = f"\n[The log of the run]({link})\n" if link else ""
    parts = [*_faults(checked.rows), *_standings([row.submission for row in checked.rows if row.valid], standing)]
    return _bounded(f"{head}\n", parts, foot)


def _bounded(head: str, parts: Sequence[str], foot: str) -> str:
    """Returns as many whole parts as there is room for, and says where some are left out."""
    more = "\nThere is more than a comment holds: the run's log has all of it.\n"
    room = MOST_CHARACTERS - len(head) - len(foot) - len(more)
    text = head
    for part in parts:
        room -= len(part)
        if room < 0:
            return text + more + foot
        text += part
    return text + foot


def code(text: object) -> str:
    """Returns a stranger's text as inline code of Markdown in which nothing is markup, a link or a mention."""
    shown = visible(text)
    if len(shown) > MOST_TEXT:
        shown = f"{shown[: MOST_TEXT - 1]}…"
    return f"<code>{re.sub(r'[^A-Za-z0-9 ]', lambda found: f'&#{ord(found[0])};', shown)}</code>" if shown else ""


def _read(artifact: Path) -> tuple[_Validation, _Standing | None]:
    try:
        with zipfile.ZipFile(artifact) as archive:
            names = set(archive.namelist())
            found = {name: _member(archive, name) for name in (CHECKED, STANDING) if name in names}
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{artifact} can't be read as a zip archive ({first_line(error).rstrip('.')}): give the artifact "
            "that the workflow `validate` has uploaded."
        ) from error
    if CHECKED not in found:
        raise InputError(f"{artifact} holds no {CHECKED}: give the artifact that the workflow `validate` has uploaded.")
    standing = _document(STANDING, found[STANDING], _Standing) if STANDING in found else None
    return _document(CHECKED, found[CHECKED], _Validation), standing


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is packed in a way that GitHub does not use")
    # What the archive says of its sizes is a stranger's word; only what comes out counts.
    with archive.open(name) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{name} is larger than {MOST_BYTES:,} bytes: this is no output of `quench`.")
    return content


def _document(name: str, content: bytes, kind: type[Document]) -> Document:
    try:
        return kind.model_validate(parse_json(content.decode("utf-8")))
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
        reason = f"{where} is not what it should be"
    except (InputError, ValueError) as error:
        reason = first_line(error).rstrip(".")
    raise InputError(f"{name} is no output of `quench` ({visible(reason)}): run the workflow `validate` again.")


def _faults(rows: Sequence[_Checked]) -> list[str]:
    """Returns a table of submissions and their faults, line by line."""
    lines = ["\n| submission | field | |\n", "| --- | --- | --- |\n"]
    for row in rows:
        if row.valid:
            lines.append(f"| {code(row.submission)} | | valid |\n")
        for fault in () if row.valid else row.details[:MOST_ROWS]:
            lines.append(f"| {code(row.submission)} | {code(fault.field or '')} | {code(fault.sentence)} |\n")
        if not row.valid and len(row.details) > MOST_ROWS:
            lines.append(f"| {code(row.submission)} | | and {len(row.details) - MOST_ROWS} faults more |\n")
    return lines if rows else []


def _standings(names: Sequence[str], standing: _Standing | None) -> list[str]:
    """Returns a table for each of the named entries that the board has a row of."""
    rows = standing.rows if standing else []
    tables = []
    for name in dict.fromkeys(names):
        for own in (row for row in rows if row.submission == name):
            tables.append(_table(own, _tier(own, rows)))
    return tables


def _tier(own: _Ranked, rows: Sequence[_Ranked]) -> list[_Ranked]:
    """Returns the rows of an entry's tier by rank, the nearest where they are many; itself alone without a rank."""
    if own.rank is None or own.tier is None:
        return [own]
    same = [row for row in rows if (row.corpus, row.bits, row.tier) == (own.corpus, own.bits, own.tier) and row.rank]
    rank = own.rank
    return sorted(sorted(same, key=lambda row: abs((row.rank or 0) - rank))[:MOST_ROWS], key=lambda row: row.rank or 0)


def _table(own: _Ranked, tier: Sequence[_Ranked]) -> str:
    place = f"rank {own.rank}, tier {own.tier}" if own.rank is not None else "no rank"
    lines = [
        f"\n**{code(own.submission)} at {own.bits} bit: {place}**, from the records that came along; "
        "nothing was scored again.\n\n",
        "| rank | submission | verdict | remaining share | difference | utility | difference | flags |\n",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    ]
    for row in tier:
        cells = (
            "" if row.rank is None else str(row.rank),
            code(row.submission),
            code(row.verdict),
            f"{_figure(row.rho)}{_ends(row)}",
            "" if row is own else _difference(own.rho, row.rho),
            _figure(row.utility_share),
            "" if row is own else _difference(own.utility_share, row.utility_share),
            _flags(row),
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _figure(value: float | None) -> str:
    return number(value) if value is None or abs(value) < 1e6 else code(f"{value:.3g}")


def _ends(row: _Ranked) -> str:
    if row.rho_low is None or row.rho_high is None:
        return ""
    return f" ({_figure(row.rho_low)} to {_figure(row.rho_high)})"


def _difference(own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return number(None)
    found = own - other
    return signed(found) if abs(found) < 1e6 else code(f"{found:+.3g}")


def _flags(row: _Ranked) -> str:
    told = [row.unranked_reason, *row.flags[:MOST_ROWS], row.verdict_reason]
    if row.few_documents:
        told.append(f"carried by few documents: {', '.join(row.few_documents[:MOST_ROWS])}")
    return "; ".join(code(text) for text in dict.fromkeys(told) if text)
