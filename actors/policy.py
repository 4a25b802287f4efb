"""What rollouts and evaluation need of a policy; the launcher injects one, so no learner is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Weights = dict[str, np.ndarray]
PolicyFactory = Callable[[Any], "Policy"]
# The published (version, weights) if it is news to who holds the given version, else None. -1 asks for any.
# A learner that was restored may publish a lower version than before: that is news, too.
PullWeights = Callable[[int], "tuple[int, Weights] | None"]
NO_VERSION = -1


class NoWeightsError(RuntimeError):
    """The weight store is empty: nothing was ever published, or the store died and has forgotten it."""


class Policy(Protocol):
    """A policy on the CPU, inference only."""

    def load(self, weights: Weights) -> None:
        """Takes new weights."""

    def act(
        self, frames: np.ndarray, stddev: float | None, noise: np.ndarray | None = None, uniform: bool = False
    ) -> np.ndarray:
        """Actions for a batch of frames.

        Args:
            frames: (N, H, W, 3) uint8.
            stddev: Standard deviation of the exploration noise; None for the mean action.
            noise: (N, A) float32 standard normals; not needed for mean actions.
            uniform: Ignore the policy and make uniform actions of the noise.

        Returns:
            (N, A) float32 in [-1, 1].
        """


def resolve_factory(factory: PolicyFactory | str) -> PolicyFactory:
    """Returns a policy factory given itself or as "module:function".

    Raises:
        ValueError: if the text is not of that form.
    """
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    if not name:
        raise ValueError(f"policy factory {factory!r} is not of the form 'module:function'")
    return getattr(importlib.import_module(module), name)
