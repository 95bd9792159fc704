"""Every option that narrows what a command is about narrows all that it prints, or is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import logged_runs
import pytest
import typer
from typer.testing import CliRunner

from harness.cli.grid import Grid
from harness.cli.main import app
from harness.experiments.relearning import runs as relearning_runs
from harness.records import CellResult
from harness.store.relearning import Relearning, RelearningStep
from harness.store.store import Store

COMMAND: Any = typer.main.get_command(app)
ENTRY, OTHER, TARGET = "mini-npo-gdr-lora", "mini-npo-gdr-full", "mini-target-4bit"
QUANTIZER, TASK = "rtn-4bit-g128", "muse_mini_knowmem_f"
DOCUMENTS = (ENTRY, "--documents", "--task", TASK, "--quantizer", QUANTIZER)

# Say where, how and in what form; they choose nothing of what is there.
SETTINGS = {
    "--store", "--submissions", "--data-dir", "--device", "--seed", "--json", "--out", "--title", "--base-url", "--set",
    "--open", "--watch", "--version", "--install-completion", "--show-completion", "--steps", "--dry-run", "--fresh",
    "--data-only", "--workers", "--threads", "--timeout", "--executor", "--ray-address", "--ray-memory",
    "--memory-limit", "--cache-limit", "--stream", "--schema", "--link", "--repair", "--no-texts", "--predict",
}  # fmt: skip
# Commands that make, write or check one thing, so that each of their options says what to make.
MAKERS = {
    "init", "validate", "comment", "render", "export", "unlearn", "ingest", "doctor", "plugins", "corpus",
    "corpus list", "corpus check", "mini", "mini build", "backends install", "cache", "cache clear", "cache trim", "",
}  # fmt: skip
# Add to what is there, or show it in another form.
ADDERS = {("show", "--cells"), ("show", "--documents"), ("show", "--format"), ("compare", "--format"),
          ("survival", "--layers"), ("survival", "--format"), ("relearn", "--format"), ("plan", "--power"),
          ("backends", "--presets")}  # fmt: skip
# Held by tests of their own: limits and trained documents are no rows.
ELSEWHERE = {
    ("plan", "--limit"): "test_planner", ("status", "--limit"): "test_planner",
    ("reproduce", "--limit"): "test_paper_models",
    ("relearn", "--documents"): "test_relearn", ("verify", "--documents"): "test_verify",
    ("rescore", "paths"): "test_rescore", ("reproduce", "paper"): "test_paper_models",
}  # fmt: skip


def is_(key: str, *values: object) -> Callable[[dict[str, Any]], bool]:
    return lambda row: row[key] in values


def tasks_are(*values: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: set(row["tasks"]) <= set(values)


# Not in the store, so that there is something to plan.
NEW = "rtn-5bit-g64"
ONE = ("--quantizers", NEW, "--no-controls")
KEEPS: list[tuple[str, str, tuple[str, ...], Callable[[dict[str, Any]], bool]]] = [
    ("show", "submission", (ENTRY,), is_("submission", ENTRY)),
    ("show", "--corpus", ("--corpus", "mini"), is_("corpus", "mini")),
    ("show", "--corpus", ("--corpus", "mini", "--cells"), is_("corpus", "mini")),
    ("show", "--at", ("--at", "3"), is_("bits", 3)),
    ("show", "--at", ("--at", "3", "--cells"), is_("bits", 3)),
    ("show", "--at", (ENTRY, "--at", "16"), is_("bits", 16)),
    ("show", "--task", ("--task", TASK, "--cells"), is_("task", TASK)),
    ("show", "--quantizer", ("--quantizer", QUANTIZER, "--cells"), is_("quantizer", QUANTIZER)),
    ("show", "--quantizer", (ENTRY, "--quantizer", QUANTIZER), is_("quantizer", QUANTIZER)),
    ("show", "--method", ("--method", "NPO+GDR"), is_("method", "NPO+GDR")),
    ("show", "--method", ("--method", "NPO+GDR", "--cells"), is_("method", "NPO+GDR")),
    ("show", "--kind", ("--kind", "lora_adapter"), is_("kind", "lora_adapter")),
    ("show", "--kind", ("--kind", "lora_adapter", "--cells"), is_("kind", "lora_adapter")),
    ("show", "--verdict", ("--verdict", "collapsed"), is_("verdict", "collapsed")),
    ("show", "--verdict", ("--verdict", "reverts", "--cells"), is_("verdict", "reverts")),
    ("show", "--ranked", ("--ranked",), lambda row: row["rank"] is not None),
    ("compare", "names", (ENTRY, OTHER), is_("compared_with", OTHER)),
    ("compare", "--at", (ENTRY, OTHER, "--at", "3"), is_("quantizer", "rtn-3bit-g64")),
    ("verify", "name", (ENTRY, "--quantizer", "awq-4bit-g128"), lambda row: True),
    ("verify", "--quantizer", (ENTRY, "--quantizer", "awq-4bit-g128"), is_("quantizer", "awq-4bit-g128")),
    ("plan", "names", (ENTRY, *ONE), is_("submission", ENTRY)),
    ("plan", "--quantizers", (ENTRY, *ONE), is_("quantizer", NEW)),
    ("plan", "--tasks", (ENTRY, "--tasks", TASK), tasks_are(TASK)),
    ("plan", "--corpus", ("--corpus", "mini", *ONE), lambda row: row["submission"].startswith("mini-")),
    ("plan", "--controls", (ENTRY, "--no-controls"), is_("submission", ENTRY)),
    ("plan", "--corpus", ("--power", "--corpus", "mini"), is_("corpus", "mini")),
    ("status", "names", (ENTRY, *ONE), is_("submission", ENTRY)),
    ("status", "--quantizers", (ENTRY, *ONE), is_("quantizer", NEW)),
    ("status", "--tasks", (ENTRY, *ONE, "--tasks", TASK), lambda row: row["finished"] + row["to_do"] == 1),
    ("status", "--corpus", ("--corpus", "mini", *ONE), lambda row: row["submission"].startswith("mini-")),
    ("status", "--controls", (ENTRY, "--no-controls"), is_("submission", ENTRY)),
    ("survival", "name", (ENTRY, "--quantizers", QUANTIZER), lambda row: True),
    ("survival", "--against", (ENTRY, "--against", TARGET, "--quantizers", QUANTIZER), lambda row: True),
    ("survival", "--quantizers", (ENTRY, "--quantizers", QUANTIZER), is_("quantizer", QUANTIZER)),
    ("relearn", "name", (ENTRY,), is_("submission", ENTRY)),
    ("relearn", "--quantizers", (ENTRY, "--quantizers", QUANTIZER), is_("quantizer", QUANTIZER)),
    ("reproduce", "--corpus", ("2602.13151", "--dry-run", "--corpus", "mini"), lambda row: "mini" in row["target"]),
    ("reproduce", "--target", ("2602.13151", "--dry-run", "--target", TARGET), is_("target", TARGET)),
    ("reproduce", "--seeds", ("2602.13151", "--dry-run", "--seeds", "3"), is_("seed", 3)),
    ("rescore", "--corpus", ("LOGS", "--corpus", "books"), is_("corpus", "books")),
    ("rescore", "--quantizer", ("LOGS", "--corpus", "books", "--quantizer", "bnb-fp4"), is_("quantizer", "bnb-fp4")),
    ("backends show", "name", ("rtn",), is_("backend", "rtn")),
]  # fmt: skip
REFUSED = [
    ("show", "--quantizer", ("--quantizer", QUANTIZER), "--quantizer does not narrow the ranking"),
    ("show", "--task", ("--task", TASK), "--task does not narrow the ranking"),
    ("show", "--ranked", ("--ranked", "--cells"), "--ranked does not narrow a table of cells"),
    ("show", "--ranked", (ENTRY, "--ranked"), "--ranked does not narrow a table of cells"),
    *(("show", name, (*DOCUMENTS, name, *value), f"{name} does not narrow the documents of one cell")
      for name, *value in (("--at", "4"), ("--method", "NPO"), ("--kind", "full_model"), ("--verdict", "holds"),
                           ("--ranked",))),
    ("show", "--cells", (*DOCUMENTS, "--cells"), "exclude each other"),
    ("show", "--corpus", (*DOCUMENTS, "--corpus", "books"), "'books'"),
    ("show", "--at", ("--at", "99"), "Nothing in the store is of 99 bit: --at takes 16, 4, 3."),
    ("show", "--at", ("--at", "-1"), "Nothing in the store is of -1 bit"),
    ("show", "--at", ("--cells", "--at", "0"), "Nothing in the store is of 0 bit"),
    ("compare", "--at", (ENTRY, OTHER, "--at", "99"), "No quantizer of 99 bit"),
    ("compare", "--at", (ENTRY, OTHER, "--at", "-1"), "No quantizer of -1 bit"),
    ("verify", "--quantizer", (ENTRY, "--quantizer", "int4"), "'int4'"),
    ("plan", "names", (ENTRY, "--corpus", "books"), "is of the corpus mini"),
    ("status", "names", (ENTRY, "--corpus", "books"), "is of the corpus mini"),
    *(("plan", name, ("--power", name, *value), f"ignores {name}")
      for name, *value in (("--quantizers", QUANTIZER), ("--tasks", TASK), ("--device", "cuda"), ("--seed", "1"))),
    ("plan", "--controls", ("--power", "--no-controls"), "ignores --controls"),
    ("plan", "names", ("--power", ENTRY), "ignores a submission"),
]  # fmt: skip


def options() -> Iterator[tuple[str, str]]:
    """Yields every argument and option of every command."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, str]]:
        for parameter in command.params:
            if parameter.name != "help":
                yield path, parameter.opts[0]
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}".strip())

    return walk(COMMAND, "")


def invoke(command: str, arguments: tuple[str, ...], store: Path, *, code: int) -> Any:
    # What is rescored would be kept in its store.
    stored = command != "rescore" and (command, "--store") in set(options())
    given = [*command.split(), *arguments, *(["--store", str(store)] if stored else [])]
    result = CliRunner().invoke(app, [*given, *(["--json"] if code == 0 else [])])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, committed_cells: list[CellResult]) -> Path:
    """Four submissions under four quantizers of the committed store."""
    path = tmp_path_factory.mktemp("filters") / "s.duckdb"
    quantizers = ("reference", QUANTIZER, "rtn-3bit-g64", "awq-4bit-g128")
    with Store.open(path) as opened:
        for cell in committed_cells:
            if cell.cell.submission in (ENTRY, OTHER, TARGET, "mini-retrain") and cell.cell.quantizer in quantizers:
                opened.add(cell)
    return path


@pytest.fixture(scope="module")
def printed() -> dict[tuple[str, ...], str]:
    """What calls have printed: several options may be of one call."""
    return {}


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    return logged_runs.muse_bench(tmp_path / "npo")


PROBE = Relearning(
    key="", submission="", weights_sha256="", target=TARGET, corpus="mini", quantizer="", recipe_sha256="",
    documents=16, device="cpu",
    goal=0.5, half_step=None, reason="never", seconds=1.0, created_at="",
    curve=(RelearningStep(step=0, verbmem=0.1, extraction_strength=None, reference_nll=None, verbmem_shown=0.1),),
)  # fmt: skip


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relearning that trains nothing."""

    def probe(name: str, specs: Any, *_: Any, **__: Any) -> list[Relearning]:
        return [replace(PROBE, submission=name, quantizer=spec.name) for spec in specs]

    monkeypatch.setattr(relearning_runs, "relearn_all", probe)


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize(
    ("command", "option", "arguments", "keeps"), KEEPS, ids=lambda value: "rows" if callable(value) else str(value)[:60]
)
def test_an_option_narrows_all_that_is_printed(
    command: str, option: str, arguments: tuple[str, ...], keeps: Callable[[dict[str, Any]], bool], store: Path,
    logs: Path, printed: dict[tuple[str, ...], str],
) -> None:  # fmt: skip
    given = tuple(str(logs) if argument == "LOGS" else argument for argument in arguments)
    if (command, *arguments) not in printed:
        printed[command, *arguments] = invoke(command, given, store, code=0).stdout
    shown = json.loads(printed[command, *arguments])["rows"]
    assert shown, "nothing is left to see the option by"
    assert all(map(keeps, shown))


@pytest.mark.parametrize(("command", "option", "arguments", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_option_that_a_command_would_ignore_is_refused(
    command: str, option: str, arguments: tuple[str, ...], sentence: str, store: Path
) -> None:
    result = invoke(command, arguments, store, code=2)
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_every_option_of_every_command_has_its_row() -> None:
    rows = {(command, option) for command, option, *_ in [*KEEPS, *REFUSED]}
    open_ = [
        (command, option)
        for command, option in options()
        if option not in SETTINGS
        and command not in MAKERS
        and (command, option) not in rows | ADDERS | set(ELSEWHERE)
        # Whatever is planned is what is run: both take one Grid, and the next test holds that.
        and command != "run"
    ]
    assert open_ == []


def test_no_row_is_of_an_option_that_is_gone() -> None:
    every = set(options())
    listed = {(command, option) for command, option, *_ in [*KEEPS, *REFUSED]} | ADDERS | set(ELSEWHERE)
    assert listed <= every
    assert {option for _, option in every} >= SETTINGS
    assert {command for command, _ in every} | {"corpus", "mini", "plugins"} >= MAKERS
    tests = {path.stem for path in Path(__file__).parents[1].rglob("test_*.py")}
    assert set(ELSEWHERE.values()) <= tests


def test_plan_run_and_status_take_the_same_grid() -> None:
    names = {field.name for field in fields(Grid)}
    for command in ("plan", "run", "status"):
        assert names <= {parameter.name for parameter in COMMAND.commands[command].params}
    assert {parameter.opts[0] for parameter in COMMAND.commands["run"].params} - SETTINGS - {"--help"} == {
        "names", "--quantizers", "--tasks", "--corpus", "--limit", "--controls",
    }  # fmt: skip
