"""The house has floors: a room imports only from lower ones, and nothing imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "harness"
FLOOR = {
    "records": 1, "errors": 1, "paths": 1, "memory": 1, "shards": 1,
    "plugins": 2, "provenance": 2, "submit": 2, "quantize": 2, "score": 2, "store": 2,
    "publish": 3, "run": 3, "unlearn": 3,
    "rescore": 4, "mini": 4, "experiments": 4, "contract": 4, "verify": 4,
    "cli": 5,
}  # fmt: skip
MOST_MODULES = 16


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HARNESS.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(HARNESS.rglob("*.py"))}
ROOMS = sorted(module for module, path in FILES.items() if path.name == "__init__.py")


def imported(path: Path) -> Iterator[str]:
    """Yields the modules that a file imports anywhere in it, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness":
            assert node.level == 0
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "harness")


IMPORTS = {module: set(imported(path)) - {module} for module, path in FILES.items()}


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
        beside = FLOOR[other] == FLOOR[own] and other in ("plugins", "provenance")
        assert FLOOR[other] < FLOOR[own] or beside, f"{module} (floor {FLOOR[own]}) imports {other} ({FLOOR[other]})"


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
    docstring = ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8"))) or ""
    assert len(docstring.split("\n")[0]) > 20


@pytest.mark.parametrize("room", ROOMS)
def test_a_shelf_holds_at_most_sixteen_modules(room: str) -> None:
    modules = [path.name for path in FILES[room].parent.glob("*.py")]
    assert len(modules) <= MOST_MODULES, modules


def test_folders_are_at_most_two_deep() -> None:
    assert all(len(path.relative_to(HARNESS).parts) <= 3 for path in FILES.values())


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "lm_eval", "altair", "ray", "duckdb")
    code = f"import sys, harness.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
