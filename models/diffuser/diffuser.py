"""A diffusion model of windows of trajectories, with given observations inpainted (Diffuser, arXiv 2205.09991)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints import (
    WEIGHTS_FILE,
    apply_weights,
    load_checkpoint_config,
    load_weights,
    save_checkpoint,
)
from models.diffuser.config import DiffuserConfig
from models.diffuser.normaliser import Normaliser
from models.diffuser.sampling import Conditions, Push, ancestral_sample
from models.diffuser.schedule import GaussianSchedule
from models.diffuser.temporal_unet import TemporalUNet
from models.model_folder import model_config

KIND = "diffuser"


class Diffuser(nn.Module):
    """Predicts the clean window x0 from a noised one. Vectors are [action, observation], normalised.

    Args:
        config: Sizes.
        normaliser: From raw to normalised vectors; None leaves them as they are.
    """

    given: Tensor
    loss_weights: Tensor

    def __init__(self, config: DiffuserConfig, normaliser: Normaliser | None = None) -> None:
        super().__init__()
        self.config = config
        self.normaliser = normaliser or Normaliser.identity(config.action_dim, config.observation_dim)
        if len(self.normaliser.shift) != config.transition_dim:
            raise ValueError(
                f"the normaliser has {len(self.normaliser.shift)} coordinates, the diffuser "
                f"{config.action_dim} + {config.observation_dim}: use a base model of the same task"
            )
        self.schedule = GaussianSchedule(config.num_steps)
        self.network = TemporalUNet(config.transition_dim, config.width, config.multipliers, config.attention)
        self.register_buffer("given", given_mask(config, config.given_steps), persistent=False)
        weights = torch.ones(config.horizon, config.transition_dim)
        weights[0, : config.action_dim] = config.first_action_weight
        self.register_buffer("loss_weights", weights.masked_fill(self.given, 0.0), persistent=False)

    def predict_x0(self, x: Tensor, t: Tensor) -> Tensor:
        """Expected clean windows.

        Args:
            x: (B, H, A + S) noised windows, given observations in place.
            t: (B,) int64 diffusion steps.

        Returns:
            (B, H, A + S); what it says about given observations means nothing.
        """
        x0 = self.network(x, t)
        return x0.clamp(-1, 1) if self.config.clip_x0 else x0

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of clean windows x0 (B, H, A + S), with the given observations clean."""
        return torch.where(self.given, x0, self.schedule.add_noise(x0, t, noise))

    def loss(self, windows: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Mean squared error of the predicted clean windows.

        Args:
            windows: (B, H, A + S) normalised.
            t: (B,) diffusion steps; None draws them uniformly.
            noise: Like `windows`; None draws it.

        Returns:
            A scalar: the mean over all elements, those of given observations counted as 0.
        """
        if t is None:
            t = torch.randint(self.schedule.num_steps, (len(windows),), device=windows.device)
        if noise is None:
            noise = torch.randn_like(windows)
        predicted = self.network(self.noised(windows, t, noise), t)
        return ((predicted - windows).square() * self.loss_weights).mean()

    def conditions(self, observations: Tensor) -> dict[int, Tensor]:
        """Given observations for sampling.

        Args:
            observations: (B, n, S) raw, one per given step: the current state, and for "both_ends" the last one.

        Raises:
            ValueError: if n is not the number of given steps.
        """
        steps = self.config.given_steps
        if observations.dim() != 3 or observations.shape[1] != len(steps):
            raise ValueError(
                f"observations have shape {tuple(observations.shape)}, expected (B, {len(steps)}, "
                f"{self.config.observation_dim}): conditioning={self.config.conditioning!r} is given steps {steps}"
            )
        normalised = self.normaliser.normalise_observations(observations)
        return {step: normalised[:, number] for number, step in enumerate(steps)}

    def sample(
        self,
        conditions: Conditions,
        count: int | None = None,
        push: Push | None = None,
        generator: torch.Generator | None = None,
        horizon: int | None = None,
    ) -> Tensor:
        """Samples windows.

        Args:
            conditions: Step -> normalised observation (B, S), as `conditions` makes them; other steps may be given.
            count: B; needed only where nothing is given.
            push: Added to x_t in each step, see `ancestral_sample`; None samples from the model.
            generator: Of the noise, on the model's device.
            horizon: Steps of the windows, where they should differ from those it was trained on.

        Returns:
            (B, H, A + S) normalised windows.

        Raises:
            ValueError: if neither conditions nor a count are there.
        """
        if count is None:
            if not conditions:
                raise ValueError("nothing is given, so say how many windows to sample with count=")
            count = len(next(iter(conditions.values())))
        shape = (count, horizon or self.config.horizon, self.config.transition_dim)
        noise = torch.randn(shape, generator=generator, device=self.given.device)
        return ancestral_sample(self, noise, conditions, self.config.action_dim, push, generator)


def given_mask(config: DiffuserConfig, steps: tuple[int, ...]) -> Tensor:
    """(H, A + S) bool, True at the observations of `steps`."""
    mask = torch.zeros(config.horizon, config.transition_dim, dtype=torch.bool)
    for step in steps:
        mask[step, config.action_dim :] = True
    return mask


def save_diffuser(
    folder: str | Path, model: Diffuser, facts: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a checkpoint; the normaliser is among the weights.

    Args:
        folder: Made if missing.
        model: The diffuser.
        facts: JSON-able facts for `config.json`: task, mode, goal, data, base, ...
        overwrite: Whether an earlier model in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a model and `overwrite` is off.
    """
    config = {"kind": KIND, "model": asdict(model.config), **facts}
    save_checkpoint(folder, model, config, overwrite=overwrite)


def load_diffuser(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Diffuser, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        folder: Written by `save_diffuser`.
        device: Where the model goes.

    Returns:
        The diffuser in eval mode without gradients, and its `config.json`.

    Raises:
        FileNotFoundError: if the folder holds no diffuser.
        ValueError: if it is of another kind, or weights and sizes do not fit together.
    """
    facts = load_checkpoint_config(folder, KIND)
    model = Diffuser(model_config(DiffuserConfig, facts["model"], folder))
    path = Path(folder) / WEIGHTS_FILE
    apply_weights(model, load_weights(path), path)
    return model.to(device).eval().requires_grad_(False), facts
