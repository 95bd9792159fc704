"""The catalogue of corpora: names, places of their texts, reference values.

A corpus is a folder ``tasks/muse_NAME/`` with one YAML per lm-eval task, one
for the group, and ``corpus.json`` with the facts; others lie in installed
packages or where ``QUENCH_CORPORA`` says (``places``). Its texts come from a given
folder in MUSE's local form (``CONFIG/SPLIT.json``), from ``data/`` beside the
YAMLs, or from the hub at a pinned commit. ``settings`` in a task's YAML
(``dataset_kwargs`` and ``generation_kwargs``) stand there and nowhere else.
Neither torch nor lm-eval is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import CorpusError, PluginError, QuenchError, UnknownNameError
from harness.paths import content_dir
from harness.provenance import sha256_json
from harness.score.corpora import places as corpus_places
from harness.score.corpora import task_files
from harness.score.corpora.corpus import (
    SPLITS_OF,
    Corpus,
    Documents,
    ReferenceAuc,
    foreign_splits,
    icl_documents,
    load_split,
    reference_auc,
)
from harness.score.metrics.table import PRIMARY, plugged_in

__all__ = [
    "SPLITS_OF", "Corpus", "Documents", "ReferenceAuc", "broken", "check_task", "corpus_names", "corpus_of",
    "foreign_splits", "icl_documents", "is_outside", "load_corpus", "load_split", "metric_of", "outside",
    "reference_auc", "resolve_tasks", "task_digest", "task_settings", "task_yaml", "tasks_dir",
]  # fmt: skip


def tasks_dir() -> Path:
    """Returns the folder that holds the corpora, to be given to lm-eval as ``include_path``."""
    return content_dir("tasks")


def _facts() -> corpus_places.Places:
    return corpus_places.find(tasks_dir())


def broken() -> Mapping[str, str]:
    """Returns the sentence why a corpus of an installed package can't be used, by its name."""
    return corpus_places.broken(tasks_dir())


def outside() -> tuple[Path, ...]:
    """Returns the folders of all corpora that don't ship with Quench."""
    return tuple(path.parent for path, _ in _facts().values() if not _ships(path))


def _ships(path: Path) -> bool:
    return path.parent.parent == tasks_dir()


def corpus_names() -> tuple[str, ...]:
    """Returns the names of all corpora, sorted."""
    return tuple(sorted(_facts()))


def load_corpus(name: str, *, data_dir: Path | None = None) -> Corpus:
    """Returns a corpus; its texts are read when they are first needed.

    Args:
        name: Name of the corpus.
        data_dir: Folder in MUSE's local form to read instead of the default.

    Raises:
        UnknownNameError: There is no such corpus.
        PluginError: It is that of an installed package, and can't be used.
        CorpusError: ``data_dir`` is no folder, or ``corpus.json`` lacks a fact.
    """
    facts = _facts()
    if name not in facts and name in broken():
        raise PluginError(broken()[name])
    if name not in facts:
        raise UnknownNameError("corpus", name, facts)
    if data_dir is not None and not data_dir.is_dir():
        raise CorpusError(
            f"The data folder {data_dir} does not exist: give a folder with"
            " {knowmem,verbmem,privleak}/SPLIT.json as MUSE's loader writes them."
        )
    path, stated = facts[name]
    prefix = f"{path.parent.name}_"
    try:
        return Corpus(
            name=name,
            title=stated["title"],
            label=stated["label"],
            tasks=tuple(prefix + metric for metric in PRIMARY if (path.parent / f"{metric}.yaml").is_file()),
            group=path.parent.name,
            reference_auc=stated["reference_auc"],
            reference_source=stated["reference_source"],
            source=stated["source"],
            hub_repo=stated["hub_repo"],
            revision=stated["revision"],
            license=stated["license"],
            license_note=stated.get("license_note"),
            pinned_sha256=stated.get("data_sha256"),
            split_sha256=stated.get("split_sha256") or {},
            folder=path.parent,
            data_dir=data_dir,
            ships=_ships(path),
        )
    except KeyError as missing:
        raise CorpusError(f"{path} has no {missing}: restore it from the repository.") from None


def _tasks() -> dict[str, tuple[str, str]]:
    """Returns corpus and metric of every task."""
    return {
        f"{path.parent.name}_{metric}": (name, metric)
        for name, (path, _) in _facts().items()
        for metric in PRIMARY
        if (path.parent / f"{metric}.yaml").is_file()
    }


def _task(task: str) -> tuple[str, str]:
    tasks = _tasks()
    if task not in tasks:
        raise UnknownNameError("task", task, tasks)
    return tasks[task]


def resolve_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the tasks behind names of tasks and groups, in order, each once.

    Raises:
        UnknownNameError: A name is neither a task nor a group.
    """
    tasks = _tasks()
    groups: dict[str, list[str]] = {}
    for task, (_, metric) in tasks.items():
        groups.setdefault(task.removesuffix(f"_{metric}"), []).append(task)
    chosen: dict[str, None] = {}
    for name in names:
        if name not in groups and name not in tasks:
            raise UnknownNameError("task", name, [*tasks, *groups])
        chosen |= dict.fromkeys(groups.get(name, [name]))
    return tuple(chosen)


def corpus_of(task: str) -> str:
    """Returns the name of a task's corpus.

    Raises:
        UnknownNameError: There is no such task.
    """
    return _task(task)[0]


def metric_of(task: str) -> str:
    """Returns a task's primary metric, one of ``metrics.table.PRIMARY``.

    Raises:
        UnknownNameError: There is no such task.
    """
    return _task(task)[1]


def task_yaml(task: str) -> Path:
    """Returns the YAML file of a task.

    Raises:
        UnknownNameError: There is no such task.
    """
    name, metric = _task(task)
    return _facts()[name][0].parent / f"{metric}.yaml"


def task_settings(task: str) -> Mapping[str, Any]:
    """Returns a task's whole configuration, included templates merged in.

    Functions appear as ``"!function module.name"``.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: The YAML is broken.
    """
    path = task_yaml(task)
    return task_files.read_task(path) if _ships(path) else corpus_places.settings(path, tasks_dir() / "_metrics")


def is_outside(task: str) -> bool:
    """Returns whether a task is of a corpus that doesn't ship with Quench.

    Raises:
        UnknownNameError: There is no such task.
    """
    return not _ships(task_yaml(task))


def task_digest(task: str) -> str:
    """Returns the digest of a task's whole configuration: any setting changes it, and a package that adds a metric.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: The YAML is broken.
    """
    settings = dict(task_settings(task))
    added = {key: metric.plugin.origin for key, metric in plugged_in(metric_of(task)).items()}
    return sha256_json(settings | {"metrics of packages": added} if added else settings)


def check_task(task: str, *, data_dir: Path | None = None, reference: ReferenceAuc = None) -> None:
    """Makes sure that a task can be scored: its texts and its reference value are there.

    Args:
        task: Name of the task.
        data_dir: Folder in MUSE's local form, None for the corpus's default.
        reference: What PrivLeak is relative to.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: Something is missing; the sentence says what and what to do.
    """
    name, metric = _task(task)
    corpus = load_corpus(name, data_dir=data_dir)
    if metric == "privleak":
        reference_auc(corpus, reference)
    for config, split in SPLITS_OF[metric]:
        load_split(corpus, config, split)
    if metric.startswith("knowmem"):
        icl_documents(corpus, SPLITS_OF[metric][1][1], task_settings(task)["dataset_kwargs"]["icl_pairs"])


def corpus_facts(name: str) -> Corpus | None:
    """Returns what is known of a corpus here; None where a store comes from elsewhere."""
    try:
        return load_corpus(name)
    except QuenchError:
        return None
