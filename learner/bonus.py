"""Bonuses that keep learning: computed by the learner at update time, on top of the n-step return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from learner.batch import TensorBatch
from models.rnd import RND, RNDConfig, novelty


@dataclass(frozen=True)
class BonusConfig:
    """Which bonus is added to the n-step reward, and how strongly.

    Attributes:
        name: "none", "rnd", or another registered bonus.
        weight: Factor alpha of the bonus, finite and at least 0 (Diffusion Reward, arXiv 2312.14134).
        norm: "none" (official), or "running_std": divide by the running stddev of the bonus.
        train_every_updates: Updates of the agent per update of the bonus, at least 1. Officially 1 for
            MetaWorld; every 100 agent steps, that is 50 updates, for Adroit.
        rnd: Sizes of the RND networks.
    """

    name: str = "rnd"
    weight: float = 0.95
    norm: str = "none"
    train_every_updates: int = 1
    rnd: RNDConfig = field(default_factory=RNDConfig)

    def __post_init__(self) -> None:
        if isinstance(self.rnd, dict):
            object.__setattr__(self, "rnd", RNDConfig(**self.rnd))
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"bonus.weight={self.weight!r} is not allowed: expected a number of at least 0")
        if self.norm not in ("none", "running_std"):
            raise ValueError(f"bonus.norm={self.norm!r} is not allowed: expected 'none' or 'running_std'")
        if self.train_every_updates < 1:
            raise ValueError(
                f"bonus.train_every_updates={self.train_every_updates!r} is not allowed: "
                "expected a whole number of at least 1"
            )


class Bonus(Protocol):
    """What the learner asks of a bonus: for every batch first `bonus`, then `update`.

    Attributes:
        weight: Factor alpha with which the learner multiplies `bonus`.
    """

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


BonusFactory = Callable[[BonusConfig, int, torch.device], Bonus]
BONUSES: dict[str, BonusFactory] = {}


def register_bonus(name: str) -> Callable[[BonusFactory], BonusFactory]:
    """Makes a bonus class known under a name; its constructor takes (config, resolution_px, device)."""

    def register(factory: BonusFactory) -> BonusFactory:
        BONUSES[name] = factory
        return factory

    return register


def make_bonus(config: BonusConfig, resolution_px: int, device: torch.device, seed: int) -> Bonus:
    """Builds the bonus that `config.name` names; its initial weights depend on the seed only.

    Raises:
        ValueError: if no bonus has that name.
    """
    if config.name not in BONUSES:
        raise ValueError(f"bonus.name={config.name!r} is not allowed: expected one of {sorted(BONUSES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BONUSES[config.name](config, resolution_px, device)


@register_bonus("none")
class NoBonus:
    """No bonus: the n-step reward stays as it is."""

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


@register_bonus("rnd")
class RNDBonus:
    """Exploration bonus by random network distillation (arXiv 1810.12894), trained on replay batches."""

    def __init__(self, config: BonusConfig, resolution_px: int, device: torch.device) -> None:
        self.config, self.weight = config, config.weight
        self.rnd = RND(config.rnd, resolution_px).to(device)
        self.running = RunningStd(device)
        self._updates = 0
        self._features: tuple[torch.Tensor, torch.Tensor] | None = None

    def bonus(self, batch: TensorBatch) -> torch.Tensor | None:
        """(B, 1) float32: the (normalised) error at s_{t+n}. Counts into the running stddev."""
        # The forward pass is the dear part, so `update` uses the same one where it is due.
        with torch.set_grad_enabled(self._is_due()):
            self._features = self.rnd.features(batch.next_obs)
        value = novelty(*self._features).detach()
        if self.config.norm == "running_std":
            self.running.add(value)
            value = value / self.running.std()
        return value

    def update(self, batch: TensorBatch) -> dict[str, torch.Tensor]:
        """Trains the predictor on s_{t+n} every `train_every_updates` calls, the first one included."""
        due = self._is_due()
        self._updates += 1
        if not due:
            return {}
        assert self._features is not None, "bonus(batch) comes before update(batch)"
        return {"bonus_loss": self.rnd.step(*self._features)}

    def _is_due(self) -> bool:
        return self._updates % self.config.train_every_updates == 0

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, running statistics and the number of calls."""
        return {
            "rnd": self.rnd.training_state(),
            "running": self.running.moments,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.rnd.load_training_state(state["rnd"])
        self.running.moments.copy_(state["running"])
        self._updates = state["updates"]


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
