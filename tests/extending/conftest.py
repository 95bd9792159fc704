"""Packages of strangers: the one that docs/extending shows, and whatever a test wants declared."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from harness import plugins, quantize
from harness.quantize import plugged

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "extending"

Declare = Callable[..., Path]


def _forget() -> None:
    for cached in (plugins.found, plugged.look, quantize.discover):
        cached.cache_clear()


def write_package(folder: Path, name: str, version: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    """Writes what pip would leave of a package beside its code: its name, version and entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(entries.items()))
             for group, entries in groups.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


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
        _forget()
        return site

    _forget()
    yield install
    for module in set(sys.modules) - known:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(site)):
            del sys.modules[module]
    monkeypatch.undo()
    _forget()


@pytest.fixture
def example(declare: Declare, tmp_path: Path) -> Path:
    """The package of docs/extending, copied file for file and declared as its pyproject.toml says."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(EXAMPLE / "quench_example", tmp_path / "site" / "quench_example",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    return declare(project["name"], project["entry-points"], version=project["version"])
