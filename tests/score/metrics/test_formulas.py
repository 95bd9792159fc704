"""The arithmetic against golden numbers, brute force and its own laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import MetricInfo
from harness.score.metrics import formulas

finite = st.floats(min_value=-50, max_value=0, allow_nan=False)
scores = st.lists(st.integers(min_value=0, max_value=9).map(float), min_size=1, max_size=25)


def test_rouge_agrees_with_the_golden_numbers(fixture_file):
    cases = fixture_file("rouge")
    assert len(cases) == 50
    for case in cases:
        found = formulas.rouge(case["gt"], case["response"])
        expected = [case[key] for key in ("rougeL", "rougeL_recall", "rouge1", "rouge1_recall")]
        assert [found.rouge_l, found.rouge_l_recall, found.rouge_1, found.rouge_1_recall] == pytest.approx(
            expected, abs=1e-9
        )


def test_rouge_does_not_stem():
    assert formulas.rouge("ferries leaving", "ferry leaves").rouge_l == 0


def test_answers_are_cut_as_in_the_golden_cases(fixture_file):
    for case in fixture_file("knowmem_cut"):
        assert formulas.cut_answer(case["raw"]) == case["cut"]


@given(st.lists(st.sampled_from(["\n", "\n\n", "Question", "Question:", " ", "x", "Answer: "])).map("".join))
def test_cutting_an_answer_twice_changes_nothing_and_leaves_no_marker(text):
    once = formulas.cut_answer(text)
    assert formulas.cut_answer(once) == once
    assert text.startswith(once)
    assert not any(marker in once for marker in formulas.ANSWER_MARKERS)


def test_min_k_auc_and_privleak_agree_with_the_golden_numbers(fixture_file):
    golden = fixture_file("privleak")
    assert {case["name"] for case in golden["cases"]} >= {"memorized", "clean", "over_unlearned", "all_tied"}
    for case in golden["cases"]:
        forget, holdout = (
            [formulas.min_k(logprobs) for logprobs in case[f"{split}_logprobs"]] for split in ("forget", "holdout")
        )
        assert forget == pytest.approx(case["forget_min40"], abs=1e-9)
        assert holdout == pytest.approx(case["holdout_min40"], abs=1e-9)
        value = formulas.auc(forget, holdout)
        assert value == pytest.approx(case["auc"], abs=1e-9)
        for corpus, expected in case["privleak"].items():
            reference = golden["auc_retrain_min40"][corpus]
            assert formulas.privleak(value, reference) == pytest.approx(expected, abs=1e-9)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_with_ties_counted_half(forget, holdout):
    pairs = [1.0 if h < f else 0.5 if h == f else 0.0 for f in forget for h in holdout]
    assert formulas.auc(forget, holdout) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(scores, scores)
def test_auc_turns_into_its_complement_when_the_splits_change_places(forget, holdout):
    assert formulas.auc(forget, holdout) + formulas.auc(holdout, forget) == pytest.approx(1, abs=1e-12)


@given(scores, scores)
@settings(max_examples=30)
def test_auc_has_the_references_orientation(forget, holdout):
    from sklearn.metrics import roc_auc_score

    truth = [0] * len(forget) + [1] * len(holdout)
    expected = roc_auc_score(truth, [-score for score in forget + holdout])
    assert formulas.auc(forget, holdout) == pytest.approx(expected, abs=1e-12)


def test_auc_knows_full_memorization_and_total_ties():
    assert formulas.auc([1, 2], [3, 4]) == 0
    assert formulas.auc([5], [3, 4]) == 1
    assert formulas.auc([7] * 3, [7] * 5) == 0.5


@pytest.mark.parametrize(("forget", "holdout"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_auc_takes_neither_an_empty_side_nor_a_number_that_is_none(forget, holdout):
    with pytest.raises(ValueError, match="AUC needs"):
        formulas.auc(forget, holdout)


@given(st.floats(min_value=0.01, max_value=1))
def test_a_model_like_the_retrained_one_has_privleak_zero(reference):
    assert formulas.privleak(reference, reference) == 0
    assert formulas.privleak(0, reference) == pytest.approx(-100)


@pytest.mark.parametrize("reference", [0, -0.1, 1.01, math.nan])
def test_privleak_takes_no_impossible_reference(reference):
    with pytest.raises(ValueError, match="reference AUC"):
        formulas.privleak(0.5, reference)


@given(st.lists(finite, min_size=3, max_size=60), st.sampled_from(formulas.MIN_K_PERCENTS))
def test_min_k_averages_the_least_likely_tokens(logprobs, percent):
    count = int(percent / 100 * len(logprobs))
    found = formulas.min_k(logprobs, percent)
    if count == 0:
        assert found is None
    else:
        assert found == pytest.approx(-sum(sorted(logprobs)[:count]) / count)
        assert formulas.loss(logprobs) <= found + 1e-9


@pytest.mark.parametrize(("tokens", "has_score"), [(0, False), (1, False), (2, False), (3, True)])
def test_min_40_needs_three_tokens(tokens, has_score):
    assert (formulas.min_k([-1.0] * tokens) is not None) == has_score
    assert (tokens >= formulas.MIN_TOKENS) == has_score


def test_min_k_plus_plus_standardizes_each_position_before_taking_the_smallest():
    logprobs, means, stds = [-1.0, -5.0, -2.0, -3.0, -4.0], [-2.0, -5.0, -1.0, -3.0, -1.0], [1.0, 2.0, 0.5, 1.0, 1.0]
    assert formulas.min_k_plus_plus(logprobs, means, stds) == pytest.approx(-(-3.0 + -2.0) / 2)


def test_min_k_plus_plus_of_a_distribution_with_one_token_is_zero_there():
    assert formulas.min_k_plus_plus([0.0] * 5, [0.0] * 5, [0.0] * 5) == 0


def test_membership_scores_of_a_short_text_leave_out_shares_below_one_token():
    found = formulas.membership_scores([-1.0, -2.0, -3.0], [-1.0] * 3, [1.0] * 3, "some text")
    assert "min_k_30" not in found
    assert found["min_k_40"] == 3.0
    assert found["loss"] == 2.0
    assert found["tokens"] == 3
    assert set(found) <= set(formulas.METRICS)


def test_zlib_loss_divides_by_compressed_bytes():
    import zlib

    text = "again and again " * 20
    assert formulas.zlib_loss(3.0, text) == 3.0 / len(zlib.compress(text.encode()))


@pytest.mark.parametrize(
    ("correct", "expected"),
    [([], 0), ([True] * 4, 1), ([False] * 4, 0), ([True, True, False], 0), ([False, True, True, True], 0.75)],
)
def test_extraction_strength_is_the_longest_correct_tail(correct, expected):
    assert formulas.extraction_strength(correct) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_extraction_strength_is_one_minus_the_shortest_sufficient_prefix(correct):
    shortest = next((k for k in range(len(correct)) if all(correct[k:])), len(correct))
    assert formulas.extraction_strength(correct) == pytest.approx(1 - shortest / len(correct))


def test_degenerate_text_is_told_from_plain_text():
    assert formulas.degeneration("The keeper of the lamp waits for no one.")["degenerate"] == 0
    assert formulas.degeneration("so so so so so so so so so so")["degenerate"] == 1
    assert formulas.degeneration(")" * 40)["degenerate"] == 1
    assert formulas.degeneration(" \n ") == {"repetition": 0.0, "empty": 1.0, "degenerate": 1.0, "response_words": 0.0}


@given(st.text(max_size=200))
def test_repetition_is_a_share(text):
    assert 0 <= formulas.repetition(text) < 1


def test_the_table_starts_with_the_primary_metrics_and_names_each_key_once():
    assert tuple(formulas.METRICS)[:4] == formulas.PRIMARY
    for key, info in formulas.METRICS.items():
        assert isinstance(info, MetricInfo)
        assert info.key == key
        assert info.label
        assert info.description
    assert formulas.METRICS["privleak"].direction == "toward_zero"
    assert formulas.METRICS["privleak"].display_scale == 1
    assert formulas.METRICS["verbmem_f"].display_scale == 100


def test_a_shared_secondary_metric_is_good_the_way_of_its_task():
    assert formulas.direction_in("rouge1", "knowmem_f") == "lower"
    assert formulas.direction_in("rouge1", "knowmem_r") == "higher"
    assert formulas.direction_in("degenerate", "knowmem_r") == "lower"


def test_scores_are_plain_floats_that_json_can_hold():
    assert type(formulas.min_k(np.array([-1.0, -2.0, -3.0], dtype=np.float32))) is float
    assert type(formulas.auc(np.array([1.0]), np.array([2.0]))) is float
