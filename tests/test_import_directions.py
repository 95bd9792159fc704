"""The house has floors: a room imports only from lower ones, and nothing imports in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "harness"
FLOOR = {
    "records": 1, "errors": 1, "paths": 1, "memory": 1, "shards": 1, "lru_folder": 1,
    "model_files": 2, "plugins": 2, "provenance": 2, "tokenizer": 2, "submit": 2, "quantize": 2, "score": 2, "store": 2,
    "publish": 3, "run": 3, "unlearn": 3,
    "rescore": 4, "mini": 4, "experiments": 4, "contract": 4, "verify": 4,
    "cli": 5,
}  # fmt: skip
PUBLISH_FLOOR = {
    "thresholds": 1,
    "statistics": 2,
    "board": 3, "formatting": 3,
    "ranking": 4, "charts": 4,
    "comparison": 5, "tables": 5,
    "release": 6,
    "exports": 7,
    "pages": 8, "pull_request": 8,
}  # fmt: skip
MOST_MODULES = 16
# A worker imports the main module again, so its server loads that first; the runner itself takes nothing from it.
PRELOADED = ("harness.run.executors.local", "harness.cli.main")
# Finds the backends of its own folder by their names.
FINDS_BY_NAME = "harness.quantize"
LOADERS = {"import_module", "__import__", "resolve_name", "run_module", "run_path", "exec", "eval"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HARNESS.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(HARNESS.rglob("*.py"))}
ROOMS = sorted(module for module, path in FILES.items() if path.name == "__init__.py")
SHELVES = sorted({path.parent for path in FILES.values()})
# pytest puts folders of tests on the path, so their modules have bare names.
OUTSIDE = {"tests", "benchmarks", *(path.stem for path in Path(__file__).parent.rglob("*.py"))}
_MODULE = re.compile(r"((?:harness|tests|benchmarks)(?:\.\w+)+)(?::[\w.]+)?")
_NAME = re.compile(r"[A-Za-z_][\w.:]*")


def imported(source: str) -> Iterator[str]:
    """Yields the modules that a source imports or names in a text of its own, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and (named := _MODULE.fullmatch(str(node.value))):
            yield named[1]


def faults(module: str, source: str) -> Iterator[str]:
    """Yields the imports that no module of the house may have, or whose module can't be read from the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{module}: line {node.lineno} imports relatively: write the whole name"
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "harness" for alias in node.names):
            yield f"{module}: line {node.lineno} opens the whole house: write from harness.room import module"
        elif isinstance(node, ast.Call) and module != FINDS_BY_NAME:
            loader = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            # model.eval() takes nothing; a whole name in quotes is read as an import.
            whole = [_NAME.fullmatch(str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant)]
            if loader in LOADERS and node.args and not any(whole):
                yield f"{module}: line {node.lineno} imports what can't be read here"
    for name in imported(source):
        if name.split(".")[0] in OUTSIDE or (
            name.split(".")[0] in ("pytest", "_pytest") and child("harness", module) != "contract"
        ):
            yield f"{module} imports {name}"


def of_house(source: str) -> set[str]:
    return {name for name in imported(source) if name.split(".")[0] == "harness"}


SOURCES = {module: path.read_text(encoding="utf-8") for module, path in FILES.items()}
IMPORTS = {
    module: {name for name in of_house(source) if name != module and (module, name) != PRELOADED}
    for module, source in SOURCES.items()
}


def child(room: str, module: str) -> str | None:
    """Returns which module or sub-room of ``room`` holds a module; None for a module outside."""
    if module == room:
        return "__init__"
    return module.removeprefix(f"{room}.").split(".")[0] if module.startswith(f"{room}.") else None


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the names along one circle; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_only_from_lower_floors(module: str) -> None:
    own = child("harness", module)
    if own == "__init__":
        assert not IMPORTS[module]
        return
    assert own in FLOOR, f"{own} has no floor yet: draw it in docs/architecture.md and here"
    for other in {str(child("harness", other)) for other in IMPORTS[module]} - {own}:
        beside = FLOOR[other] == FLOOR[own] and other in ("model_files", "plugins", "provenance", "tokenizer")
        assert FLOOR[other] < FLOOR[own] or beside, f"{module} (floor {FLOOR[own]}) imports {other} ({FLOOR[other]})"


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("harness.publish.")])
def test_publishing_imports_only_from_lower_floors_of_its_own(module: str) -> None:
    own = str(child("harness.publish", module))
    for other in {child("harness.publish", other) for other in IMPORTS[module]} - {None, own}:
        assert PUBLISH_FLOOR[str(other)] < PUBLISH_FLOOR[own], f"{module} imports {other}"


def test_every_part_of_publishing_has_a_floor() -> None:
    parts = {child("harness.publish", module) for module in FILES if module.startswith("harness.publish.")}
    assert parts == set(PUBLISH_FLOOR)


def test_every_import_is_by_a_whole_name_that_can_be_read() -> None:
    assert [fault for module, source in SOURCES.items() for fault in faults(module, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from ..run import sweep", "from .. import run", "from .folder import scan", "from . import folder",
        "import harness", "import harness.run.sweep", "import harness as house",
        "import tests.conftest", "from tests import conftest", "import benchmarks.site", "import synthetic_board",
        "import pytest", "from pytest import mark", "import _pytest.config", "import_module('tests.hub_listing')",
        "importlib.import_module('.sweep', 'harness.run')", "importlib.import_module(name)", "__import__(name)",
        "pkgutil.resolve_name(f'harness.run.{name}')", "exec('import harness.run.sweep')", "eval(text)",
        "def f():\n    from ..run import sweep",
    ],
)  # fmt: skip
def test_an_import_that_hides_its_module_is_a_fault(source: str) -> None:
    assert list(faults("harness.submit.scan.folder", source))


@pytest.mark.parametrize(
    "source",
    [
        "from harness.run import sweep", "from harness.run.sweep import score",
        "def f():\n    import harness.run.sweep",
        "importlib.import_module('harness.run.sweep')", "__import__('harness.run.sweep')",
        "pkgutil.resolve_name('harness.run.sweep:score')", "sys.modules['harness.run.sweep']",
        "NAME = 'harness.run.sweep'",
    ],
)  # fmt: skip
def test_a_module_is_found_in_every_way_to_import_it(source: str) -> None:
    assert of_house(source) == {"harness.run.sweep"}


@pytest.mark.parametrize("source", ["model.eval()", "import_module('torch.nn')", "import os", "x = 'harness'"])
def test_what_imports_nothing_of_the_house_is_no_fault(source: str) -> None:
    assert not list(faults("harness.submit.scan.folder", source))
    assert of_house(source) == set()


def test_every_room_of_the_house_has_a_floor_and_every_floor_a_room() -> None:
    assert {child("harness", module) for module in FILES} - {"__init__"} == set(FLOOR)


def test_every_import_leads_to_a_module() -> None:
    assert set().union(*IMPORTS.values()) <= set(FILES)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(IMPORTS) == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_parts_of_a_room_import_each_other_in_no_circle(room: str) -> None:
    graph: dict[str, set[str]] = {}
    for module, others in IMPORTS.items():
        part = child(room, module)
        if part is not None:
            parts = {other for each in others if (other := child(room, each)) not in (None, part)}
            graph.setdefault(part, set()).update(map(str, parts))
    assert circle(graph) == []


@pytest.mark.parametrize("module", [module for module in FILES if module != "harness"])
def test_every_module_says_in_its_first_line_what_it_holds(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(SOURCES[module])) or ""
    assert len(docstring.split("\n")[0]) > 20


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.name)
def test_a_shelf_is_a_package_of_at_most_sixteen_modules(shelf: Path) -> None:
    modules = [path.name for path in shelf.glob("*.py")]
    assert "__init__.py" in modules
    assert len(modules) <= MOST_MODULES, modules


def test_folders_are_at_most_two_deep() -> None:
    assert all(len(path.relative_to(HARNESS).parts) <= 3 for path in FILES.values())


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "lm_eval", "altair", "ray", "duckdb")
    code = f"import sys, harness.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
