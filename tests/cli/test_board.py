"""`quench compare`, `show` with its filters and forms, and `plan --power`, on the board's own results."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness.cli.main import app
from harness.publish.board import Board
from harness.publish.ranking import rank as ranking
from harness.publish.thresholds import SYMBOLS
from harness.records import CellResult
from harness.store.store import Store

ROOT = Path(__file__).parents[2]
LORA, FULL = "mini-npo-gdr-lora", "mini-npo-gdr-full"


@pytest.fixture(scope="module")
def store(board_store: Path) -> Path:
    return board_store


@pytest.fixture(scope="module")
def whole_board(committed_cells: list[CellResult]) -> Board:
    return ranking.rank(committed_cells, "mini")


@pytest.fixture(scope="module")
def board(store: Path) -> Board:
    with Store.open(store, read_only=True) as opened:
        return ranking.rank(opened.cells(with_documents=True), "mini")


def quench(store: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--store", str(store)], env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def rows(result: Result, command: str) -> list[dict[str, Any]]:
    document = json.loads(result.stdout)
    assert document["schema"] == f"quench.{command}/1"
    return list(document["rows"])


def test_the_two_npo_entries_get_an_honest_sentence(store: Path) -> None:
    shown = " ".join(quench(store, "compare", LORA, FULL, "--at", "4").stdout.split())
    assert f"Under rtn-4bit-g128: {LORA} recovers" in shown
    assert "points less of VerbMem" in shown
    # The LoRA entry keeps too little utility: whoever reads that it reverts less must read this, too.
    assert f"But {LORA} is collapsed under" in shown
    assert "stands after Holm's correction" in shown


def test_json_of_a_comparison_has_every_difference_with_its_interval(store: Path, board: Board) -> None:
    found = rows(quench(store, "compare", LORA, FULL, "--at", "4", "--json"), "compare")
    assert {row["quantizer"] for row in found} == set(board.quantizers_at(4))
    assert {row["quantity"] for row in found} == {"score", "recovered", "remaining share", "distance from 0"}
    assert all(row["difference_low"] <= row["difference"] <= row["difference_high"] for row in found)
    assert all(row["sentences"] for row in found)


def test_the_same_command_prints_the_same_bytes_twice(store: Path) -> None:
    once, again = (quench(store, "compare", LORA, FULL, "--json").stdout for _ in range(2))
    assert once == again


@pytest.mark.parametrize(("form", "start"), [("markdown", "| quantizer |"), ("latex", "\\begin{tabular}")])
def test_a_comparison_as_a_table_for_a_paper_is_followed_by_its_sentences(store: Path, form: str, start: str) -> None:
    text = quench(store, "compare", LORA, FULL, "--at", "4", "--format", form).stdout
    assert text.startswith(start)
    assert "Holm" in text
    assert "\x1b" not in text


def test_a_comparison_as_csv_is_one_table(store: Path) -> None:
    text = quench(store, "compare", LORA, FULL, "mini-ga-gdr-lora", "--format", "csv").stdout
    found = list(csv.DictReader(io.StringIO(text)))
    assert {row["compared_with"] for row in found} == {FULL, "mini-ga-gdr-lora"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", LORA), "name 2 to 4 different submissions"),
        (("compare", LORA, "mini-npo-gdr-ful"), "did you mean mini-npo-gdr-full"),
        (("compare", LORA, FULL, "--at", "5"), "No quantizer of 5 bit was measured"),
        (("compare", LORA, FULL, "--json", "--format", "csv"), "--json and --format csv exclude each other"),
        (("show", "--verdict", "hold"), "There is no verdict named 'hold': did you mean holds?"),
        (("show", "--kind", "lora"), "There is no kind in the store named 'lora'"),
        (("show", "--method", "zzz"), "There is no method in the store named 'zzz'"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(store: Path, arguments: tuple[str, ...], said: str) -> None:
    result = quench(store, *arguments, code=2)
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_store_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    assert "There is no store" in quench(tmp_path / "none.duckdb", "compare", LORA, FULL, code=2).stderr


def test_the_ranking_is_narrowed_by_kind_method_verdict_and_rank(store: Path) -> None:
    everything = rows(quench(store, "show", "--json"), "show")
    for option, key in (("--kind", "kind"), ("--method", "method"), ("--verdict", "verdict")):
        for value in {row[key] for row in everything}:
            found = rows(quench(store, "show", option, value, "--json"), "show")
            assert found == [row for row in everything if row[key] == value]
    ranked = rows(quench(store, "show", "--ranked", "--json"), "show")
    assert ranked == [row for row in everything if row["rank"] is not None]
    assert 0 < len(ranked) < len(everything)


def test_the_cells_of_a_submission_carry_what_the_board_makes_of_them(store: Path, board: Board) -> None:
    found = rows(quench(store, "show", FULL, "--json"), "show")
    assert len(found) == 4 * len(board.quantizers)
    row = next(row for row in found if (row["quantizer"], row["task"]) == ("rtn-4bit-g128", "muse_mini_verbmem_f"))
    own = next(one for one in board.rows if one.submission.name == FULL).by_quantizer["rtn-4bit-g128"]
    judged = own.metrics["verbmem_f"]
    assert row["rho"] == judged.rho.value
    assert row["recovery_low"] == judged.recovery.low
    assert row["change"] == pytest.approx(100 * judged.change.value)
    assert row["robustness"] == judged.robustness.value
    assert row["recovered_share"] == judged.recovered_share.value
    assert row["verdict"] == "reverts"
    assert row["change_p"] <= 0.05
    reference = next(row for row in found if (row["quantizer"], row["task"]) == ("reference", "muse_mini_verbmem_f"))
    assert (reference["change"], reference["recovery"]) == (None, 0.0)


def test_cells_are_narrowed_by_verdict(store: Path) -> None:
    found = rows(quench(store, "show", "--cells", "--verdict", "reverts", "--json"), "show")
    assert found
    assert {row["verdict"] for row in found} == {"reverts"}


@pytest.mark.parametrize("form", ["csv", "markdown", "latex"])
def test_a_ranking_can_be_printed_for_a_paper(store: Path, form: str) -> None:
    text = quench(store, "show", "--ranked", "--format", form).stdout
    assert "mini-ga-gdr-lora" in text
    assert "holds" in text


def test_power_says_what_the_documents_can_detect(store: Path) -> None:
    found = {row["key"]: row for row in rows(quench(store, "plan", "--power", "--corpus", "mini", "--json"), "plan")}
    assert {key: row["documents"] for key, row in found.items()} == {
        "verbmem_f": 32, "knowmem_f": 91, "knowmem_r": 100, "privleak": 144,
    }  # fmt: skip
    assert all(row["power"] == 0.8 for row in found.values())
    # Differences under 10 points are noise between unrelated models, as docs/muse_mini.md warns.
    assert found["knowmem_f"]["detectable_difference"] > 10


def test_power_of_every_corpus_needs_no_store_and_no_network(tmp_path: Path) -> None:
    found = rows(quench(tmp_path / "none.duckdb", "plan", "--power", "--json"), "plan")
    assert {row["corpus"] for row in found} == {"books", "mini", "news"}
    assert list(tmp_path.iterdir()) == []


# What docs/statistics.md says of the board's own results.

BUILT_FOR = {
    "holds": ("mini-ga-gdr-lora", "rtn-4bit-g128"),
    "reverts": ("mini-ga-gdr-full-lr2e-4", "rtn-4bit-g128"),
    "collapsed": ("mini-ga-lora-collapsed", "rtn-4bit-g128"),
    "never forgot": ("mini-noop-lora", "rtn-4bit-g128"),
    "unclear": ("mini-ga-gdr-full-lr2e-4", "bnb-fp4"),
}


@pytest.mark.parametrize("word", [word for word in SYMBOLS if word != "not measured"])
def test_every_verdict_occurs_on_the_board_for_the_entry_that_was_built_for_it(board: Board, word: str) -> None:
    name, quantizer = BUILT_FOR[word]
    row = next(row for row in board.rows if row.submission.name == name)
    assert row.by_quantizer[quantizer].verdict.word == word
    page = " ".join((ROOT / "docs" / "statistics.md").read_text(encoding="utf-8").split())
    assert f"`{word}` for `{name}` under `{quantizer}`" in page


def test_the_board_has_no_verdict_that_the_page_leaves_out(whole_board: Board) -> None:
    seen = Counter(result.verdict.word for row in whole_board.rows for result in row.by_quantizer.values())
    assert set(seen) == set(BUILT_FOR)


def test_the_entry_that_changes_nothing_is_recognised(board: Board) -> None:
    noop = next(row for row in board.rows if row.submission.name == "mini-noop-lora")
    assert "the target resubmitted, or an update that changes nothing" in str(noop.by_bits[4].unranked_reason)


def test_privleaks_of_entries_carry_the_uncertainty_of_their_reference(store: Path, board: Board) -> None:
    from harness.publish.statistics import quantities

    row = next(row for row in board.rows if row.submission.name == FULL).by_quantizer["reference"]
    with Store.open(store, read_only=True) as opened:
        cells = opened.cells(with_documents=True)
    cell = next(c for c in cells if c.cell.key == row.cells["privleak"].cell.key)
    alone = quantities.estimate(cell, "privleak")
    assert row.metrics["privleak"].score.value == pytest.approx(alone.value)
    assert row.metrics["privleak"].score.low != pytest.approx(alone.low, abs=0.1)


def test_ranking_and_comparing_import_neither_torch_nor_transformers(store: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from harness.cli.main import app; "
        f"asked = ['compare', '{LORA}', '{FULL}'], ['show'], ['plan', '--power']; "
        f"done = [CliRunner().invoke(app, [*one, '--store', {str(store)!r}]) for one in asked]; "
        "print([d.exit_code for d in done], [n for n in ('torch', 'transformers', 'lm_eval') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 0] []"
