"""Configuration of frozen rewards: what all share, and the diffusion reward's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from models.precision import PRECISIONS

MODES = ("entropy", "likelihood")
ESTIMATORS = ("chain", "one_forward")
POSTERIORS = ("official", "exact")
# Name under which `statistics_task` finds the statistics pooled over all tasks of a reward model.
DOMAIN_STATISTICS = "domain"
Config = TypeVar("Config", bound="FrameRewardConfig")


@dataclass(frozen=True)
class FrameRewardConfig:
    """What every frozen reward has: raw reward -> standardised -> clipped.

    Attributes:
        standardise: Whether (raw - mean) / std with the expert statistics of the task is the reward; else it is
            the raw one.
        clip_low: Lower bound of the reward, or None. The papers do not clip.
        clip_high: Upper bound of the reward, or None.
        statistics_task: Whose mean and standard deviation standardise the rewards: None for each episode's own
            task, the name of a task, or "domain" for all tasks of the reward model pooled.
        batch_rows: Frames scored in one network call, 1 or more, or None for what suits the device: 32 on a CPU, 2048 on a
            GPU, there 512 for a chain, which keeps all its steps in memory.
        batch_frames: Frames encoded by the codec in one call, 1 or more, or None for what suits the device: few on
            a CPU, where more no longer fit its cache, many on a GPU.
    """

    standardise: bool = True
    clip_low: float | None = None
    clip_high: float | None = None
    statistics_task: str | None = None
    batch_rows: int | None = None
    batch_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "batch_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more, or None")
        if self.clip_low is not None and self.clip_high is not None and not self.clip_low < self.clip_high:
            raise ValueError(
                f"clip_low is {self.clip_low}, expected less than clip_high, which is {self.clip_high}"
            )

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Builds a config from plain values.

        Raises:
            ValueError: naming a key that does not exist, with the nearest one that does, or a bad value.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"use one of {known}"
                raise ValueError(f"unknown key {key!r} of {cls.__name__}; {hint}")
        return cls(**values)

    def cheap_siblings(self: Config) -> tuple[Config, ...]:
        """This config and others of the same reward whose statistics cost little beside training the model."""
        return (self,)

    @property
    def reward_choice(self) -> str:
        """What `reward=` composes such a config, for commands that messages advise."""
        return "<that of the training>"

    def signature(self) -> str:
        """Key of the statistics: two configs share it only if their raw rewards mean the same."""
        raise NotImplementedError(f"{type(self).__name__} describes no frozen reward of its own")


@dataclass(frozen=True)
class DiffusionRewardConfig(FrameRewardConfig):
    """How frames are turned into rewards (Diffusion Reward, arXiv 2312.14134). Defaults are the paper's.

    Attributes:
        mode: "entropy" (negative conditional entropy of the predicted next frame) or "likelihood" (log-probability
            of the observed frame).
        estimator: "chain" (denoise from the all-mask state, one term per network step) or "one_forward" (one
            network step at the all-mask state, no sampling: the cheapest).
        posterior: Of the chain. "official": the one-step posterior q(x_{s-1} | x_s, x_0) at s = t - skip_step,
            which the published implementation uses although its chain jumps; most tokens stay masked until the last
            step. "exact": the jump posterior q(x_{t'} | x_t, x_0) to the next network step t'.
        skip_step: Of the chain: diffusion steps left out between two network steps, 0 to num_diffusion_steps - 1.
            9 with 100 diffusion steps gives 11 network steps.
        num_samples: Chains averaged per frame, 1 or more (one_forward needs none).
        noise: Of the chain: sample (True) or take the most probable token (False).
        likelihood_leak: Of mode=likelihood with the chain: also give the scored frame itself as condition, as the
            published implementation does. For parity only: a frame that is its own condition tells little.
        precision: "float32" (without TF32), or "bfloat16" for the networks' products: several times faster on processors with such
            units (GPUs, AMX). The search for the nearest code and everything after the logits stay float32.
        compile: Whether torch.compile fuses the video model: minutes at the start, faster afterwards on a GPU.
    """

    mode: str = "entropy"
    estimator: str = "chain"
    posterior: str = "official"
    skip_step: int = 9
    num_samples: int = 1
    noise: bool = True
    likelihood_leak: bool = False
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("mode", self.mode, MODES)
        _one_of("estimator", self.estimator, ESTIMATORS)
        _one_of("posterior", self.posterior, POSTERIORS)
        _one_of("precision", self.precision, PRECISIONS)
        if self.skip_step < 0:
            raise ValueError(f"skip_step is {self.skip_step}, expected 0 or more")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}, expected 1 or more")
        if self.likelihood_leak and (self.mode != "likelihood" or self.estimator != "chain"):
            raise ValueError(
                "likelihood_leak is True, which is allowed only with mode='likelihood' and estimator='chain'; got "
                f"mode={self.mode!r}, estimator={self.estimator!r}"
            )

    @property
    def reward_choice(self) -> str:
        """The name in `configs/reward/`."""
        return "diffusion" if self.mode == "entropy" else "diffusion_likelihood"

    def cheap_siblings(self) -> tuple[DiffusionRewardConfig, ...]:
        """Both modes where one forward pass is all they need; the chain costs eleven times as much."""
        if self.estimator != "one_forward":
            return (self,)
        return tuple(replace(self, mode=mode, likelihood_leak=False) for mode in MODES)

    def signature(self) -> str:
        """Key of the statistics: two configs share it only if their raw rewards mean the same."""
        if self.estimator == "one_forward":
            return f"{self.mode}/one_forward"
        parts = [self.mode, f"chain-{self.posterior}", f"skip{self.skip_step}", f"samples{self.num_samples}"]
        parts += ["noiseless"] * (not self.noise) + ["leak"] * self.likelihood_leak
        return "/".join(parts)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {allowed}")
