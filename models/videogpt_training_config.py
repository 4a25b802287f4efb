"""How VideoGPT is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.distributed import require_shares
from models.precision import PRECISIONS

LEARNING_RATE_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class VideoGPTTrainingConfig:
    """Training of `VideoGPT`; defaults are those of VIPER as a baseline of Diffusion Reward (arXiv 2312.14134).

    How many input tokens are dropped is `VideoGPTConfig.keep_prob`.

    Attributes:
        train_steps: Optimiser steps; None derives them from `epochs`.
        epochs: Passes over all training windows, used where `train_steps` is None.
        batch_windows: Windows a step, over all workers.
        learning_rate: Peak learning rate of AdamW, > 0.
        learning_rate_schedule: After warm-up: "constant", or "cosine" (down to zero at the last step).
        warmup_steps: Steps of linear warm-up, >= 0.
        adam_beta1: Of AdamW, in [0, 1).
        adam_beta2: Of AdamW, in [0, 1).
        weight_decay: Of AdamW on the weights of linear layers, >= 0; biases, norms and positions have none.
        clip_grad_norm: Largest gradient norm, > 0; None does not clip.
        precision: "float32" (without TF32), or "bfloat16" mixed precision.
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations; the best weights are kept.
        validation_windows: Windows of a validation, spread evenly over the held-out videos.
        save_every_steps: Steps between two saves of the resumable state.
        seed: Of initialisation, batches and dropped tokens.
    """

    train_steps: int | None = None
    epochs: int = 5000
    batch_windows: int = 32
    learning_rate: float = 4.5e-6
    learning_rate_schedule: str = "constant"
    warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.01
    clip_grad_norm: float | None = None
    precision: str = "float32"
    log_every_steps: int = 50
    validate_every_steps: int = 1000
    validation_windows: int = 1024
    save_every_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in (
            *("epochs", "batch_windows", "log_every_steps", "validate_every_steps", "validation_windows"),
            "save_every_steps",
        ):
            self._require(key, getattr(self, key) >= 1, "a whole number of at least 1")
        self._require(
            "train_steps",
            self.train_steps is None or self.train_steps >= 1,
            "null or a whole number of at least 1",
        )
        for key in ("adam_beta1", "adam_beta2"):
            self._require(key, 0 <= getattr(self, key) < 1, "a number in [0, 1)")
        self._require("learning_rate", self.learning_rate > 0, "a positive number")
        clip = self.clip_grad_norm
        self._require("clip_grad_norm", clip is None or clip > 0, "null or a positive number")
        for key in ("weight_decay", "warmup_steps", "seed"):
            self._require(key, getattr(self, key) >= 0, "a number of at least 0")
        schedule, precision = self.learning_rate_schedule, self.precision
        self._require(
            "learning_rate_schedule", schedule in LEARNING_RATE_SCHEDULES, f"one of {LEARNING_RATE_SCHEDULES}"
        )
        self._require("precision", precision in PRECISIONS, f"one of {PRECISIONS}")

    def _require(self, key: str, is_good: bool, allowed: str) -> None:
        if not is_good:
            raise ValueError(f"videogpt training {key}={getattr(self, key)!r}: expected {allowed}")

    def require_shares(self, workers: int) -> None:
        """Refuses a batch that `workers` processes cannot share equally.

        Raises:
            ValueError: naming the key.
        """
        require_shares(self.batch_windows, "videogpt training batch_windows", workers)

    def steps_for(self, num_windows: int) -> int:
        """Optimiser steps for a dataset of `num_windows` training windows."""
        if self.train_steps is not None:
            return self.train_steps
        return self.epochs * math.ceil(num_windows / self.batch_windows)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0, of `total_steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.learning_rate_schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
