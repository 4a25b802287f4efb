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
from actors.envs.pixel_task import PixelTaskEnv  # isort: skip

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


class AdroitEnv(PixelTaskEnv):
    """One Adroit task; see `PixelTaskEnv`. A dropped pen can not be picked up, but the episode goes on.

    `state` has 39 numbers (door, relocate), 46 (hammer) or 45 (pen).
    """

    def __init__(self, config: EnvConfig, seed: int | None = None) -> None:
        """Builds the simulator; the renderer is made with the first frame.

        Args:
            config: Task, action repeat, time limit and renderer setting. `render.camera` is "paper" (each task's
                view in the paper's experiments) or a camera of the simulator's model, for example "fixed".
            seed: Source of the seeds of resets that name none.

        Raises:
            ValueError: if the camera is unknown.
        """
        sim = _make_simulator(config.task)
        super().__init__(config, seed, sim, _place_camera(sim.model, config), scene=config.task)
        for name in _OPAQUE_GEOMS.get(config.task, ()):
            sim.model.geom_rgba[sim.model.geom(name).id, 3] = 1.0
        # What a scene or `set_state` may move; a reset of the simulator writes only a part of it.
        self._moved = (sim.model.body_pos, sim.model.body_quat, sim.model.site_pos)
        self._unmoved = tuple(array.copy() for array in self._moved)

    def _start_scene(self, seed: int) -> np.ndarray:
        for array, original in zip(self._moved, self._unmoved):
            array[:] = original
        state, _ = self._sim.reset(seed=seed)
        return np.asarray(state)

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


def _place_camera(model: Any, config: EnvConfig) -> int:
    """Moves and returns the camera that `config.render.camera` names (ValueError if there is none)."""
    name = config.render.camera
    own = [model.camera(i).name for i in range(model.ncam)]
    if name == PAPER_CAMERA:
        camera_id: int = model.camera(_MOVED_CAMERA).id
        view = PAPER_VIEWS[config.task]
        model.cam_pos[camera_id], model.cam_quat[camera_id] = view.position_m, view.quaternion
        return camera_id
    if name not in own:
        raise ValueError(
            f"camera {name!r} is unknown for task {config.task!r}; use one of "
            f"{', '.join([PAPER_CAMERA, *own])} (render.camera)"
        )
    return int(model.camera(name).id)


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
