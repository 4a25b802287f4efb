"""95 % intervals on literal cases."""

import pytest

from models.intervals import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (8, 10, 0.490162, 0.943318),
        (5, 10, 0.236593, 0.763407),
        (1, 1, 0.206549, 1.0),
        (50, 100, 0.403832, 0.596168),
    ],
)
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_interval_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="trials"):
        wilson_interval(successes, trials)


def test_bootstrap_interval_of_a_mean():
    assert bootstrap_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    low, high = bootstrap_interval([0.0, 1.0] * 20)
    assert 0.3 < low < 0.4 and 0.6 < high < 0.7
