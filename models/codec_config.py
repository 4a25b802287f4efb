"""How the image codec is trained: every setting, its unit and its allowed values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.distributed import require_shares


@dataclass(frozen=True)
class CodecTrainingConfig:
    """How the codec is trained; defaults are the paper's.

    Attributes:
        train_steps: Optimiser steps; None derives them from `epochs`.
        epochs: Passes over the training frames, used where `train_steps` is None.
        batch_frames: Frames a step, over all workers.
        learning_rate: Of Adam, > 0, for codec and discriminator.
        warmup_steps: Steps of linear warm-up, at least 0 (paper: 0).
        learning_rate_decay: "none", or "cosine" down to zero over the whole training.
        adam_beta1: Of Adam, in [0, 1).
        adam_beta2: Of Adam, in [0, 1).
        reconstruction_weight: Weight of the mean absolute error.
        motion_weight: Extra weight of pixels that differ from a still picture, in units of a full-scale
            difference; 0 weighs all pixels alike, as the paper does.
        still_of: That picture is the median of the pixel's own "video", or of "all" videos. What lies still in each video
            but elsewhere in the next, such as a goal or a dial that is yet to be turned, counts only with "all".
        perceptual_weight: Weight of LPIPS, where `use_lpips` is on.
        use_lpips: Whether the perceptual loss is used; needs the extra `lpips`, which downloads VGG weights.
        disc_weight: Weight of the adversarial loss from `disc_start_step` on; 0 trains without discriminator.
        disc_start_step: First step with the adversarial loss.
        disc_adaptive_scale: Factor on the adaptive weight of the adversarial loss.
        disc_filters: Width of the discriminator's first layer.
        disc_layers: Strided layers of the discriminator.
        detach_discriminator: Keeps the discriminator's loss from the codec, as it should be. The official code
            does not, so that its codec also follows the discriminator's gradient: False reproduces that.
        revive_every_steps: Codes unused for that many steps are moved onto encoder outputs, and the whole
            codebook is placed on them at the first step; 0 never does, as the paper.
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations; the best one's weights are kept.
        validation_frames: Frames of a validation, spread evenly over the held-out videos.
        save_every_steps: Steps between two saves of the resumable state.
        seed: Of initialisation and batches.
    """

    train_steps: int | None = None
    epochs: int = 200
    batch_frames: int = 32
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    learning_rate_decay: str = "none"
    adam_beta1: float = 0.5
    adam_beta2: float = 0.9
    reconstruction_weight: float = 1.0
    motion_weight: float = 0.0
    still_of: str = "video"
    perceptual_weight: float = 0.1
    use_lpips: bool = False
    disc_weight: float = 0.1
    disc_start_step: int = 1000
    disc_adaptive_scale: float = 0.8
    disc_filters: int = 64
    disc_layers: int = 3
    detach_discriminator: bool = True
    revive_every_steps: int = 0
    log_every_steps: int = 50
    validate_every_steps: int = 1000
    validation_frames: int = 2048
    save_every_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_frames", "disc_filters", "disc_layers", "log_every_steps"),
            *("validate_every_steps", "validation_frames", "save_every_steps"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"codec training {name}={getattr(self, name)} must be at least 1")
        if self.train_steps is not None and self.train_steps < 1:
            raise ValueError(f"codec training train_steps={self.train_steps} must be at least 1, or null")
        for name in (
            *("reconstruction_weight", "motion_weight", "perceptual_weight", "disc_weight"),
            *("warmup_steps", "disc_start_step", "disc_adaptive_scale", "revive_every_steps", "seed"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"codec training {name}={getattr(self, name)} must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"codec training learning_rate={self.learning_rate} must be positive")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"codec training {name}={getattr(self, name)} must be in [0, 1)")
        if self.still_of not in ("video", "all"):
            raise ValueError(f"codec training still_of={self.still_of!r} is unknown; use 'video' or 'all'")
        if self.learning_rate_decay not in ("none", "cosine"):
            raise ValueError(
                f"codec training learning_rate_decay={self.learning_rate_decay!r} is unknown; use 'none' or 'cosine'"
            )

    def require_shares(self, workers: int) -> None:
        """Refuses a batch that `workers` processes cannot share equally.

        Raises:
            ValueError: naming the key.
        """
        require_shares(self.batch_frames, "codec training batch_frames", workers)

    def steps_for(self, num_frames: int) -> int:
        """Optimiser steps for a dataset of `num_frames` training frames."""
        if self.train_steps is not None:
            return self.train_steps
        return self.epochs * math.ceil(num_frames / self.batch_frames)
