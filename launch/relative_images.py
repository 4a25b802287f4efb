"""The relative reward of images: a class-conditional model, its safe-guided expert, and the reward between them.

Stages: the model (trained on scikit-learn's digits), for each choice of unsafe classes the pairs of next latents and
the reward, then the evaluation. Each stage that is finished is taken as it is; one that was cut off is gone on with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from launch.cli import UsageError, build
from launch.digits import NUM_CLASSES, digit_splits
from launch.paths import absolute_path
from launch.pretrain import choose_device
from launch.progress import LastValues, Progress
from models.checkpoints import WEIGHTS_FILE
from models.files import checksum
from models.images.config import (
    ImageModelConfig,
    ImageRewardTrainingConfig,
    ImageTrainingConfig,
    PairConfig,
    SafeGuidanceConfig,
)
from models.images.ddim import DDIMSteps
from models.images.image_training import train_image_model
from models.images.pairs import PairSet, make_pairs
from models.images.reward_training import train_image_reward
from models.images.sampling import Predict, class_predictor
from models.images.unet import ClassUNet2D, class_set, load_image_model
from models.relative.config import RelativeRewardConfig


def _half_2d() -> RelativeRewardConfig:
    return RelativeRewardConfig(network="half_2d")


@dataclass(frozen=True)
class ImagesSettings:
    """The section `images`; defaults are the paper's values where it gives one (arXiv 2306.01804).

    Attributes:
        unsafe: Choices of unsafe classes; each gets a reward of its own. The digits of a number are the classes of a
            choice: [7, 38] is first the 7, then the 3 and the 8.
        model: Sizes of the class-conditional model.
        model_training: Its training.
        guidance: Guidance of base and expert.
        pairs: How many pairs of next latents.
        reward: Sizes of the reward network.
        reward_training: Its training.
        evaluation_trajectories: New trajectories of each of base, expert and steered base.
        headline_share: The step that histograms and the table's first column are of, as a share of all steps.
        steer_scale: How often the reward's direction is added to the base's next latents; 1 stands in for the expert.
        data: Folder of pairs from elsewhere, such as launch/stable_diffusion.py makes; null for the digits.
        trained: With `data` and the action evaluate: folder of the reward that was trained on such pairs.
    """

    unsafe: tuple[int, ...] = (0, 7, 38, 569)
    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    model_training: ImageTrainingConfig = field(default_factory=ImageTrainingConfig)
    guidance: SafeGuidanceConfig = field(default_factory=SafeGuidanceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    reward: RelativeRewardConfig = field(default_factory=_half_2d)
    reward_training: ImageRewardTrainingConfig = field(default_factory=ImageRewardTrainingConfig)
    evaluation_trajectories: int = 1000
    headline_share: float = 0.1
    steer_scale: float = 1.0
    data: str | None = None
    trained: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            number
            for number in self.unsafe
            if not isinstance(number, int) or number < 0 or len(set(str(number))) != len(str(number))
        ]
        if wrong or not self.unsafe or any(len(choice) >= NUM_CLASSES for choice in self.unsafe_choices()):
            raise ValueError(
                "unsafe must list whole numbers of different digits, one for each choice, not all ten, such as "
                f"[7,38], got {list(self.unsafe)}"
            )
        if (self.model.num_classes, self.model.channels) != (NUM_CLASSES, 1):
            raise ValueError(f"the digits have {NUM_CLASSES} classes and 1 channel, got {self.model}")
        if self.guidance.num_steps >= self.model.num_train_steps:
            raise ValueError(
                f"guidance.num_steps must be below model.num_train_steps={self.model.num_train_steps}, "
                f"got {self.guidance.num_steps}"
            )
        if self.reward.network != "half_2d":
            raise ValueError(f"reward.network must be 'half_2d' for images, got {self.reward.network!r}")
        if self.evaluation_trajectories < NUM_CLASSES:
            raise ValueError(
                f"evaluation_trajectories must be at least {NUM_CLASSES}, got {self.evaluation_trajectories}"
            )
        if not 0 <= self.headline_share < 1:
            raise ValueError(f"headline_share must be in [0, 1), got {self.headline_share}")

    def unsafe_choices(self) -> list[tuple[int, ...]]:
        """Each choice as classes in ascending order."""
        return [tuple(sorted(map(int, str(number)))) for number in self.unsafe]

    @property
    def headline_step(self) -> int:
        """The step of `headline_share`."""
        return int(self.headline_share * self.guidance.num_steps)


@dataclass(frozen=True)
class ImagesJob:
    """What a command asks for: settings, places, device and seed.

    Attributes:
        settings: The section `images`.
        base: Folder of the class-conditional model.
        pairs: Folder that holds a folder of pairs for each choice.
        rewards: Folder that holds a folder of reward for each choice.
        results: Folder of the evaluation.
        device: Where to compute.
        seed: Of weights, batches and noise.
    """

    settings: ImagesSettings
    base: Path
    pairs: Path
    rewards: Path
    results: Path
    device: torch.device
    seed: int


def choice_name(choice: Iterable[int]) -> str:
    """Folder name of a choice of unsafe classes."""
    return "unsafe-" + "-".join(map(str, choice))


def make_model(job: ImagesJob) -> ClassUNet2D:
    """The class-conditional model, trained if it is not there yet."""
    settings = job.settings
    digits = digit_splits(settings.model.resolution_px)
    summary = train_image_model(
        settings.model_training,
        settings.model,
        digits["train"],
        digits["validation"],
        job.base,
        job.device,
        shown("model", ("loss", "validation_loss")),
        seed=job.seed,
        facts={"data": "scikit-learn digits", "resolution_px": settings.model.resolution_px},
        reuse=True,
    )
    print(f"[model] {summary}: {job.base}", flush=True)
    return load_image_model(job.base, job.device)[0]


def predictor(model: ClassUNet2D, unsafe: tuple[int, ...], prompts: np.ndarray) -> Predict:
    """Predicted noise for prompts that are single classes.

    Args:
        model: In eval mode.
        unsafe: Classes of the unsafe concept.
        prompts: (B,) int64 classes.
    """
    classes = model.config.num_classes
    conditions = torch.cat([class_set((int(prompt),), classes) for prompt in prompts])
    return class_predictor(model, conditions.to(model.abar.device), unsafe)


def make_choice_pairs(job: ImagesJob, model: ClassUNet2D, unsafe: tuple[int, ...]) -> PairSet:
    """The pairs of one choice of unsafe classes, made if they are not there yet."""
    settings = job.settings
    size = settings.model.resolution_px
    return make_pairs(
        job.pairs / choice_name(unsafe),
        lambda prompts: predictor(model, unsafe, prompts),
        DDIMSteps(model.abar.cpu(), settings.guidance.num_steps, settings.guidance.clip_x0),
        settings.guidance,
        settings.pairs,
        (settings.model.channels, size, size),
        NUM_CLASSES,
        {
            "model": job.base.name,
            "weights": checksum(job.base / WEIGHTS_FILE),
            "unsafe": list(unsafe),
            "prompts": "single classes",
        },
        seed=job.seed,
        device=job.device,
        progress=Progress(f"pairs {choice_name(unsafe)}", "trajectories"),
    )


def train_choice_reward(job: ImagesJob, pairs: PairSet, folder: Path) -> dict[str, Any]:
    """The reward of one folder of pairs, trained if it is not there yet."""
    summary = train_image_reward(
        job.settings.reward_training,
        job.settings.reward,
        pairs,
        folder,
        job.device,
        shown(f"reward {folder.name}", ("loss", "validation_loss", "validation_explained")),
        seed=job.seed,
        reuse=True,
    )
    print(f"[reward] {summary}: {folder}", flush=True)
    return summary


def shown(label: str, names: tuple[str, ...]) -> LastValues:
    """Progress that prints the newest value of a few metrics."""
    return LastValues(label, names)


def train_everything(job: ImagesJob) -> None:
    """Model, then pairs and reward of each choice."""
    model = make_model(job)
    for unsafe in job.settings.unsafe_choices():
        pairs = make_choice_pairs(job, model, unsafe)
        train_choice_reward(job, pairs, job.rewards / choice_name(unsafe))


def job_of(config: DictConfig) -> ImagesJob:
    """Checks a composed configuration.

    Raises:
        UsageError: for bad values, or an expert: here it is the base with safety guidance.
    """
    if config.expert is not None:
        raise UsageError(
            f"expert={config.expert}: the expert of images is the base with safety guidance (images.guidance); "
            "leave expert= out"
        )
    seed = int(config.seed)
    run = f"digits-seed{seed}"
    settings = build(ImagesSettings, config.images, "images.")
    return ImagesJob(
        settings,
        base=absolute_path(str(config.base or f"checkpoints/images/{run}"), "base"),
        pairs=absolute_path(f"data/images/{run}", "pairs"),
        rewards=absolute_path(f"checkpoints/relative/{run}", "rewards"),
        results=absolute_path(f"runs/relative/images/{run}", "results"),
        device=choose_device(str(config.device)),
        seed=seed,
    )


def _out(config: DictConfig) -> Path | None:
    return None if config.out is None else absolute_path(str(config.out), "out")


def train(config: DictConfig) -> int:
    """`relative.py train domain=images`: model, pairs and rewards; with images.data only the reward of these pairs.

    Raises:
        UsageError: if images.data is given without out.
    """
    job, out = job_of(config), _out(config)
    if job.settings.data is None:
        train_everything(job if out is None else replace(job, rewards=out))
        return 0
    if out is None:
        raise UsageError(
            "out is missing: with images.data=<folder of pairs>, give out=<folder for the reward>"
        )
    train_choice_reward(job, PairSet(absolute_path(job.settings.data, "images.data")), out)
    return 0


def evaluate(config: DictConfig) -> int:
    """`relative.py evaluate domain=images`: AUC, histograms and samples of trained rewards."""
    from launch.relative_images_evaluation import evaluate_choices, evaluate_pairs

    job, out = job_of(config), _out(config)
    if out is not None:
        job = replace(job, results=out)
    data, trained = job.settings.data, job.settings.trained
    if data is None:
        return evaluate_choices(job)
    if trained is None or out is None:
        raise UsageError(
            "with images.data=<folder of pairs>, give images.trained=<folder of its reward> and out=<folder>"
        )
    pairs = PairSet(absolute_path(data, "images.data"))
    return evaluate_pairs(job, pairs, absolute_path(trained, "images.trained"))


def run_all(config: DictConfig) -> int:
    """`relative.py all domain=images`: every stage, ending with the table and the pictures.

    Everything goes to default folders, or with out=<folder> below that folder.

    Raises:
        UsageError: if images.data is given.
    """
    from launch.relative_images_evaluation import evaluate_choices

    job, out = job_of(config), _out(config)
    if job.settings.data is not None:
        raise UsageError("images.data is for the actions train and evaluate; all makes its own pairs")
    if out is not None:
        base = out / "model" if config.base is None else job.base
        job = replace(job, base=base, pairs=out / "pairs", rewards=out / "rewards", results=out / "results")
    train_everything(job)
    return evaluate_choices(job)
