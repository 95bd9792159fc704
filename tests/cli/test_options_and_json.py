"""Options and `--json` of the commands that score nothing, on the shipped submissions and a store of few rows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli import options
from harness.cli.main import app
from harness.errors import InputError, UnknownNameError
from harness.records import Job, Score
from harness.run.job import unfinished
from harness.run.plan import planner
from harness.store.store import Store
from harness.submit.manifest import load as manifest

SHIPPED = paths.content_dir("submissions")
ENTRY = "mini-npo-gdr-lora"
ODD = 'a [bold]reason[/] with "quotes" and \N{SNOWMAN}'


def quench(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns the rows of stdout, which must hold one JSON document on one line and nothing else."""
    assert result.stdout.count("\n") == 1
    assert "\x1b" not in result.stdout
    document = json.loads(result.stdout)
    # What backends can do at each width stands beside the rows of presets.
    assert set(document) - {"matrix"} == {"schema", "rows"}
    return list(document["rows"])


@pytest.fixture(scope="module")
def job() -> Job:
    plan = planner.plan(manifest.load_all(SHIPPED), names=[ENTRY], controls=False,
                        quantizers=options.chosen_quantizers("reference"))  # fmt: skip
    return plan.jobs[0]


@pytest.fixture(scope="module")
def store(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished, one failed and one cancelled cell of an entry."""
    path = tmp_path_factory.mktemp("cli") / "s.duckdb"
    with Store.open(path) as opened:
        good = replace(unfinished(job, job.cells[0], "finished", ""), reason=None)
        opened.add(replace(good, scores=(Score(metric="verbmem_f", value=0.25, num_docs=4),)))
        opened.add(unfinished(job, job.cells[1], "failed", ODD, stage="quantize"))
        opened.add(unfinished(job, job.cells[2], "cancelled", "Interrupted."))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", SHIPPED / ENTRY),
        ("backends",),
        ("plan", ENTRY, "--quantizers", "reference"),
        ("status", ENTRY, "--quantizers", "reference"),
        ("show", "--cells"),
        ("show",),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:1])),
)
def test_json_is_one_document_on_stdout_and_nothing_goes_to_stderr(arguments: tuple[Any, ...], store: Path) -> None:
    with_store = () if arguments[0] in ("validate", "backends") else ("--store", store)
    result = quench(*arguments, *with_store, "--json")
    assert rows(result)
    assert json.loads(result.stdout)["schema"] == f"quench.{arguments[0]}/1"
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["plan", "status", "show", "validate"])
def test_an_error_leaves_stdout_empty_even_with_json(command: str, tmp_path: Path) -> None:
    where = ("--store", tmp_path / "none.duckdb") if command == "show" else ("--submissions", tmp_path / "none")
    result = quench(command, *where, "--json", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")


def test_status_counts_each_way_a_cell_can_end(store: Path) -> None:
    found = rows(quench("status", ENTRY, "--quantizers", "reference", "--store", store, "--json"))
    (row,) = [row for row in found if row["submission"] == ENTRY]
    assert [row[key] for key in ("finished", "failed", "skipped", "cancelled", "to_do")] == [1, 1, 0, 1, 1]


def test_only_finished_cells_are_left_out_of_a_plan(store: Path, job: Job) -> None:
    (row,) = rows(quench("plan", ENTRY, "--no-controls", "--quantizers", "reference", "--store", store, "--json"))
    assert row["tasks"] == [cell.task for cell in job.cells[1:]]


def test_a_plan_writes_no_store(tmp_path: Path) -> None:
    quench("plan", ENTRY, "--quantizers", "reference", "--store", tmp_path / "new.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_a_reason_with_markup_and_unicode_is_shown_as_it_is(store: Path) -> None:
    shown = rows(quench("show", ENTRY, "--store", store, "--json"))
    assert ODD in {row["reason"] for row in shown}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_loses_no_column_however_narrow_the_window(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(options, "stdout", Console(file=printed, width=40, force_terminal=terminal, no_color=True))
    long = {
        "submission": "a-name-of-more-than-forty-characters-in-all",
        "rho": 0.5,
        "utility": 0.75,
        "quantizer": "nf4",
    }
    options.print_rows([long], "show", False, title="t")
    body = [line for line in printed.getvalue().splitlines() if long["submission"] in line]
    assert "0.75" in body[0]
    assert "nf4" in body[0]


def test_cells_can_be_narrowed_down(store: Path) -> None:
    assert len(rows(quench("show", "--cells", "--task", "muse_mini_verbmem_f", "--store", store, "--json"))) == 1


@pytest.mark.parametrize("option", ["--task", "--quantizer", "--corpus"])
def test_a_name_that_the_store_does_not_hold_is_refused_not_answered_with_nothing(store: Path, option: str) -> None:
    assert "in the store named 'x'" in quench("show", "--cells", option, "x", "--store", store, code=2).stderr


@pytest.mark.parametrize("arguments", [("plan", "--limit", "0"), ("run", "--workers", "0"), ("ingest", "/no/such")])
def test_a_value_out_of_range_is_refused_with_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert "Traceback" not in quench(*arguments, code=2).output


def test_validate_tells_good_from_bad_and_checks_the_rest_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "submission.yaml").write_text("name: other\n")
    found = rows(quench("validate", tmp_path / "bad", SHIPPED / ENTRY, tmp_path / "none", "--json", code=2))
    assert [row["valid"] for row in found] == [False, True, False]
    assert all(row["valid"] != bool(row["faults"]) for row in found)


@pytest.mark.parametrize("text", [None, "", " , ", ","])
def test_no_names_mean_the_default_quantizers_and_all_tasks(text: str | None) -> None:
    assert tuple(spec.name for spec in options.chosen_quantizers(text)) == planner.DEFAULT_QUANTIZERS
    assert options.chosen_tasks(text) == ()


def test_names_are_trimmed_kept_in_order_and_taken_once() -> None:
    chosen = options.chosen_quantizers(" bnb-nf4, reference,bnb-nf4 ,")
    assert [spec.name for spec in chosen] == ["bnb-nf4", "reference"]
    with pytest.raises(UnknownNameError):
        options.chosen_tasks("muse_mini, nonsense")
    assert len(options.chosen_tasks("muse_mini,muse_mini_privleak")) == 4


def test_submissions_are_taken_from_here_else_from_the_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert options.submissions_dir(None) == SHIPPED
    (tmp_path / "submissions").mkdir()
    assert options.submissions_dir(None) == Path("submissions")
    with pytest.raises(InputError, match=r"no submission\.yaml below"):
        options.submission_folders(Path("submissions"))
