"""Noise that is correlated from one agent step to the next."""

from __future__ import annotations

import numpy as np


def correlated(previous: np.ndarray | None, fresh: np.ndarray, correlation: float) -> np.ndarray:
    """The next value of an AR(1) process whose values are standard normal.

    White noise mostly takes back what it has just done; correlated noise gets an arm somewhere.

    Args:
        previous: (...) the last value, or None for the first one.
        fresh: (...) standard normal numbers, independent of all earlier ones.
        correlation: Of neighbouring values, in [0, 1).

    Returns:
        (...) correlation * previous + sqrt(1 - correlation^2) * fresh; `fresh` where there is no last value.
    """
    if previous is None:
        return fresh
    return correlation * previous + np.sqrt(1.0 - correlation**2) * fresh
