"""The straightforward pipeline over the simulators' own Gymnasium environments and renderer: what ours is raced against.

Everything is left at the libraries' defaults, except what has to be given to see the same task in the same picture:
64x64 pixels, the camera of the experiment, opaque pens, and MetaWorld's goal.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any

import gymnasium
import numpy as np

from actors.envs.registry import EnvConfig

ADROIT_IDS = {
    "adroit-door": "AdroitHandDoor-v1",
    "adroit-hammer": "AdroitHandHammer-v1",
    "adroit-pen": "AdroitHandPen-v1",
    "adroit-relocate": "AdroitHandRelocate-v1",
}


class GymnasiumPipeline:
    """One task: the library's environment, a loop over the action repeat, `render()` after each agent step.

    Args:
        config: Task, action repeat, time limit, and the size of pictures; their quality is Gymnasium's own.
        camera_name: Name of the camera in the simulator's model.
        camera: Its position (3,) and quaternion (4,), written into the model.
        colours: (ngeom, 4) colours of the geoms, written into the model.
    """

    def __init__(
        self,
        config: EnvConfig,
        camera_name: str,
        camera: tuple[np.ndarray, np.ndarray],
        colours: np.ndarray,
    ) -> None:
        self.config = config
        render = config.render
        how = {
            "render_mode": "rgb_array",
            "width": render.width_px,
            "height": render.height_px,
            "camera_name": camera_name,
        }
        self.env = _adroit(config, how) if config.domain == "adroit" else _metaworld(config.task, how)
        self.model, self.data = self.env.unwrapped.model, self.env.unwrapped.data
        camera_id = self.model.camera(camera_name).id
        self.model.cam_pos[camera_id], self.model.cam_quat[camera_id] = camera
        self.model.geom_rgba[:] = colours
        self._steps_left = 0

    def reset(self, seed: int, scene: np.ndarray | None) -> np.ndarray:
        """Starts an episode; `scene` is MetaWorld's random vector, for Adroit the seed says everything."""
        if scene is not None:
            self.env.set_task(_metaworld_task(self.config.task, type(self.env), scene))
        self.env.reset(seed=seed)
        self._steps_left = self.config.episode_steps
        return self.render()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Takes one agent step: frame, number of successful repeats, whether the time is up."""
        action = np.clip(action, -1.0, 1.0)
        reward = 0.0
        for _ in range(self.config.action_repeat):
            *_, info = self.env.step(action)
            reward += float(info["success"])
        self._steps_left -= 1
        return self.render(), reward, self._steps_left == 0

    def render(self) -> np.ndarray:
        """The library's own picture of the current state, (H, W, 3) uint8."""
        frame: np.ndarray = self.env.render()
        return frame

    def close(self) -> None:
        """Closes the environment and its GL context."""
        self.env.close()


def _metaworld(task: str, how: dict[str, Any]) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS[f"{task}-v3"](**how)


def _metaworld_task(task: str, env_class: type, scene: np.ndarray) -> Any:
    """A task as MetaWorld's benchmarks (`metaworld.MT1`) make it."""
    from metaworld.types import Task

    values = {"env_cls": env_class, "rand_vec": scene, "partially_observable": False}
    return Task(env_name=f"{task}-v3", data=pickle.dumps(values))


def _adroit(config: EnvConfig, how: dict[str, Any]) -> Any:
    # Every import prints a notice about dense rewards of other versions.
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(
        ADROIT_IDS[config.task],
        max_episode_steps=config.episode_steps * config.action_repeat,
        # Checks every step; switched off in favour of the peer.
        disable_env_checker=True,
        **how,
    )
