"""Random network distillation as a bonus (Burda et al., arXiv 1810.12894)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from learner.batch import TensorBatch
from learner.bonus import BonusConfig, RunningStd, register_bonus
from models.rnd import RND, RNDConfig, novelty


@dataclass(frozen=True)
class RNDBonusConfig(BonusConfig):
    """A bonus that is high where the predictor has seen little.

    Attributes:
        rnd: Sizes of the networks.
    """

    name: str = "rnd"
    rnd: RNDConfig = field(default_factory=RNDConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rnd, dict):
            object.__setattr__(self, "rnd", RNDConfig(**self.rnd))


@register_bonus("rnd")
class RNDBonus:
    """Exploration bonus by random network distillation (arXiv 1810.12894), trained on replay batches."""

    config_class = RNDBonusConfig

    def __init__(self, config: RNDBonusConfig, resolution_px: int, device: torch.device) -> None:
        self.config, self.weight = config, config.weight
        self.rnd = RND(config.rnd, resolution_px).to(device)
        self.running = RunningStd(device)
        self._updates = 0
        # Shown at every update: the learner reads metrics at updates of its own, which may never be due ones.
        self._metrics: dict[str, torch.Tensor] = {}
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
        """Trains the predictor on s_{t+n} every `train_every_updates` calls, the first one included.

        Returns:
            The newest loss.
        """
        due = self._is_due()
        self._updates += 1
        if due:
            assert self._features is not None, "bonus(batch) comes before update(batch)"
            self._metrics = {"bonus_loss": self.rnd.step(*self._features)}
        return self._metrics

    def _is_due(self) -> bool:
        return self._updates % self.config.train_every_updates == 0

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, running statistics and the number of calls."""
        return {
            "rnd": self.rnd.training_state(),
            "running": self.running.moments,
            "updates": self._updates,
            "metrics": self._metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.rnd.load_training_state(state["rnd"])
        self.running.moments.copy_(state["running"])
        self._updates = state["updates"]
        self._metrics = dict(state["metrics"])
