"""How the video model is trained: configuration and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from models.distributed import require_shares
from models.precision import PRECISIONS

LEARNING_RATE_SCHEDULES = ("plateau", "cosine", "constant")


@dataclass(frozen=True)
class VideoTrainingConfig:
    """Training of `VQDiffusion`; defaults are the paper's (Diffusion Reward, arXiv 2312.14134).

    Attributes:
        train_steps: Optimiser steps; None derives them from `epochs`.
        epochs: Passes over all training windows, used where `train_steps` is None.
        batch_windows: Windows a step, over all workers.
        all_mask_fraction: Fraction of the windows of a step trained by plain cross entropy at the all-mask state of the
            last step, [0, 1]; the rest by the variational loss. The "one_forward" reward estimator uses the network
            only in that state, so that 1.0 makes a small model much better per second, and unfit for the "chain"
            and "jump" estimators. 0.0 is the paper's. Between 0 and 1 the batch must have windows of both kinds.
        condition_corruption_prob: Fraction of windows whose history gets random codes, [0, 1]. The paper has 0.
        condition_corruption_fraction: Largest fraction of tokens replaced in such a history, [0, 1].
        hold_frames: Shorter videos count as if their last frame had been held until they had so many frames, 1 or more;
            only with `history` "first". A video that is cut where its task is solved shows the solution once: without
            this, a model of what is seen how often would find the way there far more typical. None leaves all as they are.
        learning_rate: Peak learning rate of AdamW, > 0.
        learning_rate_schedule: After warm-up: "plateau" (halve when the mean loss stalls), "cosine" (down to zero at
            the last step) or "constant".
        warmup_steps: Steps of linear warm-up, >= 0.
        plateau_patience_steps: Steps without improvement before the rate is halved.
        plateau_threshold: Relative improvement that counts, [0, 1).
        min_learning_rate: Floor of the plateau schedule.
        adam_beta1: Of AdamW, in [0, 1).
        adam_beta2: Of AdamW, in [0, 1).
        weight_decay: Of AdamW, >= 0.
        clip_grad_norm: Largest gradient norm, > 0.
        clip_until_steps: Steps that are clipped; None clips all.
        ema_decay: Of the averaged weights, which are the ones validated and kept, in [0, 1).
        ema_every_steps: Steps between two updates of the average.
        precision: "float32" (without TF32), or "bfloat16" mixed precision.
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations; the best averaged weights are kept.
        validation_windows: Windows of a validation, spread evenly over the held-out videos.
        save_every_steps: Steps between two saves of the resumable state.
        seed: Of initialisation, batches and noise.
    """

    train_steps: int | None = None
    epochs: int = 100
    batch_windows: int = 4
    all_mask_fraction: float = 0.0
    condition_corruption_prob: float = 0.0
    condition_corruption_fraction: float = 0.3
    hold_frames: int | None = None
    learning_rate: float = 4.5e-4
    learning_rate_schedule: str = "plateau"
    warmup_steps: int = 5000
    plateau_patience_steps: int = 25_000
    plateau_threshold: float = 0.1
    min_learning_rate: float = 1e-6
    adam_beta1: float = 0.9
    adam_beta2: float = 0.96
    weight_decay: float = 0.045
    clip_grad_norm: float = 0.5
    clip_until_steps: int | None = 5000
    ema_decay: float = 0.99
    ema_every_steps: int = 25
    precision: str = "float32"
    log_every_steps: int = 50
    validate_every_steps: int = 1000
    validation_windows: int = 1024
    save_every_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in (
            *("epochs", "batch_windows", "plateau_patience_steps", "ema_every_steps", "log_every_steps"),
            *("validate_every_steps", "validation_windows", "save_every_steps"),
        ):
            self._require(key, getattr(self, key) >= 1, "a whole number of at least 1")
        for key in ("train_steps", "clip_until_steps", "hold_frames"):
            value = getattr(self, key)
            self._require(key, value is None or value >= 1, "null or a whole number of at least 1")
        for key in ("all_mask_fraction", "condition_corruption_prob", "condition_corruption_fraction"):
            self._require(key, 0 <= getattr(self, key) <= 1, "a number in [0, 1]")
        for key in ("adam_beta1", "adam_beta2", "ema_decay", "plateau_threshold"):
            self._require(key, 0 <= getattr(self, key) < 1, "a number in [0, 1)")
        for key in ("learning_rate", "clip_grad_norm"):
            self._require(key, getattr(self, key) > 0, "a positive number")
        for key in ("weight_decay", "warmup_steps", "min_learning_rate", "seed"):
            self._require(key, getattr(self, key) >= 0, "a number of at least 0")
        schedule, precision = self.learning_rate_schedule, self.precision
        self._require(
            "learning_rate_schedule", schedule in LEARNING_RATE_SCHEDULES, f"one of {LEARNING_RATE_SCHEDULES}"
        )
        self._require("precision", precision in PRECISIONS, f"one of {PRECISIONS}")
        self._require_both_losses()

    def _require_both_losses(self) -> None:
        """Refuses a batch too small for the share of one of the two losses: that one would never be trained."""
        fraction = self.all_mask_fraction
        if not 0 < fraction < 1 or 0 < self.all_mask_windows < self.batch_windows:
            return
        smallest = max(int(0.5 / min(fraction, 1 - fraction)), 1)
        while not 0 < round(smallest * fraction) < smallest:
            smallest += 1
        raise ValueError(
            f"video training all_mask_fraction={fraction} of batch_windows={self.batch_windows} is "
            f"{self.all_mask_windows} windows: expected at least one of each kind, which takes a batch of at least {smallest}"
        )

    def _require(self, key: str, is_good: bool, allowed: str) -> None:
        if not is_good:
            raise ValueError(f"video training {key}={getattr(self, key)!r}: expected {allowed}")

    @property
    def all_mask_windows(self) -> int:
        """Windows of a step that are trained at the all-mask state."""
        return round(self.batch_windows * self.all_mask_fraction)

    def require_shares(self, workers: int) -> None:
        """Refuses a batch that `workers` processes cannot share equally.

        Raises:
            ValueError: naming the key.
        """
        require_shares(self.batch_windows, "video training batch_windows", workers)
        what = f"video training batch_windows={self.batch_windows} * all_mask_fraction={self.all_mask_fraction:g}"
        require_shares(self.all_mask_windows, what, workers)

    def steps_for(self, num_windows: int) -> int:
        """Optimiser steps for a dataset of `num_windows` training windows."""
        if self.train_steps is not None:
            return self.train_steps
        return self.epochs * math.ceil(num_windows / self.batch_windows)


@dataclass
class LearningRate:
    """The learning rate of each step.

    Attributes:
        config: The schedule.
        total_steps: Planned optimiser steps.
        factor: Product of all halvings so far.
        best_loss: Lowest mean loss seen after warm-up.
        best_step: When it was seen.
    """

    config: VideoTrainingConfig
    total_steps: int
    factor: float = 1.0
    best_loss: float = field(default=math.inf)
    best_step: int = 0

    def at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        if config.learning_rate_schedule == "constant":
            return config.learning_rate
        if config.learning_rate_schedule == "cosine":
            done = (step - config.warmup_steps) / max(self.total_steps - config.warmup_steps, 1)
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return max(config.learning_rate * self.factor, config.min_learning_rate)

    def observe(self, step: int, mean_loss: float) -> None:
        """Tells the plateau schedule the mean training loss up to `step`; halves the rate after a stall."""
        if self.config.learning_rate_schedule != "plateau" or step < self.config.warmup_steps:
            return
        if mean_loss < self.best_loss * (1 - self.config.plateau_threshold):
            self.best_loss, self.best_step = mean_loss, step
        elif step - self.best_step >= self.config.plateau_patience_steps:
            self.factor, self.best_step = self.factor / 2, step

    def state_dict(self) -> dict[str, Any]:
        """What changes during training."""
        return {"factor": self.factor, "best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.factor, self.best_loss, self.best_step = (
            state["factor"],
            state["best_loss"],
            state["best_step"],
        )
