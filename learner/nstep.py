"""n-step returns (DrQ-v2, arXiv 2107.09645, eq. 1) over episodes laid out as rows.

Row k of an episode of T steps holds frame k, the action taken at it and the reward and discount of
that transition; row T holds the last frame only. A start s reads the observation and action of row s,
the rewards of rows s..s+n-1 and the next observation of row s+n, so it never leaves the episode.
"""

from __future__ import annotations

import numpy as np


def count_starts(episode_steps: np.ndarray | int, n_step: int) -> np.ndarray:
    """How many start rows an episode offers: T - n + 1.

    As in the official sampler, the last n - 1 steps are used as parts of returns but never as
    starts. An episode shorter than n offers none (there the official sampler fails).

    Args:
        episode_steps: Number of steps T of each episode.
        n_step: Length n of the return in steps.

    Returns:
        int64, same shape as `episode_steps`, at least 0.
    """
    return np.maximum(np.asarray(episode_steps, dtype=np.int64) - n_step + 1, 0)


def n_step_return(rewards: np.ndarray, discounts: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Discounted sum of n rewards, and the factor for the value at the end.

    `reward = sum_i c_i r_i` with `c_0 = 1` and `c_{i+1} = c_i * gamma * discount_i`; returned with c_n.

    Args:
        rewards: (B, n) float32.
        discounts: (B, n) float32 [0, 1]; 0 marks a true end.
        gamma: Discount factor per step.

    Returns:
        (B,) float32 n-step reward and (B,) float32 discount c_n.
    """
    total = np.zeros(len(rewards), dtype=np.float32)
    factor = np.ones(len(rewards), dtype=np.float32)
    for step in range(rewards.shape[1]):
        total += factor * rewards[:, step]
        factor *= discounts[:, step] * np.float32(gamma)
    return total, factor
