"""What a training run keeps between its steps, and how it is saved and restored whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.checkpoints import STATE_FILE, apply_weights, load_tensors, save_tensors
from models.training_folder import require_finite


class TrainingState:
    """Model, optimiser, counters and the best result of one training; the base of runs that `run_training` drives.

    Args:
        name: Of what is trained, for messages.
        model: Trained in place.
        optimiser: Of its parameters.
        folder: Training folder.
        device: Where `model` is.

    Attributes:
        step: Optimiser steps done.
        best_loss: Lowest validation loss so far.
        best_step: Where it was.
        grad_norm: Of the last step, before clipping; a scalar.
    """

    # Plain numbers that belong to the state.
    kept_numbers: ClassVar[tuple[str, ...]] = ("step", "best_loss", "best_step")

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.name, self.model, self.optimiser, self.folder, self.device = (
            name,
            model,
            optimiser,
            folder,
            device,
        )
        self.step, self.best_loss, self.best_step = 0, math.inf, 0
        self.loss_sum, self.loss_steps = torch.zeros((), device=device), 0
        self.grad_norm = torch.zeros((), device=device)

    def kept_parts(self) -> dict[str, Any]:
        """What has a state dict of its own, by its name in the file."""
        return {"model": self.model, "optimiser": self.optimiser}

    def count(self, loss: Tensor) -> None:
        """Counts a step that was done, and its loss, without waiting for it."""
        self.step += 1
        self.loss_sum += loss.detach()
        self.loss_steps += 1

    def take_mean_loss(self, learning_rate: float) -> float:
        """Mean loss since the last call.

        Args:
            learning_rate: The configured one, for advice.

        Raises:
            FloatingPointError: if it is not finite.
        """
        mean_loss = float(self.loss_sum / self.loss_steps)
        require_finite(mean_loss, self.step, self.name, learning_rate)
        self.loss_sum, self.loss_steps = torch.zeros((), device=self.device), 0
        return mean_loss

    def save(self) -> None:
        """Writes everything needed to go on as if nothing had happened."""
        state = {name: part.state_dict() for name, part in self.kept_parts().items()}
        numbers = {name: getattr(self, name) for name in (*self.kept_numbers, "loss_sum", "loss_steps")}
        save_tensors(self.folder / STATE_FILE, {**state, **numbers})

    def restore(self) -> None:
        """The inverse of `save`."""
        path = self.folder / STATE_FILE
        # On the CPU: parts move what belongs on the device, where the optimiser's step counters would be waited for.
        state = load_tensors(path)
        for name, part in self.kept_parts().items():
            if isinstance(part, nn.Module):
                apply_weights(part, state[name], path)
            else:
                part.load_state_dict(state[name])
        for name in (*self.kept_numbers, "loss_steps"):
            setattr(self, name, state[name])
        self.loss_sum = state["loss_sum"].to(self.device)

    def best(self) -> dict[str, float]:
        """The best validation result, for the summary."""
        return {"best_validation_loss": self.best_loss, "best_step": self.best_step}
