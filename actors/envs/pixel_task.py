"""What every simulated task has in common: frames, action repeat, sparse reward, true time limits, exact seeds."""

from __future__ import annotations

from typing import Any

# Sets MUJOCO_GL, so it must come before mujoco.
from actors.envs.rendering import SceneRenderer, shared_renderer  # isort: skip

import gymnasium
import numpy as np

from actors.envs.registry import EnvConfig


class PixelTaskEnv(gymnasium.Env):
    """One task of a MuJoCo simulator with (H, W, 3) uint8 frames.

    One agent step holds the action for `action_repeat` simulator steps and draws one frame at the end. The sparse
    reward is the number of these simulator steps that were a success. After `episode_steps` agent steps the episode is
    truncated, and the discount stays 1. With `success_is_final` the simulator stands still once the task is solved; with
    `success_hold_steps`, too, the episode is over so many agent steps later: the only way in which it terminates.
    The scene depends on the seed of the reset alone, never on earlier episodes.

    `info` of a step: `success` (bool, any repeat), `success_count` (int), `dense_reward` (float, the simulator's
    shaped reward summed over the repeats), `discount` (float, 0 where the episode terminates, otherwise 1), `seed` (int, of
    the episode).

    A subclass makes the simulator and implements `_start_scene`.

    Args:
        config: Task, action repeat, time limit and renderer setting.
        seed: Source of the seeds of resets that name none.
        sim: The simulator: a Gymnasium environment with `model` and `data` of MuJoCo and `info["success"]`.
        camera_id: Camera of its model that draws the frames.
        scene: What makes meshes and textures equal, see `shared_renderer`.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - the name and form are Gymnasium's
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, seed: int | None, sim: Any, camera_id: int, scene: str) -> None:
        self.config = config
        self._sim, self._camera_id, self._scene = sim, camera_id, scene
        self._renderer: SceneRenderer | None = None
        self._seeds = np.random.default_rng(seed)
        self._episode_seed = -1
        self._steps_left = 0
        self._state = np.zeros(0)
        self._is_final, self._hold_steps_left, self._dense_reward = False, 0, 0.0
        shape = (config.render.height_px, config.render.width_px, 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (config.action_dim,), np.float32)

    def _start_scene(self, seed: int) -> np.ndarray:
        """Puts the simulator into the scene of a seed; returns the low-dimensional state."""
        raise NotImplementedError

    def _update_positions(self) -> None:
        """Called before a frame is drawn, where a simulator leaves positions behind."""

    @property
    def state(self) -> np.ndarray:
        """(S,) float64 low-dimensional state with the goal, for experts and tests."""
        return self._state.copy()

    @property
    def episode_seed(self) -> int:
        """Seed of the current episode."""
        return self._episode_seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Starts an episode.

        Args:
            seed: 0 or more; fixes the goal, the objects and so every later frame for given actions. None draws one.
            options: Unused.

        Returns:
            First frame (H, W, 3) uint8, and info with `seed`.
        """
        self.reset_state(seed)
        return self.render(), {"seed": self._episode_seed}

    def reset_state(self, seed: int | None = None) -> None:
        """Starts an episode without drawing a frame."""
        self._episode_seed = int(self._seeds.integers(2**48) if seed is None else seed)
        self._state = self._start_scene(self._episode_seed)
        self._steps_left = self.config.episode_steps
        self._is_final, self._hold_steps_left = False, self.config.success_hold_steps or 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes one agent step.

        Args:
            action: (A,) float, clipped to [-1, 1].

        Returns:
            Frame (H, W, 3) uint8, sparse reward (0 to `action_repeat`), terminated (solved for good), truncated (the
            time limit), info.

        Raises:
            RuntimeError: if the episode is over or was never started.
            ValueError: if the action is not finite.
        """
        reward, is_over, info = self.advance(action)
        terminated = info["discount"] == 0.0
        return self.render(), reward, terminated, is_over and not terminated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, dict[str, Any]]:
        """Takes one agent step without drawing a frame; returns sparse reward, whether the episode is over, info."""
        if self._steps_left < 1:
            raise RuntimeError(
                f"the episode of task {self.config.task!r} is over; call reset() before step()"
            )
        action = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        if not np.isfinite(action).all():  # MuJoCo would reset itself, which some tasks take for a success.
            raise ValueError(
                f"the action is {action.tolist()}, expected finite numbers: the policy has diverged"
            )
        success_count, dense_reward = 0, 0.0
        for _ in range(self.config.action_repeat):
            success_count += self._simulate(action)
            dense_reward += self._dense_reward
        self._steps_left -= 1
        terminated = self._is_terminated()
        if terminated:
            self._steps_left = 0
        return (
            float(success_count),
            self._steps_left == 0,
            {
                "success": success_count > 0,
                "success_count": success_count,
                "dense_reward": dense_reward,
                "discount": 0.0 if terminated else 1.0,
                "seed": self._episode_seed,
            },
        )

    def _simulate(self, action: np.ndarray) -> bool:
        """One simulator step, none if the task stays as it was solved; whether it is a success."""
        if self._is_final:
            return True
        self._state, reward, _, _, info = self._sim.step(action)
        self._dense_reward = float(reward)
        self._is_final = self.config.success_is_final and bool(info["success"])
        return bool(info["success"])

    def _is_terminated(self) -> bool:
        """Whether the agent step just taken was the last one that a solved task is shown for; counts these steps."""
        if not self._is_final or self.config.success_hold_steps is None:
            return False
        self._hold_steps_left -= 1
        return self._hold_steps_left < 0

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draws the current state: (H, W, 3) uint8, upright."""
        if self._renderer is None:
            self._renderer = shared_renderer(self._scene, self._sim.model, self.config.render)
        self._update_positions()
        return self._renderer.render(self._sim.model, self._sim.data, self._camera_id)

    def close(self) -> None:
        """Lets go of the simulator; the renderer is shared and stays for the next environment."""
        self._sim.close()
