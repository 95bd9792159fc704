"""THIRD_PARTY.md: nothing of others lies in the tree, and what is installed beside it is listed with its licence."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEVELOPMENT = "dev"
# These speak of licences and notices and are none.
ABOUT_LICENCES = {"LICENSE", "THIRD_PARTY.md", "tests/release/test_third_party.py"}

_NOTICE = re.compile(
    r"copyright (?:\(c\)|©|\d{4})|©\s*\d{4}|spdx-license-identifier|all rights reserved|@licen[sc]e\b|^/\*!"
    r"|licensed under the (?!apache license, version 2\.0 \(the \"license\"\))",
    re.IGNORECASE | re.MULTILINE,
)
_BUNDLED = re.compile(
    r"(?:^|/)(?:vendor|third_party|node_modules|bower_components)/|\.min\.(?:js|css)$|\.(?:woff2?|ttf|otf|eot|wasm|jar)$"
)
_FAMILY = {
    "MIT": r"\bMIT\b", "BSD-3-Clause": r"BSD|NumPy Developers|Enthought|Vega-Altair", "Apache-2.0": r"Apache",
    "0BSD": r"0?BSD",
}  # fmt: skip


def foreign(name: str, content: bytes) -> bool:
    """Returns whether a file looks as if it came from another project."""
    text = "" if b"\0" in content[:4096] else content.decode("utf-8", "replace")
    return bool(_BUNDLED.search(name) or (name not in ABOUT_LICENCES and _NOTICE.search(text)))


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def rows(heading: str) -> list[list[str]]:
    """Returns the body of the table that stands below a heading or header row."""
    table = re.search(rf"^\| {re.escape(heading)}.*\n\|[-|]+\n((?:\|.*\n)*)", PAGE, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def listed() -> dict[str, tuple[str, str]]:
    """Returns extra and licence of every library of the page, by its canonical name."""
    return {
        canonicalize_name(name): (extra.strip("`"), licence)
        for extra, names, licence in rows("extra | library")
        for name in names.split(", ")
    }


def test_every_file_that_came_from_others_is_in_the_table() -> None:
    found = {name for name in tracked() if foreign(name, (ROOT / name).read_bytes())}
    assert found == {cells[0].strip("`") for cells in rows("file | from")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("leaderboard/static/table.min.js", b"x"),
        ("leaderboard/static/Inter.woff2", b"\0\1"),
        ("harness/vendor/rouge.py", b"x"),
        ("harness/x.py", b"# Copyright 2023 The Authors."),
        ("harness/x.py", b"# Copyright (c) Somebody\n"),
        ("leaderboard/static/x.js", b"/*! Sortable 1.2 | MIT */"),
        ("harness/x.py", b"# SPDX-License-Identifier: MIT"),
        ("tasks/x.yaml", "# \N{COPYRIGHT SIGN} 2024 Somebody".encode()),
        ("harness/x.py", b"# Licensed under the MIT License."),
    ],
)
def test_a_file_of_others_would_be_noticed(name: str, content: bytes) -> None:
    assert foreign(name, content)


@pytest.mark.parametrize("content", [b"x = 1", b'license="Apache-2.0"', b"a copyrighted series of books", b"\0" * 99])
def test_a_file_of_ours_is_not_taken_for_one(content: bytes) -> None:
    assert not foreign("harness/x.py", content)


def test_every_library_that_an_installation_asks_for_is_listed_under_its_extra() -> None:
    wanted = {canonicalize_name(Requirement(text).name): "" for text in PROJECT["dependencies"]}
    for extra, texts in PROJECT["optional-dependencies"].items():
        if extra != DEVELOPMENT:
            wanted |= {canonicalize_name(Requirement(text).name): extra for text in texts}
    assert {name: extra for name, (extra, _) in listed().items()} == wanted


@pytest.mark.parametrize("name", sorted(listed()))
def test_a_listed_licence_is_the_one_that_the_library_declares(name: str) -> None:
    try:
        known = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    told = [known.get("License-Expression"), *(known.get_all("Classifier") or ()), (known.get("License") or "")[:100]]
    declared = " ".join(text for text in told if text and not text.startswith("Programming"))
    if not re.search(r"licen|MIT|BSD|Apache", declared, re.IGNORECASE):
        pytest.skip(f"{name} declares none in its metadata")
    licence = listed()[name][1]
    assert re.search(_FAMILY[licence.split(" and ")[0]], declared), f"{name}: {licence!r}, but it says {declared!r}"
