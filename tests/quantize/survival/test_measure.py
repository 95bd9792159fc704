from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.models.dense import block_linears, source_weights
from harness.quantize.survival.measure import ALL_LAYERS, LEAST_UPDATE, measure, summarize
from harness.records import Checkpoint, LayerSurvival, QuantizedModel

Mover = Callable[[Checkpoint, float], Checkpoint]


def _quantize(preset: str, checkpoint: Checkpoint) -> QuantizedModel:
    spec = quantize.resolve(preset)
    return quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu")


def _measure(preset: str, new: Checkpoint, old: Checkpoint) -> tuple[LayerSurvival, ...]:
    return measure(_quantize(preset, new), _quantize(preset, old), new, old)


@pytest.fixture
def target(checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint_of("llama")


def test_the_sums_are_those_of_the_definition(target: Checkpoint, moved: Mover) -> None:
    update = moved(target, 0.01)
    new, old = _quantize("rtn-4bit-g64", update), _quantize("rtn-4bit-g64", target)
    layers = measure(new, old, update, target)
    inner = square = kept = weight = 0.0
    changed = total = 0
    with source_weights(update) as now, source_weights(target) as then:
        for name, linear in block_linears(new.model).items():
            dw = (now[name] - then[name]).double()
            dq = (linear.weight - block_linears(old.model)[name].weight).detach().double()
            row = next(layer for layer in layers if layer.layer == name)
            assert row.survival_ratio == pytest.approx(float((dw * dq).sum() / (dw * dw).sum()))
            assert row.cosine == pytest.approx(float((dw * dq).sum() / (dw.norm() * dq.norm())))
            assert row.relative_update == pytest.approx(float(dw.norm() / then[name].double().norm()))
            assert row.update_norm == pytest.approx(float(dw.norm()))
            assert row.norm_ratio == pytest.approx(float(dq.norm() / dw.norm()))
            squares = torch.linalg.svdvals(dw).square()
            assert row.effective_rank == pytest.approx(float(squares.sum() ** 2 / squares.square().sum()), rel=1e-4)
            assert row.update_in_steps == pytest.approx(float(dw.abs().mean()) / (old.layers[name].step or 0))
            inner, square = inner + float((dw * dq).sum()), square + float((dw * dw).sum())
            kept, weight = kept + float((dq * dq).sum()), weight + float(then[name].double().square().sum())
            changed += int((new.layers[name].codes != old.layers[name].codes).sum())
            total += dw.numel()
    pooled = summarize(layers)
    assert pooled is layers[0]
    assert pooled.layer == ALL_LAYERS
    assert pooled.survival_ratio == pytest.approx(inner / square)
    assert pooled.cosine == pytest.approx(inner / (square * kept) ** 0.5)
    assert pooled.relative_update == pytest.approx((square / weight) ** 0.5)
    assert pooled.update_norm == pytest.approx(square**0.5)
    assert pooled.norm_ratio == pytest.approx((kept / square) ** 0.5)
    assert pooled.effective_rank is None
    assert pooled.codes_changed == changed / total
    assert pooled.num_weights == total == sum(layer.num_weights for layer in layers[1:])
    assert len(layers) == 15


def test_a_large_update_survives_and_one_below_the_step_on_the_target_s_own_grid_does_not(
    target: Checkpoint, moved: Mover
) -> None:
    def ratio(preset: str, size: float) -> float:
        pooled = summarize(_measure(preset, moved(born, size), born))
        assert pooled is not None
        assert pooled.survival_ratio is not None
        return pooled.survival_ratio

    born = _born_quantized(target)
    assert ratio("rtn-4bit-g128", 0.0008) < 0.2
    assert ratio("rtn-8bit-g128", 0.0008) == pytest.approx(1.0, abs=0.1)
    assert ratio("bnb-nf4", 0.0008) > 0.4
    assert ratio("rtn-4bit-g128", 0.02) > 0.9


def _born_quantized(target: Checkpoint) -> Checkpoint:
    """The target put on the 4-bit grid and saved in 16 bit, as the miniature's is."""
    from pathlib import Path

    model = _quantize("rtn-4bit-g128", target).model
    folder = Path(target.path).with_name("born")
    model.bfloat16().save_pretrained(folder)
    return dataclasses.replace(target, path=str(folder))


@pytest.mark.parametrize("preset", ["rtn-4bit-g128", "bnb-fp4", "bnb-int8"])
def test_no_update_has_no_ratio_and_changes_no_code(preset: str, target: Checkpoint) -> None:
    for layer in _measure(preset, target, target):
        assert layer.codes_changed == 0
        assert layer.relative_update == 0
        assert layer.survival_ratio is None
        assert layer.cosine is None


def test_an_update_lost_in_noise_has_no_ratio(target: Checkpoint, moved: Mover) -> None:
    # Nearly nothing is left of 1e-7 after bfloat16; what a code flips for is chance.
    layers = _measure("rtn-2bit-g64", moved(target, 1e-7), target)
    pooled = summarize(layers)
    assert pooled is not None
    assert pooled.relative_update < 1e-4
    assert all(layer.survival_ratio is None for layer in layers)


@pytest.mark.parametrize("preset", ["rtn-8bit-g64", "bnb-int8", "bnb-nf4"])
def test_an_update_smaller_than_bfloat16_s_own_rounding_has_no_ratio(
    preset: str, target: Checkpoint, moved: Mover
) -> None:
    layers = _measure(preset, moved(target, 1e-7), target)
    assert all(0 < layer.relative_update < LEAST_UPDATE for layer in layers)
    assert all(layer.survival_ratio is None for layer in layers)


def test_code_books_have_no_step_and_uniform_grids_have(target: Checkpoint, moved: Mover) -> None:
    update = moved(target, 0.005)
    assert all(layer.update_in_steps is None for layer in _measure("bnb-nf4", update, target))
    for preset in ("bnb-int8", "rtn-3bit-g64"):
        assert all((layer.update_in_steps or 0) > 0 for layer in _measure(preset, update, target))


def test_the_reference_has_no_survival_to_measure(target: Checkpoint, moved: Mover) -> None:
    assert _measure("reference", moved(target, 0.01), target) == ()
    assert summarize(()) is None


def test_models_under_different_quantizers_are_not_compared(target: Checkpoint) -> None:
    first, second = _quantize("rtn-4bit-g64", target), _quantize("rtn-4bit-g128", target)
    with pytest.raises(QuantizationError, match="not rtn-4bit-g64 with 14 layers and rtn-4bit-g128"):
        measure(first, second, target, target)
    other: Any = dataclasses.replace(first, layers={})
    with pytest.raises(QuantizationError, match="0 layers"):
        measure(first, other, target, target)


def test_values_that_are_shown_are_finite(target: Checkpoint, moved: Mover) -> None:
    for preset in ("rtn-2bit-g64", "bnb-nf4", "bnb-int8"):
        for layer in _measure(preset, moved(target, 0.003), target):
            numbers = [layer.codes_changed, layer.relative_update, layer.survival_ratio, layer.cosine]
            numbers += [layer.update_norm, layer.norm_ratio, layer.effective_rank]
            assert all(number is None or torch.tensor(number).isfinite() for number in numbers)
