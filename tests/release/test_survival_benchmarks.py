"""The benchmarks that docs/survival.md takes its prediction and its memory figures from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import survival_memory, survival_prediction
from harness.quantize.survival.measure import INTERCEPT, SLOPE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def points() -> list[survival_prediction.Point]:
    return survival_prediction.points(ROOT / "results.duckdb")


def test_the_page_s_figures_are_those_of_the_store(points: list[survival_prediction.Point]) -> None:
    page = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
    told = page.split(survival_prediction.START)[1].split(survival_prediction.END)[0].strip()
    assert told == survival_prediction.text(points)


def test_the_code_s_constants_are_the_fit(points: list[survival_prediction.Point]) -> None:
    assert survival_prediction.fit(points) == pytest.approx((INTERCEPT, SLOPE), abs=0.01)


def test_survival_ranks_what_comes_back_at_4_bits(points: list[survival_prediction.Point]) -> None:
    found, count = survival_prediction.rank_correlation([point for point in points if point.bits == 4])
    assert found < -0.8
    assert count >= 60


def test_a_fit_on_separable_points_is_finite() -> None:
    made = [
        survival_prediction.Point(entry=f"e{index}", bits=4, ratio=index / 9, recovered=None, reverts=index < 5)
        for index in range(10)
    ]
    intercept, slope = survival_prediction.fit(made)
    assert 0.4 < intercept / slope < 0.6


SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}


def test_the_memory_benchmark_measures_a_pair_in_several_files() -> None:
    found = survival_memory.measure(2, ["rtn-4bit-g128", "bnb-nf4"], SMALL)
    # Two models of two blocks of 4 x 128^2 + 3 x 128 x 256 weights in 16 bit, and embeddings.
    assert found["pair_bytes"] > 2 * 2 * 2 * (4 * 128**2 + 3 * 128 * 256)
    assert 0.5 < found["ratio"] < 1.5


@pytest.mark.slow
def test_a_pair_of_2_gb_with_the_blocks_of_a_7b_model_takes_less_than_4_gb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.survival_memory", "--blocks", "3", "--quantizers", "rtn-4bit-g128,bnb-nf4"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    found = json.loads(re.findall(r"\{.*\}", done.stdout)[-1])
    assert found["pair_bytes"] > 2e9
    assert found["peak_bytes"] < 4e9
