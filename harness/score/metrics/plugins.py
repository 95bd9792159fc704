"""Metrics of installed packages: one function and one YAML each, for tasks whose model answers in text.

They stand beside Quench's own and are never ranked. Which there are and what
they mean is read from the YAML; the function is imported when a model is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml

from harness import plugins
from harness.errors import PluginError, one_line
from harness.plugins import Plugin
from harness.records import Direction, DocumentRecord, MetricInfo, Score

TASKS = ("verbmem_f", "knowmem_f", "knowmem_r")
"""Tasks whose answers a metric may look at, by their primary metric."""

_FIELDS: Mapping[str, tuple[type, ...]] = {
    "label": (str,), "description": (str,), "source": (str,), "direction": (str,), "range": (list,), "tasks": (list,),
    "unit": (str,), "scale": (int, float),
}  # fmt: skip
_OPTIONAL: Mapping[str, Any] = {"unit": "", "scale": 100, "tasks": list(TASKS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedMetric:
    """One metric of a package.

    Attributes:
        info: What pages say of it.
        low: Least value that it can have.
        high: Greatest.
        tasks: Those of ``TASKS`` that it looks at.
        plugin: What declares it.
    """

    info: MetricInfo
    low: float
    high: float
    tasks: tuple[str, ...]
    plugin: Plugin

    def of(self, prompt: str, document: DocumentRecord, reference: str) -> float:
        """Returns its value for one answer.

        Raises:
            PluginError: Its function can't be imported, failed, or gave
                something else than a number in its range.
        """
        function = plugins.load(self.plugin)
        try:
            value = float(function(prompt=prompt, reference=reference, response=document.response))
        except Exception as error:
            said = f"{type(error).__name__}: {one_line(error)}"
            what = f"failed on document {document.index} ({said})"
            raise self.plugin.refused(what, "no cell has a value of it until it is repaired") from error
        if not math.isfinite(value) or not self.low <= value <= self.high:
            what = f"gave {value} for document {document.index}"
            raise self.plugin.refused(what, f"its range is {self.low:g} to {self.high:g}")
        return value


@cache
def look(taken: frozenset[str]) -> tuple[Mapping[str, PluggedMetric], Mapping[str, str]]:
    """Returns the metrics that installed packages declare by key, and why others can't be used; no code is imported.

    Args:
        taken: Keys of Quench's own metrics.
    """
    usable: dict[str, PluggedMetric] = {}
    broken: dict[str, str] = {}
    for plugin in plugins.found(plugins.METRICS):
        try:
            plugins.check_name(plugin, taken)
            usable[plugin.name] = _read(plugin)
        except PluginError as error:
            broken[plugin.name] = str(error)
    return MappingProxyType(usable), MappingProxyType(broken)


def scored(
    metrics: Sequence[PluggedMetric], documents: Sequence[DocumentRecord], texts: Sequence[tuple[str, str]]
) -> tuple[tuple[DocumentRecord, ...], tuple[Score, ...]]:
    """Returns the documents with each metric's value, and the means; a metric that fails has none and says why.

    Args:
        metrics: Those of the documents' task.
        documents: Answers with their scores so far.
        texts: Prompt and reference of each, whole.
    """
    added: list[Score] = []
    found = tuple(documents)
    for metric in metrics:
        key = metric.info.key
        try:
            values = [metric.of(prompt, one, reference) for one, (prompt, reference) in zip(found, texts, strict=True)]
        except PluginError as error:
            added.append(Score(metric=key, value=None, num_docs=0, missing_reason=str(error)))
            continue
        found = tuple(replace(one, scores={**one.scores, key: value}) for one, value in zip(found, values, strict=True))
        mean = math.fsum(values) / len(values) if values else None
        reason = None if values else "no document was answered"
        added.append(Score(metric=key, value=mean, num_docs=len(values), missing_reason=reason))
    return found, tuple(added)


def _read(plugin: Plugin) -> PluggedMetric:
    """Returns what the YAML beside a metric's module says.

    Raises:
        PluginError: It is missing, broken, or lacks something.
    """
    path = plugins.place(plugin).with_suffix(".yaml")
    stated = _mapping(plugin, path)
    unknown = sorted(set(map(str, stated)) - set(_FIELDS))
    missing = [field for field in _FIELDS if field not in {*stated, *_OPTIONAL}]
    if unknown or missing:
        what = f"has {'unknown' if unknown else 'no'} {', '.join(unknown or missing)} in {path}"
        raise plugin.refused(what, f"{', '.join(_FIELDS)} are accepted")
    facts = {**_OPTIONAL, **stated}
    wrong = [name for name, kinds in _FIELDS.items() if not isinstance(facts[name], kinds) or facts[name] is True]
    low, high = ends if len(ends := facts["range"] if "range" not in wrong else []) == 2 else (math.nan, math.nan)
    checks = {
        "direction": facts["direction"] in get_args(Direction),
        "range": all(isinstance(end, int | float) for end in (low, high)) and low < high,
        "tasks": "tasks" not in wrong and bool(facts["tasks"]) and set(facts["tasks"]) <= set(TASKS),
        "scale": "scale" not in wrong and facts["scale"] > 0,
    }
    wrong = list(dict.fromkeys([*wrong, *(name for name, holds in checks.items() if not holds)]))
    if wrong:
        raise plugin.refused(
            f"has an unusable {wrong[0]} in {path} ({facts[wrong[0]]!r})",
            f"texts, a direction of {', '.join(get_args(Direction))}, a range [least, greatest], a scale above 0 and"
            f" tasks of {', '.join(TASKS)} are accepted",
        )
    info = MetricInfo(
        key=plugin.name, label=facts["label"], unit=facts["unit"], display_scale=float(facts["scale"]),
        direction=facts["direction"], description=facts["description"],
        source=f"{facts['source']} (added by {plugin.origin})",
    )  # fmt: skip
    return PluggedMetric(info=info, low=low, high=high, tasks=tuple(facts["tasks"]), plugin=plugin)


def _mapping(plugin: Plugin, path: Path) -> dict[str, Any]:
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise plugin.refused(f"has no readable {path} ({one_line(error)})", "put it there") from None
    if not isinstance(stated, dict):
        raise plugin.refused(f"has no mapping in {path}", f"{', '.join(_FIELDS)} are accepted")
    return stated
