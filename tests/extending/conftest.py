"""Packages of strangers: the one that docs/extending shows, and whatever a test wants declared."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from stranger_packages import EXAMPLE, Declare, forget, write_package


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Installs packages into a folder on the path, without pip; gone after the test."""
    site, known = tmp_path / "site", set(sys.modules)
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    # Commands that a test starts see it as well.
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")

    def install(
        name: str, groups: Mapping[str, Mapping[str, str]], *, version: str = "1.0", **modules: str
    ) -> Path:  # fmt: skip
        for module, code in modules.items():
            (site / f"{module}.py").write_text(code, encoding="utf-8")
        write_package(site, name, version, groups)
        forget()
        return site

    forget()
    yield install
    for module in set(sys.modules) - known:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(site)):
            del sys.modules[module]
    monkeypatch.undo()
    forget()


@pytest.fixture
def example(declare: Declare, tmp_path: Path) -> Path:
    """The package of docs/extending, copied file for file and declared as its pyproject.toml says."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(EXAMPLE / "quench_example", tmp_path / "site" / "quench_example",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    return declare(project["name"], project["entry-points"], version=project["version"])
