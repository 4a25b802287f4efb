"""A relative reward function and its checkpoint (arXiv 2306.01804)."""

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
from models.diffuser.normaliser import Normaliser
from models.diffuser.schedule import GaussianSchedule, at
from models.files import checksum
from models.model_folder import model_config
from models.relative.config import RelativeRewardConfig
from models.relative.matching import reward_gradient
from models.relative.networks import trajectory_network

KIND = "relative_reward"


class RewardField(nn.Module):
    """A reward of noised samples whose gradient steers a diffusion model.

    Args:
        network: (x (B, ...), t (B,) int64) -> (B,).
        schedule: Of the base model.
        form: What the gradient stands for: the difference of "mean", "x0", "epsilon" (base - expert) or "score".
    """

    def __init__(self, network: nn.Module, schedule: GaussianSchedule, form: str) -> None:
        super().__init__()
        self.network, self.schedule, self.form = network, schedule, form
        schedule.mean_difference_factor(form)  # refuses an unknown form

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B,) rewards of samples x (B, ...) at diffusion steps t (B,) int64."""
        return self.network(x, t)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient (B, ...) of each reward, in the units of `form`."""
        return reward_gradient(self.network, x, t)

    def mean_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient (B, ...) in units of the posterior mean: added once, it makes the base's mean the expert's."""
        return at(self.schedule.mean_difference_factor(self.form), t, x) * self.gradient(x, t)


class RelativeReward(RewardField):
    """A relative reward of windows of trajectories.

    Args:
        config: Its network.
        form: See `RewardField`; "score" for a discriminator, whose logit is the log ratio of the two densities.
        horizon: H.
        num_steps: T of the diffusers.
        normaliser: The one that base and expert share.
    """

    def __init__(
        self, config: RelativeRewardConfig, form: str, horizon: int, num_steps: int, normaliser: Normaliser
    ) -> None:
        network = trajectory_network(config, horizon, len(normaliser.shift))
        super().__init__(network, GaussianSchedule(num_steps), form)
        self.config, self.horizon, self.normaliser = config, horizon, normaliser

    def score(self, observations: Tensor, actions: Tensor, step: int = 0) -> Tensor:
        """Rewards of raw windows.

        Args:
            observations: (B, H, S) raw.
            actions: (B, H, A) raw.
            step: Diffusion step t that the reward is asked at; a function of t alone is not determined, so compare
                rewards of one step only.

        Returns:
            (B,).
        """
        x = self.normaliser.normalise(actions, observations)
        t = torch.full((len(x),), step, dtype=torch.int64, device=x.device)
        with torch.no_grad():
            return self.network(x, t)


def save_relative_reward(
    folder: str | Path, model: RelativeReward, facts: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a checkpoint; the normaliser is among the weights.

    Args:
        folder: Made if missing.
        model: The reward.
        facts: JSON-able facts for `config.json`: objective, base, expert, ...
        overwrite: Whether an earlier model in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a model and `overwrite` is off.
    """
    config = {
        "kind": KIND,
        "model": asdict(model.config),
        "form": model.form,
        "horizon": model.horizon,
        "num_steps": model.schedule.num_steps,
        "action_dim": model.normaliser.action_dim,
        "transition_dim": len(model.normaliser.shift),
        **facts,
    }
    save_checkpoint(folder, model, config, overwrite=overwrite)


def pair_weights(base: str | Path, expert: str | Path) -> dict[str, str]:
    """Checksums of two diffusers' weights: one that was trained again is another one."""
    return {
        name: checksum(Path(folder) / WEIGHTS_FILE) for name, folder in (("base", base), ("expert", expert))
    }


def require_pair_of_reward(
    folder: str | Path, facts: Mapping[str, Any], base: str | Path, expert: str | Path
) -> None:
    """Refuses a reward beside other diffusers than those it was extracted from; one that remembers none is of these.

    Args:
        folder: Of the reward, named in the error.
        facts: Content of its `config.json`.
        base: Folder of the base diffuser.
        expert: Folder of the expert diffuser.

    Raises:
        ValueError: naming the diffuser that was exchanged.
    """
    there = pair_weights(base, expert)
    before = facts.get("weights", there)
    for name, path in (("base", base), ("expert", expert)):
        if before[name] != there[name]:
            raise ValueError(
                f"the reward {folder} was trained from a {name} diffuser with weights {before[name]}, {path} has "
                f"{there[name]}: it was trained again since. Train the reward again in another folder, or put the former "
                "diffuser back"
            )


def load_relative_reward(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[RelativeReward, dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
        The reward in eval mode without gradients of its weights, and its `config.json`.

    Raises:
        FileNotFoundError: if the folder holds no relative reward.
        ValueError: if it is of another kind, or weights and sizes do not fit together.
    """
    facts = load_checkpoint_config(folder, KIND)
    action_dim = facts["action_dim"]
    normaliser = Normaliser.identity(action_dim, facts["transition_dim"] - action_dim)
    config = model_config(RelativeRewardConfig, facts["model"], folder)
    model = RelativeReward(config, facts["form"], facts["horizon"], facts["num_steps"], normaliser)
    path = Path(folder) / WEIGHTS_FILE
    apply_weights(model, load_weights(path), path)
    return model.to(device).eval().requires_grad_(False), facts
