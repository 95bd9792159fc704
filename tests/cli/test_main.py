"""The command line, as a user meets it: from submissions to a page, and every mistake one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness import paths, provenance
from harness.cli.main import app
from harness.cli.options import PANELS
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import SCORING_VERSION

SHIPPED = paths.content_dir("submissions")
COMMANDS = (
    "init", "validate", "backends", "backends show", "backends install", "plan", "run", "status", "show", "compare",
    "cache", "cache clear", "cache trim", "render", "export", "ingest", "unlearn", "mini build",
    "survival", "reproduce", "doctor", "comment", "relearn", "plugins", "corpus", "corpus check", "corpus list", "mini",
)  # fmt: skip


def quench(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def rows(result: Result, command: str) -> list[dict[str, Any]]:
    document = json.loads(result.stdout)
    assert document["schema"] == f"quench.{command}/1"
    return list(document["rows"])


def one_sentence(result: Result) -> str:
    """Returns the error's sentence; fails when there is a traceback or more than one line."""
    assert "Traceback" not in result.output + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of an entry and its controls under two quantizers, four documents per task."""
    store = tmp_path_factory.mktemp("run") / "store.duckdb"
    quench("run", "mini-npo-gdr-lora", "--quantizers", "reference,rtn-4bit-g128",
           "--limit", "4", "--store", store)  # fmt: skip
    return store


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = quench(*command.split(), "--help").stdout
    assert "Example" in text
    assert f"quench {command}" in text


def test_without_arguments_the_commands_are_listed() -> None:
    listed = CliRunner().invoke(app, [])
    for command in COMMANDS:
        assert command.split()[0] in listed.output


def test_the_version_is_one_line_and_needs_no_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    line = rf"scoring version {SCORING_VERSION}(, commit [0-9a-f]{{10}}( with changes)?)?\n"
    assert re.fullmatch(rf"quench \d+\.\d+\.\d+, {line}", quench("--version").stdout)
    monkeypatch.setattr(provenance, "version_of", lambda distribution: None)
    assert re.fullmatch(rf"quench \(not installed\), {line}", quench("--version").stdout)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("nonsense", ["'nonsense'", "accepted are init, validate,", "corpus, cache."]),
        ("runn", ["did you mean run?"]),
        ("help", ["did you mean --help?"]),
        ("version", ["did you mean --version?"]),
        ("-h", ["-h", "accepted are --version", "--help"]),
        ("cache list", ["quench cache:", "'list'", "accepted are clear, trim."]),
        ("show --nonsense", ["--nonsense", "--corpus", "--json"]),
        ("show --sore x", ["did you mean --store?"]),
        ("show a b", ["(b)", "quench show [OPTIONS] [submission]"]),
        ("ingest /nope", ["'/nope'", "cell records"]),
        ("init", ["'folder'", "Folder of the submission"]),
        ("unlearn x", ["--target", "Control of role target"]),
        ("run --limit 0", ["--limit", "greater than or equal to 1"]),
        ("run --stream maybe", ["'maybe'", "'auto', 'always', 'never'"]),
        ("validate --json=3", ["--json", "quench --help"]),
    ],
)
def test_a_wrong_command_is_one_sentence_with_what_is_accepted(call: str, expected: list[str]) -> None:
    sentence = one_sentence(quench(*call.split(), code=2))
    assert all(text in sentence for text in expected), sentence


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_version_that_stdout_does_not_take_is_one_sentence(buffered: str) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-m", "harness.cli.main", "--version"], stdout=full, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": buffered}, stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: Not all of the output could be written to stdout: No space left on device.\n"


def test_a_reader_that_closes_the_help_early_is_one_sentence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "harness.cli.main", "--version"], stdout=writing, text=True,
                          stderr=subprocess.PIPE)  # fmt: skip
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "Error: Not all of the output could be written to stdout: Broken pipe.\n"


def test_the_help_groups_commands_in_the_order_of_a_user_s_day() -> None:
    shown = quench("--help").stdout
    places = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)


def test_the_shipped_submissions_are_valid() -> None:
    checked = rows(quench("validate", "--json"), "validate")
    assert len(checked) == 12
    assert all(row["valid"] and row["faults"] == [] for row in checked)


def test_a_run_finishes_every_cell_of_entries_and_controls(small_run: Path) -> None:
    cells = rows(quench("show", "--cells", "--store", small_run, "--json"), "show")
    assert {row["submission"] for row in cells} == {
        "mini-npo-gdr-lora", "mini-target-4bit", "mini-retrain",
    }  # fmt: skip
    assert len(cells) == 3 * 2 * 4
    assert {row["status"] for row in cells} == {"finished"}


def test_scores_are_in_the_units_of_the_pages(small_run: Path) -> None:
    cells = rows(quench("show", "mini-target-4bit", "--store", small_run, "--json"), "show")
    by_task = {(row["task"], row["quantizer"]): row for row in cells}
    assert by_task["muse_mini_verbmem_f", "reference"]["verbmem_f"] > 50
    assert by_task["muse_mini_privleak", "reference"]["privleak"] < -50


def test_running_again_scores_nothing_and_changes_nothing(small_run: Path) -> None:
    before = quench("show", "--cells", "--store", small_run, "--json").stdout
    again = quench("run", "mini-npo-gdr-lora", "--quantizers", "reference,rtn-4bit-g128",
                   "--limit", "4", "--store", small_run)  # fmt: skip
    assert "nothing to do; 24 done before" in again.stderr.replace("\n", " ")
    assert quench("show", "--cells", "--store", small_run, "--json").stdout == before


def test_a_wider_run_does_only_what_is_new(small_run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    shutil.copy(small_run, store)
    planned = rows(quench("plan", "mini-npo-gdr-lora", "--quantizers", "reference,rtn-4bit-g128,bnb-nf4",
                          "--limit", "4", "--store", store, "--json"), "plan")  # fmt: skip
    assert {row["quantizer"] for row in planned} == {"bnb-nf4"}
    assert {row["state"] for row in planned} == {"to do"}


def test_status_counts_what_is_finished_and_what_is_to_do(small_run: Path) -> None:
    counted = rows(quench("status", "mini-npo-gdr-lora", "--quantizers", "reference,bnb-nf4", "--limit", "4",
                          "--store", small_run, "--json"), "status")  # fmt: skip
    by_cell = {(row["submission"], row["quantizer"]): row for row in counted}
    assert by_cell["mini-npo-gdr-lora", "reference"]["finished"] == 4
    assert by_cell["mini-npo-gdr-lora", "reference"]["to_do"] == 0
    assert by_cell["mini-npo-gdr-lora", "bnb-nf4"]["finished"] == 0
    assert by_cell["mini-npo-gdr-lora", "bnb-nf4"]["to_do"] == 4


def test_one_cell_s_documents_are_listed_with_their_scores(small_run: Path) -> None:
    listed = rows(quench("show", "mini-npo-gdr-lora", "--documents", "--task", "muse_mini_knowmem_f", "--quantizer",
                         "rtn-4bit-g128", "--store", small_run, "--json"), "show")  # fmt: skip
    assert len(listed) == 4
    assert all("response" in row for row in listed)


def test_documents_without_a_cell_to_take_them_from_say_what_to_name(small_run: Path) -> None:
    sentence = one_sentence(quench("show", "mini-npo-gdr-lora", "--documents", "--store", small_run, code=2))
    assert "--task" in sentence
    assert "--quantizer" in sentence


def test_limited_results_are_shown_but_not_ranked(small_run: Path) -> None:
    ranked = rows(quench("show", "--store", small_run, "--corpus", "mini", "--at", "4", "--json"), "show")
    (entry,) = (row for row in ranked if row["submission"] == "mini-npo-gdr-lora")
    assert entry["rank"] is None
    assert "limit" in entry["unranked_reason"]


def test_the_pages_of_a_run_hold_its_entries_and_link_to_them(small_run: Path, tmp_path: Path) -> None:
    quench("render", "--store", small_run, "--out", tmp_path / "site")
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "mini-npo-gdr-lora" in index
    assert (tmp_path / "site" / "submission" / "mini-npo-gdr-lora.html").is_file()


def test_records_of_another_machine_are_taken_in_once(small_run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.duckdb"
    records = small_run.with_suffix(".records")
    first = quench("ingest", records, "--store", elsewhere)
    assert "24 new, 0 known already" in first.stderr
    again = quench("ingest", records, "--store", elsewhere)
    assert "0 new, 24 known already" in again.stderr
    assert (
        quench("show", "--cells", "--store", elsewhere, "--json").stdout
        == quench("show", "--cells", "--store", small_run, "--json").stdout
    )


def test_a_store_taken_in_without_texts_has_the_same_scores_and_pages_without_documents(
    small_run: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed.duckdb"
    assert "24 new, 0 known already" in quench("ingest", small_run, "--no-texts", "--store", closed).stderr
    assert (
        quench("show", "--cells", "--store", closed, "--json").stdout
        == quench("show", "--cells", "--store", small_run, "--json").stdout
    )
    quench("render", "--store", closed, "--out", tmp_path / "site")
    assert (tmp_path / "site/submission/mini-npo-gdr-lora.html").is_file()
    assert not list((tmp_path / "site").rglob("*-documents.html"))
    assert "0 new, 24 known already, 0 in conflict" in quench("ingest", small_run, "--store", closed).stderr


def test_a_job_that_fails_is_rows_with_a_reason_and_exit_code_1_while_the_rest_goes_on(tmp_path: Path) -> None:
    for name in ("mini-target-4bit", "mini-retrain", "mini-noop-lora"):
        shutil.copytree(SHIPPED / name, tmp_path / "submissions" / name)
    config = tmp_path / "submissions" / "mini-noop-lora" / "weights" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "modules_to_save": ["lm_head"]}))
    manifest = tmp_path / "submissions" / "mini-noop-lora" / "submission.yaml"
    manifest.write_text("\n".join(line for line in manifest.read_text().splitlines() if "weights_sha256" not in line))
    store = tmp_path / "store.duckdb"
    quench("run", "--submissions", tmp_path / "submissions", "--quantizers", "reference", "--limit", "2",
           "--tasks", "muse_mini_knowmem_f", "--store", store, code=1)  # fmt: skip
    by_name = {row["submission"]: row for row in rows(quench("show", "--cells", "--store", store, "--json"), "show")}
    assert by_name["mini-noop-lora"]["status"] == "failed"
    assert "modules_to_save" in by_name["mini-noop-lora"]["reason"]
    assert by_name["mini-target-4bit"]["status"] == by_name["mini-retrain"]["status"] == "finished"


def test_an_unknown_quantizer_is_one_sentence_with_the_nearest_name(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    sentence = one_sentence(quench("run", "--quantizers", "rtn-4bit-g12x", "--store", store, code=2))
    assert "rtn-4bit-g128" in sentence
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_one_sentence(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    sentence = one_sentence(quench("run", "--tasks", "muse_mini_verbmen_f", "--store", store, code=2))
    assert "muse_mini_verbmem_f" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_folder_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    sentence = one_sentence(
        quench("run", "--corpus", "mini", "--data-dir", tmp_path / "nowhere", "--store", tmp_path / "s.duckdb", code=2)
    )
    assert str(tmp_path / "nowhere") in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tasks_without_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts a copy of tasks/ in use whose mini corpus states no reference AUC."""

    def forget_what_was_read() -> None:
        for function in vars(catalogue).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()

    tasks = tmp_path / "content" / "tasks"
    shutil.copytree(paths.content_dir("tasks"), tasks)
    facts = json.loads((tasks / "muse_mini" / "corpus.json").read_text())
    (tasks / "muse_mini" / "corpus.json").write_text(json.dumps({**facts, "reference_auc": None}))
    monkeypatch.setattr(catalogue, "content_dir", lambda name: tmp_path / "content" / name)
    forget_what_was_read()
    yield
    forget_what_was_read()


@pytest.mark.usefixtures("tasks_without_reference")
def test_a_missing_reference_value_is_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    store = tmp_path / "results" / "store.duckdb"
    sentence = one_sentence(quench("run", "mini-retrain", "--quantizers", "reference", "--limit", "1",
                                   "--store", store, code=2))  # fmt: skip
    assert "reference AUC" in sentence
    assert "corpus.json" in sentence
    assert not store.parent.exists()


def test_a_broken_manifest_is_told_in_one_sentence_per_fault(tmp_path: Path) -> None:
    folder = tmp_path / "submissions" / "bad-entry"
    folder.mkdir(parents=True)
    (folder / "submission.yaml").write_text("name: bad-entry\nkind: pickle\nunknown_field: 1\n")
    result = quench("run", "--submissions", folder.parent, "--store", tmp_path / "s.duckdb", code=2)
    assert "Traceback" not in result.stderr
    for expected in ("kind", "unknown_field", "method"):
        assert expected in result.stderr
    assert not (tmp_path / "s.duckdb").exists()


def test_yaml_that_is_no_yaml_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "submissions" / "bad-entry"
    folder.mkdir(parents=True)
    (folder / "submission.yaml").write_text("name: [unclosed\n")
    assert "submission.yaml" in one_sentence(quench("plan", "--submissions", folder.parent, code=2))


def test_validate_refuses_what_run_would_refuse_with_exit_code_2(tmp_path: Path) -> None:
    folder = tmp_path / "submissions" / "bad-entry"
    folder.mkdir(parents=True)
    (folder / "submission.yaml").write_text("name: bad-entry\n")
    (row,) = rows(quench("validate", folder, "--json", code=2), "validate")
    assert row["submission"] == "bad-entry"
    assert not row["valid"]
    assert len(row["faults"]) >= 3


def test_a_store_that_is_not_there_or_is_no_store_is_one_sentence(tmp_path: Path) -> None:
    assert "quench run" in one_sentence(quench("show", "--store", tmp_path / "none.duckdb", code=2))
    assert "none.duckdb" in one_sentence(quench("render", "--store", tmp_path / "none.duckdb", code=2))
    (tmp_path / "text.duckdb").write_text("this is no database")
    assert "text.duckdb" in one_sentence(quench("show", "--store", tmp_path / "text.duckdb", code=2))


def test_a_submissions_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    assert "--submissions" in one_sentence(quench("plan", "--submissions", tmp_path / "nowhere", code=2))


def test_the_miniature_s_data_are_rebuilt_with_the_shipped_digest(tmp_path: Path) -> None:
    quench("mini", "build", "--data-only", "--out", tmp_path)
    shipped = paths.content_dir("tasks") / "muse_mini" / "data"
    rebuilt = tmp_path / "tasks" / "muse_mini" / "data"
    names = sorted(path.relative_to(shipped) for path in shipped.rglob("*.json"))
    assert names
    assert names == sorted(path.relative_to(rebuilt) for path in rebuilt.rglob("*.json"))
    assert all((shipped / name).read_bytes() == (rebuilt / name).read_bytes() for name in names)


def test_a_plan_tells_what_each_job_takes_from_cells_that_have_run(small_run: Path) -> None:
    planned = rows(quench("plan", "mini-npo-gdr-lora", "--quantizers", "reference,bnb-nf4", "--limit", "4",
                          "--store", small_run, "--json"), "plan")  # fmt: skip
    assert {row["basis"] for row in planned} == {"same task"}
    assert all(row["seconds"] > 0 and row["memory_bytes"] > 2**20 and row["disk_bytes"] > 0 for row in planned)
    fresh = rows(quench("plan", "mini-npo-gdr-lora", "--store", small_run.parent / "none.duckdb", "--json"), "plan")
    assert {row["basis"] for row in fresh} == {"size of weights"}


def test_a_store_that_a_run_has_left_is_sound_and_a_lost_one_is_made_anew(small_run: Path, tmp_path: Path) -> None:
    assert rows(quench("doctor", "--store", small_run, "--json"), "doctor") == []
    store = tmp_path / small_run.name
    shutil.copytree(small_run.with_suffix(".records"), store.with_suffix(".records"))
    (found,) = rows(quench("doctor", "--store", store, "--json", code=1), "doctor")
    assert (found["what"], found["repaired"]) == ("no store", False)
    (found,) = rows(quench("doctor", "--store", store, "--repair", "--json"), "doctor")
    assert found["repaired"]
    assert len(rows(quench("show", "--cells", "--store", store, "--json"), "show")) == 24


def test_records_that_contradict_the_store_are_listed_and_end_with_1(small_run: Path, tmp_path: Path) -> None:
    store, folder = tmp_path / "store.duckdb", tmp_path / "elsewhere"
    shutil.copy(small_run, store)
    shutil.copytree(small_run.with_suffix(".records"), folder)
    assert "0 in conflict" in quench("ingest", folder, "--store", store).stderr
    record = next(path for path in sorted(folder.glob("*.json")) if '"metric":"verbmem_f"' in path.read_text())
    body = json.loads(record.read_text())
    body["scores"][0]["value"] = 0.123456
    record.write_text(json.dumps(body))
    (row,) = rows(quench("ingest", folder, "--store", store, "--json", code=1), "ingest")
    assert "0.123456 there" in row["differs"]


def test_watching_ends_when_nothing_is_to_do_and_excludes_json(small_run: Path) -> None:
    shown = quench("status", "mini-npo-gdr-lora", "--quantizers", "reference", "--limit", "4", "--store", small_run,
                   "--watch")  # fmt: skip
    assert "mini-npo-gdr-lora" in shown.stdout
    assert "exclude each other" in one_sentence(quench("status", "--watch", "--json", code=2))
