"""What the trainings of diffusers and of relative rewards share: Adam, averaged weights, and the resumable state."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.training_folder import clip_gradients, seeded
from models.training_state import TrainingState


class AveragedRun(TrainingState):
    """One training, driven by `run_training`. A subclass says what a loss is, and what is validated and kept.

    Args:
        config: With the keys that `models.diffuser.config.check_training` validates.
        model: Trained in place; buffers outside its parameters do not change.
        folder: Training folder.
        device: Where `model` is.
        name: Of what is trained, for messages.
    """

    picture_name = "windows"

    def __init__(self, config: Any, model: nn.Module, folder: Path, device: torch.device, name: str) -> None:
        optimiser = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
        super().__init__(name, model.train(), optimiser, folder, device)
        self.config = config
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.total_steps: int = config.train_steps

    def kept_parts(self) -> dict[str, Any]:
        """The average as well."""
        return {**super().kept_parts(), "average": self.average}

    def batch_loss(self) -> Tensor:
        """Loss of the next batch, a scalar; all its randomness comes from torch's global generator."""
        raise NotImplementedError

    def validation(self) -> Mapping[str, float]:
        """Metrics of the averaged weights on held-out windows, among them `validation_loss`; the same ones every time."""
        raise NotImplementedError

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Writes the averaged weights as the folder's model."""
        raise NotImplementedError

    def pictures(self) -> np.ndarray:
        """(N, H, W, 3) uint8 pictures for TensorBoard."""
        raise NotImplementedError

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def train_step(self) -> None:
        """One optimiser step and, when due, one step of the average; waits for nothing."""
        with seeded(self.device, self.config.seed, self.step):
            loss = self.batch_loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._clip()
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.step()
        self.count(loss)
        if self.step % self.config.ema_every_steps == 0:
            self._update_average()

    def _clip(self) -> None:
        value = getattr(self.config, "clip_grad_value", None)
        if value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), value)
        self.grad_norm = clip_gradients(self.model.parameters(), getattr(self.config, "clip_grad_norm", None))

    def _learning_rate(self) -> float:
        config = self.config
        if config.learning_rate_schedule == "constant":
            return config.learning_rate
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.total_steps))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = self.config.ema_decay if self.step >= self.config.ema_start_steps else 0.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def numbers(self) -> dict[str, float]:
        """Mean loss since the last call, learning rate and gradient norm, as plain numbers."""
        mean_loss = self.take_mean_loss(self.config.learning_rate)
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": mean_loss, "learning_rate": rate, "grad_norm": float(self.grad_norm)}

    def validate(self) -> dict[str, float]:
        """Metrics of the averaged weights; keeps them if they are the best."""
        with seeded(self.device, self.config.seed):
            metrics = dict(self.validation())
        loss = metrics["validation_loss"]
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.keep({"trained_steps": self.step, **metrics})
        return {**metrics, "best_validation_loss": self.best_loss}
