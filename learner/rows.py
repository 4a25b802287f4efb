"""What one row of a replay store holds, and how n-step transitions are read from rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from learner.batch import Batch
from learner.nstep import n_step_return
from learner.ring import ReadAhead
from models.episode import Episode

if TYPE_CHECKING:
    from learner.replay import ReplayConfig


def row_fields(resolution_px: int, action_dim: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> shape and type of one row, for each data file of a store (`<name>.bin`)."""
    return {
        "frames": ((resolution_px, resolution_px, 3), np.uint8),
        "actions": ((action_dim,), np.float32),
        "env_rewards": ((), np.float32),
        "learned_rewards": ((), np.float32),
        "discounts": ((), np.float32),
        "successes": ((), np.bool_),
    }


def read_transitions(
    data: Mapping[str, np.ndarray],
    rows: np.ndarray,
    config: ReplayConfig,
    read_ahead: ReadAhead | None = None,
) -> Batch:
    """Reads the n-step transitions that start at the given rows.

    Args:
        data: The rows of each field of `row_fields`.
        rows: (B,) int64 start rows, taken modulo the ring here.
        config: Settings of the store.
        read_ahead: Of the frames, if they may not be in memory.
    """
    n_step, ring = config.n_step, config.rows
    steps = (rows[:, None] + np.arange(n_step + 1)) % ring
    inside, first, last = steps[:, :-1], steps[:, 0], steps[:, -1]
    if read_ahead is not None:
        read_ahead(first, n_step + 1)
    rewards = config.env_weight * data["env_rewards"][inside]
    rewards = rewards + config.learned_weight * data["learned_rewards"][inside]
    if config.absorbing_ends:
        ends = data["discounts"][inside] == 0
        rewards = np.where(ends, rewards / np.float32(1 - config.discount), rewards)
    reward, discount = n_step_return(rewards, data["discounts"][inside], config.discount)
    # np.take copies a frame at a time and lets other threads run meanwhile.
    return Batch(
        obs=np.take(data["frames"], first, axis=0),
        action=np.take(data["actions"], first, axis=0),
        reward=reward[:, None],
        discount=discount[:, None],
        next_obs=np.take(data["frames"], last, axis=0),
    )


def rows_of(episode: Episode) -> dict[str, np.ndarray]:
    """The T + 1 rows of each file; the last row of everything but the frames is empty."""
    steps = len(episode)
    learned = episode.learned_rewards
    values: dict[str, np.ndarray] = {
        "actions": episode.actions,
        "env_rewards": episode.env_rewards,
        "learned_rewards": np.zeros(steps, np.float32) if learned is None else learned,
        "discounts": episode.discounts,
        "successes": episode.successes,
    }
    padded = {name: np.concatenate([value, np.zeros_like(value[:1])]) for name, value in values.items()}
    return {"frames": episode.frames, **padded}


def episode_of(rows: Mapping[str, np.ndarray], episode_id: str, task: str) -> Episode:
    """The episode whose T + 1 rows of each file these are; what `rows_of` undoes."""
    frames, rest = rows["frames"], {name: values[:-1] for name, values in rows.items() if name != "frames"}
    return Episode(episode_id, task, frames, **rest)
