"""What pip would leave of a package, and the one that docs/extending shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from harness import plugins, quantize
from harness.quantize import plugins as quantizer_plugins
from harness.score.metrics import plugins as metric_plugins

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "extending"

Declare = Callable[..., Path]


def forget() -> None:
    """Has Quench look again at what is installed."""
    for cached in (plugins.found, quantizer_plugins.look, quantize.discover, metric_plugins.look):
        cached.cache_clear()


def write_package(folder: Path, name: str, version: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    """Writes what pip would leave of a package beside its code: its name, version and entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(entries.items()))
             for group, entries in groups.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
