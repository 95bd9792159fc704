"""Time, memory and disk of a plan, from similar cells in the store or from the size of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from harness import memory
from harness.paths import cache_dir
from harness.records import Job, Submission
from harness.store.store import Store
from harness.submit.checkpoint import hub
from harness.submit.weight_files import HUB, weight_files

NOTHING: Mapping[str, Any] = dict.fromkeys(("seconds", "memory_bytes", "disk_bytes", "basis", "time", "memory", "disk"))
"""The columns of a job that will not run."""

# Where no cell has run yet. A MUSE task is of the order of 50,000 tokens, a token takes two operations per
# parameter, and a device does so many of them a second in this program (docs/performance.md).
_TOKENS = 50_000
OPERATIONS = {"cpu": 3e10, "cuda": 2e13}
"""Operations a second that forward passes are taken to reach."""

_LIBRARIES_BYTES = 700 * 2**20
_RECORD_BYTES = 200 * 2**10
_START_SECONDS = 1.0
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one job is expected to take.

    Attributes:
        seconds: Wall time; None where nothing is known.
        memory_bytes: Peak of its worker; None where nothing is known.
        disk_bytes: Records and what the cache keeps; None where nothing is known.
        basis: What it was told from, e.g. ``same cells`` or ``size of weights``.
    """

    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    basis: str

    def as_row(self) -> dict[str, Any]:
        """Returns the columns of a table: numbers, and the same as people read them."""
        return {
            "seconds": self.seconds, "memory_bytes": self.memory_bytes, "disk_bytes": self.disk_bytes,
            "basis": self.basis, "time": _duration(self.seconds) or _UNKNOWN,
            "memory": _size(self.memory_bytes) or _UNKNOWN, "disk": _size(self.disk_bytes) or _UNKNOWN,
        }  # fmt: skip


def past_costs(store: Path) -> list[dict[str, Any]]:
    """Returns what finished cells of a store took; none where there is no store yet.

    Raises:
        StoreError: The store can't be read.
    """
    if not store.exists():
        return []
    with Store.open(store, read_only=True) as opened:
        return opened.costs()


def estimate(
    jobs: Sequence[Job], submissions: Mapping[str, Submission], past: Iterable[Mapping[str, Any]], *, device: str
) -> list[Cost]:
    """Returns one cost for each job, from the nearest cells that the store has.

    Nearest first: the same submission, quantizer and task; another submission
    under the same quantizer and task, by the ratio of their weights; the same
    task under any quantizer; the size of the weights alone. Cells with another
    ``limit`` tell nothing.

    Args:
        jobs: Jobs of a plan.
        submissions: All submissions by name, for their sizes.
        past: Of ``past_costs``.
        device: torch device of the run.
    """
    sizes = {name: weights_bytes(submission, submissions) for name, submission in submissions.items()}
    table = _Past(past, sizes)
    return [_cost(job, sizes.get(job.submission.name), table, device) for job in jobs]


def free_memory(device: str) -> int | None:
    """Returns the bytes that models may take on this machine; None for a card, or where scoring is not installed."""
    if device != "cpu" or find_spec("psutil") is None:
        return None
    return memory.free_bytes()


def total(costs: Sequence[Cost], *, free: int | None = None) -> str:
    """Returns the sentence about all jobs: time one after the other, the largest peak of memory, disk.

    Args:
        costs: Of the jobs.
        free: Bytes that models may take here; None where that is not known.
            A larger peak is told with what a run does about it.
    """
    if not costs:
        return "nothing to run"
    unknown = sum(cost.seconds is None for cost in costs)
    if unknown == len(costs):
        return f"what {unknown} jobs take is unknown: their weights are on a hub and not here"
    least = "at least " if any(cost.disk_bytes is None for cost in costs) else ""
    seconds = sum(cost.seconds or 0.0 for cost in costs)
    peak = max(cost.memory_bytes or 0 for cost in costs)
    disk = sum(cost.disk_bytes or 0 for cost in costs)
    rest = f" and {unknown} jobs of unknown size" if unknown else ""
    if free is not None and peak > free:
        rest += f"; {_size(free)} of memory are free here: a model that does not fit is read layer by layer, slower"
    return f"about {_duration(seconds)} one job at a time, {_size(peak)} of memory, {least}{_size(disk)} of disk{rest}"


def weights_bytes(submission: Submission, submissions: Mapping[str, Submission]) -> int | None:
    """Returns the bytes of all weights that are loaded for a submission; None where they lie on a hub alone."""
    own = _folder_bytes(submission.weights, submission.revision)
    base = submissions.get(submission.base_model or "")
    if submission.kind != "lora_adapter":
        return own
    if base is None:
        below = _folder_bytes(submission.base_model or "", submission.base_revision)
    else:
        below = weights_bytes(base, submissions) if base != submission else None
    return None if own is None or below is None else own + below


def _folder_bytes(weights: str, revision: str | None) -> int | None:
    place = hub.local_folder(weights, revision or "", cache_dir()) if weights.startswith(HUB) else Path(weights)
    if place is None or not place.exists():
        return None
    files = weight_files(place) if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files if path.is_file()) or None


class _Past:
    """Medians of what cells took, by what they have in common."""

    def __init__(self, cells: Iterable[Mapping[str, Any]], sizes: Mapping[str, int | None]) -> None:
        found: dict[tuple[object, ...], list[tuple[float, float, float, float]]] = defaultdict(list)
        for cell in cells:
            timings = dict(cell["timings"])
            score = timings.pop("score", 0.0)
            took = (score, sum(timings.values()), cell["peak_memory_bytes"] or 0, sizes.get(cell["submission"]) or 0)
            limit, task = cell["document_limit"], cell["task"]
            for key in (
                (cell["submission"], cell["quantizer"], task, limit), (cell["quantizer"], task, limit), (task, limit),
            ):  # fmt: skip
                found[key].append(took)
        self._found = {key: _medians(rows) for key, rows in found.items()}

    def nearest(
        self, submission: str, quantizer: str, task: str, limit: int | None
    ) -> tuple[int, float, float, float, float] | None:
        """Returns how near (0 the nearest), seconds to score and before it, peak bytes and bytes of weights."""
        for near, key in enumerate(((submission, quantizer, task, limit), (quantizer, task, limit), (task, limit))):
            if key in self._found:
                score, before, peak, size = self._found[key]
                return near, score, before, peak, size
        return None


def _medians(rows: list[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    score, before, peak, size = zip(*rows, strict=True)
    return median(score), median(before), median(peak), median([each for each in size if each] or [0.0])


_BASES = ("same cells", "same quantizer and task", "same task", "size of weights")


def _cost(job: Job, size: int | None, past: _Past, device: str) -> Cost:
    disk = None if size is None else len(job.cells) * _RECORD_BYTES + int(size * min(job.spec.bits, 8) / 8)
    seconds, before, peak, worst = 0.0, 0.0, 0.0, 0
    for cell in job.cells:
        found = past.nearest(job.submission.name, job.spec.name, cell.task, cell.limit)
        # What others took says nothing of a model whose size is not known.
        if size is None and (found is None or found[0]):
            return Cost(seconds=None, memory_bytes=None, disk_bytes=None, basis="nothing known")
        if found is None:
            # Two bytes per parameter, as nearly all weights are stored.
            operations = 2 * (size or 0) / 2 * _TOKENS
            near, own = 3, operations / OPERATIONS["cuda" if device.startswith("cuda") else "cpu"]
            first, top = 0.0, _LIBRARIES_BYTES + 5.0 * (size or 0)
        else:
            near, own, first, top, like = found
            ratio = size / like if near and size and like else 1.0
            own, first = own * ratio, first * ratio
            top = max(top, top + (ratio - 1.0) * 5.0 * like)
        seconds, before, peak, worst = seconds + own, max(before, first), max(peak, top), max(worst, near)
    return Cost(
        seconds=round(_START_SECONDS + before + seconds, 1),
        memory_bytes=int(peak),
        disk_bytes=disk,
        basis=_BASES[worst],
    )


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: int | None) -> str | None:
    if size is None:
        return None
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
