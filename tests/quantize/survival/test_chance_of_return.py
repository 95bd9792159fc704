import pytest

from harness.quantize.survival.measure import INTERCEPT, SLOPE, chance_of_return


def test_less_survival_means_more_return():
    chances = [chance_of_return(ratio / 20) for ratio in range(21)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.99
    assert chances[-1] < 0.01


def test_even_odds_lie_where_the_log_odds_vanish():
    assert chance_of_return(INTERCEPT / SLOPE) == pytest.approx(0.5)


def test_ratios_beyond_0_and_1_count_as_0_and_1():
    assert chance_of_return(-0.4) == chance_of_return(0.0)
    assert chance_of_return(2.2) == chance_of_return(1.0)


def test_without_a_ratio_nothing_is_said():
    assert chance_of_return(None) is None
