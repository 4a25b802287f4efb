"""Rewards that keep learning ("bonuses"): computed by the learner at update time, on top of the n-step return.

To add one named "icm", write `learner/icm_bonus.py` with a class decorated by `@register_bonus("icm")`. Frozen rewards
are the reward service's: `reward_service/contract.py`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from learner.batch import TensorBatch
from models.videos import RenderSettings


@dataclass(frozen=True)
class BonusConfig:
    """Which bonus is added to the n-step reward, and how strongly. A bonus with keys of its own extends this class.

    Attributes:
        name: One of `bonus_names()`.
        weight: Factor alpha of the bonus, finite and at least 0 (Diffusion Reward, arXiv 2312.14134).
        norm: "none" (official), or "running_std": divide by the running stddev of the bonus.
        train_every_updates: Updates of the agent per update of the bonus, at least 1. Officially 1 for
            MetaWorld; every 100 agent steps, that is 50 updates, for Adroit.
    """

    name: str = "none"
    weight: float = 0.95
    norm: str = "none"
    train_every_updates: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"bonus.weight={self.weight!r} is not allowed: expected a number of at least 0")
        if self.norm not in ("none", "running_std"):
            raise ValueError(f"bonus.norm={self.norm!r} is not allowed: expected 'none' or 'running_std'")
        if self.train_every_updates < 1:
            raise ValueError(
                f"bonus.train_every_updates={self.train_every_updates!r} is not allowed: "
                "expected a whole number of at least 1"
            )

    def check_environment(self, render: RenderSettings, action_repeat: int, task: str, domain: str) -> None:
        """Refuses what does not fit the environment of a run, before the run starts. Most bonuses fit any.

        Raises:
            ValueError, FileNotFoundError: saying what does not fit and what to do.
        """


class Bonus(Protocol):
    """What the learner asks of a bonus: for every batch first `bonus`, then `update`.

    Its constructor takes (config, resolution_px, device).

    Attributes:
        config_class: Dataclass of its configuration; the section `bonus` takes its keys from it.
        weight: Factor alpha with which the learner multiplies `bonus`.
    """

    config_class: ClassVar[type[BonusConfig]]
    weight: float

    def bonus(self, batch: TensorBatch) -> torch.Tensor | None:
        """(B, 1) float32, evaluated at s_{t+n}, without the weight; None for no bonus."""
        ...

    def update(self, batch: TensorBatch) -> dict[str, torch.Tensor]:
        """Trains on the batch that `bonus` was just asked about, if it is due. Returns scalar metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything an identical continuation needs, loadable with weights_only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        ...


_MODULE_SUFFIX = "_bonus"
_registered: dict[str, Any] = {}
BonusClass = TypeVar("BonusClass", bound=type)


def register_bonus(name: str) -> Callable[[BonusClass], BonusClass]:
    """Class decorator: makes a bonus known under `name`; its module must be `learner/<name>_bonus.py`."""

    def decorate(bonus: BonusClass) -> BonusClass:
        _registered[name] = bonus
        return bonus

    return decorate


def bonus_names() -> list[str]:
    """Names of all bonuses, sorted; "none" is among them."""
    files = Path(__file__).parent.glob(f"*{_MODULE_SUFFIX}.py")
    return sorted(["none", *(path.stem.removesuffix(_MODULE_SUFFIX) for path in files)])


def bonus_class(name: str) -> Any:
    """The class of a bonus.

    Raises:
        ValueError: if no bonus has that name, naming the nearest one.
    """
    names = bonus_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"bonus.name={name!r} is not allowed: expected one of {names}{hint}")
    if name not in _registered:
        importlib.import_module(f"learner.{name}{_MODULE_SUFFIX}")
    return _registered[name]


def make_bonus(config: BonusConfig, resolution_px: int, device: torch.device, seed: int) -> Bonus:
    """Builds the bonus that `config.name` names; its initial weights depend on the seed only.

    Raises:
        ValueError: if no bonus has that name.
    """
    cls = bonus_class(config.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bonus: Bonus = cls(config, resolution_px, device)
    return bonus


@register_bonus("none")
class NoBonus:
    """No bonus: the n-step reward stays as it is."""

    config_class = BonusConfig

    def __init__(self, config: BonusConfig, resolution_px: int, device: torch.device) -> None:
        del config, resolution_px, device
        self.weight = 0.0

    def bonus(self, batch: TensorBatch) -> torch.Tensor | None:
        """None: nothing to add."""
        return None

    def update(self, batch: TensorBatch) -> dict[str, torch.Tensor]:
        """Nothing to train."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class RunningStd:
    """Standard deviation of all values seen so far (Chan's parallel update), kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self.moments = torch.zeros(3, device=device)  # count, mean, sum of squared deviations

    def add(self, values: torch.Tensor) -> None:
        """Counts all elements of a tensor."""
        count, mean, deviations = self.moments.unbind()
        shift = values.mean() - mean
        total = count + values.numel()
        self.moments = torch.stack(
            [
                total,
                mean + shift * values.numel() / total,
                deviations
                + (values - values.mean()).square().sum()
                + shift.square() * count * values.numel() / total,
            ]
        )

    def std(self) -> torch.Tensor:
        """Scalar float32 above 0."""
        return (self.moments[2] / self.moments[0]).sqrt().clamp_min(1e-8)
