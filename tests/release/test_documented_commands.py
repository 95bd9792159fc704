"""Every block of commands in README and docs is typed as it stands there, or says why it can't be."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import logged_runs
import pytest
from documented import REASONS, ROOT, SLOW, Block, Clone, blocks

from harness.store.store import Store

PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "THIRD_PARTY.md")), *ROOT.glob("docs/**/*.md")]
)
EVERY = [block for page in PAGES for block in blocks(page)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Typed in a test of its own, which also looks at what came out.
ELSEWHERE = {"docs/submitting.md": "tests/release/test_submitting_docs.py"}

KEPT = ("reference", "rtn-4bit-g128", "bnb-nf4")

_FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(
    r"^\s*(?:\$ |[A-Z_]+=\S+ )*(?:quench|make|pip|python3?|git|docker|ray|mkdir|cp) ", re.MULTILINE
)  # fmt: skip


def model_of_the_reader(folder: Path) -> None:
    shutil.copytree(ROOT / "submissions" / "mini-plain-ga-gdr-full" / "weights", folder / "my-weights")


def logs_of_the_reader(folder: Path) -> None:
    logged_runs.muse_bench(folder / "temp" / "ga")
    logged_runs.muse_bench(folder / "temp" / "npo")
    logged_runs.write(folder / "saves" / "eval" / "my-model" / "MUSE_EVAL.json", logged_runs.evaluation())
    logged_runs.corpus_texts(folder / "DIR")


READER_HAS: dict[str, Callable[[Path], None]] = {
    "docs/quickstart.md": model_of_the_reader,
    "docs/rescoring.md": logs_of_the_reader,
}
"""Pages that begin with files of the reader's, and what makes some."""
LEAVES: dict[str, Sequence[str]] = {
    "docs/metrics.md": (),
    "docs/quickstart.md": ("leaderboard/site/index.html", "build/first.duckdb", "build/site/index.html"),
    "docs/rescoring.md": ("past.duckdb",),
    "docs/self_hosting.md": ("public/index.html", "public/data/board.csv"),
    "docs/statistics.md": (),
}
"""Every page whose commands are typed, and some of the files that they leave."""


def pages_with(*marks: str | None) -> list[str]:
    return sorted({block.page for block in EVERY if block.mark in marks} - set(ELSEWHERE))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all pages: a model is merged once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board's store, cut to three quantizers."""
    path = tmp_path_factory.mktemp("board") / "results.duckdb"
    with Store.open(ROOT / "results.duckdb", read_only=True) as whole, Store.open(path) as cut:
        for cell in whole.cells(with_documents=True):
            if cell.spec.name in KEPT:
                cut.add(cell)
    return path


def typed(page: str, *marks: str | None, folder: Path, cache: Path, board: Path) -> Clone:
    """Types a page's blocks from the first to the last in one clone."""
    clone = Clone(folder / "quench", cache=cache, store=board)
    READER_HAS.get(page, lambda _: None)(clone.folder)
    for block in blocks(ROOT / page):
        if block.mark in marks:
            clone.type(block.commands)
    return clone


def typed_pages() -> list[object]:
    """The quickstart takes half a minute: `make test-all` types it."""
    slow = {"docs/quickstart.md": pytest.mark.slow}
    return [pytest.param(page, marks=slow.get(page, ())) for page in pages_with(None)]


@pytest.mark.parametrize("page", typed_pages())
def test_a_page_s_commands_work_as_they_stand_there(page: str, tmp_path: Path, cache: Path, board: Path) -> None:
    clone = typed(page, None, folder=tmp_path, cache=cache, board=board)
    for name in LEAVES[page]:
        assert (clone.folder / name).is_file(), f"{page}: its commands have not made {name}"


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(SLOW))
def test_a_page_s_long_commands_work_after_its_short_ones(page: str, tmp_path: Path, cache: Path, board: Path) -> None:
    clone = typed(page, None, SLOW, folder=tmp_path, cache=cache, board=board)
    rows = json.loads(clone.type("quench show --json"))["rows"]
    assert "my-entry" in {row["submission"] for row in rows}


def test_what_typed_pages_leave_is_listed_for_exactly_them() -> None:
    assert set(LEAVES) == set(pages_with(None))
    assert {block.page for block in EVERY} >= set(READER_HAS) | set(ELSEWHERE)
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", EVERY, ids=lambda block: block.place)
def test_a_block_that_is_not_typed_says_why_in_words_that_are_agreed(block: Block) -> None:
    accepted = (None, SLOW, *(f"not run: {reason}" for reason in REASONS))
    assert block.mark in accepted, f"{block.place}: <!-- {block.mark} --> is none of {accepted[1:]}"


def test_most_blocks_of_quench_commands_are_typed() -> None:
    ours = [block for block in EVERY if "quench " in block.commands and "docker" not in block.commands]
    unrun = [block.place for block in ours if (block.mark or "").startswith("not run")]
    assert len(unrun) <= len(ours) // 4, unrun


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_stand_only_in_blocks_that_say_bash(page: Path) -> None:
    if page == ROOT / "docs" / "cli.md":
        return  # made from the commands; its examples are parsed in test_docs
    for language, body in _FENCE.findall(page.read_text(encoding="utf-8")):
        assert language in ("bash", "yaml", "json", "python", "") or not _PROGRAM.search(body), body
        assert language or not _PROGRAM.search(body), f"this block is of commands and does not say bash:\n{body}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_mark_stands_directly_above_a_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- (?:not )?run\b.*-->", text)
    assert len(marks) == len([block for block in blocks(page) if block.mark])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_targets_of_make_and_extras_of_pip_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    extras = {extra for listed in re.findall(r"(?:quench-bench|'\.)\[([\w,]+)\]", text) for extra in listed.split(",")}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    installs = re.findall(r"pip install [^`\n]*'\.\[[^`\n]*", text)
    assert all("-c constraints.txt torch==" in line for line in installs), "pip would fetch CUDA libraries"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_of_benchmarks_that_a_page_names_are_theirs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for script, options in re.findall(r"(benchmarks/\w+\.py)((?: --?[\w-]+(?: [\w.]+)?)+)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in source, f"{script} has no option {option}"


def test_a_command_that_fails_is_shown_with_what_it_said(tmp_path: Path, cache: Path, board: Path) -> None:
    clone = Clone(tmp_path / "quench", cache=cache, store=board, submissions=())
    assert "Does unlearning survive quantization?" in clone.type("quench --help")
    with pytest.raises(AssertionError, match=r"nowhere\.duckdb"):
        clone.type("quench show --store nowhere.duckdb\ntouch went-on")
    assert not (clone.folder / "went-on").exists()


def test_a_block_is_found_with_its_line_and_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("documented.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n\n<!-- not run: needs a GPU -->\n```bash\none\n```\n\n1. x\n\n   ```bash\n   two\n   ```\n",
        encoding="utf-8",
    )
    marked, plain = blocks(page)
    assert (marked.place, marked.commands, marked.mark) == ("page.md:5", "one\n", "not run: needs a GPU")
    assert (plain.place, plain.commands, plain.mark) == ("page.md:11", "   two\n", None)
