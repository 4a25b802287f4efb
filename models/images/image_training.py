"""Training of the class-conditional image model, resumable at any moment."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from models.images.config import ImageModelConfig, ImageTrainingConfig
from models.images.ddim import add_noise
from models.images.finished import finished_summary
from models.images.pictures import contact_sheet
from models.images.sampling import sample_base
from models.images.unet import ClassUNet2D, save_image_model
from models.training_folder import claim_folder, clip_gradients, run_training, seeded
from models.training_log import Progress
from models.training_state import TrainingState

PICTURE_STEPS = 20


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: (N, C, H, W) float32 [-1, 1].
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def train_image_model(
    config: ImageTrainingConfig,
    model_config: ImageModelConfig,
    train: LabelledImages,
    validation: LabelledImages,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
    reuse: bool = False,
) -> dict[str, Any]:
    """Trains a model, or goes on with one whose training was cut off.

    Args:
        config: How to train.
        model_config: Sizes.
        train: Images to learn from.
        validation: Images to choose the best weights with.
        folder: Training folder; afterwards `load_image_model(folder)` gives the best averaged weights.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        seed: Of weights and batches.
        facts: About the data, for `config.json`; a resume checks them.
        reuse: Whether a finished training with the same settings is taken as it is.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best_validation_loss and best_step.

    Raises:
        FileExistsError: if the folder holds a finished training and `reuse` is off.
        ValueError: if it was started with another configuration, or the images do not fit the model.
        FloatingPointError: if the loss is no longer finite.
    """
    for images in (train, validation):
        _check_images(images, model_config)
    data = {**(facts or {}), "train_images": len(train), "validation_images": len(validation)}
    settings = {"training": asdict(config), "model": asdict(model_config), "data": data, "seed": seed}
    folder = Path(folder)
    done = finished_summary(folder, settings) if reuse else None
    if done is not None:
        return done
    claim_folder(folder, settings, True, "image model", "image model")
    run = _ImageRun(config, model_config, train, validation, folder, torch.device(device), seed, data)
    return run_training(run, config, folder, progress)


def _check_images(images: LabelledImages, config: ImageModelConfig) -> None:
    wanted = (config.channels, config.resolution_px, config.resolution_px)
    if tuple(images.images.shape[1:]) != wanted or not len(images):
        raise ValueError(
            f"images are {tuple(images.images.shape)}, the model takes (N, {', '.join(map(str, wanted))}), N > 0; "
            "set resolution_px and channels to those of the images"
        )
    if int(images.labels.max()) >= config.num_classes:
        raise ValueError(
            f"labels reach {int(images.labels.max())}, but num_classes is {config.num_classes}; raise num_classes"
        )


def draw_conditions(labels: Tensor, config: ImageTrainingConfig, num_classes: int) -> Tensor:
    """Conditions to train on: none, the own class, or a random set of classes that holds it.

    Every set of a size is equally likely for each of its classes, so that the model learns "one of these, equally
    likely". Draws from torch's global generator.

    Args:
        labels: (B,) int64.
        config: The probabilities.
        num_classes: Classes in all.

    Returns:
        (B, num_classes) float32 zeros and ones.
    """
    rows = len(labels)
    own = torch.nn.functional.one_hot(labels, num_classes).bool()
    kind = torch.rand(rows, 1)
    sizes = torch.randint(2, max(3, num_classes), (rows, 1))
    order = torch.rand(rows, num_classes).masked_fill(own, -1.0).argsort(dim=1).argsort(dim=1)
    chosen = torch.where(kind < config.null_probability + config.set_probability, order < sizes, own)
    return torch.where(kind < config.null_probability, torch.zeros_like(own), chosen).float()


class _ImageRun(TrainingState):
    """State of one training: model, averaged model, optimiser and the best result so far."""

    model: ClassUNet2D
    picture_name = "samples"

    def __init__(
        self,
        config: ImageTrainingConfig,
        model_config: ImageModelConfig,
        train: LabelledImages,
        validation: LabelledImages,
        folder: Path,
        device: torch.device,
        seed: int,
        facts: dict[str, Any],
    ) -> None:
        self.config, self.seed, self.facts = config, seed, facts
        self.train, self.validation = train, validation
        with seeded(torch.device("cpu"), seed, 0):
            model = ClassUNet2D(model_config).to(device)
        super().__init__(
            "image model", model, torch.optim.Adam(model.parameters(), config.learning_rate), folder, device
        )
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.total_steps = config.train_steps

    def kept_parts(self) -> dict[str, Any]:
        """The average as well."""
        return {**super().kept_parts(), "average": self.average}

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"parameters": parameters, "train_images": len(self.train)}

    def train_step(self) -> None:
        """One optimiser step; its randomness depends on seed and step only."""
        with seeded(torch.device("cpu"), self.seed, 1, self.step):
            rows = torch.randint(len(self.train), (self.config.batch_images,))
            loss = self._loss(self.model, self.train.images[rows], self.train.labels[rows])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self.model.parameters(), self.config.clip_grad_norm)
        self.optimiser.step()
        self.count(loss)
        self._average()

    def _loss(self, model: ClassUNet2D, images: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the predicted noise (DDPM, arXiv 2006.11239, equation 14)."""
        condition = draw_conditions(labels, self.config, model.config.num_classes).to(self.device)
        levels = torch.randint(model.config.num_train_steps, (len(images),))
        noise = torch.randn(images.shape).to(self.device)
        levels, images = levels.to(self.device), images.to(self.device)
        return mse_loss(model(add_noise(images, noise, model.abar[levels]), levels, condition), noise)

    @torch.no_grad()
    def _average(self) -> None:
        # A short training must forget its first weights as well.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters())
        for mean, value in pairs:
            mean.lerp_(value, 1 - decay)

    def numbers(self) -> dict[str, float]:
        """Mean loss since the last line."""
        rate = self.config.learning_rate
        return {"loss": self.take_mean_loss(rate), "learning_rate": rate}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged weights with the same noise every time; keeps them if they are the best."""
        total, repeats = 0.0, 4
        for repeat in range(repeats):
            with seeded(torch.device("cpu"), self.seed, 2, repeat):
                total += self._loss(self.average, self.validation.images, self.validation.labels).item()
        loss = total / repeats
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            facts = {"trained_steps": self.step, "validation_loss": loss, "data": self.facts}
            save_image_model(self.folder, self.average, facts, overwrite=True)
        return {"validation_loss": loss, "best_validation_loss": self.best_loss}

    def pictures(self) -> np.ndarray:
        """(1, H, W, 3) uint8: four samples of every class, without guidance."""
        labels = torch.arange(self.model.config.num_classes).repeat(4)
        condition = torch.nn.functional.one_hot(labels, self.model.config.num_classes).float()
        images = sample_base(
            self.average,
            condition.to(self.device),
            num_steps=min(PICTURE_STEPS, self.model.config.num_train_steps - 1),
            cfg_scale=1.0,
            seed=self.seed,
        )
        return contact_sheet(images.cpu(), columns=self.model.config.num_classes)[None]
