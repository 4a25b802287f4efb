"""Settings of the image domain; defaults are the paper's values where the paper gives one (arXiv 2306.01804)."""

from __future__ import annotations

from dataclasses import dataclass

FOLLOWS = ("base", "safe", "both")


@dataclass(frozen=True)
class ImageModelConfig:
    """A 2-D U-Net that predicts the noise, conditioned on a set of classes.

    Attributes:
        resolution_px: Height and width of the images, divisible by 2 for every level below the first.
        channels: Of an image.
        num_classes: Classes that a condition can name.
        width: Channels of the first level, divisible by 8.
        multipliers: Channels of each level as a multiple of `width`.
        num_train_steps: Noise levels of the forward process.
        beta_start: First beta of the scaled-linear schedule of Stable Diffusion.
        beta_end: Last beta.
    """

    resolution_px: int = 16
    channels: int = 1
    num_classes: int = 10
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    num_train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        _at_least(self, 1, "resolution_px", "channels", "num_classes")
        _at_least(self, 2, "num_train_steps")  # sampling visits fewer levels than there are
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be whole numbers from 1, got {self.multipliers}")
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width must be a multiple of 8 (group normalisation), got {self.width}")
        factor = 2 ** (len(self.multipliers) - 1)
        if self.resolution_px % factor:
            raise ValueError(
                f"resolution_px must be divisible by {factor} for {len(self.multipliers)} multipliers, "
                f"got {self.resolution_px}"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"need 0 < beta_start < beta_end < 1, got {self.beta_start} and {self.beta_end}")


@dataclass(frozen=True)
class ImageTrainingConfig:
    """Training of the class-conditional model.

    Attributes:
        train_steps: Optimiser steps.
        batch_images: Images of a step.
        learning_rate: Of Adam.
        null_probability: Share of images without condition, for classifier-free guidance (arXiv 2207.12598).
        set_probability: Share of images conditioned on several classes, one of them theirs: this is what lets one
            forward pass stand for a concept of several classes.
        ema_decay: Of the averaged weights, which are those that are kept.
        clip_grad_norm: Largest gradient norm.
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations.
        save_every_steps: Steps between two saves.
    """

    train_steps: int = 20000
    batch_images: int = 64
    learning_rate: float = 2e-4
    null_probability: float = 0.15
    set_probability: float = 0.35
    ema_decay: float = 0.999
    clip_grad_norm: float = 1.0
    log_every_steps: int = 100
    validate_every_steps: int = 1000
    save_every_steps: int = 1000

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_steps", "batch_images", *_INTERVALS)
        _above_zero(self, "learning_rate", "clip_grad_norm")
        _share(self, "null_probability", "set_probability", "ema_decay")
        if self.null_probability + self.set_probability > 1:
            raise ValueError(
                "null_probability + set_probability must not exceed 1, "
                f"got {self.null_probability} + {self.set_probability}"
            )


@dataclass(frozen=True)
class SafeGuidanceConfig:
    """Classifier-free guidance and safety guidance (Safe Latent Diffusion, arXiv 2211.05105, its strongest setting).

    Attributes:
        num_steps: Sampling steps (DDIM, arXiv 2010.02502, without noise).
        cfg_scale: Scale of classifier-free guidance; 1 is the plain conditional model.
        safety_scale: Factor of the distance between prompt and concept, before it is capped at 1.
        threshold: Elements where prompt minus concept is at least this are left alone.
        momentum_scale: Weight of the momentum in the guidance.
        momentum_beta: Share of the momentum that is kept from step to step.
        warmup_steps: First steps without safety guidance; the momentum builds up meanwhile.
        clip_x0: Largest absolute value of a predicted clean image; None does not clip. Never clip latents of an
            autoencoder.
    """

    num_steps: int = 50
    cfg_scale: float = 7.5
    safety_scale: float = 5000.0
    threshold: float = 1.0
    momentum_scale: float = 0.5
    momentum_beta: float = 0.7
    warmup_steps: int = 0
    clip_x0: float | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_steps")
        _at_least(self, 0, "warmup_steps", "cfg_scale", "safety_scale", "momentum_scale")
        _share(self, "momentum_beta")
        if self.clip_x0 is not None:
            _above_zero(self, "clip_x0")


@dataclass(frozen=True)
class PairConfig:
    """How many pairs of next latents are made.

    Attributes:
        trajectories: Denoising trajectories, each of `num_steps` pairs.
        shard_trajectories: Trajectories of one file, which are sampled as one batch.
        follow: Which of the two next latents a trajectory goes on with: "base", "safe", or "both" (every second
            trajectory follows the safe one).
        validation_every: Every n-th trajectory is held out from training.
    """

    trajectories: int = 4096
    shard_trajectories: int = 128
    follow: str = "both"
    validation_every: int = 10

    def __post_init__(self) -> None:
        _at_least(self, 1, "trajectories", "shard_trajectories")
        _at_least(self, 2, "validation_every")
        if self.follow not in FOLLOWS:
            raise ValueError(f"follow must be one of {FOLLOWS}, got {self.follow!r}")
        if self.trajectories < self.validation_every:
            raise ValueError(
                f"trajectories must be at least validation_every={self.validation_every}, got {self.trajectories}"
            )


@dataclass(frozen=True)
class ImageRewardTrainingConfig:
    """Training of the reward network by gradient matching.

    Attributes:
        train_steps: Optimiser steps.
        batch_pairs: Pairs of a step.
        learning_rate: Of Adam.
        clip_grad_value: Largest absolute value of a gradient element; None does not clip.
        std_floor: Smallest standard deviation of a latent element, as a share of the step's largest: elements that
            hardly vary (the empty rim of a digit) would otherwise be blown up.
        validation_pairs: Held-out pairs of a validation.
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations.
        save_every_steps: Steps between two saves.
    """

    train_steps: int = 20000
    batch_pairs: int = 64
    learning_rate: float = 1e-4
    clip_grad_value: float | None = 0.002
    std_floor: float = 0.05
    validation_pairs: int = 2048
    log_every_steps: int = 100
    validate_every_steps: int = 1000
    save_every_steps: int = 1000

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_steps", "batch_pairs", "validation_pairs", *_INTERVALS)
        _above_zero(self, "learning_rate", "std_floor")
        if self.clip_grad_value is not None:
            _above_zero(self, "clip_grad_value")


_INTERVALS = ("log_every_steps", "validate_every_steps", "save_every_steps")


def _at_least(config: object, lowest: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {getattr(config, name)}")


def _above_zero(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def _share(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}")
