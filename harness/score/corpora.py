"""Corpora: what they are called, where their texts come from, their reference values.

A corpus is a folder ``tasks/muse_NAME/`` with one YAML per lm-eval task, one
for the group, and ``corpus.json`` with the facts. Its texts come from a given
folder in MUSE's local form (``CONFIG/SPLIT.json``), from ``data/`` beside the
YAMLs, or from the hub at a pinned commit. ``settings`` in a task's YAML
(``dataset_kwargs`` and ``generation_kwargs``) stand there and nowhere else.
Neither torch nor lm-eval is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import CorpusError, UnknownNameError
from harness.paths import content_dir
from harness.provenance import sha256_json
from harness.score import corpus_files, task_files
from harness.score.metrics import PRIMARY

Documents = list[dict[str, str]]
SplitName = tuple[str, str]

SPLITS_OF: Mapping[str, tuple[SplitName, ...]] = {
    "verbmem_f": (("verbmem", "forget"),),
    "knowmem_f": (("knowmem", "forget_qa"), ("knowmem", "forget_qa_icl")),
    "knowmem_r": (("knowmem", "retain_qa"), ("knowmem", "retain_qa_icl")),
    "privleak": (("privleak", "forget"), ("privleak", "holdout")),
}
"""The splits that each metric reads; MUSE's ``privleak/retain`` serves none of them."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus, with the facts of its ``corpus.json``.

    Attributes:
        name: ``mini``, ``news`` or ``books``.
        title: What pages call it.
        label: One honest paragraph for pages: what it can show and what not.
        tasks: Its tasks, in the order of ``metrics.PRIMARY``.
        group: lm-eval group of those tasks.
        reference_auc: Min-40% AUC of the retrained model; None when nobody
            has measured it, and then PrivLeak can't be computed.
        reference_source: Where that value comes from.
        source: Where the texts come from, for readers.
        hub_repo: Data set on the hub, None for a corpus without one.
        revision: Commit of ``hub_repo``.
        license: Licence as its publisher declares it.
        license_note: What that licence leaves open.
        pinned_sha256: Digest that the shipped texts must have, None if any will do.
        folder: Folder of the YAMLs.
        data_dir: Folder in MUSE's local form that was given; None for the default.
    """

    name: str
    title: str
    label: str
    tasks: tuple[str, ...]
    group: str
    reference_auc: float | None
    reference_source: str | None
    source: str
    hub_repo: str | None
    revision: str | None
    license: str
    license_note: str | None
    pinned_sha256: str | None
    folder: Path
    data_dir: Path | None

    @cached_property
    def data_sha256(self) -> str:
        """Digest over all texts that the tasks read; loads them on first use.

        Raises:
            CorpusError: Texts are missing or malformed, or the shipped ones
                are not those that ``corpus.json`` pins.
        """
        used = sorted({split for metric in SPLITS_OF.values() for split in metric})
        digest = sha256_json({f"{config}/{split}": load_split(self, config, split) for config, split in used})
        if self.data_dir is None and self.pinned_sha256 not in (None, digest):
            raise CorpusError(
                f"The texts of corpus {self.name!r} have the digest {digest}, but {self.folder / 'corpus.json'} pins"
                f" {self.pinned_sha256}: restore the texts, or build the corpus again."
            )
        return digest


def tasks_dir() -> Path:
    """Returns the folder that holds the corpora, to be given to lm-eval as ``include_path``."""
    return content_dir("tasks")


def _facts() -> dict[str, tuple[Path, Mapping[str, Any]]]:
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path in sorted(tasks_dir().glob("*/corpus.json")):
        facts = corpus_files.read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts.get("name"), str):
            raise CorpusError(f"{path} must be a JSON object with a 'name': restore it from the repository.")
        found[facts["name"]] = (path, facts)
    return found


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
        CorpusError: ``data_dir`` is no folder, or ``corpus.json`` lacks a fact.
    """
    facts = _facts()
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
            folder=path.parent,
            data_dir=data_dir,
        )
    except KeyError as missing:
        raise CorpusError(f"{path} has no {missing}: restore it from the repository.") from None


def load_split(corpus: Corpus, config: str, split: str) -> Documents:
    """Returns one split; items of ``privleak`` and ``raw`` become ``{"text": ...}``.

    Args:
        corpus: The corpus.
        config: ``knowmem``, ``verbmem``, ``privleak`` or ``raw``.
        split: Name of the split, e.g. ``forget_qa``.

    Raises:
        CorpusError: The file is missing, malformed or empty, or the hub
            can't be reached; the sentence says what to do.
    """
    if corpus.data_dir is not None:
        remedy = "give --data-dir a folder in MUSE's local form."
        return corpus_files.read_split(corpus.data_dir, config, split, remedy)
    if corpus.hub_repo is None:
        remedy = f"it ships with Quench; restore {corpus.folder / 'data'} or run `quench mini build --data-only`."
        return corpus_files.read_split(corpus.folder / "data", config, split, remedy)
    folder = corpus_files.hub_folder(corpus.name, corpus.hub_repo, str(corpus.revision), config, split)
    return corpus_files.read_split(folder, config, split, f"delete {folder} so that it is fetched again.")


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
    """Returns a task's primary metric, one of ``metrics.PRIMARY``.

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
    return task_files.read_task(task_yaml(task))


def task_digest(task: str) -> str:
    """Returns the digest of a task's whole configuration: any setting changes it.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: The YAML is broken.
    """
    return sha256_json(task_settings(task))


def check_task(task: str, *, data_dir: Path | None = None) -> None:
    """Makes sure that a task can be scored: its texts and its reference value are there.

    Raises:
        UnknownNameError: There is no such task.
        CorpusError: Something is missing; the sentence says what and what to do.
    """
    name, metric = _task(task)
    corpus = load_corpus(name, data_dir=data_dir)
    if metric == "privleak":
        reference_auc(corpus)
    for config, split in SPLITS_OF[metric]:
        load_split(corpus, config, split)
    if metric.startswith("knowmem"):
        icl_documents(corpus, SPLITS_OF[metric][1][1], task_settings(task)["dataset_kwargs"]["icl_pairs"])


def reference_auc(corpus: Corpus) -> float:
    """Returns the retrained model's AUC, without which PrivLeak means nothing.

    Raises:
        CorpusError: ``corpus.json`` has none, or one outside (0, 1].
    """
    value = corpus.reference_auc
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise CorpusError(
            f"Corpus {corpus.name!r} has no usable reference AUC ({value!r}), so PrivLeak can't be computed: measure"
            f" the retrained model's Min-40% AUC and state it as 'reference_auc' in {corpus.folder / 'corpus.json'}."
        )
    return float(value)


def icl_documents(corpus: Corpus, split: str, pairs: int) -> Documents:
    """Returns the first ``pairs`` in-context questions and answers of a ``knowmem`` split.

    Raises:
        CorpusError: There are fewer.
    """
    found = load_split(corpus, "knowmem", split)
    if len(found) < pairs:
        raise CorpusError(
            f"knowmem/{split} of corpus {corpus.name!r} has {len(found)} pairs, but the task's 'icl_pairs' asks for"
            f" {pairs}: use the corpus's own data."
        )
    return found[:pairs]
