"""The page of one submission: survival, documents across quantizers, the command that reproduces a cell."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow
from harness.publish.charts.metric_curves import metric_curves
from harness.publish.thresholds import CONFIDENCE, NATIVE_LIMIT, REFERENCE
from harness.quantize.survival.measure import ALL_LAYERS, summarize
from harness.records import CellResult, LayerSurvival, Proof
from harness.score.metrics.formulas import METRICS, PRIMARY
from harness.score.metrics.table import OWN
from harness.store.relearning import Relearning
from harness.store.store import Store

Relearned = Callable[[LeaderboardRow], Sequence[tuple[Relearning, Relearning | None]]]
"""From a submission's row to its probes, each with its retrain control's under the same quantizer and recipe."""


def context(board: Board, row: LeaderboardRow, *, slug: str, documents: int) -> dict[str, Any]:
    """Returns the template's variables for one submission.

    Args:
        board: Its board.
        row: The submission.
        slug: Name of its page and charts.
        documents: How many documents its viewer has.
    """
    cells = [cell for result in row.by_quantizer.values() for cell in result.cells.values()]
    newest = max(cells, key=lambda cell: cell.provenance.created_at, default=None)
    return {
        "figures": _figures(board, row, slug),
        "literature": _literature(board, row) if row.submission.role == "entry" else [],
        "survival": shown(
            {name: cell.survival for name in row.by_quantizer if (cell := _any_cell(row, name)) is not None}
        ),
        "added": added_metrics(row),
        "slug": slug,
        "documents": documents,
        "command": _command(board, row),
        "made": newest.provenance if newest else None,
        "seconds": sum(sum(cell.timings.values()) for cell in cells),
        "proofs": [
            {"quantizer": name, "proof": proof, **proof_in_words(proof)}
            for name in row.by_quantizer
            if (proof := _proof(row, name)) is not None
        ],
        "moved": moved,
    }


def relearning(store: Path) -> Relearned:
    """Returns what finds a submission's relearning probes in a store, of the weights that its cells are of."""
    with Store.open(store, read_only=True) as opened:
        probes = opened.relearnings()
    by_place = {(one.submission, one.quantizer, one.recipe_sha256, one.target): one for one in probes}

    def of_row(row: LeaderboardRow) -> list[tuple[Relearning, Relearning | None]]:
        entry = row.submission
        return [
            (one, by_place.get((entry.retrain or "", one.quantizer, one.recipe_sha256, one.target)))
            for one in probes
            if one.submission == entry.name and entry.role == "entry"
            and entry.weights_sha256 in (None, one.weights_sha256)
        ]  # fmt: skip

    return of_row


def moved(row: LeaderboardRow, quantizer: str, metric: str) -> str:
    """Returns whether a metric changed for good or bad from the entry's own 16-bit cell.

    ``same`` where the change does not stand out among all that the page shows.
    """
    now = row.by_quantizer[quantizer].metrics[metric]
    if now.change_p is not None and now.change_p > 1 - CONFIDENCE:
        return "same"
    before = row.by_quantizer[REFERENCE].metrics.get(metric) if REFERENCE in row.by_quantizer else None
    return formatting.good_or_bad(now.change, before.score.value if before else None, METRICS[metric].direction)


def added_metrics(row: LeaderboardRow) -> dict[str, Any] | None:
    """Returns what packages' metrics say of a submission: ``columns`` and ``lines``; None where there are none.

    A metric whose package isn't installed here is called by its key, in the unit that it is stored in.
    """
    values = {
        (name, primary, score.metric): score.value
        for name, result in row.by_quantizer.items()
        for primary, cell in result.cells.items()
        for score in cell.scores
        if score.metric not in OWN
    }
    places = sorted({(metric, primary) for _, primary, metric in values})
    if not places:
        return None
    columns = []
    for metric, primary in places:
        info = METRICS.get(metric)
        told = (
            f"{info.description} {info.source}." if info else "Its package is not installed where this page was made."
        )
        columns.append({"label": info.label if info else metric, "task": METRICS[primary].label, "told": told,
                        "unit": info.unit if info else "", "direction": info.direction if info else None})  # fmt: skip
    scales = {metric: info.display_scale if (info := METRICS.get(metric)) else 1.0 for metric, _ in places}
    lines = [
        {
            "quantizer": name,
            "values": [
                None if (value := values.get((name, primary, metric))) is None else value * scales[metric]
                for metric, primary in places
            ],
        }
        for name in row.by_quantizer
        if any(place[0] == name for place in values)
    ]
    return {"columns": columns, "lines": lines}


def _figures(board: Board, row: LeaderboardRow, slug: str) -> list[dict[str, Any]]:
    return [
        {"metric": metric, "wide": Markup(drawn), "file": f"charts/{slug}-{metric}.svg"}
        for metric, drawn in metric_curves(board, row).items()
    ]


def _literature(board: Board, row: LeaderboardRow) -> list[dict[str, Any]]:
    lines = []
    for name, result in row.by_quantizer.items():
        numbers: list[tuple[float | None, int]] = []
        for metric in board.forget_metrics:
            found = result.metrics.get(metric)
            share, change, stays = (
                None if found is None or (one := getattr(found, field)) is None else one.value
                for field in ("recovered_share", "change", "robustness")
            )
            numbers += [(share, 2), (None if change is None else 100 * change, 1), (stays, 2)]
        if any(number is not None for number, _ in numbers):
            lines.append({"quantizer": name, "numbers": numbers})
    return lines


def _any_cell(row: LeaderboardRow, quantizer: str) -> CellResult | None:
    cells = row.by_quantizer[quantizer].cells
    return next((cells[metric] for metric in PRIMARY if metric in cells), None)


def _proof(row: LeaderboardRow, quantizer: str) -> Proof | None:
    cell = _any_cell(row, quantizer)
    return cell.proof if cell else None


def proof_in_words(proof: Proof) -> dict[str, str]:
    """Returns a proof's errors and symmetry in words and figures, and which of them nobody knows or has measured."""
    known = proof.relative_error is not None
    before = known and proof.mean_abs_error is None
    missing = "not measured" if before else "not known"
    symmetric = {True: "symmetric", False: "asymmetric", None: "not measured" if before else "code book or shifts"}
    errors = {name: getattr(proof, f"{name}_error") for name in ("max_abs", "mean_abs", "relative")}
    digits = {"max_abs": 4, "mean_abs": 5, "relative": 4}
    return {
        "symmetry": symmetric[proof.symmetric],
        "native": _native_in_words(proof),
        **{
            name: missing if value is None else formatting.number(value, digits[name]) for name, value in errors.items()
        },
    }


def _native_in_words(proof: Proof) -> str:
    """Returns how far the library's own kernel is from the dense model, and whether that is more than rounding."""
    mean, rounding = proof.native_mean_difference, proof.native_rounding_difference
    if mean is None or rounding is None:
        return "not run"
    told = f"{formatting.number(mean, 4)} (16-bit rounding: {formatting.number(rounding, 4)})"
    return f"{told}: beyond rounding" if mean > NATIVE_LIMIT * rounding else told


def _command(board: Board, row: LeaderboardRow) -> str:
    quantizers = ",".join(name for name, result in row.by_quantizer.items() if result.cells)
    seed = next((cell.provenance.seed for result in row.by_quantizer.values() for cell in result.cells.values()), 0)
    cells = [cell for result in row.by_quantizer.values() for cell in result.cells.values()]
    if any(cell.origin != "scored" for cell in cells):
        # Quotes keep a name that a stranger chose from being read as more than one word.
        rescore = f"quench rescore {shlex.quote(row.submission.title)} --corpus {board.corpus} --quantizer"
        return formatting.visible("; ".join(f"{rescore} {name}" for name in quantizers.split(",")))
    parts = ["quench run", shlex.quote(row.submission.name), f"--corpus {shlex.quote(board.corpus)}"]
    if row.submission.kind == "quantized_checkpoint":
        # It is scored as submitted whatever is asked for; its controls need no more than 16 bit.
        quantizers = REFERENCE
    if quantizers:
        parts.append(f"--quantizers {quantizers}")
    # A store of its own: in the one that was published every cell counts as done.
    return formatting.visible(" ".join([*parts, f"--seed {seed}", "--store reproduced.duckdb"]))


def shown(survival: Mapping[str, Sequence[LayerSurvival]]) -> dict[str, Any]:
    """Returns ``went_in`` and ``quantizers`` for a page.

    ``went_in`` is the update before any quantizer (``pooled``, the ``least`` and
    ``most`` effective rank of a layer, ``modules`` and ``layers``), None where
    no row has its rank: those from before it was measured, and updates that
    are zero. ``quantizers`` has a line for each, with its ``pooled`` figures,
    whether their noise was ``measured``, ``modules`` and ``layers``.

    Args:
        survival: By quantizer's name, as stored with its cells; may be empty.
    """
    known = {name: layers for name, layers in survival.items() if layers}
    return {
        "went_in": next((told for layers in known.values() if (told := _update(layers)) is not None), None),
        "quantizers": [
            {
                "quantizer": name,
                "pooled": summarize(layers),
                "measured": any(layer.norm_ratio is not None for layer in layers),
                **_by_module(layers, _shaded),
            }
            for name, layers in known.items()
        ],
    }


def _update(layers: Sequence[LayerSurvival]) -> dict[str, Any] | None:
    ranks = [layer.effective_rank for layer in layers if layer.effective_rank is not None]
    if not ranks:
        return None
    return {
        "pooled": summarize(layers), "least": min(ranks), "most": max(ranks), **_by_module(layers, lambda layer: layer),
    }  # fmt: skip


def _by_module(layers: Sequence[LayerSurvival], show: Callable[[LayerSurvival | None], Any]) -> dict[str, Any]:
    """Returns ``modules`` and ``layers``: for each block its number and what ``show`` makes of each of its modules."""
    found = {_place(layer.layer): layer for layer in layers if layer.layer != ALL_LAYERS}
    blocks, modules = (list(dict.fromkeys(place[side] for place in found)) for side in (0, 1))
    return {
        "modules": modules,
        "layers": [(block, [show(found.get((block, module))) for module in modules]) for block in blocks],
    }


def _place(layer: str) -> tuple[str, str]:
    """Returns the block and the module of a layer name: ``model.layers.3.mlp.up_proj`` -> ``3``, ``mlp.up_proj``."""
    parts = layer.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return (layer, "weight") if number is None else (parts[number], ".".join(parts[number + 1 :]) or "weight")


def _shaded(layer: LayerSurvival | None) -> dict[str, Any]:
    cosine = layer.cosine if layer else None
    return {
        "found": layer,
        "shade": "none" if cosine is None else str(sum(cosine > limit for limit in (0.2, 0.4, 0.6, 0.8))),
    }
