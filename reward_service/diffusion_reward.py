"""The reward of a frozen video diffusion model (Diffusion Reward, arXiv 2312.14134)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.video_windows import history_indices, placed, with_clock
from models.vqdiffusion.checkpoint import load_video_model
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.frozen import FrozenDenoiser
from models.vqdiffusion.posterior import StepPosterior
from models.vqgan import VQGAN
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import register
from reward_service.estimators import Chain, chain_reward, chain_steps, one_forward_reward
from reward_service.histories import leaking_history, likelihood_history
from reward_service.noise import MostProbable, Noise, SeededNoise
from reward_service.standardised import StandardisedReward

MakeNoise = Callable[[Sequence[int], Sequence[int]], Noise]  # (episode lengths, episode seeds) -> noise


@register("diffusion")
class DiffusionReward(StandardisedReward):
    """Turns frames into one reward per frame: a pure function of (weights, frames, seed), inference only.

    Row t belongs to the time step whose observation is frame t. With mode=entropy it is conditioned on the history
    up to frame t and says how predictable the next frame is; with mode=likelihood it is the log-probability of
    frame t given the frames before it. Higher means more like the expert.

    Args:
        model: Video model, in evaluation mode.
        codec: Its codec, in evaluation mode on the same device.
        meta: Content of the checkpoint's `config.json`: "tasks", "render", "action_repeat", "all_mask_fraction".
        config: How rewards are computed.
        folder: Checkpoint folder; statistics are read from and written to it.

    Raises:
        ValueError: if the config asks for what the model cannot do or was not trained for.

    Attributes:
        make_noise: Source of the chain's noise; replaceable, to compare with recorded noise.
    """

    config_class = DiffusionRewardConfig
    config: DiffusionRewardConfig

    def __init__(
        self,
        model: VQDiffusion,
        codec: VQGAN,
        meta: Mapping[str, Any],
        config: DiffusionRewardConfig,
        folder: str | Path,
    ) -> None:
        super().__init__(meta, config, folder, codec.config.resolution_px)
        self.model = model
        self.codec = codec.for_encoding(config.precision)
        self.make_noise: MakeNoise = self._noise
        self.denoiser = FrozenDenoiser(model, config.precision, config.compile)
        steps = chain_steps(model.num_steps, config.skip_step, config.posterior)
        self.chain = Chain(self.denoiser, model.schedule, steps)
        if config.estimator == "chain":
            # It keeps the probabilities of all its steps: 3 MB a row at the paper's sizes.
            self.rows_on_gpu = 512
        if config.estimator == "chain" and meta.get("all_mask_fraction", 0.0) >= 1.0:
            raise ValueError(
                f"estimator='chain' shows the model of {folder} partly masked frames, but it was trained on fully masked ones "
                "only (video_training.all_mask_fraction=1): use frame_reward.estimator=one_forward, or train it with a lower "
                "fraction"
            )
        if config.likelihood_leak and model.config.condition_position != "none":
            raise ValueError(
                "likelihood_leak=True gives one history frame more than the model was trained with, but its "
                f"condition_position is {model.config.condition_position!r}; use likelihood_leak=False"
            )
        if not model.config.sees_past and (config.mode == "entropy" or config.likelihood_leak):
            raise ValueError(
                f"the video model of {folder} does not see the frames just before (video.history={model.config.history}), so "
                "the entropy would not depend on what the policy does: use reward=diffusion_likelihood or reward=relative"
            )

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
            ValueError: if it holds another kind of model, or `config` has an unknown key or a value that is bad or unfit
                for the model.
        """
        if not isinstance(config, DiffusionRewardConfig):
            config = DiffusionRewardConfig.from_dict(config or {})
        model, codec, meta = load_video_model(folder, device)
        return cls(model, codec, meta, config, folder)

    def _raw(self, frames: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
        lengths = [len(video) for video in frames]
        noise = self.make_noise(lengths, seeds)
        rewards = self._score_rows(self.encode(self.codec, frames), self._histories(lengths), noise)
        return np.split(rewards.cpu().numpy(), np.cumsum(lengths)[:-1])

    def _histories(self, lengths: Sequence[int]) -> Tensor:
        """Rows of the token table that each row is conditioned on: (sum T_i, F) int64."""
        model = self.model.config
        history: Callable[[int, int, int], np.ndarray]
        if self.config.mode == "entropy":
            history = history_indices
        elif self.config.likelihood_leak:
            history = leaking_history
        else:
            history = partial(likelihood_history, kind=model.history, content_len=model.content_len)
        starts = np.cumsum([0, *lengths[:-1]])
        rows = [
            placed(history(length, model.num_history_frames, model.frame_skip), start)
            for start, length in zip(starts, lengths)
        ]
        return torch.from_numpy(np.concatenate(rows)).to(self.model.device)

    def _noise(self, lengths: Sequence[int], seeds: Sequence[int]) -> Noise:
        if not self.config.noise or self.config.estimator == "one_forward":
            return MostProbable()
        tokens = self.model.config.content_len
        return SeededNoise(
            lengths, seeds, self.config.num_samples, len(self.chain.steps), tokens, self.model.device
        )

    def _score_rows(self, tokens: Tensor, histories: Tensor, noise: Noise) -> Tensor:
        """Raw rewards of all rows, chunk by chunk: (rows,) float32."""
        rewards = []
        table = with_clock(tokens)
        size = self.batch_rows(tokens.device)
        for start in range(0, len(tokens), size):
            rows = slice(start, min(start + size, len(tokens)))
            history = rearrange(table[histories[rows]], "row frame token -> row (frame token)")
            observed = tokens[rows] if self.config.mode == "likelihood" else None
            rewards.append(self._score_chunk(history, observed, noise, rows))
        return torch.cat(rewards)

    def _score_chunk(self, history: Tensor, observed: Tensor | None, noise: Noise, rows: slice) -> Tensor:
        seen = self.denoiser.history(history)
        if self.config.estimator == "one_forward":
            return one_forward_reward(self.denoiser, seen, observed)
        total = torch.zeros(len(history), device=history.device)
        for sample in range(self.config.num_samples):

            def choose(posterior: StepPosterior, step: int, sample: int = sample) -> Tensor:
                return noise.choose(posterior, rows, sample, step)

            total += chain_reward(self.chain.terms(seen, choose, observed), self.config.mode)
        return total / self.config.num_samples
