"""Adversarial motion priors as a bonus (AMP, arXiv 2104.02180): a reward for looking like the expert videos."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from learner.batch import TensorBatch
from learner.bonus import BonusConfig, RunningStd, register_bonus
from models.amp import AMP, AMPConfig
from models.videos import RenderSettings, VideoSet, read_videos

REWARD_ON = ("obs", "next_obs")


@dataclass(frozen=True)
class AMPBonusConfig(BonusConfig):
    """A bonus that is high where a discriminator takes a frame for one of the expert's.

    Attributes:
        train_every_updates: As in `BonusConfig`; officially every 10 agent steps, that is 5 updates.
        videos: Folder of expert videos of the task, or several of them; the frames of
            their training split are used.
        reward_on: Frame that is rewarded: "obs" (official, s_t) or "next_obs" (s_{t+n}, as RND).
        amp: Sizes and training of the discriminator.
    """

    name: str = "amp"
    train_every_updates: int = 5
    videos: str | tuple[str, ...] | None = None
    reward_on: str = "obs"
    amp: AMPConfig = field(default_factory=AMPConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.amp, dict):
            object.__setattr__(self, "amp", AMPConfig(**self.amp))
        if isinstance(self.videos, list):
            object.__setattr__(self, "videos", tuple(self.videos))
        if not self.videos:
            raise ValueError(
                f"bonus.videos={self.videos!r} is not allowed: AMP compares with expert videos; give the folder "
                "of some, made by `python launch/collect.py`"
            )
        if self.reward_on not in REWARD_ON:
            raise ValueError(
                f"bonus.reward_on={self.reward_on!r} is not allowed: expected one of {REWARD_ON}"
            )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of `videos`."""
        return (self.videos,) if isinstance(self.videos, str) else tuple(self.videos or ())

    def read_videos(self) -> list[VideoSet]:
        """Reads all folders.

        Raises:
            FileNotFoundError: naming the folder that holds no videos.
        """
        return [read_videos(folder) for folder in self.folders]

    def check_environment(self, render: RenderSettings, action_repeat: int, task: str, domain: str) -> None:
        """Refuses expert videos that a discriminator could tell from the policy's by more than behaviour.

        Raises:
            FileNotFoundError: if a folder holds no videos.
            ValueError: if they show another task, or were drawn or stepped differently.
        """
        for videos in self.read_videos():
            where = f"the expert videos of bonus.videos, {videos.folder},"
            videos.render.require_same(render, where, "this run's environment")
            for key, mine, theirs in (
                ("task", task, videos.task),
                ("domain", domain, videos.domain),
                ("action_repeat", action_repeat, videos.action_repeat),
            ):
                if mine != theirs:
                    raise ValueError(
                        f"{where} have {key}={theirs!r}, this run has {key}={mine!r}: collect videos of this task "
                        "with its settings by `python launch/collect.py`, or correct bonus.videos"
                    )


@register_bonus("amp")
class AMPBonus:
    """Reward of a discriminator (arXiv 2104.02180) trained on replay batches against expert frames.

    Args:
        config: Where the videos are, sizes, training.
        resolution_px: Height and width of the frames.
        device: Where networks and expert frames go (a 64 px frame takes 12 kB).

    Raises:
        FileNotFoundError: if there are no expert videos.
        ValueError: if their frames have another size.
    """

    config_class = AMPBonusConfig

    def __init__(self, config: AMPBonusConfig, resolution_px: int, device: torch.device) -> None:
        self.config, self.weight = config, config.weight
        frames = _training_frames(config, resolution_px)
        self._digest = zlib.crc32(frames.data)
        self.expert_frames = torch.from_numpy(frames).to(device)
        self.amp = AMP(config.amp, resolution_px).to(device)
        self.running = RunningStd(device)
        # On the CPU, so that the frames drawn do not depend on the device; seeded by the learner's seed.
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._updates = 0
        self._metrics: dict[str, torch.Tensor] = {}

    def bonus(self, batch: TensorBatch) -> torch.Tensor | None:
        """(B, 1) float32: the reward of s_t (or s_{t+n}), in [0, 1] unless it is normalised."""
        value = self.amp.reward(batch.obs if self.config.reward_on == "obs" else batch.next_obs)
        if self.config.norm == "running_std":
            self.running.add(value)
            value = value / self.running.std()
        return value

    def update(self, batch: TensorBatch) -> dict[str, torch.Tensor]:
        """Trains the discriminator every `train_every_updates` calls, the first one included.

        Returns:
            Metrics of the discriminator's last update, for the learner looks at those of some calls only.
        """
        due = self._updates % self.config.train_every_updates == 0
        self._updates += 1
        if due:
            self._metrics = self._train(batch)
        return self._metrics

    def _train(self, batch: TensorBatch) -> dict[str, torch.Tensor]:
        policy_frames = batch.obs[: self.config.amp.batch_size]
        count, device = len(policy_frames), self.expert_frames.device
        rows = torch.randint(len(self.expert_frames), (count,), generator=self._generator)
        mixup = torch.rand(count, generator=self._generator)
        return self.amp.update(policy_frames, self.expert_frames[rows.to(device)], mixup.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, running statistics, number of calls, and the state of the drawing of frames."""
        return {
            "amp": self.amp.training_state(),
            "running": self.running.moments,
            "updates": self._updates,
            "generator": self._generator.get_state(),
            "expert": {"frames": len(self.expert_frames), "crc32": self._digest},
            "metrics": self._metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`.

        Raises:
            ValueError: if the expert videos are not those that the state was trained with.
        """
        mine = {"frames": len(self.expert_frames), "crc32": self._digest}
        if state["expert"] != mine:
            raise ValueError(
                f"the expert videos in {', '.join(self.config.folders)} changed since the checkpoint: it was trained "
                f"with {state['expert']}, there is {mine} now; put the old videos back, or start a new run"
            )
        self.amp.load_training_state(state["amp"])
        self.running.moments.copy_(state["running"])
        self._updates = state["updates"]
        self._generator.set_state(state["generator"].cpu())
        self._metrics = dict(state["metrics"])


def _training_frames(config: AMPBonusConfig, resolution_px: int) -> np.ndarray:
    frames = [episode.frames for videos in config.read_videos() for episode in videos.split("train")]
    if not frames:
        raise ValueError(f"{', '.join(config.folders)} have no training videos; collect more of them")
    for array in frames:
        if array.shape[1:] != (resolution_px, resolution_px, 3):
            raise ValueError(
                f"expert frames in {', '.join(config.folders)} are {array.shape[1]}x{array.shape[2]} pixels, the "
                f"policy's are {resolution_px}x{resolution_px}; collect videos at the policy's resolution"
            )
    return np.concatenate(frames)
