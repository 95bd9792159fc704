"""What difference the documents can detect: by the formula, by simulation, and from nothing stored at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_board as synthetic
from scipy import stats
from synthetic_board import CONTROLS, FULL, LORA, Plan

from harness.publish.comparison import power
from harness.publish.statistics import bootstrap
from harness.publish.statistics.bootstrap import Resampled
from harness.records import CellResult
from harness.score.corpora import catalogue

QUANTIZERS = ("reference", "rtn-4bit-g128", "bnb-nf4")
COUNTS = {"verbmem_f": 32, "knowmem_f": 91, "knowmem_r": 100, "privleak": 144}


@pytest.fixture(scope="module")
def cells() -> list[CellResult]:
    plans = [*CONTROLS, Plan(name="lora", levels=LORA), Plan(name="full", levels=FULL)]
    return synthetic.cells(plans, quantizers=QUANTIZERS)


def row(rows: list[dict[str, object]], key: str) -> dict[str, object]:
    return next(row for row in rows if row["key"] == key)


def test_the_factor_is_the_textbooks() -> None:
    assert power.factor() == pytest.approx(1.959964 + 0.841621, abs=1e-6)


def test_a_difference_of_that_size_is_found_in_80_percent_of_samples() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        apart = rng.normal(power.factor() * 0.2 / 10, 0.2, 100)
        found += abs(apart.mean()) > stats.norm.ppf(0.975) * 0.2 / 10
    assert found / 1000 == pytest.approx(0.8, abs=0.04)


def test_with_four_times_the_documents_half_the_difference_is_found(cells: list[CellResult]) -> None:
    some = power.rows(cells, "mini", COUNTS)
    more = power.rows(cells, "mini", {metric: 4 * count for metric, count in COUNTS.items()})
    for key in COUNTS:
        for name in ("detectable_difference", "detectable_change"):
            assert row(more, key)[name] == pytest.approx(0.5 * float(row(some, key)[name]))  # type: ignore[arg-type]


def test_a_paired_change_is_found_sooner_than_a_difference_of_strangers(cells: list[CellResult]) -> None:
    for found in power.rows(cells, "mini", COUNTS):
        assert found["detectable_change"] < found["detectable_difference"]
        assert "changes in the store" in found["basis"]


def test_recoveries_are_fractions_and_only_of_what_is_to_be_forgotten(cells: list[CellResult]) -> None:
    rows = power.rows(cells, "mini", COUNTS)
    assert 0 < float(row(rows, "verbmem_f")["detectable_recovery"]) < 1  # type: ignore[arg-type]
    assert row(rows, "knowmem_r")["detectable_recovery"] is None
    assert row(rows, "privleak")["detectable_recovery"] is None


def test_without_a_store_the_spreads_of_real_logs_are_assumed_and_said_to_be() -> None:
    rows = power.rows([], "news", dict.fromkeys(COUNTS, 100) | {"privleak": 200})
    assert all("assumed" in str(row["basis"]) for row in rows)
    # 2.80 standard errors, of which 1.96 make the 7.6 points that real logs have to each side.
    assert row(rows, "knowmem_f")["detectable_change"] == pytest.approx(7.6 * power.factor() / 1.96, rel=0.01)
    assert row(rows, "privleak")["detectable_change"] == pytest.approx(16 * power.factor() / 1.96, rel=0.01)


def test_the_standard_error_is_that_of_the_draws() -> None:
    values = np.random.default_rng(1).random(80)
    draws = bootstrap.resampled_mean(values, bootstrap.counts("p", 80))
    errors: list[tuple[float, int]] = []
    mean = float(values.mean())
    power._note(errors, Resampled(mean, draws, tuple(("s", i, "") for i in range(80)), (values - mean) / 80))
    assert errors[0][0] == pytest.approx(draws.std(), rel=0.05)
    assert errors[0][1] == 80


def test_changes_that_no_document_shows_do_not_make_the_board_look_sharper() -> None:
    errors: list[tuple[float, int]] = []
    power._note(errors, Resampled(0.0, np.zeros(3), (("s", 0, ""),), np.zeros(1)))
    power._note(errors, Resampled(0.0, np.zeros(3), (("s", 0, ""),)))
    assert errors == []


def test_documents_are_counted_in_the_texts_that_ship() -> None:
    assert power.documents_of(catalogue.load_corpus("mini"), []) == COUNTS


def test_a_limit_leaves_fewer_documents() -> None:
    assert set(power.documents_of(catalogue.load_corpus("mini"), [], limit=10).values()) == {10}


def test_of_a_corpus_on_the_hub_documents_are_counted_without_fetching_it(
    cells: list[CellResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "load_split", lambda *_: pytest.fail("texts were asked for"))
    news = catalogue.load_corpus("news")
    assert power.documents_of(news, []) == {"verbmem_f": 100, "knowmem_f": 100, "knowmem_r": 100, "privleak": 200}
    stored = [replace(cell, corpus="news") for cell in cells]
    assert power.documents_of(news, stored) == COUNTS


def test_a_given_folder_is_counted(tmp_path: Path) -> None:
    from harness.publish.comparison.power import documents_of

    for name, items in {
        "verbmem/forget": [{"prompt": "a", "gt": "b"}] * 3,
        "knowmem/forget_qa": [{"question": "q", "answer": "a"}] * 4,
        "knowmem/retain_qa": [{"question": "q", "answer": "a"}] * 5,
        "privleak/forget": ["x"] * 6, "privleak/holdout": ["y"] * 7,
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(items), encoding="utf-8")
    counted = documents_of(catalogue.load_corpus("news", data_dir=tmp_path), [])
    assert counted == {"verbmem_f": 3, "knowmem_f": 4, "knowmem_r": 5, "privleak": 13}
