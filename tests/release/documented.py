"""What the pages tell a reader to type, and a place to type it: a fresh copy of the code with ``quench`` on the path.

A ```` ```bash ```` block is typed by the default suite. Where that can't be, the line above it says why, and how:
``<!-- not run: needs a GPU -->``, or ``<!-- run by make test-all -->`` for what takes a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOW = "run by make test-all"
REASONS = (
    "needs a GPU", "needs a cluster", "needs Docker", "needs the network", "needs files of the reader's",
    "takes minutes",
)  # fmt: skip
"""Why a block may stand unrun, after ``not run:``."""

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- ((?:not )?run\b[^\n]*?) -->\n)?^[ ]*```bash\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of commands."""

    page: str
    line: int
    commands: str
    mark: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns a page's blocks of commands in order, each with the mark above it."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(page=name, line=text.count("\n", 0, found.start(2)) + 1, commands=found[2], mark=found[1])
        for found in _BLOCK.finditer(text)
    ]


class Clone:
    """The code as a release has it, without a history that could be dirty, installed into a ``.venv`` of its own.

    ``make`` finds everything installed, and ``quench`` is this interpreter's. ``store`` stands for the board's own,
    whose 864 cells take seconds to show.
    """

    def __init__(self, folder: Path, *, cache: Path, store: Path, submissions: Sequence[str] = ("mini-*",)) -> None:
        self.folder, self._cache = folder, cache
        for name in ("harness", "tasks", "leaderboard"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site"))
        for name in ("pyproject.toml", "constraints.txt", "Makefile"):
            shutil.copy(ROOT / name, folder)
        shutil.copy(store, folder / "results.duckdb")
        for source in {path for pattern in submissions for path in (ROOT / "submissions").glob(pattern)}:
            shutil.copytree(source, folder / "submissions" / source.name)
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n', encoding="utf-8")
        self._program(programs / "python", f'exec "{sys.executable}" "$@"')
        self._program(programs / "quench", f'exec "{sys.executable}" -m harness.cli.main "$@"')
        for installed in (".score", ".quantizers", ".dev"):
            (folder / ".venv" / installed).touch()
        # No browser opens on the machine that tests.
        self.tools = folder.parent / "tools"
        self.tools.mkdir(exist_ok=True)
        self._program(self.tools / "xdg-open", "exit 0")
        shutil.copy(programs / "quench", self.tools)

    @staticmethod
    def _program(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def type(self, commands: str) -> str:
        """Types commands as a person in the clone would, up to the first that fails.

        Returns:
            What they printed.

        Raises:
            AssertionError: One failed; with what all have printed.
        """
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, env=os.environ | {
                "PATH": f"{self.tools}:{os.environ['PATH']}", "PYTHONPATH": str(self.folder), "BROWSER": "true",
                "QUENCH_CACHE": str(self._cache),
            },
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout
