"""The comment on a pull request: faults and standings told, and nothing of a stranger's text is markup."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import InputError
from harness.publish import pull_request

HOSTILE = (
    "a | b | c", "x\n\n# heading", "`code` break", "</code><script>alert(1)</script>", "@everyone look", "<!-- gone",
    "[click](https://evil.example)", "![pixel](https://evil.example/p.png)", "https://evil.example www.evil.example",
    "me@evil.example", "owner/board#1 and GH-1", "**bold** _it_ ~~no~~", "\u202egnp.exe", "\x1b[31mred", "&lt;b&gt;",
    "\\| \\<", "```\nfence", "a\r| b", ":tada:", "$x$", "[^1]", "c" * 40,
)  # fmt: skip


def row(name: str = "my-entry", *sentences: str) -> dict[str, Any]:
    details = [{"file": "f", "field": "kind", "accepted": "a", "sentence": text} for text in sentences]
    return {"submission": name, "valid": not sentences, "faults": list(sentences), "details": details}


def ranked(name: str, rank: int | None, tier: int | None = 1, rho: float | None = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "submission": name, "corpus": "mini", "bits": 4, "rank": rank, "tier": tier, "verdict": "holds",
        "verdict_reason": None, "unranked_reason": None, "rho": rho, "rho_low": None, "rho_high": None,
        "utility_share": 0.9, "few_documents": [], "flags": [],
    } | more  # fmt: skip


def artifact(folder: Path, rows: Any, standing: Any = None, schema: str = "quench.validate/1") -> Path:
    path = folder / "artifact.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(pull_request.CHECKED, json.dumps({"schema": schema, "rows": rows}))
        if standing is not None:
            archive.writestr(pull_request.STANDING, json.dumps({"schema": "quench.show/1", "rows": standing}))
    return path


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        yield token
        yield from token.children or ()


def table_rows(text: str) -> list[list[str]]:
    lines = [line.strip()[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def assert_harmless(text: str) -> None:
    """Fails where anything but this program's own tables, emphasis and code is read from a comment."""
    inside = False
    for token in tokens(text):
        assert token.type not in {"link_open", "image", "heading_open", "html_block", "fence", "code_block", "hr"}
        if token.type == "html_inline":
            assert token.content in {"<code>", "</code>"}
            assert inside == (token.content == "</code>")
            inside = not inside
        elif token.type in {"text", "text_special", "entity"} and not inside:
            assert not re.search(r"[@#]|://|evil", token.content), token.content
    assert not inside
    assert not re.search(r"[@`\x00-\x09\x0b-\x1f\u202e]|://|www\.", text)


def test_faults_are_one_line_each_with_their_field(tmp_path: Path) -> None:
    text = pull_request.comment(
        artifact(tmp_path, [row("good-one"), row("bad-one", "No kind: write one.", "No method.")])
    )
    assert text.startswith("**2 submissions checked, 1 with faults**")
    assert table_rows(text)[2:] == [
        ["<code>good&#45;one</code>", "", "valid"],
        ["<code>bad&#45;one</code>", "<code>kind</code>", "<code>No kind&#58; write one&#46;</code>"],
        ["<code>bad&#45;one</code>", "<code>kind</code>", "<code>No method&#46;</code>"],
    ]
    assert_harmless(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_in_its_cell_and_means_nothing_in_any_place(text: str, tmp_path: Path) -> None:
    rows = [row(text), row(text, text), row(text + "x")]
    standing = [ranked(text, 1, verdict=text, verdict_reason=text, few_documents=[text], flags=[text]),
                ranked(text + "x", None, None, unranked_reason=text)]  # fmt: skip
    told = pull_request.comment(artifact(tmp_path, rows, standing))
    assert_harmless(told)
    assert {len(line) for line in table_rows(told)} == {3, 8}
    assert sum(token.type == "table_open" for token in tokens(told)) == 3


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_becomes_code_and_reads_as_itself(text: str) -> None:
    told = pull_request.code(text)
    assert re.fullmatch(r"(?:<code>(?:[A-Za-z0-9 ]|&#\d+;)+</code>)?", told)
    assert_harmless(f"| {told} |\n| --- |\n")


def test_a_new_entry_stands_among_its_tier_with_differences_and_flags(tmp_path: Path) -> None:
    standing = [
        ranked("best", 1, tier=1, rho=0.1),
        ranked("mine", 2, tier=2, rho=0.4, rho_low=0.3, rho_high=0.5, utility_share=0.8, few_documents=["rho"]),
        ranked("near", 3, tier=2, rho=0.65, verdict_reason="shaky"),
        ranked("elsewhere", 2, tier=2, corpus="news"),
        ranked("none", None, None),
    ]
    text = pull_request.comment(artifact(tmp_path, [row("mine")], standing))
    assert "<code>mine</code> at 4 bit: rank 2, tier 2" in text
    assert table_rows(text)[5:] == [
        ["2", "<code>mine</code>", "<code>holds</code>", "0.40 (0.30 to 0.50)", "", "0.80", "",
         "<code>carried by few documents&#58; rho</code>"],
        ["3", "<code>near</code>", "<code>holds</code>", "0.65", "-0.25", "0.90", "-0.10", "<code>shaky</code>"],
    ]  # fmt: skip


def test_an_entry_without_a_rank_is_told_why_and_compared_with_nobody(tmp_path: Path) -> None:
    standing = [ranked("best", 1), ranked("mine", None, None, rho=None, unranked_reason="a copy of best",
                                         flags=["same weights: as best", "a copy of best"])]  # fmt: skip
    text = pull_request.comment(artifact(tmp_path, [row("mine")], standing))
    assert "at 4 bit: no rank" in text
    assert table_rows(text)[5][-1] == "<code>a copy of best</code>; <code>same weights&#58; as best</code>"
    assert len(table_rows(text)) == 3 + 3


def test_only_submissions_that_were_checked_and_are_valid_are_shown_on_the_board(tmp_path: Path) -> None:
    standing = [ranked("broken", 1), ranked("mini-retrain", 2)]
    text = pull_request.comment(artifact(tmp_path, [row("broken", "A fault.")], standing))
    assert "rank" not in text


def test_a_large_tier_shows_the_nearest(tmp_path: Path) -> None:
    standing = [ranked(f"entry{number}", number) for number in range(1, 101)]
    lines = table_rows(pull_request.comment(artifact(tmp_path, [row("entry50")], standing)))[5:]
    assert [int(line[0]) for line in lines] == list(range(int(lines[0][0]), int(lines[0][0]) + pull_request.MOST_ROWS))
    assert "50" in {line[0] for line in lines}


def test_a_comment_never_grows_past_what_github_takes_and_says_that_there_is_more(tmp_path: Path) -> None:
    rows = [row(f"{'|' * 300}{number}", *["@" * 1_000] * 30) for number in range(30)]
    text = pull_request.comment(artifact(tmp_path, rows), "https://example.org/runs/1")
    assert len(text) <= pull_request.MOST_CHARACTERS
    assert "There is more than a comment holds" in text
    assert text.endswith("[The log of the run](https://example.org/runs/1)\n")
    one = pull_request.comment(artifact(tmp_path, [row("x", *["A fault."] * 30)]))
    assert "and 10 faults more" in one


@pytest.mark.parametrize(
    ("rows", "standing", "schema"),
    [
        ([{"submission": 1, "valid": True, "details": []}], None, "quench.validate/1"),
        ([{"submission": "x"}], None, "quench.validate/1"),
        ({"submission": "x"}, None, "quench.validate/1"),
        ([], None, "quench.show/1"),
        ([], [ranked("x", 10**9)], "quench.validate/1"),
        ([], [ranked("x", 1, rho=10**400)], "quench.validate/1"),
        ([], [ranked("x", True)], "quench.validate/1"),
        ([row("x" * 30_000)], None, "quench.validate/1"),
    ],
)
def test_an_artifact_of_another_form_is_one_sentence(rows: Any, standing: Any, schema: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.json is no output of `quench` \([^\n]+\): run the workflow"):
        pull_request.comment(artifact(tmp_path, rows, standing, schema))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str, tmp_path: Path) -> None:
    path = artifact(tmp_path, [row()])
    with zipfile.ZipFile(path, "a") as archive:
        text = json.dumps({"schema": "quench.show/1", "rows": [ranked("my-entry", 1, rho=0.125)]})
        archive.writestr(pull_request.STANDING, text.replace("0.125", number))
    with pytest.raises(InputError, match=r"standing\.json is no output"):
        pull_request.comment(path)


def test_a_bomb_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(pull_request.CHECKED, b" " * (pull_request.MOST_BYTES + 1))
    with pytest.raises(InputError, match="larger than 8,000,000 bytes"):
        pull_request.comment(path)


def test_what_is_no_archive_or_lacks_the_document_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("../validation.json", "{}")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(pull_request.CHECKED, "{}")
    for name in ("text.zip", "other.zip", "packed.zip", "absent.zip"):
        done = CliRunner().invoke(app, ["comment", str(tmp_path / name)])
        assert done.exit_code == 2
        assert done.stderr.startswith(f"Error: {tmp_path / name}")
        assert "artifact that the workflow `validate` has uploaded" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("link", ["javascript:alert(1)", "https://example.org/a) @everyone", "https://x.org/[a](b)"])
def test_a_link_that_is_none_is_refused(link: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no web address"):
        pull_request.comment(artifact(tmp_path, [row()]), link)


def test_the_command_prints_what_the_function_returns(tmp_path: Path) -> None:
    path = artifact(tmp_path, [row("bad-one", "A fault.")])
    done = CliRunner().invoke(app, ["comment", str(path), "--link", "https://example.org/runs/1"])
    assert done.exit_code == 0
    assert done.stdout == pull_request.comment(path, "https://example.org/runs/1")
