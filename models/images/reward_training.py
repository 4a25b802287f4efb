"""Training of the reward of latents by gradient matching, resumable at any moment (arXiv 2306.01804)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.images.config import ImageRewardTrainingConfig
from models.images.finished import finished_summary
from models.images.pairs import PairBatch, PairSet
from models.images.pictures import contact_sheet
from models.images.reward import ImageReward, network_settings, save_image_reward
from models.relative.config import RelativeRewardConfig
from models.relative.matching import gradient_matching_loss
from models.training_folder import claim_folder, run_training, seeded
from models.training_log import Progress
from models.training_state import TrainingState


def train_image_reward(
    config: ImageRewardTrainingConfig,
    network: RelativeRewardConfig,
    pairs: PairSet,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    seed: int = 0,
    reuse: bool = False,
) -> dict[str, Any]:
    """Trains a reward, or goes on with one whose training was cut off.

    Args:
        config: How to train.
        network: Sizes.
        pairs: Next latents of base and expert.
        folder: Training folder; afterwards `load_image_reward(folder)` gives the best weights.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        seed: Of weights and batches.
        reuse: Whether a finished training with the same settings is taken as it is.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best_validation_loss, best_validation_explained, best_step.

    Raises:
        FileExistsError: if the folder holds a finished training and `reuse` is off.
        ValueError: if it was started with another configuration, or base and expert never differ.
        FloatingPointError: if the loss is no longer finite.
    """
    facts = {key: pairs.index[key] for key in ("shape", "guidance", "pairs", "facts")}
    settings = {
        "training": asdict(config),
        "network": network_settings(network),
        "data": {**facts, "seed": pairs.index["seed"]},
        "seed": seed,
    }
    folder = Path(folder)
    done = finished_summary(folder, settings) if reuse else None
    if done is not None:
        return done
    claim_folder(folder, settings, True, "image reward", "image reward")
    run = _RewardRun(config, network, pairs, folder, torch.device(device), seed, facts)
    return run_training(run, config, folder, progress)


def matching_loss(reward: ImageReward, batch: PairBatch) -> Tensor:
    """Mean squared error between the gradient at the standardised current latents and the standardised difference.

    Args:
        reward: Trained or not.
        batch: Pairs.

    Returns:
        A scalar that can be differentiated.
    """
    target = reward.target(batch.base, batch.safe, batch.steps)
    point = reward.standardise(batch.current, batch.steps)
    return gradient_matching_loss(reward.of_standardised, point, batch.steps, target)


class _RewardRun(TrainingState):
    """State of one training: reward, optimiser and the best result so far."""

    model: ImageReward
    kept_numbers = (*TrainingState.kept_numbers, "best_explained")
    picture_name = "latents_from_low_to_high_reward"

    def __init__(
        self,
        config: ImageRewardTrainingConfig,
        network: RelativeRewardConfig,
        pairs: PairSet,
        folder: Path,
        device: torch.device,
        seed: int,
        facts: Mapping[str, Any],
    ) -> None:
        self.config, self.pairs = config, pairs
        self.seed, self.facts = seed, dict(facts)
        self.train = pairs.trajectories("train")
        statistics = pairs.statistics("train", config.std_floor)
        with seeded(torch.device("cpu"), seed, 3):
            reward = ImageReward(network, statistics).to(device)
        optimiser = torch.optim.Adam(reward.network.parameters(), config.learning_rate)
        super().__init__("image reward", reward, optimiser, folder, device)
        self.total_steps, self.best_explained = config.train_steps, 0.0
        self.validation = self._draw(
            pairs.trajectories("validation"), config.validation_pairs, np.random.default_rng([seed, 4])
        )
        if bool((self.validation.base == self.validation.safe).all()):
            raise ValueError(
                f"base and expert of {pairs.folder} never differ, so there is nothing to learn: check the unsafe "
                "classes, guidance.safety_scale and guidance.warmup_steps"
            )

    def _draw(self, trajectories: np.ndarray, count: int, rng: np.random.Generator) -> PairBatch:
        batch = self.pairs.gather(
            rng.choice(trajectories, count), rng.integers(self.pairs.num_steps, size=count)
        )
        return PairBatch(*(values.to(self.device) for values in batch))

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"parameters": parameters, "train_trajectories": len(self.train)}

    def train_step(self) -> None:
        """One optimiser step; its batch depends on seed and step only."""
        rng = np.random.default_rng([self.seed, 6, self.step])
        loss = matching_loss(self.model, self._draw(self.train, self.config.batch_pairs, rng))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_grad_value is not None:
            torch.nn.utils.clip_grad_value_(self.model.network.parameters(), self.config.clip_grad_value)
        self.optimiser.step()
        self.count(loss)

    def numbers(self) -> dict[str, float]:
        """Mean loss since the last line."""
        rate = self.config.learning_rate
        return {"loss": self.take_mean_loss(rate), "learning_rate": rate}

    def validate(self) -> dict[str, float]:
        """Loss on held-out trajectories and the share of the difference that it explains; keeps the best weights."""
        self.model.eval()
        sums, total = np.zeros(2), len(self.validation.steps)
        for first in range(0, total, self.config.batch_pairs):
            part = PairBatch(*(values[first : first + self.config.batch_pairs] for values in self.validation))
            target = self.model.target(part.base, part.safe, part.steps)
            losses = matching_loss(self.model, part).item(), target.square().mean().item()
            sums += np.array(losses) * len(part.steps)
        self.model.train()
        loss, constant = (float(value) for value in sums / total)
        explained = 1 - loss / constant
        if loss < self.best_loss:
            self.best_loss, self.best_explained, self.best_step = loss, explained, self.step
            facts = {"trained_steps": self.step, "validation_loss": loss, "pairs": self.facts}
            save_image_reward(self.folder, self.model, facts, overwrite=True)
        return {
            "validation_loss": loss,
            "validation_explained": explained,
            "best_validation_loss": self.best_loss,
        }

    @torch.no_grad()
    def pictures(self, count: int = 40) -> np.ndarray:
        """(1, H, W, 3) uint8: held-out results from the lowest to the highest reward, first channel only."""
        results = self.pairs.results(self.pairs.trajectories("validation")[:count])
        steps = torch.zeros(len(results), dtype=torch.int64, device=self.device)
        order = self.model(results.to(self.device), steps).argsort().cpu()
        images = results[order][:, :1]
        return contact_sheet(images / images.abs().amax().clamp(min=1.0), columns=10)[None]

    def best(self) -> dict[str, float]:
        """The best validation result, for the summary."""
        return {**super().best(), "best_validation_explained": self.best_explained}
