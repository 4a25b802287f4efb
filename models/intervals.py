"""95 % intervals of shares and of means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson score; sound at 0 and at 1, and for few trials).

    Args:
        successes: 0 to `trials`.
        trials: 1 or more.

    Returns:
        Lower and upper end, within [0, 1].

    Raises:
        ValueError: if the counts make no sense.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"{successes} successes of {trials} trials: expected 0 <= successes <= trials, trials >= 1"
        )
    rate, spread = successes / trials, Z_95**2 / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_interval(values: Any, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a mean.

    Args:
        values: (N,) numbers, N of at least 1.
        seed: Of the draws.
        draws: Resampled means.

    Returns:
        Lower and upper end.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
