"""The machine of the bootstrap: exact products, honest small numbers, and what needs no documents to check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.publish.statistics import bootstrap, quantities
from harness.publish.statistics.bootstrap import Estimate, Resampled
from harness.publish.thresholds import FEW_DOCUMENTS, RESAMPLES, UNSEEN

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=12)


def quantity(values: list[float], label: str = "x") -> Resampled:
    scores = np.array(values)
    ids = tuple(("forget", index, str(index)) for index in range(scores.size))
    draws = bootstrap.resampled_mean(scores, bootstrap.counts(label, scores.size))
    mean = float(scores.mean())
    return Resampled(mean, draws, ids, (scores - mean) / scores.size, 1 / scores.size)


def test_a_product_in_pieces_is_the_product() -> None:
    rng = np.random.default_rng(0)
    for shape in ((7, 91), (1, 3), (300_000,)):
        values = rng.integers(0, 2**10, shape).astype(np.float64)
        drawn = rng.integers(0, 3, (9, shape[-1])).astype(np.float64)
        assert (bootstrap.resampled_mean(values, drawn) == values @ drawn.T / shape[-1]).all()


@settings(max_examples=20, deadline=None)
@given(SHARES, st.integers(1, 6), st.integers(0, 100))
def test_a_cells_draws_have_the_same_bytes_whichever_cells_stand_beside_it(
    values: list[float], others: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = bootstrap.counts("bytes", len(values))
    alone = bootstrap.resampled_mean(np.array(values), drawn)
    beside = rng.random((others + 1, len(values)))
    place = int(rng.integers(0, others + 1))
    beside[place] = values
    assert (bootstrap.resampled_mean(beside, drawn)[place] == alone).all()
    assert (bootstrap.resampled_mean(beside[:, ::-1], drawn[:, ::-1])[place] == alone).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_rounding_to_the_exact_grid_costs_less_than_anyone_could_see(values: list[float]) -> None:
    scores, drawn = np.array(values), bootstrap.counts("grid", len(values))
    plain = drawn @ scores / scores.size
    assert bootstrap.resampled_mean(scores, drawn) == pytest.approx(plain, abs=1e-12 * max(1, np.abs(scores).max()))


def test_scores_that_are_all_zero_stay_zero() -> None:
    assert (bootstrap.resampled_mean(np.zeros(7), bootstrap.counts("zero", 7)) == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=1200), st.integers(0, 99))
def test_an_interval_is_numpys_quantile_however_few_or_tied_the_draws(values: list[float], ties: int) -> None:
    draws = np.array([*values, *[values[0]] * ties])
    assert bootstrap.interval(draws) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)


def test_an_interval_is_numpys_quantile_where_the_first_draws_mislead() -> None:
    draws = np.concatenate([np.full(500, -5.0), np.random.default_rng(0).normal(size=9500)])
    for given_draws in (draws, draws[::-1], np.sort(draws), -draws):
        assert bootstrap.interval(given_draws) == pytest.approx(tuple(np.quantile(given_draws, [0.025, 0.975])))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(-2, 2), min_size=1, max_size=14), st.lists(st.integers(-2, 2), min_size=1, max_size=14),
    st.sampled_from([np.uint16, np.float64]),
)  # fmt: skip
def test_the_auc_of_every_resample_is_that_of_scikit_learn_in_whatever_type_counts_come(
    forget: list[int], holdout: list[int], dtype: type
) -> None:
    from sklearn.metrics import roc_auc_score

    sides = [np.array(side, dtype=float) for side in (forget, holdout)]
    tables = [bootstrap.counts(f"sk/{number}", side.size, 3, 0, dtype) for number, side in enumerate(sides)]
    found = bootstrap.resampled_auc(*sides, *tables)
    for number in range(3):
        one, two = (np.repeat(side, table[number].astype(int)) for side, table in zip(sides, tables, strict=True))
        assert found[number] == pytest.approx(roc_auc_score([1] * one.size + [0] * two.size, [*one, *two]), abs=1e-12)


def test_counts_too_large_for_small_integers_are_taken_in_larger_ones() -> None:
    forget, holdout = np.arange(300.0), np.arange(300.0) - 0.5
    drawn = [bootstrap.counts(f"large/{side}", 300, 4, 0, np.uint16) for side in "ab"]
    slow = [
        quantities.auc(np.repeat(forget, drawn[0][i].astype(int)), np.repeat(holdout, drawn[1][i].astype(int)))
        for i in range(4)
    ]
    assert bootstrap.resampled_auc(forget, holdout, *drawn) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("different", [1, 3, 10, 40])
def test_the_carriers_of_a_mean_are_the_documents_that_differ_from_all_others(different: int) -> None:
    documents = 2_000
    values = [1.0] * different + [0.0] * (documents - different)
    # What is left of the others' own small influence: a factor that goes to 1 with more documents.
    expected = different / (1 - different / documents) ** 2
    assert quantity(values, f"carriers{different}").carriers == pytest.approx(expected, rel=0.02)


def test_of_a_normal_spread_a_third_of_the_documents_carry_it() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    assert quantity(list(values), "normal").carriers == pytest.approx(1000, rel=0.1)


def test_influences_follow_differences_and_quotients() -> None:
    rng = np.random.default_rng(4)
    model, low, high = (quantity(list(rng.beta(a, b, 80))) for a, b in ((3, 3), (2, 8), (8, 2)))
    gap = quantities.knowledge_gap(high, low)
    assert gap is not None
    for found in (model - low, quantities.remaining_share(model, low, gap)):
        assert np.linalg.norm(found.influence) == pytest.approx(found.draws.std(), rel=0.05)
        assert found.influence.sum() == pytest.approx(0, abs=1e-9)


def test_the_influences_of_an_auc_give_its_standard_error() -> None:
    rng = np.random.default_rng(9)
    sides = rng.normal(0.7, 1, 90), rng.normal(0, 1, 110)
    tables = [bootstrap.counts(f"se/{number}", side.size) for number, side in enumerate(sides)]
    found = bootstrap.area(*sides, *tables, ())
    assert np.linalg.norm(found.influence) == pytest.approx(found.draws.std(), rel=0.06)
    assert found.reach == 1 / 90


def test_where_no_document_changed_the_shown_interval_says_how_little_that_proves() -> None:
    same = quantity([0.2, 0.9] * 50)
    nothing = same - same
    assert nothing.estimate() == Estimate(value=0.0, low=0.0, high=0.0, carriers=0.0)
    assert nothing.estimate().few
    shown = nothing.cautious()
    assert (shown.low, shown.high) == pytest.approx((-UNSEEN / 100, UNSEEN / 100))
    # Clopper and Pearson's exact bound for 0 of 100.
    assert shown.high == pytest.approx(stats.beta.ppf(0.975, 1, 100), abs=0.001)


def test_a_widened_interval_stays_within_what_is_possible_and_never_narrows() -> None:
    rare = quantity([1.0] * 2 + [0.0] * 98)
    plain, shown = rare.estimate(), rare.cautious(0.0, 1.0)
    assert plain.few
    assert shown.low == 0
    assert shown.high >= plain.high
    assert shown.high > 0.02 + UNSEEN / 100 - 1e-12


def test_many_documents_leave_an_interval_as_it_is() -> None:
    found = quantity(list(np.random.default_rng(1).random(60)))
    assert found.carriers > FEW_DOCUMENTS
    assert found.cautious() == found.estimate()


def test_scores_without_limits_are_never_widened() -> None:
    ids = tuple(("forget", index, "") for index in range(4))
    found = Resampled(2.0, np.array([2.0, 2.0, 3.0]), ids, np.array([1.0, 0, 0, 0]))
    assert found.estimate().few
    assert found.cautious() == found.estimate()


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False)]
)
def test_an_interval_excludes_zero_only_with_both_ends_on_one_side(low: float, high: float, excludes: bool) -> None:
    assert Estimate(value=(low + high) / 2, low=low, high=high).excludes_zero is excludes
    assert not Estimate(value=low).excludes_zero


def test_a_p_value_is_twice_the_share_of_draws_on_the_rarer_side() -> None:
    ids = (("forget", 0, ""),)
    draws = np.arange(-9.0, 91.0) + 0.5
    assert Resampled(40.5, draws, ids).p_value() == pytest.approx(2 * 10 / 101)
    assert Resampled(-40.5, -draws, ids).p_value() == Resampled(40.5, draws, ids).p_value()
    assert Resampled(0.0, np.zeros(50), ids).p_value() == 1
    assert Resampled(1.0, np.full(99, 1.0), ids).p_value() == pytest.approx(0.02)


def test_a_p_value_is_never_below_that_of_a_sign_test_on_the_documents_that_differ() -> None:
    found = quantity([0.5] * 3 + [0.0] * 97, "signs")
    assert found.p_value() >= 2 * 0.5**3.2
    many = quantity([0.5] * 30 + [0.4] * 70, "signs")
    assert many.p_value() == pytest.approx(2 / (RESAMPLES + 1))


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ({}, {}),
        ({"a": 0.04}, {"a": 0.04}),
        # The smallest times the number of tests, the next times one less, never falling: Holm's own procedure.
        ({"a": 0.01, "b": 0.04, "c": 0.03}, {"a": 0.03, "b": 0.06, "c": 0.06}),
        ({"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 1.0}),
        ({"a": 0.02, "b": 0.02}, {"a": 0.04, "b": 0.04}),
    ],
)
def test_holms_correction_by_hand(raw: dict[str, float], adjusted: dict[str, float]) -> None:
    assert quantities.holm(raw) == pytest.approx(adjusted)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=12))
def test_holm_is_never_bolder_than_no_correction_nor_shyer_than_bonferroni(values: list[float]) -> None:
    raw = {str(place): p for place, p in enumerate(values)}
    found = quantities.holm(raw)
    for name, p in raw.items():
        assert p <= found[name] <= min(1.0, len(raw) * p) + 1e-12
    assert sorted(found, key=lambda n: (found[n], raw[n], n)) == sorted(raw, key=lambda n: (raw[n], n))
