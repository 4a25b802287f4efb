"""The contract of every frozen reward, and how one is found by name.

A frozen reward turns frames into one reward per frame: inference only, a pure function of (weights, frames, seed).
To add one named "viper", write `reward_service/viper_reward.py` with a class decorated by `@register("viper")`, most
easily a `StandardisedReward`. Rewards that keep learning are the learner's: `learner/bonus.py`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from models.videos import RenderSettings
from reward_service.config import FrameRewardConfig

_MODULE_SUFFIX = "_reward"
_registered: dict[str, type] = {}
RewardClass = TypeVar("RewardClass", bound=type)


class FrameReward(Protocol):
    """What a frozen reward offers.

    Attributes:
        config_class: Dataclass of the reward's own configuration; the section `frame_reward` takes its keys from it.
        tasks: Tasks whose expert videos the model was trained on.
        domain: Their domain, for example "metaworld".
        render: How those videos were drawn.
        action_repeat: Simulator frames per video frame.
    """

    config_class: ClassVar[type[FrameRewardConfig]]
    tasks: tuple[str, ...]
    domain: str
    render: RenderSettings
    action_repeat: int

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, config: Mapping[str, Any], device: str = "cpu"
    ) -> FrameReward:
        """Reads the checkpoint folder; refuses a missing, damaged or foreign one.

        Args:
            folder: Checkpoint folder of the reward model.
            config: Plain values of the reward's config dataclass.
            device: "cpu", "cuda", "cuda:1", ...
        """
        ...

    def score(
        self,
        frames: Sequence[np.ndarray],
        tasks: Sequence[str],
        seeds: Sequence[int],
        names: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Standardised rewards.

        Args:
            frames: One (T_i, H, W, 3) uint8 array per episode.
            tasks: Task of each episode.
            seeds: Seed of each episode's noise.
            names: Episode names for error messages.

        Returns:
            One (T_i,) float32 array per episode, all finite.
        """
        ...

    def check_environment(self, render: RenderSettings, action_repeat: int, task: str, domain: str) -> None:
        """Refuses an environment that the model was not trained for (ValueError)."""
        ...


def register(name: str) -> Callable[[RewardClass], RewardClass]:
    """Class decorator: makes a reward known under `name`; its module must be `reward_service/<name>_reward.py`."""

    def decorate(reward: RewardClass) -> RewardClass:
        _registered[name] = reward
        return reward

    return decorate


def reward_names() -> list[str]:
    """Names of all frozen rewards, sorted."""
    files = Path(__file__).parent.glob(f"*{_MODULE_SUFFIX}.py")
    return sorted(path.stem.removesuffix(_MODULE_SUFFIX) for path in files)


def reward_class(name: str) -> type[FrameReward]:
    """The class of a frozen reward.

    Raises:
        ValueError: if the name is unknown, naming the nearest ones.
    """
    names = reward_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {names}"
        raise ValueError(f"unknown frozen reward {name!r}; {hint}")
    importlib.import_module(f"reward_service.{name}{_MODULE_SUFFIX}")
    return _registered[name]


def episode_seed(episode_id: str, seed: int) -> int:
    """Seed of an episode's noise, the same in every process and on every machine (unlike `hash`).

    Args:
        episode_id: Unique name of the episode.
        seed: The run's seed.

    Returns:
        Integer in [0, 2^63).
    """
    digest = hashlib.sha256(f"{seed}/{episode_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
