"""MetaWorld (v3) from pixels, with action repeat, sparse reward, true time limits and exact seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Sets MUJOCO_GL, so it must come before mujoco.
from actors.envs.rendering import SceneRenderer, shared_renderer  # isort: skip

import gymnasium
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from actors.envs.registry import EnvConfig

NO_LIMIT_STEPS = 2**31


@dataclass(frozen=True)
class CameraPreset:
    """A fixed camera of the simulator, moved to `position_m` if given, and turned upright if it hangs upside down."""

    name: str
    position_m: tuple[float, float, float] | None = None
    is_upside_down: bool = False


# "corner2" is the view that pixel experiments on MetaWorld use: closer than the simulator's own camera of that name,
# which hangs upside down.
CAMERAS = {
    "corner2": CameraPreset("corner2", position_m=(0.75, 0.075, 0.7), is_upside_down=True),
    "corner2_far": CameraPreset("corner2", is_upside_down=True),
    "corner": CameraPreset("corner"),
    "corner3": CameraPreset("corner3"),
    "topview": CameraPreset("topview"),
    "gripperPOV": CameraPreset("gripperPOV"),
    "behindGripper": CameraPreset("behindGripper"),
}


class MetaWorldEnv(gymnasium.Env):
    """One MetaWorld task with (H, W, 3) uint8 frames.

    One agent step holds the action for `action_repeat` simulator steps and draws one frame at the end. The sparse
    reward is the number of these simulator steps that were a success. The task never terminates: after `episode_steps`
    agent steps it is truncated, and the discount stays 1.

    Goals and object positions are drawn from MetaWorld's own continuous distribution (the one its 50 fixed goals per
    task are drawn from), and depend on the seed of the reset alone, never on earlier episodes.

    `info` of a step: `success` (bool, any repeat), `success_count` (int), `dense_reward` (float, MetaWorld's shaped
    reward summed over the repeats), `discount` (float, always 1), `seed` (int, of the episode).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - the name and form are Gymnasium's
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, seed: int | None = None) -> None:
        """Builds the simulator; the renderer is made with the first frame.

        Args:
            config: Task, action repeat, time limit and renderer setting.
            seed: Source of the seeds of resets that name none.

        Raises:
            ValueError: if the camera is unknown.
        """
        if config.render.camera not in CAMERAS:
            raise ValueError(f"camera {config.render.camera!r} is unknown; use one of {', '.join(CAMERAS)}")
        self.config = config
        self._sim = ALL_V3_ENVIRONMENTS[f"{config.task}-v3"]()
        self._sim.max_path_length = NO_LIMIT_STEPS
        self._sim._set_task_called = True
        self._show_goal_in_state()
        self._camera_id = self._place_camera(CAMERAS[config.render.camera])
        self._renderer: SceneRenderer | None = None
        self._seeds = np.random.default_rng(seed)
        self._episode_seed = -1
        self._steps_left = 0
        self._state = np.zeros(0)
        shape = (config.render.height_px, config.render.width_px, 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (config.action_dim,), np.float32)

    def _show_goal_in_state(self) -> None:
        """Puts the goal into the low-dimensional state, which the scripted experts read."""
        self._sim._partially_observable = False
        self._sim.__dict__.pop("sawyer_observation_space", None)

    def _place_camera(self, preset: CameraPreset) -> int:
        model = self._sim.model
        camera_id = model.camera(preset.name).id
        if preset.position_m is not None:
            model.cam_pos[camera_id] = preset.position_m
        if preset.is_upside_down:
            half_turn = np.array([0.0, 0.0, 0.0, 1.0])
            upright = np.zeros(4)
            mujoco.mju_mulQuat(upright, model.cam_quat[camera_id].copy(), half_turn)
            model.cam_quat[camera_id] = upright
        return camera_id

    @property
    def state(self) -> np.ndarray:
        """(39,) float64 low-dimensional state with the goal, for scripted experts and tests."""
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
        sim = self._sim
        # As MetaWorld makes its fixed goals: draw (some tasks reject and draw again), then freeze what was drawn.
        sim.np_random = np.random.default_rng(self._episode_seed)
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True
        mujoco.mj_resetData(sim.model, sim.data)
        sim.reset_model()
        sim._freeze_rand_vec = True
        self._state, _ = sim.reset()
        # Goal sites may have moved after the last forward pass; only positions are recomputed, not the dynamics.
        mujoco.mj_kinematics(sim.model, sim.data)
        mujoco.mj_camlight(sim.model, sim.data)
        self._steps_left = self.config.episode_steps

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes one agent step.

        Args:
            action: (4,) float, clipped to [-1, 1].

        Returns:
            Frame (H, W, 3) uint8, sparse reward (0 to `action_repeat`), terminated (always False), truncated, info.

        Raises:
            RuntimeError: if the episode is over or was never started.
        """
        reward, truncated, info = self.advance(action)
        return self.render(), reward, False, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, dict[str, Any]]:
        """Takes one agent step without drawing a frame; returns sparse reward, truncated, info."""
        if self._steps_left < 1:
            raise RuntimeError(
                f"the episode of task {self.config.task!r} is over; call reset() before step()"
            )
        action = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        success_count, dense_reward = 0, 0.0
        for _ in range(self.config.action_repeat):
            self._state, reward, _, _, info = self._sim.step(action)
            success_count += int(info["success"])
            dense_reward += float(reward)
        self._steps_left -= 1
        return (
            float(success_count),
            self._steps_left == 0,
            {
                "success": success_count > 0,
                "success_count": success_count,
                "dense_reward": dense_reward,
                "discount": 1.0,
                "seed": self._episode_seed,
            },
        )

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draws the current state: (H, W, 3) uint8."""
        sim = self._sim
        if self._renderer is None:
            self._renderer = shared_renderer(sim.model_name, sim.model, self.config.render)
        return self._renderer.render(sim.model, sim.data, self._camera_id)

    def close(self) -> None:
        """Lets go of the simulator; the renderer is shared and stays for the next environment."""
        self._sim.close()


def expert_policy(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """MetaWorld's scripted policy of a task: (39,) state -> (4,) float32 action, clipped to [-1, 1]."""
    from metaworld.policies import ENV_POLICY_MAP

    # Every call warns that actions will be clipped, which happens below.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    policy_class: Any = ENV_POLICY_MAP[f"{task}-v3"]
    policy = policy_class()

    def act(state: np.ndarray) -> np.ndarray:
        # The scripted policies write into the state they are given.
        return np.clip(policy.get_action(state.copy()), -1.0, 1.0).astype(np.float32)

    return act
