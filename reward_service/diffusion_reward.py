"""The reward of a frozen video diffusion model (Diffusion Reward, arXiv 2312.14134)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.frames import images_to_tensor
from models.videos import RenderSettings
from models.vqdiffusion.checkpoint import load_video_model
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqgan import VQGAN
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import register
from reward_service.estimators import chain_reward, chain_steps, chain_terms, one_forward_reward
from reward_service.histories import entropy_history, leaking_history, likelihood_history
from reward_service.noise import MostProbable, Noise, SeededNoise
from reward_service.statistics import MeanStd, Statistics

MakeNoise = Callable[[Sequence[int], Sequence[int]], Noise]  # (episode lengths, episode seeds) -> noise


@register("diffusion")
class DiffusionReward:
    """Turns frames into one reward per frame: a pure function of (weights, frames, seed), inference only.

    Row t belongs to the time step whose observation is frame t. With mode=entropy it is conditioned on the history
    up to frame t and says how predictable the next frame is; with mode=likelihood it is the log-probability of
    frame t given the frames before it. Higher means more like the expert.

    Args:
        model: Video model, in evaluation mode.
        codec: Its codec, in evaluation mode on the same device.
        meta: Content of the checkpoint's `config.json`: "tasks", "render", "action_repeat".
        config: How rewards are computed.
        folder: Checkpoint folder; statistics are read from and written to it.
    """

    def __init__(
        self,
        model: VQDiffusion,
        codec: VQGAN,
        meta: Mapping[str, Any],
        config: DiffusionRewardConfig,
        folder: str | Path,
    ) -> None:
        self.model, self.codec, self.config, self.folder = model, codec, config, Path(folder)
        _use_channels_last(codec)
        self.tasks = tuple(_fact(meta, "tasks", folder))
        self.render = RenderSettings(**_fact(meta, "render", folder))
        self.action_repeat = int(_fact(meta, "action_repeat", folder))
        self.resolution = codec.config.resolution_px
        self._steps = chain_steps(model.num_steps, config.skip_step, config.posterior)
        if config.likelihood_leak and model.config.condition_position != "none":
            raise ValueError(
                "likelihood_leak=True gives one history frame more than the model was trained with, but its "
                f"condition_position is {model.config.condition_position!r}; use likelihood_leak=False"
            )
        self.statistics = Statistics.read(self.folder)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        config: DiffusionRewardConfig | Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> DiffusionReward:
        """Reads a reward-model folder.

        Args:
            folder: Written by training the video model.
            config: How rewards are computed, as a config or as plain values; None is the paper's.
            device: Where the networks run.

        Raises:
            FileNotFoundError: if the folder or a part of it is missing.
            ValueError: if it holds another kind of model, or `config` has an unknown key or a bad value.
        """
        if not isinstance(config, DiffusionRewardConfig):
            config = DiffusionRewardConfig.from_dict(config or {})
        model, codec, meta = load_video_model(folder, device)
        return cls(model, codec, meta, config, folder)

    def raw(
        self,
        frames: Sequence[np.ndarray],
        seeds: Sequence[int],
        names: Sequence[str] | None = None,
        make_noise: MakeNoise | None = None,
    ) -> list[np.ndarray]:
        """Rewards before standardisation, in nats per frame.

        Args:
            frames: One (T_i, H, W, 3) uint8 array per episode.
            seeds: Seed of each episode's noise.
            names: Episode names for error messages.
            make_noise: Another source of noise for the chain than the config's.

        Returns:
            One (T_i,) float32 array per episode, the same whatever episodes it is scored with (up to the rounding
            of the matrix products).

        Raises:
            ValueError: if frames have another type or size than the codec's, or a reward is not finite; it names
                the episode and the frame.
        """
        names = [str(i) for i in range(len(frames))] if names is None else list(names)
        _require_same_lengths(frames=frames, seeds=seeds, names=names)
        if not frames:
            return []
        for name, video in zip(names, frames):
            self.check_frames(video, name)
        lengths = [len(video) for video in frames]
        with torch.inference_mode():
            noise = (make_noise or self._noise)(lengths, seeds)
            rewards = self._score_rows(self._encode(frames), self._histories(lengths), noise)
        rows = np.split(rewards.cpu().numpy(), np.cumsum(lengths)[:-1])
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
        """Mean and standard deviation that standardise the rewards of a task.

        Raises:
            ValueError: if they were not computed.
        """
        return self.statistics.lookup(self.config.signature(), self.config.statistics_task or task)

    def reload_statistics(self) -> None:
        """Reads the statistics of the folder again."""
        self.statistics = Statistics.read(self.folder)

    def check_environment(self, render: RenderSettings, action_repeat: int, task: str) -> None:
        """Refuses an environment that this model cannot judge.

        Raises:
            ValueError: if frames are drawn or spaced differently, or the task has no statistics.
        """
        self.render.require_same(render, f"the reward model {self.folder}", "the environment")
        self.require_action_repeat(action_repeat, "the environment")
        self.scale(task)

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

    def _encode(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Tokens of all frames of all episodes, each frame encoded once: (sum T_i, L) int64."""
        flat = np.concatenate(frames)
        size = self.config.batch_frames
        chunks = (images_to_tensor(flat[i : i + size]) for i in range(0, len(flat), size))
        return torch.cat(
            [
                self.codec.encode_tokens(
                    chunk.to(self.model.device).contiguous(memory_format=torch.channels_last)
                )
                for chunk in chunks
            ]
        )

    def _histories(self, lengths: Sequence[int]) -> Tensor:
        """Rows of the token table that each row is conditioned on: (sum T_i, F) int64."""
        if self.config.mode == "entropy":
            history = entropy_history
        else:
            history = leaking_history if self.config.likelihood_leak else likelihood_history
        starts = np.cumsum([0, *lengths[:-1]])
        model = self.model.config
        rows = [
            start + history(length, model.num_history_frames, model.frame_skip)
            for start, length in zip(starts, lengths)
        ]
        return torch.from_numpy(np.concatenate(rows)).to(self.model.device)

    def _noise(self, lengths: Sequence[int], seeds: Sequence[int]) -> Noise:
        if not self.config.noise or self.config.estimator == "one_forward":
            return MostProbable()
        tokens = self.model.config.content_len
        return SeededNoise(
            lengths, seeds, self.config.num_samples, len(self._steps), tokens, self.model.device
        )

    def _score_rows(self, tokens: Tensor, histories: Tensor, noise: Noise) -> Tensor:
        """Raw rewards of all rows, chunk by chunk: (rows,) float32."""
        rewards = []
        for start in range(0, len(tokens), self.config.batch_rows):
            rows = slice(start, min(start + self.config.batch_rows, len(tokens)))
            history = rearrange(tokens[histories[rows]], "row frame token -> row (frame token)")
            observed = tokens[rows] if self.config.mode == "likelihood" else None
            rewards.append(self._score_chunk(history, observed, noise, rows))
        return torch.cat(rewards)

    def _score_chunk(self, history: Tensor, observed: Tensor | None, noise: Noise, rows: slice) -> Tensor:
        condition = self.model.condition(history)
        if self.config.estimator == "one_forward":
            return one_forward_reward(self.model, condition, observed)
        total = torch.zeros(len(history), device=history.device)
        for sample in range(self.config.num_samples):

            def choose(log_probs: Tensor, step: int, sample: int = sample) -> Tensor:
                return noise.choose(log_probs, rows, sample, step)

            terms = chain_terms(self.model, condition, self._steps, choose, observed)
            total += chain_reward(terms, self.config.mode)
        return total / self.config.num_samples

    def _standardise(self, raw: np.ndarray, scale: MeanStd) -> np.ndarray:
        standard = (raw.astype(np.float64) - scale.mean) / scale.std
        if self.config.clip_low is not None or self.config.clip_high is not None:
            standard = np.clip(standard, self.config.clip_low, self.config.clip_high)
        return standard.astype(np.float32)


def _use_channels_last(codec: VQGAN) -> None:
    """Convolutions of few channels run up to twice as fast in this layout on a CPU."""
    for parameter in codec.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


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
