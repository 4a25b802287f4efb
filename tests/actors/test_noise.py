"""Correlated noise."""

from __future__ import annotations

import numpy as np

from actors.noise import correlated


def test_the_first_value_is_fresh_and_the_next_keeps_the_variance():
    fresh = np.array([1.0, -2.0])
    assert correlated(None, fresh, 0.6) is fresh
    np.testing.assert_allclose(correlated(np.array([5.0, 0.0]), fresh, 0.6), [3.8, -1.6])
