"""Slow: 95% intervals hold the truth about 95% of the time, and where they don't, what is shown instead does."""

from __future__ import annotations

from pathlib import Path

import coverage_simulation as simulation
import numpy as np
import pytest
from coverage_simulation import Covered

from harness.publish.thresholds import FEW_DOCUMENTS

STORE = Path(__file__).parents[3] / "results.duckdb"
SAMPLES = 200
NOISE = 4 * (0.95 * 0.05 / SAMPLES) ** 0.5
"""Four standard errors of one cell's simulated coverage."""


@pytest.fixture(scope="module")
def found() -> list[Covered]:
    cells = simulation.load(STORE)
    return [*simulation.means(cells, SAMPLES), *simulation.areas(cells, SAMPLES // 2)]


def of(found: list[Covered], quantity: str, *, few: bool) -> list[Covered]:
    return [one for one in found if one.quantity == quantity and (one.carriers < FEW_DOCUMENTS) == few]


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["mean", "change", "AUC", "PrivLeak", "remaining share", "recovery"])
def test_intervals_hold_the_truth_in_93_to_97_percent_of_samples(found: list[Covered], quantity: str) -> None:
    carried = of(found, quantity, few=False)
    assert len(carried) >= 10
    assert 0.93 <= np.mean([one.bootstrap for one in carried]) <= 0.97
    assert min(one.bootstrap for one in carried) > 0.92 - NOISE


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["mean", "change"])
def test_where_few_documents_carry_an_interval_it_is_too_narrow_and_the_shown_one_is_not(
    found: list[Covered], quantity: str
) -> None:
    few = [one for one in of(found, quantity, few=True) if one.carriers > 1]
    assert min(one.bootstrap for one in few) < 0.9
    assert np.mean([one.shown for one in few]) >= 0.95
    assert min(one.shown for one in few) > 0.93 - NOISE


@pytest.mark.slow
def test_the_floor_and_the_ceiling_are_among_the_simulated_cells(found: list[Covered]) -> None:
    names = {one.cell for one in found}
    assert "mini-retrain reference knowmem_f" in names
    assert "mini-target-4bit reference verbmem_f" in names
    assert "mini-ga-lora-collapsed rtn-8bit-g128 knowmem_r" in names


def test_the_documents_that_carry_a_quantity_are_counted() -> None:
    three = np.array([1.0] * 3 + [0.0] * 97)
    assert simulation.carriers(three) == pytest.approx(3, abs=0.3)
    assert simulation.carriers(np.zeros(100)) == 0
    assert simulation.carriers(np.random.default_rng(0).normal(size=10_000)) == pytest.approx(100 / 3, rel=0.1)


def test_a_table_of_coverage_has_a_row_for_each_band_that_has_cells() -> None:
    rows = [Covered("mean", "a", 1.0, 0.8, 0.99, 10), Covered("mean", "b", 30.0, 0.94, 0.94, 10)]
    text = simulation.table(rows)
    assert text.count("\n") == 4
    assert "| mean | 0 to 5 | 1 | 80.0% | 80.0% | 99.0% | 99.0% |" in text
    assert "| mean | 10 and more | 1 | 94.0% |" in text


def test_an_interval_that_touches_the_truth_holds_it() -> None:
    quantity = simulation.quantities(np.full((1, simulation.SIZE), 0.25))[0]
    assert simulation.holds(quantity.estimate(), 0.25)
    assert not simulation.holds(quantity.estimate(), 0.26)
    assert simulation.holds(quantity.cautious(), 0.26)
