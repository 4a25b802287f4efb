"""The reward of a frozen VideoGPT (VIPER, arXiv 2305.14343), as in the baselines of Diffusion Reward (arXiv 2312.14134)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.video_windows import history_indices
from models.videogpt.checkpoint import load_videogpt
from models.videogpt.gpt import VideoGPT
from models.vqgan import VQGAN
from reward_service.config import MODES, FrameRewardConfig
from reward_service.contract import register
from reward_service.histories import leaking_history
from reward_service.standardised import StandardisedReward


@dataclass(frozen=True)
class ViperRewardConfig(FrameRewardConfig):
    """How VideoGPT's predictions are turned into rewards. Defaults are those of the baseline `viper`.

    Attributes:
        mode: "likelihood": row t is log p(frame t | frames before it), over a whole window of the model. "entropy":
            row t is -H(frame t | frames before it), over a window that is one frame shorter, so that with two
            history frames it sees frame t-1 only, as the published implementation does.
        joint: Whether all frames of the window count, the history included (`compute_joint` of the published
            implementation), or its last one only.
    """

    mode: str = "likelihood"
    joint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, expected one of {MODES}")

    @property
    def reward_choice(self) -> str:
        """The name in `configs/reward/`."""
        return "viper" if self.mode == "likelihood" else "viper_std"

    def cheap_siblings(self) -> tuple[ViperRewardConfig, ...]:
        """Both modes: one forward pass each."""
        return tuple(replace(self, mode=mode) for mode in MODES)

    def signature(self) -> str:
        """Key of the statistics: two configs share it only if their raw rewards mean the same."""
        return f"{self.mode}/{'joint' if self.joint else 'last_frame'}"


@register("viper")
class ViperReward(StandardisedReward):
    """Turns frames into one reward per frame: a pure function of (weights, frames), inference only, without noise.

    Row t belongs to the time step whose observation is frame t, and says how probable (or, with mode=entropy, how
    predictable) the tokens of this very frame are. Diffusion Reward's entropy is about the next frame instead.

    Args:
        model: VideoGPT, in evaluation mode.
        codec: Its codec, in evaluation mode on the same device.
        meta: Content of the checkpoint's `config.json`: "tasks", "domain", "render", "action_repeat".
        config: How rewards are computed.
        folder: Checkpoint folder; statistics are read from and written to it.
    """

    config_class = ViperRewardConfig
    config: ViperRewardConfig

    def __init__(
        self,
        model: VideoGPT,
        codec: VQGAN,
        meta: Mapping[str, Any],
        config: ViperRewardConfig,
        folder: str | Path,
    ) -> None:
        super().__init__(meta, config, folder, codec.config.resolution_px)
        self.model, self.codec = model, codec.for_encoding()

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        config: ViperRewardConfig | Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> ViperReward:
        """Reads a reward-model folder.

        Args:
            folder: Written by `python launch/pretrain.py stage=videogpt`.
            config: How rewards are computed, as a config or as plain values; None is the published one.
            device: Where the networks run.

        Raises:
            FileNotFoundError: if the folder or a part of it is missing.
            ValueError: if it holds another kind of model, or `config` has an unknown key or a bad value.
        """
        if not isinstance(config, ViperRewardConfig):
            config = ViperRewardConfig.from_dict(config or {})
        model, codec, meta = load_videogpt(folder, device)
        return cls(model, codec, meta, config, folder)

    def _raw(self, frames: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
        lengths = [len(video) for video in frames]
        tokens = self.encode(self.codec, frames)
        rewards = [
            self._score_rows(rearrange(tokens[window], "row frame token -> row (frame token)"))
            for window in self._windows(lengths).split(self.batch_rows(self.model.device))
        ]
        return np.split(torch.cat(rewards).cpu().numpy(), np.cumsum(lengths)[:-1])

    def _windows(self, lengths: Sequence[int]) -> Tensor:
        """Frames that each row sees, the scored one last, as rows of the token table: (sum T_i, F) int64."""
        model = self.model.config
        frames = model.num_history_frames + (self.config.mode == "likelihood")
        rows = []
        for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths):
            if model.history_padding == "current":
                rows.append(start + leaking_history(length, frames - 1, model.frame_skip))
            else:
                rows.append(start + history_indices(length, frames, model.frame_skip))
        return torch.from_numpy(np.concatenate(rows)).to(self.model.device)

    def _score_rows(self, tokens: Tensor) -> Tensor:
        """Raw rewards of windows (rows, S) int64: (rows,) float32, in nats."""
        last = None if self.config.joint else self.model.config.content_len
        if self.config.mode == "likelihood":
            return self.model.log_probs(tokens, last).sum(1)
        return -self.model.token_entropy(tokens, last).sum(1)
