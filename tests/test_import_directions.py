"""The house has floors: a room imports only from lower ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "harness"
FLOOR = {
    "records": 1, "errors": 1, "paths": 1, "memory": 1, "shards": 1,
    "plugins": 2, "provenance": 2, "submit": 2, "quantize": 2, "score": 2, "store": 2,
    "publish": 3, "run": 3, "unlearn": 3,
    "mini": 4, "reproduce": 4, "probe": 4, "contract": 4,
    "cli_options": 5, "cli_making": 5, "cli_logs": 5, "cli_cache": 5, "cli_backends": 5, "cli_showing": 5,
    "cli_compare": 5, "cli_submitting": 5, "cli_exporting": 5, "cli_survival": 5, "cli_reproduce": 5, "cli_planning": 5,
    "cli_running": 5, "cli_relearning": 5, "cli_extending": 5, "cli": 5,
}  # fmt: skip
MODULES = sorted(HARNESS.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "harness":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("harness."):
            rooms.add(room(node.module))
        elif isinstance(node, ast.Import):
            rooms |= {room(alias.name) for alias in node.names if alias.name.startswith("harness.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(HARNESS).as_posix())
def test_a_room_imports_only_from_lower_floors(path: Path) -> None:
    own = path.relative_to(HARNESS).with_suffix("").parts[0]
    if own == "__init__":
        assert imported_rooms(path) == set()
        return
    assert own in FLOOR, f"{own} has no floor yet: draw it in docs/architecture.md and here"
    for other in imported_rooms(path) - {own}:
        same_floor = FLOOR[other] == FLOOR[own] and (other in ("plugins", "provenance") or own.startswith("cli"))
        assert FLOOR[other] < FLOOR[own] or same_floor, f"{own} (floor {FLOOR[own]}) imports {other} ({FLOOR[other]})"


def test_every_room_of_the_house_has_a_floor_and_every_floor_a_room() -> None:
    rooms = {path.relative_to(HARNESS).with_suffix("").parts[0] for path in MODULES} - {"__init__"}
    assert rooms == set(FLOOR)


def test_folders_are_at_most_two_deep() -> None:
    assert all(len(path.relative_to(HARNESS).parts) <= 3 for path in MODULES)


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "lm_eval", "altair", "ray", "duckdb")
    code = f"import sys, harness.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
