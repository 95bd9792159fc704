"""Checks that a folder is a corpus that can be scored; reports all faults of facts, tasks and texts at once.

Only reads: no code that the folder may name is imported, nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import CorpusError
from harness.score.corpora import catalogue, task_files, text_check
from harness.score.corpora import files as corpus_files
from harness.score.corpora import places as corpus_places
from harness.score.corpora.catalogue import SPLITS_OF
from harness.score.corpora.text_check import Split
from harness.score.metrics.table import PRIMARY

_FACTS: Mapping[str, tuple[type, ...]] = {
    "name": (str,), "title": (str,), "label": (str,), "source": (str,), "license": (str,),
    "license_note": (str, type(None)), "hub_repo": (str, type(None)), "revision": (str, type(None)),
    "reference_auc": (float, int, type(None)), "reference_source": (str, type(None)),
    "data_sha256": (str, type(None)), "split_sha256": (dict, type(None)),
}  # fmt: skip
_MAY_LACK = ("license_note", "data_sha256", "split_sha256")
_NUMBERS = {"verbmem_f": ("reference_tokens",), "knowmem_f": ("icl_pairs",), "knowmem_r": ("icl_pairs",)}

_OPTIONAL_SPLITS = (
    ("privleak", "retain"), ("raw", "forget"), ("raw", "retain1"), ("raw", "retain2"), ("raw", "holdout"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found.

    Attributes:
        splits: Files of texts, those that tasks read first.
        faults: Sentences: the corpus can't be used until they are mended.
        remarks: Sentences: what to know, or to do better.
    """

    splits: tuple[Split, ...]
    faults: tuple[str, ...]
    remarks: tuple[str, ...]


def check(folder: Path, *, data_dir: Path | None = None) -> Checked:
    """Returns everything that is wrong with a corpus's folder, and what it holds.

    Args:
        folder: Folder with ``corpus.json``, a YAML per task and ``data/``.
        data_dir: Folder in MUSE's local form to look at instead of ``data/``.

    Raises:
        CorpusError: There is no such folder.
    """
    if not folder.is_dir():
        raise CorpusError(f"There is no folder {folder}: name one with corpus.json, a YAML for each task and data/.")
    folder = folder.resolve()
    faults: list[str] = []
    remarks: list[str] = []
    facts = _facts(folder, faults, remarks)
    tasks = _tasks(folder, facts, faults)
    _group(folder, tasks, faults)
    data = data_dir or folder / "data"
    if data_dir is None and facts.get("hub_repo") and not data.is_dir():
        remarks.append(f"The texts are on the hub ({facts['hub_repo']}): fetch them and give --data-dir to check them.")
        return Checked(splits=(), faults=tuple(faults), remarks=(*remarks, *_reference(facts, tasks)))
    needed = sorted({split for task in tasks for split in SPLITS_OF[task]})
    texts: dict[str, list[dict[str, str]]] = {}
    splits = tuple(text_check.split(data, *split, texts, faults, remarks, needed=True) for split in needed) + tuple(
        text_check.split(data, *split, texts, faults, remarks, needed=False)
        for split in _OPTIONAL_SPLITS
        if (data / split[0] / f"{split[1]}.json").is_file()
    )
    faults += text_check.overlaps(texts)
    faults += _too_few_pairs(folder, tasks, texts)
    if data_dir is None:
        text_check.check_pins(facts, texts, needed, faults, remarks)
    remarks += _reference(facts, tasks)
    return Checked(splits=splits, faults=tuple(faults), remarks=tuple(remarks))


def _facts(folder: Path, faults: list[str], remarks: list[str]) -> Mapping[str, Any]:
    path = folder / corpus_places.FACTS
    try:
        facts = corpus_files.read_json(path, f"write its facts, {', '.join(_FACTS)}.")
    except CorpusError as error:
        faults.append(str(error))
        return {}
    if not isinstance(facts, dict):
        faults.append(f"{path} must be a JSON object with {', '.join(_FACTS)}.")
        return {}
    for name, kinds in _FACTS.items():
        if name not in facts and name not in _MAY_LACK:
            faults.append(f"{path} has no {name!r}: add it{', or null' if type(None) in kinds else ''}.")
        elif name in facts and (not isinstance(facts[name], kinds) or facts[name] is True or facts[name] == ""):
            accepted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            faults.append(f"{path}: {name!r} is {facts[name]!r}, and {accepted} is accepted.")
    if strange := sorted(set(facts) - set(_FACTS)):
        remarks.append(f"{path} has {', '.join(strange)}, which nothing reads; {', '.join(_FACTS)} are read.")
    faults += _names(folder, facts.get("name"))
    auc = facts.get("reference_auc")
    if isinstance(auc, int | float) and not 0 < auc <= 1:
        faults.append(f"{path}: 'reference_auc' is {auc}, and an AUC lies above 0 and up to 1.")
    if isinstance(auc, int | float) and not facts.get("reference_source"):
        faults.append(f"{path} states a reference AUC without 'reference_source': say how it was measured.")
    if facts.get("hub_repo") and not re.fullmatch(r"[0-9a-f]{7,40}", str(facts.get("revision"))):
        faults.append(f"{path}: 'revision' is {facts.get('revision')!r}, and the commit of the hub's data is needed.")
    return facts


def _names(folder: Path, name: Any) -> Iterator[str]:
    if isinstance(name, str) and not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        yield f"The corpus is called {name!r}: lower-case letters, digits and _ are accepted, a letter first."
    if not re.fullmatch(rf"{corpus_places.PREFIX}[A-Za-z0-9_]+", folder.name):
        yield f"The folder is called {folder.name!r}: call it {corpus_places.PREFIX}NAME, as its tasks are."
    for other in catalogue.corpus_names():
        place = catalogue.load_corpus(other).folder
        if place.resolve() != folder and (other == name or place.name == folder.name):
            yield f"{place} is a corpus called {other!r} already: take another name and folder."


def _tasks(folder: Path, facts: Mapping[str, Any], faults: list[str]) -> tuple[str, ...]:
    """Returns the metrics whose tasks the folder has."""
    found = tuple(metric for metric in PRIMARY if (folder / f"{metric}.yaml").is_file())
    if not found:
        faults.append(
            f"{folder} has no task: add {', '.join(f'{metric}.yaml' for metric in PRIMARY)}, or some of them."
        )
    for path in sorted(folder.glob("*.yaml")):
        if path.stem not in (*PRIMARY, "group"):
            faults.append(f"{path} is no task: {', '.join(f'{metric}.yaml' for metric in PRIMARY)} are read.")
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".so", ".pyc")):
        if path.name != "__init__.py" or path.stat().st_size:
            faults.append(f"{path} is code, which no corpus brings: take it out.")
    for metric in found:
        path = folder / f"{metric}.yaml"
        try:
            settings = corpus_places.settings(path, catalogue.tasks_dir() / "_metrics")
        except CorpusError as error:
            faults.append(str(error))
            continue
        faults += _settings(path, metric, settings, facts.get("name"))
    return found


def _settings(path: Path, metric: str, settings: Mapping[str, Any], name: Any) -> Iterator[str]:
    given = settings.get("dataset_kwargs")
    given = given if isinstance(given, dict) else {}
    wanted = {"corpus": name}
    if metric.startswith("knowmem"):
        wanted["questions"] = "forget_qa" if metric == "knowmem_f" else "retain_qa"
    for key, value in wanted.items():
        if given.get(key) != value:
            yield f"{path}: dataset_kwargs must have {key}: {value}, and has {given.get(key)!r}."
    for key in _NUMBERS.get(metric, ()):
        if type(given.get(key)) is not int or given[key] < 1:
            yield f"{path}: dataset_kwargs must have {key}, a whole number above 0, and has {given.get(key)!r}."
    if metric != "privleak":
        generation = settings.get("generation_kwargs")
        generation = generation if isinstance(generation, dict) else {}
        if type(generation.get("max_gen_toks")) is not int or generation["max_gen_toks"] < 1:
            yield f"{path}: generation_kwargs must have max_gen_toks, a whole number above 0."
        if generation.get("do_sample") is not False:
            yield f"{path}: generation_kwargs must have do_sample: false, all scoring is greedy."


def _group(folder: Path, tasks: Sequence[str], faults: list[str]) -> None:
    path = folder / "group.yaml"
    wanted = {"group": folder.name, "task": [f"{folder.name}_{metric}" for metric in tasks]}
    try:
        found = task_files.read_mapping(path)
    except CorpusError as error:
        faults.append(str(error))
        return
    if found != wanted:
        faults.append(f"{path} must name the group {folder.name} and its tasks, {', '.join(wanted['task'])}, no more.")


def _too_few_pairs(folder: Path, tasks: Sequence[str], texts: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for metric in tasks:
        split = "/".join(SPLITS_OF[metric][-1])
        if metric.startswith("knowmem") and split in texts:
            try:
                own = task_files.read_mapping(folder / f"{metric}.yaml").get("dataset_kwargs")
            except CorpusError:
                continue
            asked = own.get("icl_pairs") if isinstance(own, dict) else None
            if isinstance(asked, int) and asked > len(texts[split]):
                yield f"{metric}.yaml asks for {asked} in-context pairs, and {split} has {len(texts[split])}."


def _reference(facts: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    if facts and "privleak" in tasks and facts.get("reference_auc") is None:
        yield "No reference AUC is stated: PrivLeak is then relative to a retrain control's, measured in the same run."
