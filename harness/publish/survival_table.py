"""What a submission's page shows of its update: what it is, and what each quantizer leaves of it, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.quantize.survival.measure import ALL_LAYERS, summarize
from harness.records import LayerSurvival


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
