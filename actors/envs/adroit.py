"""Adroit hand (v1 of Gymnasium-Robotics) from pixels, with action repeat, sparse reward, true time limits, exact seeds."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Sets MUJOCO_GL, so it must come before mujoco.
from actors.envs.rendering import SceneRenderer, shared_renderer  # isort: skip

import gymnasium
import mujoco
import numpy as np

from actors.envs.registry import EnvConfig

SIMULATORS = {
    "adroit-door": "adroit_door:AdroitHandDoorEnv",
    "adroit-hammer": "adroit_hammer:AdroitHandHammerEnv",
    "adroit-pen": "adroit_pen:AdroitHandPenEnv",
    "adroit-relocate": "adroit_relocate:AdroitHandRelocateEnv",
}
EXPERT_POLICIES = Path(__file__).resolve().parents[1] / "expert_policies"


@dataclass(frozen=True)
class View:
    """Where a preset puts the camera: world position, and orientation as a quaternion (w, x, y, z)."""

    position_m: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]


# Straight down, the forearm at the top of the picture.
_DOWN = (7.96e-4, 0.0, 0.0, 1.0)
# From behind the forearm, 45 degrees down.
_BEHIND = (0.92388, 0.382683, 0.0, 0.0)
# The views of Diffusion Reward's experiments (door and hammer "top", pen "vil_camera"); the models that
# Gymnasium-Robotics ships do not have them. The paper has no relocate: its view here, 66 degrees down, is chosen so
# that ball, hand and every goal lie in the picture, goals in front of the table rather than of the black sky.
PAPER_VIEWS = {
    "adroit-door": View((0.0, 0.0, 1.5), _DOWN),
    "adroit-hammer": View((0.0, 0.0, 1.1), _DOWN),
    "adroit-pen": View((0.0, -0.8, 0.8), _BEHIND),
    "adroit-relocate": View((0.0, -0.4, 1.05), (0.978148, 0.207912, 0.0, 0.0)),
}
PAPER_CAMERA = "paper"
# The camera that is moved to a preset's view.
_MOVED_CAMERA = "fixed"
# Drawn opaque: translucent pens all but vanish at 64x64 pixels.
_OPAQUE_GEOMS = {"adroit-pen": ("pen", "target")}


class AdroitEnv(gymnasium.Env):
    """One Adroit task with (H, W, 3) uint8 frames.

    One agent step holds the action for `action_repeat` simulator steps and draws one frame at the end. The sparse
    reward is the number of these simulator steps that were a success. The task never terminates (a dropped pen can
    not be picked up, but the episode goes on): after `episode_steps` agent steps it is truncated, and the discount
    stays 1.

    The scene depends on the seed of the reset alone, never on earlier episodes or on `set_state`.

    `info` of a step: `success` (bool, any repeat), `success_count` (int), `dense_reward` (float, the simulator's
    shaped reward summed over the repeats), `discount` (float, always 1), `seed` (int, of the episode).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - the name and form are Gymnasium's
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, seed: int | None = None) -> None:
        """Builds the simulator; the renderer is made with the first frame.

        Args:
            config: Task, action repeat, time limit and renderer setting. `render.camera` is "paper" (each task's
                view in the paper's experiments) or a camera of the simulator's model, for example "fixed".
            seed: Source of the seeds of resets that name none.

        Raises:
            ValueError: if the camera is unknown.
        """
        self.config = config
        self._sim = _make_simulator(config.task)
        self._camera_id = self._place_camera(config.render.camera)
        model = self._sim.model
        for name in _OPAQUE_GEOMS.get(config.task, ()):
            model.geom_rgba[model.geom(name).id, 3] = 1.0
        # What a scene or `set_state` may move; a reset of the simulator writes only a part of it.
        self._moved = (model.body_pos, model.body_quat, model.site_pos)
        self._unmoved = tuple(array.copy() for array in self._moved)
        self._renderer: SceneRenderer | None = None
        self._seeds = np.random.default_rng(seed)
        self._episode_seed = -1
        self._steps_left = 0
        self._state = np.zeros(0)
        shape = (config.render.height_px, config.render.width_px, 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (config.action_dim,), np.float32)

    def _place_camera(self, name: str) -> int:
        model = self._sim.model
        own = [model.camera(i).name for i in range(model.ncam)]
        if name == PAPER_CAMERA:
            camera_id: int = model.camera(_MOVED_CAMERA).id
            view = PAPER_VIEWS[self.config.task]
            model.cam_pos[camera_id], model.cam_quat[camera_id] = view.position_m, view.quaternion
            return camera_id
        if name not in own:
            raise ValueError(
                f"camera {name!r} is unknown for task {self.config.task!r}; use one of "
                f"{', '.join([PAPER_CAMERA, *own])} (render.camera)"
            )
        return int(model.camera(name).id)

    @property
    def state(self) -> np.ndarray:
        """(S,) float64 low-dimensional state with the goal, for experts and tests (door 39, hammer 46, pen 45, ...)."""
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
        for array, original in zip(self._moved, self._unmoved):
            array[:] = original
        self._state, _ = self._sim.reset(seed=self._episode_seed)
        self._steps_left = self.config.episode_steps

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes one agent step.

        Args:
            action: (A,) float, clipped to [-1, 1].

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

    def get_state(self) -> dict[str, np.ndarray]:
        """The physical state: `qpos`, `qvel` and where the task's object and goal are (float64 arrays)."""
        self._update_positions()
        state = self._sim.get_env_state()
        return {key: np.array(state[key], dtype=np.float64) for key in self._sim._state_space.spaces}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts hand, object and goal into a state, within the current episode.

        What follows depends on the state and the actions alone. A replayed episode agrees with the recorded one up to
        the tolerance of the contact solver, whose warm start is not part of the state.

        Args:
            state: As from `get_state`, or from the simulator's own `get_env_state` (further keys are ignored).

        Raises:
            RuntimeError: if no episode was started.
            ValueError: naming the key that is missing, of another shape or not finite.
        """
        if self._episode_seed < 0:
            raise RuntimeError("no episode was started; call reset_state() before set_state()")
        checked = {}
        for key, space in self._sim._state_space.spaces.items():
            if key not in state:
                raise ValueError(
                    f"the state of task {self.config.task!r} has no {key!r}; got keys {sorted(state)}"
                )
            value = np.asarray(state[key], dtype=np.float64)
            if value.shape != space.shape or not np.isfinite(value).all():
                raise ValueError(f"{key} of the state has shape {value.shape}, expected finite {space.shape}")
            checked[key] = value
        if self.config.task == "adroit-relocate":
            # The simulator reads `obj_pos` as the object's resting place, but writes where the object is now.
            slides = [self._sim.model.joint(name).qposadr[0] for name in ("OBJTx", "OBJTy", "OBJTz")]
            checked["obj_pos"] = checked["obj_pos"] - checked["qpos"][slides]
        mujoco.mj_resetData(self._sim.model, self._sim.data)
        self._sim.set_env_state(checked)
        self._state = self._sim._get_obs()

    def _update_positions(self) -> None:
        """Brings positions up to date: after a simulator step they are those of one substep before."""
        mujoco.mj_kinematics(self._sim.model, self._sim.data)
        mujoco.mj_camlight(self._sim.model, self._sim.data)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draws the current state: (H, W, 3) uint8, upright."""
        sim = self._sim
        if self._renderer is None:
            self._renderer = shared_renderer(self.config.task, sim.model, self.config.render)
        self._update_positions()
        return self._renderer.render(sim.model, sim.data, self._camera_id)

    def close(self) -> None:
        """Lets go of the simulator; the renderer is shared and stays for the next environment."""
        self._sim.close()


def _make_simulator(task: str) -> Any:
    """The environment of Gymnasium-Robotics, without its wrappers (time limit) and its renderer."""
    module, name = SIMULATORS[task].split(":")
    # Every import prints a notice about dense rewards of other versions, in each process.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.{module}")
    return getattr(loaded, name)(reward_type="dense")


def expert_policy(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """The expert that comes with this package: (S,) state -> (A,) float32 action in [-1, 1].

    A small network; `actors/expert_policies/README.md` says where it comes from.
    """
    from actors.policy_file import load_policy_file

    return load_policy_file(EXPERT_POLICIES / f"{task}.npz")
