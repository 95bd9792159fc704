"""Plug-ins of installed packages, found by their entry points; listing them imports none of their code.

Only an installed package brings code: never a submission, and never a corpus's
folder. An entry point's name is the name of what it adds, its value the module
(``package.module``, or ``package.module:object``) that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import PluginError, one_line

QUANTIZERS, CORPORA, METRICS = "quench.quantizers", "quench.corpora", "quench.metrics"
GROUPS = (QUANTIZERS, CORPORA, METRICS)
"""Groups of entry points that Quench reads."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One thing that an installed package adds.

    Attributes:
        group: One of ``GROUPS``.
        name: Name of what is added.
        value: Module that holds it, with ``:object`` where it is a part of one.
        package: Distribution that declares it.
        version: Version of that distribution.
    """

    group: str
    name: str
    value: str
    package: str
    version: str

    @property
    def origin(self) -> str:
        """The package with its version, which is part of the key of every cell made with it."""
        return f"{self.package} {self.version}"

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return self.value.partition(":")[0].strip()

    def refused(self, what: str, remedy: str) -> PluginError:
        """Returns the error that says what is wrong with it, and what to do."""
        return PluginError(f"Plug-in {self.name!r} of {self.origin} ({self.group}) {what}: {remedy}.")


@cache
def found(group: str) -> tuple[Plugin, ...]:
    """Returns what installed packages declare in a group, sorted by name; nothing is imported."""
    declared = {
        Plugin(
            group=group,
            name=entry.name,
            value=entry.value,
            package=entry.dist.name if entry.dist else "an unknown package",
            version=entry.dist.version if entry.dist else "0",
        )
        for entry in metadata.entry_points(group=group)
    }
    return tuple(sorted(declared, key=lambda plugin: (plugin.name, plugin.package)))


def check_name(plugin: Plugin, taken: Collection[str]) -> None:
    """Makes sure that a plug-in's name is a name, and its own.

    Args:
        plugin: What a package declares.
        taken: Names of Quench itself, which no package may replace.

    Raises:
        PluginError: It is not.
    """
    if not _NAME.fullmatch(plugin.name):
        raise plugin.refused("has no usable name", "lower-case letters, digits and _ are accepted, a letter first")
    if plugin.name in taken:
        raise plugin.refused("takes a name of Quench itself", "rename it, built-in names can't be replaced")
    others = [other.package for other in found(plugin.group) if other.name == plugin.name and other != plugin]
    if others:
        raise plugin.refused(f"is declared by {' and '.join(others)} as well", "uninstall all but one of them")


def load(plugin: Plugin) -> Any:
    """Imports the object that a plug-in's entry point names.

    Raises:
        PluginError: The import failed, whatever it raised.
    """
    try:
        return metadata.EntryPoint(name=plugin.name, value=plugin.value, group=plugin.group).load()
    except (Exception, SystemExit) as error:
        said = one_line(error)
        what = f"can't be imported ({type(error).__name__}: {said})"
        raise plugin.refused(what, f"repair it, or run pip uninstall {plugin.package}") from error


def place(plugin: Plugin) -> Path:
    """Returns where a plug-in's module lies, without ending; found without importing it.

    A package is a folder of that name, a module the file with ``.py`` at its end.

    Raises:
        PluginError: There is no such top-level module.
    """
    top, *parts = plugin.module.split(".")
    folders = list(_folders_of(top))
    if not folders:
        raise plugin.refused(f"names the module {plugin.module}, which is not there", "install its package again")
    return folders[0].joinpath(*parts)


def folders() -> Iterator[Path]:
    """Yields the folders of all packages that add something: what a fenced worker must be able to read."""
    for group in GROUPS:
        for plugin in found(group):
            yield from _folders_of(plugin.module.partition(".")[0])


def _folders_of(top: str) -> Iterator[Path]:
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is not None and spec.submodule_search_locations is not None:
        yield from map(Path, spec.submodule_search_locations)
    elif spec is not None and spec.origin is not None:
        yield Path(spec.origin).with_suffix("")
