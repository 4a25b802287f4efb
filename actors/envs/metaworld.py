"""MetaWorld (v3) from pixels, with action repeat, sparse reward, true time limits and exact seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

# Sets MUJOCO_GL, so it must come before mujoco.
from actors.envs.pixel_task import PixelTaskEnv  # isort: skip

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from actors.envs.registry import EnvConfig

NO_LIMIT_STEPS = 2**31


@dataclass(frozen=True)
class CameraPreset:
    """A fixed camera of the simulator, changed by what is given.

    Attributes:
        name: Of the simulator's camera.
        position_m: Where it is moved to.
        is_upside_down: Whether it hangs upside down and is turned upright.
        target_m: Point that it is turned to, upright.
        fovy_deg: Vertical field of view, in degrees.
    """

    name: str
    position_m: tuple[float, float, float] | None = None
    is_upside_down: bool = False
    target_m: tuple[float, float, float] | None = None
    fovy_deg: float | None = None


# "corner2" is the view that pixel experiments on MetaWorld use: closer than the simulator's own camera of that name,
# which hangs upside down. "close" is from the same place, on the part of the table where things happen: twice as large in
# the picture, which decides what a small reward model sees (docs/results.md).
CAMERAS = {
    "corner2": CameraPreset("corner2", position_m=(0.75, 0.075, 0.7), is_upside_down=True),
    "close": CameraPreset(
        "corner2", position_m=(0.75, 0.075, 0.7), target_m=(0.0, 0.66, 0.18), fovy_deg=38.0
    ),
    "corner2_far": CameraPreset("corner2", is_upside_down=True),
    "corner": CameraPreset("corner"),
    "corner3": CameraPreset("corner3"),
    "topview": CameraPreset("topview"),
    "gripperPOV": CameraPreset("gripperPOV"),
    "behindGripper": CameraPreset("behindGripper"),
}


class MetaWorldEnv(PixelTaskEnv):
    """One MetaWorld task; see `PixelTaskEnv`.

    Goals and object positions are drawn from MetaWorld's own continuous distribution (the one its 50 fixed goals per
    task are drawn from). `state` has 39 numbers.
    """

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
        sim = ALL_V3_ENVIRONMENTS[f"{config.task}-v3"]()
        sim.max_path_length = NO_LIMIT_STEPS
        sim._set_task_called = True
        # Puts the goal into the low-dimensional state, which the scripted experts read.
        sim._partially_observable = False
        sim.__dict__.pop("sawyer_observation_space", None)
        camera_id = _place_camera(sim.model, CAMERAS[config.render.camera])
        super().__init__(config, seed, sim, camera_id, scene=sim.model_name)

    def _start_scene(self, seed: int) -> np.ndarray:
        sim = self._sim
        # As MetaWorld makes its fixed goals: draw (some tasks reject and draw again), then freeze what was drawn.
        sim.np_random = np.random.default_rng(seed)
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True
        mujoco.mj_resetData(sim.model, sim.data)
        mujoco.mj_forward(sim.model, sim.data)
        # The draw does not need the hand in place, which takes 250 physics steps.
        sim._reset_hand = partial(sim._reset_hand, steps=0)
        sim.reset_model()
        del sim._reset_hand
        sim._freeze_rand_vec = True
        # As `sim.reset()`, which resets the model twice.
        sim.curr_path_length = 0
        mujoco.mj_resetData(sim.model, sim.data)
        state = sim.reset_model()
        sim._prev_obs = state[:18].copy()
        state[18:36] = sim._prev_obs
        # Goal sites may have moved after the last forward pass; only positions are recomputed, not the dynamics.
        mujoco.mj_kinematics(sim.model, sim.data)
        mujoco.mj_camlight(sim.model, sim.data)
        return state


def _place_camera(model: Any, preset: CameraPreset) -> int:
    """Moves and turns the camera of a preset; returns its id."""
    camera_id: int = model.camera(preset.name).id
    if preset.position_m is not None:
        model.cam_pos[camera_id] = preset.position_m
    if preset.is_upside_down:
        half_turn = np.array([0.0, 0.0, 0.0, 1.0])
        upright = np.zeros(4)
        mujoco.mju_mulQuat(upright, model.cam_quat[camera_id].copy(), half_turn)
        model.cam_quat[camera_id] = upright
    if preset.target_m is not None:
        model.cam_quat[camera_id] = _facing(model.cam_pos[camera_id] - preset.target_m)
    if preset.fovy_deg is not None:
        model.cam_fovy[camera_id] = preset.fovy_deg
    return camera_id


def _facing(backwards: np.ndarray) -> np.ndarray:
    """Orientation (w, x, y, z) of an upright camera, which looks along its -z, given the world direction of its z."""
    z = backwards / np.linalg.norm(backwards)
    x = np.cross([0.0, 0.0, 1.0], z)
    x /= np.linalg.norm(x)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([x, np.cross(z, x), z], axis=1).ravel())
    return quaternion


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
