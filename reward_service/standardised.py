"""What every frozen reward shares: checks, standardisation with expert statistics, clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.frames import images_to_tensor
from models.precision import forbid_tf32
from models.videos import RenderSettings
from models.vqgan import VQGAN
from reward_service.config import FrameRewardConfig
from reward_service.statistics import MeanStd, Statistics


class StandardisedReward:
    """Turns frames into one reward per frame: a pure function of (weights, frames, seed), inference only.

    A subclass names its `config_class`, reads its networks in `from_checkpoint`, and computes raw rewards in `_raw`.
    With `needs_other_behaviours` its scale comes from two kinds of held-out videos, the expert's (mean +1 afterwards)
    and others (mean -1); else from the expert's alone (mean 0, deviation 1).

    Args:
        meta: Content of the checkpoint's `config.json`: "tasks", "domain", "render", "action_repeat".
        config: How rewards are computed.
        folder: Checkpoint folder; statistics are read from and written to it.
        resolution_px: Height and width of the frames that the networks take.
    """

    config_class: ClassVar[type[FrameRewardConfig]]
    needs_other_behaviours: ClassVar[bool] = False
    rows_on_gpu = 2048

    def __init__(
        self, meta: Mapping[str, Any], config: FrameRewardConfig, folder: str | Path, resolution_px: int
    ) -> None:
        forbid_tf32()
        self.folder = Path(folder)
        self.config = config
        self.tasks = tuple(_fact(meta, "tasks", folder))
        self.domain = str(_fact(meta, "domain", folder))
        self.render = RenderSettings(**_fact(meta, "render", folder))
        self.action_repeat = int(_fact(meta, "action_repeat", folder))
        self.resolution = resolution_px
        self.statistics = Statistics.read(self.folder)

    def _raw(self, frames: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
        """Raw rewards of at least one episode whose frames were checked: one (T_i,) float32 array each."""
        raise NotImplementedError

    def raw(
        self,
        frames: Sequence[np.ndarray],
        seeds: Sequence[int],
        names: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Rewards before standardisation, in nats per frame.

        Args:
            frames: One (T_i, H, W, 3) uint8 array per episode.
            seeds: Seed of each episode's noise.
            names: Episode names for error messages.

        Returns:
            One (T_i,) float32 array per episode, the same whatever episodes it is scored with (up to the rounding
            of the matrix products).

        Raises:
            ValueError: if frames have another type or size than the codec's, or a reward is not finite; it names
                the episode and the frame.
            torch.OutOfMemoryError: naming the keys to lower.
        """
        names = [str(i) for i in range(len(frames))] if names is None else list(names)
        _require_same_lengths(frames=frames, seeds=seeds, names=names)
        if not frames:
            return []
        for name, video in zip(names, frames):
            self.check_frames(video, name)
        try:
            with torch.inference_mode():
                rows = self._raw(frames, seeds)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"the device has too little memory for frame_reward.batch_rows={self.config.batch_rows}, "
                f"frame_reward.batch_frames={self.config.batch_frames} (null: what suits the device): set both lower, "
                f"for example to 128. {error}"
            ) from error
        for name, values in zip(names, rows):
            _require_finite(values, name, "raw reward")
        return rows

    def score(
        self,
        frames: Sequence[np.ndarray],
        tasks: Sequence[str],
        seeds: Sequence[int],
        names: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Rewards standardised with the expert statistics of each episode's task, then clipped.

        Args:
            frames: One (T_i, H, W, 3) uint8 array per episode.
            tasks: Task of each episode.
            seeds: Seed of each episode's noise.
            names: Episode names for error messages.

        Returns:
            One (T_i,) float32 array per episode, all finite.

        Raises:
            ValueError: as `raw`, or if the statistics of a task are missing.
        """
        _require_same_lengths(frames=frames, tasks=tasks)
        scales = [self.scale(task) for task in tasks]
        return [
            self._standardise(values, scale) for values, scale in zip(self.raw(frames, seeds, names), scales)
        ]

    def scale(self, task: str) -> MeanStd:
        """What moves and scales the rewards of a task: the mean and the deviation of `statistics.json`.

        Raises:
            ValueError: if they were not computed.
        """
        config = self.config
        if not config.standardise:
            return MeanStd(0.0, 1.0)
        return self.statistics.lookup(config, config.statistics_task or task)

    def reload_statistics(self) -> None:
        """Reads the statistics of the folder again."""
        self.statistics = Statistics.read(self.folder)

    def check_environment(self, render: RenderSettings, action_repeat: int, task: str, domain: str) -> None:
        """Refuses an environment that this model cannot judge.

        Raises:
            ValueError: if the task is of another domain, frames are drawn or spaced differently, or the task has
                no statistics.
        """
        self.require_domain(domain, f"task {task!r}")
        self.render.require_same(render, f"the reward model {self.folder}", "the environment")
        self.require_action_repeat(action_repeat, "the environment")
        self.scale(task)

    def require_domain(self, domain: str, theirs: str) -> None:
        """Refuses another domain than that of the videos the model was trained on (ValueError)."""
        if domain != self.domain:
            raise ValueError(
                f"the reward model {self.folder} was trained on {self.domain!r} videos ({', '.join(self.tasks)}), but "
                f"{theirs} belongs to domain {domain!r}: it has never seen such pictures. Give the reward model of "
                "that domain, or train one"
            )

    def require_action_repeat(self, action_repeat: int, theirs: str) -> None:
        """Refuses frames that are spaced differently than those the model was trained on (ValueError)."""
        if action_repeat != self.action_repeat:
            raise ValueError(
                f"the reward model {self.folder} was trained on videos with action_repeat {self.action_repeat}, but "
                f"{theirs} has {action_repeat}: motion would look faster or slower than the expert's. Use the same value"
            )

    def check_frames(self, frames: np.ndarray, name: str) -> None:
        """Refuses frames that the codec cannot read (ValueError naming the episode)."""
        expected = (self.resolution, self.resolution, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected or not len(frames):
            raise ValueError(
                f"episode {name}: the reward model {self.folder} needs frames of shape (T, {self.resolution}, "
                f"{self.resolution}, 3) uint8 with T > 0, got {frames.shape} {frames.dtype}; render at this size"
            )

    def encode(self, codec: VQGAN, frames: Sequence[np.ndarray]) -> Tensor:
        """Tokens of all frames of all episodes, each frame encoded once: (sum T_i, L) int64."""
        flat = np.concatenate(frames)
        device = next(codec.parameters()).device
        few = 4 if codec.config.architecture == "official" else 32  # what fits the caches
        size = self.config.batch_frames or (few if device.type == "cpu" else 512)
        chunks = (images_to_tensor(flat[i : i + size]) for i in range(0, len(flat), size))
        return torch.cat(
            [
                codec.encode_tokens(chunk.to(device).contiguous(memory_format=torch.channels_last))
                for chunk in chunks
            ]
        )

    def batch_rows(self, device: torch.device) -> int:
        """Rows of one network call on a device: what the config says, or what suits it."""
        return self.config.batch_rows or (32 if device.type == "cpu" else self.rows_on_gpu)

    def _standardise(self, raw: np.ndarray, scale: MeanStd) -> np.ndarray:
        standard = (raw.astype(np.float64) - scale.mean) / scale.std
        if self.config.clip_low is not None or self.config.clip_high is not None:
            standard = np.clip(standard, self.config.clip_low, self.config.clip_high)
        return standard.astype(np.float32)


def _fact(meta: Mapping[str, Any], key: str, folder: str | Path) -> Any:
    if key not in meta:
        raise ValueError(
            f"{folder}/config.json has no {key!r}, so its rewards cannot be matched with an environment; it was "
            "not written by `python launch/pretrain.py stage=video`, train the video model with that"
        )
    return meta[key]


def _require_same_lengths(**lists: Sequence[Any]) -> None:
    if len({len(values) for values in lists.values()}) > 1:
        counts = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise ValueError(f"expected one of each per episode, got {counts}")


def _require_finite(values: np.ndarray, name: str, what: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"episode {name}, frame {bad}: the {what} is {values[bad]}; rewards must be finite. The weights of the "
            "video model or its codec are damaged: train again, or use an earlier checkpoint"
        )
