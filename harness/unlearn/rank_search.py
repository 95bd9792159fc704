"""Finds by bisection the smallest LoRA rank whose merged update survives a quantizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import InputError, QuenchError
from harness.provenance import sha256_json
from harness.records import LayerSurvival, Submission
from harness.submit.checkpoint import prepare
from harness.submit.manifest import load as manifest
from harness.unlearn.execution import Execution
from harness.unlearn.from_target import CHECKPOINTS, make_entry
from harness.unlearn.recipes import Recipe
from harness.unlearn.submission_folder import MANIFEST, add_hyperparameters

RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Ranks that a search may try, smallest first."""

LEAST_RATIO = 0.75
"""Survival ratio over all layers from which on an update survives.

By the miniature's fit (``harness/quantize/survival/measure.py``) one in 25 of such updates lets
VerbMem come back, and every other one at a ratio of 0.51: docs/survival.md.
"""

LOG = "rank_search.json"
"""What the log is called in the submission's folder."""

_CANDIDATES = ".ranks-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One rank that was trained, merged and quantized.

    Attributes:
        survival_ratio: Over all layers; None where the update is negligible.
        cosine: Of what arrived with what was sent.
        relative_update: Norm of the update over the target's.
        survives: Whether the ratio reaches ``LEAST_RATIO``.
    """

    rank: int
    survival_ratio: float | None
    cosine: float | None
    relative_update: float
    survives: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSearch:
    """A search's log.

    Attributes:
        quantizer: What the update had to survive.
        least_ratio: ``LEAST_RATIO`` of the program that searched.
        ranks: Those that could be tried.
        tried: In the order of the search.
        rank: The smallest that survives; None where the largest does not.
    """

    quantizer: str
    least_ratio: float
    ranks: tuple[int, ...]
    tried: tuple[Tried, ...] = ()
    rank: int | None = None


def smallest(ranks: Sequence[int], survives: Callable[[int], bool]) -> int | None:
    """Returns the smallest rank that survives, asking about log2(n + 1) of n ranks.

    Where survival does not rise with the rank throughout, what comes back has
    still been asked and survives, and the rank before it has been asked and
    does not: it is a smallest one among its neighbours.

    Args:
        ranks: Rising.
        survives: Asked once for each rank that matters.

    Returns:
        None where the largest has been asked and does not survive.
    """
    low, high = 0, len(ranks)
    while low < high:
        middle = (low + high) // 2
        if survives(ranks[middle]):
            high = middle
        else:
            low = middle + 1
    return ranks[low] if low < len(ranks) else None


def make_smallest(
    recipes: Mapping[int, Recipe], *, quantizer: str, measure: Callable[[Submission], LayerSurvival | None],
    target: str, submissions: Mapping[str, Submission], out: Path, cache: Path, data_dir: Path | None = None,
    seed: int = 0, device: str = "cpu", execution: Execution | None = None, retrain: str | None = None,
    on_progress: Callable[[int, int, int], None] = lambda rank, done, steps: None,
) -> tuple[Submission, RankSearch]:  # fmt: skip
    """Unlearns a target with the smallest rank that survives, and writes the submission folder ``out``.

    Every rank that is tried is trained to its end: what survives depends on the
    size of the update, which a short training has not reached. They lie in a
    hidden folder of ``out`` until the search has ended; one that was cut off
    keeps what it has trained and goes on by the same call.

    Args:
        recipes: One for each rank.
        quantizer: Name of what the update has to survive, for the log.
        measure: Returns what the quantizer leaves of a candidate's update,
            over all layers; None where it can't be told.
        target: As ``make_entry`` has it, with all that follows.
        submissions: All submissions by name.
        out: New folder.
        cache: Folder for merged checkpoints.
        data_dir: Folder of the corpus in MUSE's local form.
        seed: Seed of everything random, the same for every rank.
        device: ``cpu`` or ``cuda``.
        execution: How the machine goes about it.
        retrain: Name of the retrain control that the manifest names.
        on_progress: Called with (rank, done, all) after each step.

    Returns:
        The new submission, and the log, which also lies in its folder and
        among its hyperparameters.

    Raises:
        InputError: As ``make_entry``.
        QuenchError: No rank survives; the log stays in the hidden folder.
    """
    how = execution or Execution()
    weights = prepare.weights_digest(submissions[target]) if target in submissions else None
    made_of = [{rank: recipe.digest for rank, recipe in recipes.items()}, how.settings(), seed, device, weights,
               str(data_dir.resolve()) if data_dir else None]  # fmt: skip
    kept = out / f"{_CANDIDATES}{sha256_json(made_of)[:16]}"
    if out.exists() and (not out.is_dir() or any(path != kept for path in out.iterdir())):
        raise InputError(f"--out: {out} is not empty, or holds a search with other options: give a new folder.")
    log = RankSearch(quantizer=quantizer, least_ratio=LEAST_RATIO, ranks=tuple(sorted(recipes)))

    def survives(rank: int) -> bool:
        nonlocal log
        place = _place(kept, rank, out)
        if not (place / MANIFEST).is_file():
            _clear(place)
            make_entry(
                recipes[rank], target=target, submissions=submissions, out=place, cache=cache, data_dir=data_dir,
                seed=seed, device=device, execution=how, retrain=retrain,
                on_progress=lambda done, steps: on_progress(rank, done, steps),
            )  # fmt: skip
        survived = measure(manifest.load(place))
        if survived is None:
            raise InputError(f"--at: {quantizer} hands on no codes, so what survives can't be read: name another.")
        ratio = survived.survival_ratio
        one = Tried(
            rank=rank, survival_ratio=ratio, cosine=survived.cosine, relative_update=survived.relative_update,
            survives=ratio is not None and ratio >= LEAST_RATIO,
        )  # fmt: skip
        log = replace(log, tried=(*log.tried, one))
        _save(log, kept)
        return one.survives

    found = smallest(log.ranks, survives)
    log = replace(log, rank=found)
    _save(log, kept)
    if log.rank is None:
        last = next(one for one in log.tried if one.rank == log.ranks[-1])
        left = "nothing that can be told from chance" if last.survival_ratio is None else f"{last.survival_ratio:.2f}"
        raise QuenchError(
            f"No rank up to {last.rank} survives {quantizer}: the largest leaves {left} of its update, and "
            f"{LEAST_RATIO} is needed (log: {kept / LOG}): train it further with --set, or name a finer --at."
        )
    for path in (*_place(kept, log.rank, out).iterdir(), kept / LOG):
        path.rename(out / path.name)
    shutil.rmtree(kept)
    add_hyperparameters(out, {"rank_search": _as_json(log)})
    return manifest.load(out), log


def _place(kept: Path, rank: int, out: Path) -> Path:
    # The last part is the submission's name, which its manifest repeats.
    return kept / f"r{rank}" / out.resolve().name


def _clear(place: Path) -> None:
    """Removes what a killed run left of a candidate, unless that is checkpoints to go on from."""
    if place.is_dir() and any(not path.name.startswith(CHECKPOINTS) for path in place.iterdir()):
        shutil.rmtree(place)


def _as_json(log: RankSearch) -> dict[str, Any]:
    told = asdict(log)
    return {**told, "ranks": list(log.ranks), "tried": list(told["tried"])}


def _save(log: RankSearch, folder: Path) -> None:
    (folder / LOG).write_text(json.dumps(_as_json(log), indent=1, allow_nan=False) + "\n", encoding="utf-8")
