"""WeightStore: the newest policy weights, by value, in a small actor of their own."""

from __future__ import annotations

import numpy as np

Weights = dict[str, np.ndarray]


class WeightStore:
    """Holds one version of the weights. Wrap with `ray.remote(num_cpus=0)` and give it a name."""

    def __init__(self) -> None:
        self._version = -1
        self._weights: Weights = {}

    def publish(self, version: int, weights: Weights) -> int:
        """Replaces the weights; returns the version.

        A learner restored from a checkpoint publishes a lower version than its predecessor did; that
        one counts.
        """
        self._version, self._weights = version, weights
        return version

    def newer_than(self, version: int) -> tuple[int, Weights] | None:
        """The current (version, weights) if it is another one than `version`, else None.

        Args:
            version: What the caller has; -1 for nothing yet.
        """
        if self._version in (-1, version):
            return None
        return self._version, self._weights

    def version(self) -> int:
        """The current version; -1 before the first publication."""
        return self._version

    def ping(self) -> str:
        """Answers "ok" once the actor runs."""
        return "ok"
