"""Training of a relative reward, or of the discriminator it is compared with, resumable (arXiv 2306.01804).

A training folder holds `config.json` + `weights.pt` (the best averaged reward so far, its normaliser inside),
`training.json` (what was asked for), `training_state.pt` (where to go on), `metrics.jsonl`, `tensorboard/`, and, once
finished, `summary.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.diffuser.averaged_run import AveragedRun
from models.diffuser.diffuser import Diffuser, given_mask, load_diffuser
from models.diffuser.raster import density_picture
from models.diffuser.window_batches import WindowBatches, joint_vectors
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig
from models.relative.matching import gradient_matching_loss, matching_target, reward_gradient
from models.relative.reward import RelativeReward, pair_weights, save_relative_reward
from models.training_folder import claim_folder, run_training, seeded
from models.training_log import Progress
from models.trajectories import TrajectorySet, read_trajectories

__all__ = ["train_relative_reward"]

VALIDATION_BATCH = 128
PICTURE_WINDOWS = 256
MODEL_FACTS = ("domain", "task", "mode", "goal", "data", "trained_steps", "validation_loss")


def train_relative_reward(
    config: RelativeTrainingConfig,
    network_config: RelativeRewardConfig,
    base: str | Path,
    expert: str | Path,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    base_data: TrajectorySet | None = None,
    expert_data: TrajectorySet | None = None,
    resume: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Extracts a reward from two diffusers, or goes on with a training that was cut off.

    Batches are mixed: half of the windows are the base's, half the expert's.

    Args:
        config: How to train.
        network_config: Network of the reward.
        base: Folder of the base diffuser.
        expert: Folder of an expert diffuser, trained with the base's normaliser.
        folder: Training folder; afterwards `load_relative_reward(folder)` gives the best averaged reward.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        base_data: Windows of the base; None reads what the base diffuser was trained on.
        expert_data: The same of the expert.
        resume: Whether an unfinished training in the folder may be gone on with.
        extra: More facts for `config.json`.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best validation loss and its step.

    Raises:
        FileExistsError: if the folder holds a finished training, or an unfinished one and `resume` is off.
        FileNotFoundError: if a model or its trajectories are missing.
        ValueError: if the models, or a model and its trajectories, do not fit together, or the folder was started with
            another configuration.
        FloatingPointError: if the loss is no longer finite.
    """
    folder, device = Path(folder), torch.device(device)
    models = {"base": load_diffuser(base, device), "expert": load_diffuser(expert, device)}
    require_pair(models["base"][0], models["expert"][0], base, expert)
    facts: dict[str, Any] = {
        "objective": config.objective,
        **{
            name: {"folder": str(path), **{key: models[name][1].get(key) for key in MODEL_FACTS}}
            for name, path in (("base", base), ("expert", expert))
        },
        **(extra or {}),
    }
    given = {"base": base_data, "expert": expert_data}
    sets = {name: _windows_of(name, models[name][1], data, facts[name]) for name, data in given.items()}
    pair = {name: model for name, (model, _) in models.items()}
    with seeded(device, config.seed):
        sizes = pair["base"].config
        form = "score" if config.objective == "discriminator" else config.form
        reward = RelativeReward(
            network_config, form, sizes.horizon, sizes.num_steps, pair["base"].normaliser
        ).to(device)
    batches = {
        (name, split): batches
        for name, data in sets.items()
        for split, batches in _batches(data, pair["base"]).items()
    }
    weights = pair_weights(base, expert)
    settings = {
        "training": asdict(config),
        "model": asdict(network_config),
        "data": facts,
        "weights": weights,
    }
    claim_folder(folder, settings, resume, "relative reward", "relative reward")
    run = _RelativeRun(config, reward, pair, batches, folder, device, {**facts, "weights": weights})
    return run_training(run, config, folder, progress)


def _batches(data: TrajectorySet, base: Diffuser) -> dict[str, WindowBatches]:
    """Normalised windows of both splits."""
    vectors = joint_vectors(data, base.normaliser)
    config = base.config
    return {
        split: WindowBatches(vectors, data.split(split).windows(config.horizon, config.padding))
        for split in ("train", "validation")
    }


def _windows_of(
    name: str, model: Mapping[str, Any], given: TrajectorySet | None, facts: dict[str, Any]
) -> TrajectorySet:
    """The trajectories given for a diffuser, which its facts remember then, or else those it was trained on.

    Raises:
        FileNotFoundError: if they are missing.
        ValueError: if they are of another task, so that the diffuser has never seen the like; naming both.
    """
    data = given if given is not None else read_trajectories(model["data"])
    if given is not None:
        facts["data"] = str(data.folder)
    if model["task"] != data.index["task"]:
        raise ValueError(
            f"the {name} diffuser is one of {model['task']!r}, {data.folder} holds trajectories of "
            f"{data.index['task']!r}: give {name}_data of the same task, or leave it out"
        )
    return data


def require_pair(base: Diffuser, expert: Diffuser, base_name: str | Path, expert_name: str | Path) -> None:
    """Refuses two diffusers whose difference means nothing.

    Raises:
        ValueError: naming each key that differs, or the normaliser.
    """
    mine, theirs = asdict(base.config), asdict(expert.config)
    different = [f"{key}: {mine[key]!r} against {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
    if not different:
        shared = base.normaliser.state_dict(), expert.normaliser.state_dict()
        different = [
            f"normaliser.{key}" for key in shared[0] if not torch.equal(shared[0][key], shared[1][key])
        ]
    if different:
        raise ValueError(
            f"{base_name} and {expert_name} are no pair ({'; '.join(different)} differ): train the expert with "
            "`python launch/pretrain.py stage=diffuser base=<folder of the base>`"
        )


class _RelativeRun(AveragedRun):
    """State of one training of a relative reward."""

    model: RelativeReward
    average: RelativeReward
    picture_name = "target_against_gradient"

    def __init__(
        self,
        config: RelativeTrainingConfig,
        reward: RelativeReward,
        pair: Mapping[str, Diffuser],
        batches: Mapping[tuple[str, str], WindowBatches],
        folder: Path,
        device: torch.device,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(config, reward, folder, device, "relative reward")
        self.base, self.expert, self.batches, self.facts = pair["base"], pair["expert"], batches, facts
        sizes = self.base.config
        steps = {"model": sizes.given_steps, "first": (0,), "none": ()}[config.given]
        self.given = given_mask(sizes, steps).to(device)
        self.ignored = None if config.given_loss or not steps else self.given
        self.num_expert = round(config.expert_share * config.batch_windows)

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        counts = {f"{who}_{split}_windows": len(b) for (who, split), b in self.batches.items()}
        return {**super().start_facts(), **counts}

    def batch_loss(self) -> Tensor:
        """Loss of random training windows of both kinds at random diffusion steps."""
        num_base = self.config.batch_windows - self.num_expert
        counts = (("base", num_base), ("expert", self.num_expert))
        windows = torch.cat([self.batches[who, "train"].draw(count) for who, count in counts if count])
        x_t, t = self._noised(windows)
        if self.config.objective == "discriminator":
            logits = self.model(x_t, t)
            return functional.binary_cross_entropy_with_logits(logits, self._labels(len(windows), num_base))
        point, target = self._target(windows, x_t, t)
        return gradient_matching_loss(self.model, point, t, target, self.ignored)

    def _noised(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.randint(self.base.schedule.num_steps, (len(windows),), device=self.device)
        x_t = self.base.schedule.add_noise(windows, t, torch.randn_like(windows))
        return torch.where(self.given, windows, x_t), t

    def _target(self, windows: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        point, target = matching_target(self.base, self.expert, x_t, t, self.config.form, self.config.point)
        return torch.where(self.given, windows, point), target.masked_fill(self.given, 0.0)

    def _labels(self, count: int, num_base: int) -> Tensor:
        """(count,) 0 for the base's windows, 1 for the expert's."""
        return (torch.arange(count, device=self.device) >= num_base).float()

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """On held-out windows of both kinds: the loss, and how much of what is to be learned the average explains."""
        each = max(self.config.validation_windows // 2, 1)
        parts = [self.batches[who, "validation"].even(each) for who in ("base", "expert")]
        if self.config.objective == "discriminator":
            return self._validate_discriminator(torch.cat(parts), len(parts[0]))
        sums = torch.zeros(2, device=self.device)
        count = 0
        for windows in torch.cat(parts).split(VALIDATION_BATCH):
            gradient, target = self._compare(windows)
            sums += torch.stack([(gradient - target).square().sum(), target.square().sum()])
            count += target.numel()
        error, power = sums.tolist()
        explained = 1 - error / power if power > 0 else 0.0
        return {"validation_loss": error / count, "target_power": power / count, "explained": explained}

    def _compare(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """The average's gradient and its target, of all elements that count, flattened."""
        x_t, t = self._noised(windows)
        point, target = self._target(windows, x_t, t)
        gradient = reward_gradient(self.average, point, t)
        if self.ignored is None:
            return gradient.flatten(), target.flatten()
        counted = (~self.ignored).expand_as(gradient)
        return gradient[counted], target[counted]

    def _validate_discriminator(self, windows: Tensor, num_base: int) -> dict[str, float]:
        labels = self._labels(len(windows), num_base)
        x_t, t = self._noised(windows)
        logits = torch.cat(
            [self.average(x, s) for x, s in zip(x_t.split(VALIDATION_BATCH), t.split(VALIDATION_BATCH))]
        )
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        accuracy = ((logits > 0) == (labels > 0.5)).float().mean()
        return {"validation_loss": float(loss), "accuracy": float(accuracy)}

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Writes the averaged reward as the folder's model."""
        save_relative_reward(self.folder, self.average, {**self.facts, **facts}, overwrite=True)

    @torch.no_grad()
    def pictures(self) -> np.ndarray:
        """(1, 96, 96, 3) uint8: the target of the gradient to the right, the gradient up; a good reward is a diagonal.

        For a discriminator, a window's logit up and 0 or 1 to the right.
        """
        parts = [self.batches[who, "validation"].even(PICTURE_WINDOWS // 2) for who in ("base", "expert")]
        windows = torch.cat(parts)
        with seeded(self.device, self.config.seed):
            if self.config.objective == "discriminator":
                x_t, t = self._noised(windows)
                y, x = self.average(x_t, t), self._labels(len(windows), len(parts[0]))
                return density_picture(x, y, -5.0, 5.0)[None]
            gradient, target = self._compare(windows)
        reach = max(4 * float(target.std()), 1e-6)
        return density_picture(target, gradient, -reach, reach)[None]
