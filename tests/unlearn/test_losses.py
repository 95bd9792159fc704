"""Losses against sums written out by hand in double precision."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.unlearn import losses

IGNORED = losses.IGNORED


def make_logits(seed: int, batch: int = 2, length: int = 5, vocabulary: int = 7) -> torch.Tensor:
    return torch.randn(batch, length, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_labels(seed: int, ignored: tuple[tuple[int, int], ...] = (), batch: int = 2, length: int = 5) -> torch.Tensor:
    labels = torch.randint(0, 7, (batch, length), generator=torch.Generator().manual_seed(seed))
    for row, column in ignored:
        labels[row, column] = IGNORED
    return labels


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def hand_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> dict[tuple[int, int], float]:
    """log p of every counted label, by (row, column)."""
    found = {}
    for row, column in product(range(labels.shape[0]), range(1, labels.shape[1])):
        label = int(labels[row, column])
        if label != IGNORED:
            found[row, column] = math.log(softmax(logits[row, column - 1].tolist())[label])
    return found


def gradient_by_differences(function, values: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    gradient = torch.zeros_like(values)
    for index in product(*(range(size) for size in values.shape)):
        up, down = values.clone(), values.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def gradient_of(function, values: torch.Tensor) -> torch.Tensor:
    leaf = values.clone().requires_grad_(True)
    function(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


LABELS = make_labels(1, ignored=((0, 2), (1, 4), (1, 3)))


def test_log_probs_are_those_of_the_next_token_and_ignored_ones_are_zero():
    logits = make_logits(0)
    found, counted = losses.token_log_probs(logits, LABELS)
    by_hand = hand_log_probs(logits, LABELS)
    assert found.shape == counted.shape == (2, 4)
    for row, column in product(range(2), range(4)):
        assert bool(counted[row, column]) == ((row, column + 1) in by_hand)
        assert float(found[row, column]) == pytest.approx(by_hand.get((row, column + 1), 0.0), abs=1e-12)


def test_the_first_label_never_counts():
    logits, other = make_logits(0), LABELS.clone()
    other[:, 0] = (other[:, 0] + 1) % 7
    assert torch.equal(losses.nll(logits, LABELS), losses.nll(logits, other))


def test_a_sequence_s_log_probability_is_the_sum_over_its_tokens():
    logits = make_logits(3)
    by_hand = hand_log_probs(logits, LABELS)
    for row in range(2):
        total = math.fsum(value for (found_row, _), value in by_hand.items() if found_row == row)
        assert float(losses.sequence_log_prob(logits, LABELS)[row]) == pytest.approx(total, abs=1e-12)


def test_nll_averages_over_tokens_and_not_over_sequences():
    logits = make_logits(4)
    by_hand = hand_log_probs(logits, LABELS)
    assert float(losses.nll(logits, LABELS)) == pytest.approx(-math.fsum(by_hand.values()) / len(by_hand), abs=1e-12)


def test_gradient_ascent_is_the_negative_of_gradient_descent():
    logits = make_logits(5)
    assert float(losses.ga(logits, LABELS)) == -float(losses.gdr(logits, LABELS))
    assert float(losses.gdr(logits, LABELS)) == float(losses.nll(logits, LABELS))


@pytest.mark.parametrize("function", [losses.ga, losses.gdr])
def test_gradients_of_the_likelihood_losses_agree_with_differences(function):
    logits = make_logits(6)
    wanted = gradient_by_differences(lambda values: function(values, LABELS), logits)
    assert torch.allclose(gradient_of(lambda values: function(values, LABELS), logits), wanted, atol=1e-8)


def test_the_gradient_of_the_likelihood_is_softmax_minus_one_hot_over_the_count():
    logits = make_logits(7)
    count = len(hand_log_probs(logits, LABELS))
    gradient = gradient_of(lambda values: losses.gdr(values, LABELS), logits)
    for row, column in product(range(2), range(5)):
        counts = column < 4 and int(LABELS[row, column + 1]) != IGNORED
        wanted = [0.0] * 7
        if counts:
            wanted = [value / count for value in softmax(logits[row, column].tolist())]
            wanted[int(LABELS[row, column + 1])] -= 1 / count
        assert gradient[row, column].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 3.0])
def test_npo_is_the_published_form_on_sequence_log_probabilities(beta):
    ours, reference = [-12.0, -3.5, -40.25], [-10.0, -4.0, -1.0]
    terms = [math.log(1 / (1 + math.exp(beta * (a - b)))) for a, b in zip(ours, reference, strict=True)]
    wanted = -(2 / beta) * math.fsum(terms) / 3
    found = losses.npo(torch.tensor(ours, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64), beta)
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_npo_of_the_starting_model_is_two_log_two_over_beta():
    same = torch.tensor([-5.0, -900.0], dtype=torch.float64)
    assert float(losses.npo(same, same, 0.1)) == pytest.approx(20 * math.log(2), rel=1e-12)


def test_npo_vanishes_and_stays_finite_far_below_the_reference():
    found = losses.npo(torch.tensor([-5000.0]), torch.tensor([-10.0]), 0.1)
    assert float(found) == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(float(losses.npo(torch.tensor([0.0]), torch.tensor([-5000.0]), 1.0)))


def test_npo_s_gradient_is_that_of_ascent_scaled_by_a_weight_between_0_and_2():
    beta, reference = 0.3, torch.tensor([-8.0, -2.0], dtype=torch.float64)
    ours = torch.tensor([-9.0, -1.0], dtype=torch.float64)
    gradient = gradient_of(lambda values: losses.npo(values, reference, beta), ours)
    weights = [2 / (1 + math.exp(-beta * (a - b))) / 2 for a, b in zip(ours.tolist(), reference.tolist(), strict=True)]
    assert gradient.tolist() == pytest.approx(weights, rel=1e-12)


def test_npo_s_gradient_reaches_the_logits():
    logits, reference = make_logits(8), torch.tensor([-6.0, -7.0], dtype=torch.float64)

    def loss(values):
        return losses.npo(losses.sequence_log_prob(values, LABELS), reference, 0.1)

    assert torch.allclose(gradient_of(loss, logits), gradient_by_differences(loss, logits), atol=1e-8)


def test_klr_is_the_divergence_of_the_model_from_the_reference():
    logits, reference = make_logits(9), make_logits(10)
    terms = []
    for row, column in hand_log_probs(logits, LABELS):
        ours = softmax(logits[row, column - 1].tolist())
        theirs = softmax(reference[row, column - 1].tolist())
        terms.append(math.fsum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True)))
    assert float(losses.klr(logits, reference, LABELS)) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-10)


def test_klr_is_not_symmetric_and_zero_only_for_the_reference_itself():
    logits, reference = make_logits(11), make_logits(12)
    forth, back = losses.klr(logits, reference, LABELS), losses.klr(reference, logits, LABELS)
    assert float(forth) > 0
    assert abs(float(forth) - float(back)) > 1e-3
    assert float(losses.klr(reference, reference, LABELS)) == pytest.approx(0.0, abs=1e-12)


def test_klr_does_not_depend_on_a_constant_added_to_the_logits():
    logits, reference = make_logits(13), make_logits(14)
    shifted = losses.klr(logits + 100.0, reference - 50.0, LABELS)
    assert float(shifted) == pytest.approx(float(losses.klr(logits, reference, LABELS)), rel=1e-9)


def test_klr_s_gradient_agrees_with_differences():
    logits, reference = make_logits(15), make_logits(16)

    def loss(values):
        return losses.klr(values, reference, LABELS)

    assert torch.allclose(gradient_of(loss, logits), gradient_by_differences(loss, logits), atol=1e-8)


def test_a_batch_in_which_nothing_counts_has_loss_zero_and_no_nan():
    logits, labels = make_logits(17), torch.full((2, 5), IGNORED)
    assert float(losses.ga(logits, labels)) == 0.0
    assert float(losses.klr(logits, make_logits(18), labels)) == 0.0
    assert torch.equal(gradient_of(lambda values: losses.gdr(values, labels), logits), torch.zeros_like(logits))


def test_half_precision_logits_are_raised_before_the_softmax():
    logits = make_logits(19).to(torch.bfloat16)
    found = losses.nll(logits, LABELS)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(losses.nll(logits.double(), LABELS)), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ignored=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), max_size=9),
)
def test_nll_agrees_with_the_hand_written_sum_for_any_labels(seed, ignored):
    logits, labels = make_logits(seed), make_labels(seed, tuple(ignored))
    by_hand = hand_log_probs(logits, labels)
    wanted = -math.fsum(by_hand.values()) / max(len(by_hand), 1)
    assert float(losses.nll(logits, labels)) == pytest.approx(wanted, abs=1e-10)
