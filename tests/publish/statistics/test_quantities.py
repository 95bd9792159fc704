from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic_board as synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Resampled
from harness.publish.thresholds import RESAMPLES
from harness.records import CellResult, Score
from harness.score.metrics.formulas import auc

DOCUMENTS = (("forget", 0, "a"),)


def resampled(value: float, draws: list[float]) -> Resampled:
    return Resampled(value, np.array(draws, dtype=float), DOCUMENTS)


def cell(metric: str, plan: int = 3, quantizer: str = "reference") -> CellResult:
    found = synthetic.cells([synthetic.demo_plans()[plan]], quantizers=[quantizer])
    return next(result for result in found if result.cell.task.endswith(metric))


def test_resamples_are_seeded_and_every_one_draws_as_many_documents_as_there_are() -> None:
    table = quantities.counts("verbmem_f", 32)
    assert table.shape == (RESAMPLES, 32)
    assert (table.sum(axis=1) == 32).all()
    assert abs(table.mean() - 1) < 1e-9
    quantities.counts.cache_clear()
    assert (quantities.counts("verbmem_f", 32) == table).all()
    assert (quantities.counts("knowmem_f", 32) != table).any()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_resampled_auc_is_the_auc_of_the_drawn_documents(forget: list[int], holdout: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = (np.array(side, dtype=float) for side in (forget, holdout))
    drawn = [rng.multinomial(side.size, np.full(side.size, 1 / side.size), size=3).astype(float) for side in (one, two)]
    fast = quantities.resampled_auc(one, two, *drawn)
    slow = [auc(np.repeat(one, drawn[0][i].astype(int)), np.repeat(two, drawn[1][i].astype(int))) for i in range(3)]
    assert fast == pytest.approx(slow, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_resampled_mean_is_the_mean_of_the_drawn_documents(values: list[float], seed: int) -> None:
    numbers = np.array(values)
    drawn = np.random.default_rng(seed).multinomial(numbers.size, np.full(numbers.size, 1 / numbers.size), size=3)
    slow = [np.repeat(numbers, row).mean() for row in drawn]
    assert quantities.resampled_mean(numbers, drawn.astype(float)) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_f", "knowmem_r", "privleak"])
def test_what_is_recomputed_from_documents_equals_what_is_stored(metric: str) -> None:
    result = cell(metric)
    found = quantities.resample(result, metric)
    assert found is not None
    assert found.value == pytest.approx(quantities.stored_value(result, metric), abs=1e-9)
    estimate = found.estimate()
    assert estimate.low < estimate.value < estimate.high


def test_secondary_scores_have_intervals_too() -> None:
    for metric, task in (("rouge1", "knowmem_f"), ("auc", "privleak")):
        estimate = quantities.estimate(cell(task), metric)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.low < estimate.value


def test_a_mean_over_one_split_is_found_as_such() -> None:
    result = cell("privleak")
    losses = [document.scores["loss"] for document in result.documents if document.split == "holdout"]
    score = Score(metric="loss_holdout", value=sum(losses) / len(losses), num_docs=len(losses))
    estimate = quantities.estimate(replace(result, scores=(score,)), "loss_holdout")
    assert estimate is not None
    assert estimate.low is not None


def test_a_score_that_its_documents_do_not_add_up_to_gets_no_interval() -> None:
    result = replace(cell("knowmem_f"), scores=(Score(metric="knowmem_f", value=0.9, num_docs=91),))
    assert quantities.resample(result, "knowmem_f") is None
    assert quantities.estimate(result, "knowmem_f") == quantities.Estimate(value=0.9)


def test_without_documents_or_value_there_is_no_interval() -> None:
    assert quantities.estimate(replace(cell("knowmem_f"), documents=()), "knowmem_f").low is None
    missing = (Score(metric="knowmem_f", value=None, num_docs=0, missing_reason="none"),)
    assert quantities.estimate(replace(cell("knowmem_f"), scores=missing), "knowmem_f") is None


def test_the_reference_auc_is_taken_from_the_cell_or_solved_for() -> None:
    result = cell("privleak")
    assert quantities.reference_auc(result) == pytest.approx(synthetic.REFERENCE_AUC)
    stated = replace(result, scores=(*result.scores, Score(metric="reference_auc", value=0.4772, num_docs=0)))
    assert quantities.reference_auc(stated) == 0.4772
    memorized = replace(
        result,
        scores=(Score(metric="privleak", value=-100.0, num_docs=2), Score(metric="auc", value=0.0, num_docs=2)),
    )
    assert quantities.reference_auc(memorized) == 1.0
    assert quantities.reference_auc(replace(result, scores=())) is None


def test_an_invalid_document_counts_for_nothing() -> None:
    result = cell("knowmem_f")
    broken = replace(result.documents[0], invalid_reason="not finite", scores={})
    rest = [document.scores["knowmem_f"] for document in result.documents[1:]]
    changed = replace(
        result, documents=(broken, *result.documents[1:]),
        scores=(Score(metric="knowmem_f", value=sum(rest) / len(rest), num_docs=len(rest)),),
    )  # fmt: skip
    found = quantities.resample(changed, "knowmem_f")
    assert found is not None
    assert len(found.documents) == len(rest)


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    now, before = (
        quantities.resample(cell("knowmem_f", quantizer=q), "knowmem_f") for q in ("rtn-8bit-g128", "reference")
    )
    paired = (now - before).estimate()
    width = sum((found.estimate().high - found.estimate().low) ** 2 for found in (now, before)) ** 0.5
    assert paired.high - paired.low < 0.9 * width


def test_different_documents_are_never_paired() -> None:
    other = Resampled(0.5, np.zeros(3), (("forget", 1, "b"),))
    with pytest.raises(ValueError, match="different documents"):
        resampled(0.5, [0, 0, 0]) - other


def test_a_remaining_share_is_joint_over_model_target_and_retrained() -> None:
    model, retrain, target = resampled(0.5, [0.4, 0.6]), resampled(0.2, [0.1, 0.3]), resampled(0.8, [0.7, 0.9])
    gap = quantities.knowledge_gap(target, retrain)
    assert gap is not None
    rho = quantities.remaining_share(model, retrain, gap)
    assert rho.value == pytest.approx(0.5)
    assert rho.draws == pytest.approx([0.5, 0.5])


def test_there_is_no_share_where_the_target_may_know_no_more_than_the_retrained_model() -> None:
    flat = resampled(0.2, [0.2] * 100)
    unsure = resampled(0.3, [0.1] * 10 + [0.4] * 90)
    sure = resampled(0.3, [0.21] * 10 + [0.4] * 90)
    below = resampled(0.1, [0.1] * 100)
    assert quantities.knowledge_gap(unsure, flat) is None
    assert quantities.knowledge_gap(below, flat) is None
    assert quantities.knowledge_gap(sure, flat) is not None


def test_undefined_draws_do_not_spoil_an_interval() -> None:
    assert quantities.interval(np.array([0.0, 1.0, np.nan, np.inf])) == pytest.approx((0.025, 0.975))


def test_the_literatures_figures_are_as_they_are_printed() -> None:
    def at(value: float) -> Resampled:
        return resampled(value, [value] * 40)

    assert quantities.recovered_share(at(0.59), at(0.19), at(0.99)).value == pytest.approx(0.5)
    assert quantities.recovered_share(at(0.5), at(0.4), at(0.4)) is None
    assert quantities.robustness(at(0.2), at(0.2)).value == 1
    assert quantities.robustness(at(0.3), at(0.1)).value == pytest.approx(0.5)
    assert quantities.robustness(at(0.0), at(0.0)) is None
