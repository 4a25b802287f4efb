"""Exploration that lasts longer than one agent step."""

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


# Exponent of an excursion's length, P(n) ~ n^-2 as in the paper: most are a step long, one of eight lasts five steps or more.
LENGTH_EXPONENT = 2.0


class Excursions:
    """Random actions held for a random time in between a policy's: epsilon-z-greedy (Dabney et al., arXiv 2006.01782).

    Noise around a policy's actions stays near where the policy goes; a held action gets an arm away from there.
    """

    def __init__(self, start_prob: float, num_envs: int, action_dim: int, rng: np.random.Generator) -> None:
        """None is going on.

        Args:
            start_prob: Probability per agent step without an excursion that one begins, in [0, 1).
            num_envs: Environments side by side.
            action_dim: A.
            rng: Source of beginnings, lengths and actions; not touched where `start_prob` is 0.
        """
        self._start_prob, self._rng = start_prob, rng
        self._left_steps = np.zeros(num_envs, np.int64)
        self._held = np.zeros((num_envs, action_dim), np.float32)

    def replace(self, actions: np.ndarray) -> np.ndarray:
        """The next actions.

        Args:
            actions: (N, A) float32 in [-1, 1] of the policy, N at most `num_envs`.

        Returns:
            (N, A) float32, the held action in place of the policy's during an excursion.
        """
        if self._start_prob == 0.0:
            return actions
        num_envs = len(actions)
        left, held = self._left_steps[:num_envs], self._held[:num_envs]
        begins = (left == 0) & (self._rng.random(num_envs) < self._start_prob)
        left[begins] = self._rng.zipf(LENGTH_EXPONENT, begins.sum())
        held[begins] = self._rng.uniform(-1.0, 1.0, (begins.sum(), held.shape[1]))
        replaced = np.where(left[:, None] > 0, held, actions)
        left[left > 0] -= 1
        return replaced
