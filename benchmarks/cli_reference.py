"""Writes docs/cli.md: every command with its arguments, options and examples, as ``quench COMMAND --help`` has them."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from harness.cli.main import app

HEAD = """# Commands

Made by `benchmarks/cli_reference.py` from the commands themselves; a test holds the two against each other. Exit codes:
0 done, 1 some cell failed or something asked for was left out, 2 bad input. Tables go to stdout, with `--json` as one
JSON document; progress and errors go to stderr.
"""


def main() -> None:
    """Writes the page anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/cli.md"))
    parser.parse_args().page.write_text(markdown(), encoding="utf-8")


def markdown() -> str:
    """Returns the page; it says nothing of the machine that it is made on."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="quench")
    commands = {name: root.commands[name] for name in root.list_commands(context)}
    listed = list[str]()
    for panel, names in itertools.groupby(commands, lambda name: commands[name].rich_help_panel):
        listed += [
            f"- {panel}",
            *(f"  - [`quench {name}`](#quench-{name}): {_summary(commands[name])}" for name in names),
        ]
    bodies = [get_docs_for_click(obj=child, ctx=context, indent=1, call_prefix="quench") for child in commands.values()]
    # Typer cuts the summaries of a group's commands, which stand in full right below.
    whole = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n", "", "".join(bodies))
    return "\n".join([HEAD, *listed, "", whole.rstrip()]) + "\n"


def _summary(command: Any) -> str:
    return " ".join(command.help.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
