"""Configuration of a diffuser and of its training (Diffuser, arXiv 2205.09991, as in arXiv 2306.01804)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.trajectories import PADDINGS

NORMALISERS = ("min_max", "gaussian")
CONDITIONINGS = ("both_ends", "first", "none")


def require(section: str, key: str, value: Any, is_good: bool, allowed: str) -> None:
    """Refuses a bad value of a config dataclass.

    Raises:
        ValueError: naming section, key, value and what is allowed.
    """
    if not is_good:
        raise ValueError(f"{section} {key}={value!r}: expected {allowed}")


@dataclass(frozen=True)
class DiffuserConfig:
    """Sizes of a diffuser; defaults are those of the paper's Maze2D (arXiv 2306.01804).

    Attributes:
        horizon: H, steps of a window; a multiple of 2 ** (number of multipliers - 1).
        num_steps: T, diffusion steps, at least 1.
        observation_dim: S, at least 1.
        action_dim: A, at least 0.
        width: Channels of the first level, a multiple of 8.
        multipliers: Channels of each level of the temporal U-Net over `width`.
        attention: Whether each level has linear attention.
        normaliser: "min_max" to [-1, 1], or "gaussian" to mean 0 and standard deviation 1.
        clip_x0: Whether the predicted clean window is clipped to [-1, 1].
        conditioning: Which observations of a window are given: "both_ends", "first" or "none".
        first_action_weight: Weight of the first action in the loss, above 0.
        padding: Windows past the end of a trajectory: "none", or "last" (they repeat the last transition).
    """

    horizon: int = 256
    num_steps: int = 100
    observation_dim: int = 4
    action_dim: int = 2
    width: int = 32
    multipliers: tuple[int, ...] = (1, 4, 8)
    attention: bool = False
    normaliser: str = "min_max"
    clip_x0: bool = True
    conditioning: str = "both_ends"
    first_action_weight: float = 1.0
    padding: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        for key in ("num_steps", "observation_dim"):
            self._require(key, getattr(self, key) >= 1, "a whole number of at least 1")
        self._require("action_dim", self.action_dim >= 0, "a whole number of at least 0")
        self._require("width", self.width >= 8 and self.width % 8 == 0, "a positive multiple of 8")
        good = bool(self.multipliers) and all(m >= 1 for m in self.multipliers)
        self._require("multipliers", good, "at least one, each of at least 1")
        unit = 2 ** (len(self.multipliers) - 1)
        self._require(
            "horizon",
            self.horizon >= 1 and self.horizon % unit == 0,
            f"a positive multiple of {unit}, because {len(self.multipliers)} multipliers halve it "
            f"{len(self.multipliers) - 1} times",
        )
        self._require("normaliser", self.normaliser in NORMALISERS, f"one of {NORMALISERS}")
        self._require("conditioning", self.conditioning in CONDITIONINGS, f"one of {CONDITIONINGS}")
        self._require("first_action_weight", self.first_action_weight > 0, "a positive number")
        self._require("padding", self.padding in PADDINGS, f"one of {PADDINGS}")
        self._require(
            "clip_x0",
            not self.clip_x0 or self.normaliser == "min_max",
            "false where the normaliser is 'gaussian', whose values go beyond [-1, 1]",
        )

    def _require(self, key: str, is_good: bool, allowed: str) -> None:
        require("diffuser", key, getattr(self, key), is_good, allowed)

    @property
    def transition_dim(self) -> int:
        """A + S, the length of a vector [action, observation]."""
        return self.action_dim + self.observation_dim

    @property
    def given_steps(self) -> tuple[int, ...]:
        """Steps of a window whose observation is given."""
        return {"both_ends": (0, self.horizon - 1), "first": (0,), "none": ()}[self.conditioning]


@dataclass(frozen=True)
class DiffuserTrainingConfig:
    """Training of a diffuser; defaults are those of the paper's Maze2D (arXiv 2306.01804).

    Attributes:
        train_steps: Optimiser steps, at least 1.
        batch_windows: Windows a step.
        learning_rate: Of Adam, above 0.
        learning_rate_schedule: "constant" (the paper's), or "cosine" down to zero at the last step.
        clip_grad_norm: Largest gradient norm, or None.
        ema_decay: Of the averaged weights, which are the ones validated and kept, in [0, 1).
        ema_start_steps: Until this step the average is a copy of the weights.
        ema_every_steps: Steps between two updates of the average.
        initialise_from_base: Whether an expert starts with the base's weights (the paper trains both from scratch).
        precision: "float32" (without TF32), or "bfloat16" mixed precision (on a GPU).
        log_every_steps: Steps between two lines of metrics.
        validate_every_steps: Steps between two validations; the best averaged weights are kept.
        validation_windows: Windows of a validation, spread evenly over the held-out trajectories.
        save_every_steps: Steps between two saves of the resumable state.
        seed: Of initialisation, batches and noise.
    """

    train_steps: int = 500_000
    batch_windows: int = 128
    learning_rate: float = 2e-4
    learning_rate_schedule: str = "constant"
    clip_grad_norm: float | None = None
    ema_decay: float = 0.995
    ema_start_steps: int = 2000
    ema_every_steps: int = 10
    initialise_from_base: bool = False
    precision: str = "float32"
    log_every_steps: int = 100
    validate_every_steps: int = 5000
    validation_windows: int = 1024
    save_every_steps: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self, "diffuser training")


def check_training(config: Any, section: str) -> None:
    """Validates what the trainings of diffusers and of relative rewards have in common.

    Raises:
        ValueError: naming section, key, value and what is allowed.
    """
    for key in (
        *("train_steps", "batch_windows", "ema_every_steps", "log_every_steps", "validate_every_steps"),
        *("validation_windows", "save_every_steps"),
    ):
        require(section, key, getattr(config, key), getattr(config, key) >= 1, "a whole number of at least 1")
    for key in ("ema_start_steps", "seed"):
        require(section, key, getattr(config, key), getattr(config, key) >= 0, "a whole number of at least 0")
    require(section, "learning_rate", config.learning_rate, config.learning_rate > 0, "a positive number")
    require(section, "ema_decay", config.ema_decay, 0 <= config.ema_decay < 1, "a number in [0, 1)")
    schedules, precisions = ("constant", "cosine"), ("float32", "bfloat16")
    schedule, precision = config.learning_rate_schedule, getattr(config, "precision", "float32")
    require(section, "learning_rate_schedule", schedule, schedule in schedules, f"one of {schedules}")
    require(section, "precision", precision, precision in precisions, f"one of {precisions}")
    for key in ("clip_grad_norm", "clip_grad_value"):
        value = getattr(config, key, None)
        require(section, key, value, value is None or value > 0, "null or a positive number")
