"""Places of corpora: shipped, in installed packages, in folders that a variable names.

A corpus from outside is texts and settings, never code: its task files may set
what differs from corpus to corpus, and take the rest from Quench's templates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import plugins
from harness.errors import CorpusError, PluginError
from harness.plugins import Plugin
from harness.score.corpora import files as corpus_files
from harness.score.corpora import task_files

VARIABLE = "QUENCH_CORPORA"
"""Environment variable that names folders of corpora, separated as ``PATH`` is."""

FACTS = "corpus.json"
PREFIX = "muse_"
"""What the folder of every corpus begins with, and therefore its tasks."""

SETTABLE = ("include", "task", "dataset_kwargs", "generation_kwargs")
"""Keys that a task file from outside may have."""

Places = dict[str, tuple[Path, Mapping[str, Any]]]
"""By a corpus's name: its ``corpus.json``, and what stands in it."""


def find(shipped: Path) -> Places:
    """Returns every corpus that can be used.

    Args:
        shipped: The folder of those that ship.

    Raises:
        CorpusError: A corpus that ships, or one that the variable names, has
            no usable facts, or the name or folder of another.
    """
    found, _ = _without_named(shipped)
    for path in _named():
        _add(found, path)
    return found


def broken(shipped: Path) -> dict[str, str]:
    """Returns the sentence why a corpus that an installed package declares can't be used, by its name."""
    return _without_named(shipped)[1]


def _without_named(shipped: Path) -> tuple[Places, dict[str, str]]:
    """Returns the corpora that ship and those of packages, and why others of packages are not among them."""
    found: Places = {}
    refused: dict[str, str] = {}
    for path in sorted(shipped.glob(f"*/{FACTS}")):
        _add(found, path)
    for plugin in plugins.found(plugins.CORPORA):
        try:
            _add(found, _checked(plugin, found))
        except (PluginError, CorpusError) as error:
            refused[plugin.name] = str(error)
    return found, refused


def _checked(plugin: Plugin, others: Places) -> Path:
    """Returns the ``corpus.json`` of a package's corpus.

    Raises:
        PluginError: The package's folder is no corpus of that name.
        CorpusError: Its facts can't be read.
    """
    plugins.check_name(plugin, others)
    path = plugins.place(plugin) / FACTS
    if not path.is_file():
        raise plugin.refused(f"has no {path}", f"name the folder of a corpus, {PREFIX}NAME, as a module of the package")
    name = _facts(path)["name"]
    if name != plugin.name:
        raise plugin.refused(f"is called {name!r} in {path}", "the entry point and the corpus must have one name")
    return path


def _named() -> Iterator[Path]:
    """Yields the ``corpus.json`` of every corpus below the folders that the variable names."""
    for place in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        root = Path(place)
        found = [root / FACTS] if (root / FACTS).is_file() else sorted(root.glob(f"*/{FACTS}"))
        if not found:
            raise CorpusError(
                f"{VARIABLE} names {place}, where there is no corpus: name a folder with {FACTS}, or one of such"
                " folders."
            )
        yield from (path.resolve() for path in found)


def name_each() -> None:
    """Has the variable name the folder of each corpus, for a process that can't look into a folder of several.

    Raises:
        CorpusError: It names a place where there is no corpus.
    """
    if VARIABLE in os.environ:
        os.environ[VARIABLE] = os.pathsep.join(str(path.parent) for path in _named())


def _add(found: Places, path: Path) -> None:
    facts = _facts(path)
    if facts["name"] in found:
        raise CorpusError(
            f"{path} and {found[facts['name']][0]} are both called {facts['name']!r}: give one another 'name'."
        )
    _check_folder(path, found)
    found[facts["name"]] = (path, facts)


def _facts(path: Path) -> Mapping[str, Any]:
    facts = corpus_files.read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("name"), str):
        raise CorpusError(f"{path} must be a JSON object with a 'name': restore it from the repository.")
    return facts


def _check_folder(path: Path, others: Places) -> None:
    folder = path.parent.name
    same = next((other for other, _ in others.values() if other.parent.name == folder), None)
    if same is not None:
        raise CorpusError(f"{path.parent} and {same.parent} would make tasks of the same names: rename one folder.")
    if not folder.startswith(PREFIX) or not folder.replace("_", "").isalnum():
        raise CorpusError(f"The folder {path.parent} can't be a corpus's: call it {PREFIX}NAME, of letters and digits.")


def settings(path: Path, templates: Path) -> dict[str, Any]:
    """Returns the configuration of a task from outside: Quench's template with the task's own settings above it.

    Args:
        path: The task's YAML, named after its metric.
        templates: Folder of Quench's templates.

    Raises:
        CorpusError: The YAML is broken or sets what a corpus may not set.
    """
    own = task_files.read_mapping(path)
    if strange := sorted(set(map(str, own)) - set(SETTABLE)):
        raise CorpusError(
            f"The task file {path} sets {', '.join(strange)}, which a corpus may not: {', '.join(SETTABLE)} are"
            " accepted."
        )
    template = f"../{templates.name}/{path.name}"
    if own.pop("include", None) != template:
        raise CorpusError(f"The task file {path} must have 'include: {template}', which is Quench's own template.")
    task = f"{path.parent.name}_{path.stem}"
    if own.get("task") != task:
        raise CorpusError(f"The task file {path} must have 'task: {task}': tasks are called after folder and metric.")
    named = [value for key in ("dataset_kwargs", "generation_kwargs") for value in _values(own.get(key))]
    if code := next((value for value in named if str(value).startswith("!function")), None):
        raise CorpusError(f"The task file {path} names code ({code}), which no corpus may bring: take it out.")
    return task_files.read_task(templates / path.name) | own


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _values(each)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each)
    else:
        yield value
