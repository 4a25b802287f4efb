"""Turns the steps of an environment into an `Episode`, and runs several environments side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.episode import Episode

Act = Callable[[np.ndarray], np.ndarray]


class EpisodeRecorder:
    """Collects one episode, step by step."""

    def __init__(self, episode_id: str, task: str, first_frame: np.ndarray) -> None:
        """Starts with the frame of the reset, (H, W, 3) uint8."""
        self._episode_id, self._task = episode_id, task
        self._frames = [first_frame]
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._discounts: list[float] = []
        self._dense_rewards: list[float] = []
        self._successes: list[bool] = []

    @property
    def dense_return(self) -> float:
        """Sum of the simulator's shaped reward so far."""
        return sum(self._dense_rewards)

    @property
    def frame(self) -> np.ndarray:
        """The newest frame, (H, W, 3) uint8."""
        return self._frames[-1]

    def add(self, action: np.ndarray, frame: np.ndarray, reward: float, info: dict[str, Any]) -> None:
        """Adds one agent step: the action, and what it led to."""
        self._actions.append(np.asarray(action, dtype=np.float32))
        self._frames.append(frame)
        self._rewards.append(reward)
        self._discounts.append(info["discount"])
        self._successes.append(info["success"])
        self._dense_rewards.append(info["dense_reward"])

    def build(self, length_steps: int | None = None, *, dense: bool = False) -> Episode:
        """The episode, or its first `length_steps` agent steps; with the shaped reward in place of the sparse one, if
        `dense`."""
        steps = len(self._actions) if length_steps is None else length_steps
        rewards = self._dense_rewards if dense else self._rewards
        return Episode(
            episode_id=self._episode_id,
            task=self._task,
            frames=np.stack(self._frames[: steps + 1]),
            actions=np.stack(self._actions[:steps]),
            env_rewards=np.asarray(rewards[:steps], dtype=np.float32),
            discounts=np.asarray(self._discounts[:steps], dtype=np.float32),
            successes=np.asarray(self._successes[:steps], dtype=bool),
        )


def run_wave(
    envs: Sequence[Any],
    task: str,
    episode_ids: Sequence[str],
    seeds: Sequence[int],
    act: Act,
    on_step: Callable[[int], None] | None = None,
) -> list[EpisodeRecorder]:
    """Runs one episode in each of the first `len(seeds)` environments, side by side, with one batched query per step.

    Args:
        envs: Environments of one task, as from `make_env`; at least as many as seeds.
        task: Task name for the records.
        episode_ids: One id per episode.
        seeds: One seed per episode, for `reset(seed=...)`.
        act: (N, H, W, 3) uint8 frames of the running episodes -> (N, A) float32 actions.
        on_step: Called after each step with the number of agent steps it made.

    Returns:
        A finished recorder per episode, in the order of the seeds.
    """
    recorders = [
        EpisodeRecorder(name, task, env.reset(seed=seed)[0])
        for name, env, seed in zip(episode_ids, envs, seeds)
    ]
    running = list(range(len(recorders)))
    while running:
        actions = act(np.stack([recorders[i].frame for i in running]))
        still_running = []
        for i, action in zip(running, actions):
            frame, reward, terminated, truncated, info = envs[i].step(action)
            recorders[i].add(action, frame, reward, info)
            if not (terminated or truncated):
                still_running.append(i)
        if on_step is not None:
            on_step(len(running))
        running = still_running
    return recorders


def waves(num_episodes: int, num_envs: int) -> list[range]:
    """Splits episode numbers into waves of at most `num_envs`."""
    return [range(i, min(i + num_envs, num_episodes)) for i in range(0, num_episodes, num_envs)]
