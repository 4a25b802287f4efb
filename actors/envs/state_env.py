"""Any environment of this project as a plain Gymnasium one: state in, dense reward out, nothing drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from actors.envs.registry import EnvConfig, make_env


class StateEnv(gymnasium.Env):
    """One task from its low-dimensional state, with the simulator's shaped reward; for algorithms that learn from these.

    One step is one agent step of the wrapped environment, with its action repeat. Episodes are truncated at the time
    limit, and terminate only where a solved episode ends (`EnvConfig.success_hold_steps`).

    `info` of a step: `episode_success` (bool, at this or an earlier step) and all of the wrapped environment's.
    """

    def __init__(self, config: EnvConfig, seed: int | None = None, reward_scale: float = 1.0) -> None:
        """Builds the simulator.

        Args:
            config: Task, action repeat and time limit; of its renderer settings only the camera's name must be valid.
            seed: Source of the scenes of resets that name no seed.
            reward_scale: Factor on the dense reward, which is summed over the action repeat.

        Raises:
            ValueError: if the scale is not above 0.
        """
        if not reward_scale > 0:
            raise ValueError(f"reward_scale is {reward_scale}, expected a number above 0")
        self._env = make_env(config, seed)
        self._reward_scale = reward_scale
        self._is_success = False
        self._env.reset_state()
        size = len(self._env.state)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = self._env.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Fixes the scene; None draws one.
            options: Unused.

        Returns:
            State (S,) float32, and info with `seed`.
        """
        self._env.reset_state(seed)
        self._is_success = False
        return self._state(), {"seed": self._env.episode_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes one agent step.

        Args:
            action: (A,) float, clipped to [-1, 1].

        Returns:
            State (S,) float32, scaled dense reward, terminated, truncated, info.
        """
        _, is_over, info = self._env.advance(action)
        terminated = info["discount"] == 0.0
        self._is_success |= info["success"]
        info["episode_success"] = self._is_success
        reward = self._reward_scale * info["dense_reward"]
        return self._state(), reward, terminated, is_over and not terminated, info

    def _state(self) -> np.ndarray:
        return np.asarray(self._env.state, dtype=np.float32)

    def close(self) -> None:
        """Lets go of the simulator."""
        self._env.close()


def make_state_env(values: Mapping[str, Any], seed: int, reward_scale: float) -> StateEnv:
    """A `StateEnv` from `dataclasses.asdict` of an `EnvConfig`."""
    return StateEnv(EnvConfig.from_dict(values), seed, reward_scale)
