"""The bootstrap against other people's code, against hand-made numbers, and against what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic_board as synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_board import CONTROLS, FULL, Plan

from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Resampled
from harness.publish.thresholds import RESAMPLES
from harness.records import CellResult, DocumentRecord, Score

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=20)
NUMBERS = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str, str], CellResult]:
    made = synthetic.cells([*CONTROLS, Plan(name="full", levels=FULL)], quantizers=("reference", "rtn-4bit-g128"))
    return {(one.cell.submission, one.cell.quantizer, one.cell.task.removeprefix("muse_mini_")): one for one in made}


def drawn(values: np.ndarray, label: str = "knowmem_f") -> np.ndarray:
    return quantities.resampled_mean(values, quantities.counts(label, values.size))


def quantity(values: list[float], label: str = "knowmem_f") -> Resampled:
    numbers = np.array(values)
    documents = tuple(("forget", index, str(index)) for index in range(numbers.size))
    return Resampled(float(numbers.mean()), drawn(numbers, label), documents)


def remaining(model: Resampled, retrain: Resampled, target: Resampled) -> Resampled:
    gap = quantities.knowledge_gap(target, retrain)
    assert gap is not None
    return quantities.remaining_share(model, retrain, gap)


@pytest.mark.parametrize(("size", "a", "b"), [(30, 2.0, 5.0), (91, 0.6, 0.6), (100, 5.0, 1.0)])
def test_an_interval_of_a_mean_agrees_with_scipys_percentile_bootstrap(size: int, a: float, b: float) -> None:
    values = np.random.default_rng(size).beta(a, b, size)
    low, high = quantities.interval(drawn(values))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.06 * width)
    assert high == pytest.approx(theirs.high, abs=0.06 * width)


def test_an_interval_of_a_paired_difference_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    before = rng.beta(2, 3, 60)
    now = np.clip(before + rng.normal(0.1, 0.1, 60), 0, 1)
    found = (quantity(list(now)) - quantity(list(before))).estimate()
    theirs = stats.bootstrap(
        (now, before), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), paired=True,
        vectorized=True, n_resamples=RESAMPLES, method="percentile", random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_the_spread_of_resampled_means_is_the_standard_error() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.2, 80)
    assert drawn(values).std() == pytest.approx(values.std() / np.sqrt(80), rel=0.03)
    assert drawn(values).mean() == pytest.approx(values.mean(), abs=0.001)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=15), st.lists(st.integers(-3, 3), min_size=1, max_size=15),
    st.integers(0, 1000),
)  # fmt: skip
def test_a_resampled_auc_is_that_of_scikit_learn(forget: list[int], holdout: list[int], seed: int) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    sides = [np.array(side, dtype=float) for side in (forget, holdout)]
    tables = [rng.multinomial(side.size, np.full(side.size, 1 / side.size), size=2).astype(float) for side in sides]
    fast = quantities.resampled_auc(*sides, *tables)
    for number in range(2):
        one, two = (
            np.repeat(side, table[number].astype(int)) for side, table in zip(sides, tables, strict=True)
        )  # fmt: skip
        slow = roc_auc_score([1] * one.size + [0] * two.size, [*one, *two])
        assert fast[number] == pytest.approx(slow, abs=1e-12)


def test_a_resampled_auc_loses_nothing_with_many_documents() -> None:
    forget, holdout = np.arange(900.0) + 1000, np.arange(900.0)
    tables = [quantities.counts(f"many/{side}", 900, resamples=4) for side in ("forget", "holdout")]
    assert quantities.resampled_auc(forget, holdout, *tables).tolist() == [1.0] * 4
    assert quantities.resampled_auc(holdout, forget, *tables).tolist() == [0.0] * 4
    assert quantities.resampled_auc(holdout * 0, forget * 0, *tables).tolist() == [0.5] * 4


@settings(max_examples=15, deadline=None)
@given(SHARES)
def test_an_interval_stays_between_the_least_and_the_largest_document(values: list[float]) -> None:
    found = quantity(values).estimate()
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@settings(max_examples=15, deadline=None)
@given(SHARES, st.floats(0.1, 10), st.floats(-5, 5))
def test_scaling_and_shifting_scores_scales_and_shifts_their_interval(
    values: list[float], scale: float, shift: float
) -> None:
    plain, moved = quantity(values).estimate(), quantity([scale * value + shift for value in values]).estimate()
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(scale * plain.high + shift, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(SHARES)
def test_a_score_minus_itself_is_exactly_nothing(values: list[float]) -> None:
    found = (quantity(values) - quantity(values)).estimate()
    assert (found.value, found.low, found.high) == (0, 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_the_other_way_round_a_difference_has_the_mirrored_interval(pairs: list[tuple[float, float]]) -> None:
    one, two = quantity([pair[0] for pair in pairs]), quantity([pair[1] for pair in pairs])
    there, back = (one - two).estimate(), (two - one).estimate()
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)


@pytest.mark.parametrize(("model", "share"), [(0.2, 0.0), (0.8, 1.0), (0.5, 0.5), (0.05, -0.25), (0.95, 1.25)])
def test_a_remaining_share_by_hand(model: float, share: float) -> None:
    ends = [quantity([level] * 6) for level in (model, 0.2, 0.8)]
    rho = remaining(*ends)
    assert (rho.estimate().low, rho.estimate().high) == pytest.approx((share, share))


def test_retrained_and_target_models_have_shares_of_exactly_0_and_1_on_every_resample() -> None:
    rng = np.random.default_rng(0)
    low, high = quantity(list(rng.beta(2, 8, 40))), quantity(list(rng.beta(8, 2, 40)))
    none, whole = remaining(low, low, high), remaining(high, low, high)
    assert np.abs(none.draws).max() == 0
    assert np.abs(whole.draws - 1).max() < 1e-12


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 5))
def test_a_share_does_not_depend_on_the_unit_of_the_score(scale: float) -> None:
    rng = np.random.default_rng(7)
    numbers = [rng.beta(a, b, 30) for a, b in ((3, 5), (2, 8), (8, 2))]
    plain = remaining(*(quantity(list(values)) for values in numbers))
    scaled = remaining(*(quantity(list(scale * values)) for values in numbers))
    assert np.abs(plain.draws - scaled.draws).max() < 1e-9


@pytest.mark.parametrize("number", [0, 17, 9_999])
def test_a_share_on_one_resample_is_that_of_the_documents_drawn_there(number, cells) -> None:  # type: ignore[no-untyped-def]
    names = ("full", "mini-retrain", "mini-target-4bit")
    chosen = [cells[name, "rtn-4bit-g128", "verbmem_f"] for name in names]
    table = quantities.counts("verbmem_f", len(chosen[0].documents))[number].astype(int)
    model, retrain, target = (
        np.repeat([document.scores["verbmem_f"] for document in cell.documents], table).mean() for cell in chosen
    )
    rho = remaining(*(quantities.resample(cell, "verbmem_f") for cell in chosen))
    assert rho.draws[number] == pytest.approx((model - retrain) / (target - retrain))


@pytest.mark.parametrize("metric", NUMBERS)
def test_the_order_of_the_documents_moves_nothing(metric: str, cells: dict[tuple[str, str, str], CellResult]) -> None:
    cell = cells["full", "rtn-4bit-g128", metric]
    shuffled = replace(cell, documents=tuple(reversed(cell.documents)))
    one, two = quantities.resample(cell, metric), quantities.resample(shuffled, metric)
    assert one is not None
    assert two is not None
    assert one.documents == two.documents
    assert (one.draws == two.draws).all()


@pytest.mark.parametrize("metric", NUMBERS)
def test_two_models_are_drawn_alike_and_may_be_paired(
    metric: str, cells: dict[tuple[str, str, str], CellResult]
) -> None:
    one, two = (quantities.resample(cells[name, "reference", metric], metric) for name in ("full", "mini-retrain"))
    assert one is not None
    assert two is not None
    assert one.documents == two.documents
    assert np.isfinite((one - two).draws).all()


def test_privleak_on_a_resample_is_the_change_of_its_auc_from_the_reference(
    cells: dict[tuple[str, str, str], CellResult],
) -> None:
    cell = cells["full", "rtn-4bit-g128", "privleak"]
    share, area = quantities.resample(cell, "privleak"), quantities.resample(cell, "auc")
    assert share is not None
    assert area is not None
    assert share.draws == pytest.approx(100 * (area.draws - synthetic.REFERENCE_AUC) / synthetic.REFERENCE_AUC)


def test_forget_and_holdout_texts_are_drawn_apart() -> None:
    one, two = (quantities.counts(f"privleak/{side}", 72) for side in ("forget", "holdout"))
    assert abs(np.corrcoef(one[:, 0], two[:, 0])[0, 1]) < 0.05
    assert (one != two).any(axis=1).all()


@pytest.mark.parametrize("change", [{"label": "b"}, {"seed": 1}, {"documents": 13}])
def test_another_label_seed_or_number_of_documents_draws_otherwise(change: dict[str, object]) -> None:
    wanted = {"label": "a", "documents": 12, "seed": 0, "resamples": 50}
    one, two = quantities.counts(**wanted), quantities.counts(**{**wanted, **change})  # type: ignore[arg-type]
    assert one.shape != two.shape or (one != two).any()


def test_the_shared_table_of_draws_can_not_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        quantities.counts("verbmem_f", 32)[0, 0] = 5


def test_dividing_nothing_by_nothing_leaves_the_draw_out_and_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    documents = (("forget", 0, "a"),)
    top = Resampled(1.0, np.array([0.0, 1.0, 1.0]), documents)
    found = (Resampled(0.5, np.array([0.0, 0.4, 0.6]), documents) / top).estimate()
    assert found.value == 0.5
    assert 0.4 <= found.low <= found.high <= 0.6
    assert not recwarn.list


def document(index: int, split: str, **scores: float) -> DocumentRecord:
    return DocumentRecord(
        index=index, split=split, prompt_sha256=f"p{index}", prompt_excerpt="", response="", reference_sha256=None,
        reference_excerpt="", scores=scores,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("splits", "metric", "value", "found"),
    [
        (("forget", "holdout"), "auc", 0.875, True),  # of four pairs three are won and one is a tie
        (("forget", "forget"), "auc", 0.5, False),
        (("forget", "holdout"), "auc_loss", 0.75, False),
        (("forget", "holdout"), "privleak", 50.0, False),
        (("forget", "holdout"), "min_k_40_holdout", 1.5, True),
        (("forget", "holdout"), "min_k_40_forget", 2.5, True),
        (("forget", "holdout"), "min_k_40", 2.0, True),
        (("forget", "holdout"), "min_k_40", 2.1, False),
    ],
)
def test_scores_of_single_texts_are_put_together_by_hand(
    splits: tuple[str, str], metric: str, value: float, found: bool, cells: dict[tuple[str, str, str], CellResult]
) -> None:
    texts = [(splits[0], 3.0), (splits[0], 2.0), (splits[1], 2.0), (splits[1], 1.0)]
    cell = replace(
        cells["full", "reference", "privleak"],
        documents=tuple(document(index, split, min_k_40=score) for index, (split, score) in enumerate(texts)),
        scores=(Score(metric=metric, value=value, num_docs=4),),
    )
    made = quantities.resample(cell, metric)
    assert (made is not None) == found
    if made is not None:
        assert made.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("now", "before", "target", "share", "quotient"),
    [
        (0.5, 0.5, 0.9, 0.0, 1.0),
        (0.9, 0.5, 0.9, 1.0, 1 - 0.4 / 1.4),
        (0.3, 0.5, 0.9, -0.5, 0.75),
        (0.0, 0.5, 1.0, -1.0, 0.0),
        (-20.0, -60.0, -100.0, -1.0, 0.5),
    ],
)
def test_figures_of_the_literature_by_hand(
    now: float, before: float, target: float, share: float, quotient: float
) -> None:
    flat = [quantity([level] * 6) for level in (now, before, target)]
    assert quantities.recovered_share(*flat).value == pytest.approx(share)
    assert quantities.robustness(*flat[:2]).value == pytest.approx(quotient)
