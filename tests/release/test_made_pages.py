"""Pages that follow the code: the reference of commands is the commands', the errata name every known departure."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks import cli_reference, marked_pages
from harness.cli.main import app
from harness.cli.options import PANELS

ROOT = Path(__file__).parents[2]
DEPARTS = re.compile(r"Differs from the reference:")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_reference_of_commands_is_what_the_commands_say_now() -> None:
    assert page("cli.md") == cli_reference.markdown(), "run python -m benchmarks.cli_reference"


def test_every_command_and_every_option_stands_in_the_reference() -> None:
    text = page("cli.md")

    def look(command: Any, path: str) -> None:
        assert re.search(rf"^##+ `{path}`$", text, re.MULTILINE), path
        section = re.split(rf"^##+ `{path}`$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert re.search(rf"`.*{option}\b", section), f"{path} {option}"
        for name, child in getattr(command, "commands", {}).items():
            look(child, f"{path} {name}")

    root: Any = typer.main.get_command(app)
    for name, child in root.commands.items():
        look(child, f"quench {name}")


def test_the_reference_lists_commands_in_the_order_of_the_help() -> None:
    text = page("cli.md")
    listed = re.findall(r"^  - \[`quench (\w+)`\]", text, re.MULTILINE)
    root: Any = typer.main.get_command(app)
    assert re.findall(r"^- ([\w ]+)$", text, re.MULTILINE) == list(PANELS)
    assert listed == root.list_commands(typer.Context(root)) == re.findall(r"^## `quench (\w+)`$", text, re.MULTILINE)


def test_the_reference_cuts_no_summary_off_and_names_nothing_of_this_machine() -> None:
    text = cli_reference.markdown()
    assert not re.search(r"^[-*] \[?`(?:quench )?[a-z]+`.*\.\.\.$", text, re.MULTILINE)
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


def test_a_new_option_would_make_the_reference_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    other = typer.Typer()

    @other.command()
    def first(store: str = typer.Option("x", "--other-store", help="Another store.")) -> None:
        """Do one thing.

        At length.
        """

    @other.command()
    def second() -> None:
        """Do another."""

    monkeypatch.setattr(cli_reference, "app", other)
    text = cli_reference.markdown()
    assert "- [`quench first`](#quench-first): Do one thing.\n" in text
    assert "--other-store" in text
    assert text != page("cli.md")


def test_the_reference_is_written_to_the_page_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli_reference.py", "--page", str(tmp_path / "cli.md")])
    cli_reference.main()
    assert (tmp_path / "cli.md").read_text(encoding="utf-8") == cli_reference.markdown()


def test_the_errata_name_every_module_that_says_it_differs_from_its_reference() -> None:
    text = page("errata.md")
    departing = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "harness").rglob("*.py"))
        if DEPARTS.search(path.read_text(encoding="utf-8"))
    ]
    assert len(departing) >= 8
    assert [module for module in departing if f"`{module}`" not in text] == []


def test_the_workflow_of_the_page_on_hosting_lets_no_job_both_run_code_and_write() -> None:
    found = re.search(r"```yaml\n(name: publish.*?)```", page("self_hosting.md"), re.DOTALL)
    assert found is not None
    workflow = yaml.safe_load(found[1])
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        runs_code = any("run" in step for step in job["steps"])
        writes = "write" in job["permissions"].values()
        assert runs_code != writes


def test_a_made_part_takes_the_place_of_the_old_one_and_nothing_else_moves(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter <!-- a -->\n", encoding="utf-8")
    for made in ("new", "newer"):
        marked_pages.rewrite(path, "<!-- a -->", "<!-- /a -->", made)
        assert path.read_text(encoding="utf-8") == f"before\n<!-- a -->\n{made}\n<!-- /a -->\nafter <!-- a -->\n"


@pytest.mark.parametrize("text", ["no mark", "<!-- a --> opened", "<!-- /a --> closed first <!-- a -->"])
def test_a_page_without_both_marks_in_their_order_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md has no part between <!-- a --> and <!-- /a -->\."):
        marked_pages.rewrite(path, "<!-- a -->", "<!-- /a -->", "new")
    assert path.read_text(encoding="utf-8") == text
