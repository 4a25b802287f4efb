"""The episode: the one record that flows from rollout to reward to replay."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Episode:
    """One finished episode of T agent steps.

    Action `k` is taken at frame `k` and leads to frame `k + 1`; `env_rewards[k]`, `discounts[k]`,
    `successes[k]` and `learned_rewards[k]` belong to that transition.

    Attributes:
        episode_id: Unique over a run; inserting the same id twice stores it once.
        task: Task name, for example "door-close".
        frames: (T+1, H, W, 3) uint8 [0, 255].
        actions: (T, A) float32 [-1, 1].
        env_rewards: (T,) float32, the sparse reward of the environment, summed over the action repeat.
        discounts: (T,) float32, 0 only at a true terminal state, never at a time limit.
        successes: (T,) bool, whether any simulator step of the agent step was a success.
        learned_rewards: (T,) float32 standardised reward of the video model, or None before scoring.
    """

    episode_id: str
    task: str
    frames: np.ndarray
    actions: np.ndarray
    env_rewards: np.ndarray
    discounts: np.ndarray
    successes: np.ndarray
    learned_rewards: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps < 1:
            raise ValueError(
                f"episode {self.episode_id!r} has no steps; an episode needs at least one action"
            )
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"episode {self.episode_id!r}: frames must be (T+1, H, W, 3) uint8, "
                f"got {self.frames.shape} {self.frames.dtype}"
            )
        if len(self.frames) != steps + 1:
            raise ValueError(
                f"episode {self.episode_id!r}: {steps} actions need {steps + 1} frames, got {len(self.frames)}"
            )
        for name in ("env_rewards", "discounts", "successes", "learned_rewards"):
            value = getattr(self, name)
            if value is not None and value.shape != (steps,):
                raise ValueError(
                    f"episode {self.episode_id!r}: {name} must have shape ({steps},), got {value.shape}"
                )
        if self.learned_rewards is not None and not np.isfinite(self.learned_rewards).all():
            bad = int(np.flatnonzero(~np.isfinite(self.learned_rewards))[0])
            raise ValueError(
                f"episode {self.episode_id!r}: learned reward of step {bad} is {self.learned_rewards[bad]}; "
                "rewards must be finite, check the reward checkpoint and its statistics"
            )

    def __len__(self) -> int:
        """Number of agent steps T."""
        return len(self.actions)

    @property
    def is_success(self) -> bool:
        """Whether any agent step, the last one included, was a success."""
        return bool(self.successes.any())

    @property
    def env_return(self) -> float:
        """Undiscounted sum of the environment's sparse rewards."""
        return float(self.env_rewards.sum())

    def with_learned_rewards(self, frame_rewards: np.ndarray) -> Episode:
        """Attaches the learned reward of each frame to the transition that led to it.

        Row t of a reward model belongs to the time step whose observation is frame t (Diffusion Reward,
        arXiv 2312.14134), that is, to action t - 1. The row of frame 0 has no action and is dropped.

        Args:
            frame_rewards: (T+1,) float32, one standardised reward per frame.

        Returns:
            A copy of the episode with `learned_rewards` set.

        Raises:
            ValueError: if the length does not match or a reward is not finite.
        """
        if frame_rewards.shape != (len(self.frames),):
            raise ValueError(
                f"episode {self.episode_id!r}: expected one reward per frame ({len(self.frames)},), "
                f"got {frame_rewards.shape}"
            )
        return replace(self, learned_rewards=np.asarray(frame_rewards[1:], dtype=np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """The array fields by name, without those that are None (what is written to disk)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
