"""The relative reward of two video models: how much better the expert one expects a frame than the base one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.precision import PRECISIONS
from models.relative_video.checkpoint import VideoPair, load_pair
from models.relative_video.masks import spread_steps
from models.relative_video.network import NETWORK_FOLDER, CodeReward, load_reward_network
from models.relative_video.predictions import Look, PairPredictions
from models.relative_video.ratios import embedding_contrast, masked_log_ratio
from models.video_windows import placed, with_clock
from reward_service.config import FrameRewardConfig
from reward_service.contract import register
from reward_service.histories import likelihood_history
from reward_service.standardised import StandardisedReward

FORMS = ("r1", "r2", "r3")
MASKS = ("stratified", "all")


@dataclass(frozen=True)
class RelativeRewardConfig(FrameRewardConfig):
    """How two models' predictions of a frame are turned into rewards.

    The raw reward is moved and scaled so that held-out expert videos have mean +1 and held-out videos of other
    behaviours mean -1 (`standardise`), then clipped to [-2, 2].

    Attributes:
        form: "r1": mean of the clipped log-ratio of the observed masked tokens (the default). "r2": contrast of the
            two expected code vectors, seen from the observed ones. "r3": a learned network whose gradient is the
            difference of those vectors; `stage=relative frame_reward.form=r3` trains it.
        masks: "stratified": at `num_steps` diffusion steps spread from `first_step` to `last_step` one random mask each,
            shared by both models. "all": every token masked, at the last diffusion step: one forward pass per model and no
            randomness; all that models trained with all_mask_fraction=1 know.
        num_steps: Diffusion steps of "stratified", 1 or more.
        first_step: Lowest of them, 0 or more.
        last_step: Highest of them, below the models' number of diffusion steps.
        smoothing: Of r1: e in p~ = (1 - e) p + e / K, in [0, 1).
        ratio_clip: Of r1: largest size of one token's log-ratio in nats, above 0.
        lowest_tokens: Of r1: the mean is taken over this many of the masked tokens, those with the lowest log-ratios, at
            least 1; None for all. What is handled has few tokens and the arm many: with all of them an arm at its goal
            makes up for a lever that hangs (docs/results.md).
        precision: "float32" (without TF32), or "bfloat16" for the networks' products.
        compile: Whether torch.compile fuses the video models: minutes at the start, faster afterwards on a GPU.
    """

    clip_low: float | None = -2.0
    clip_high: float | None = 2.0
    form: str = "r1"
    masks: str = "stratified"
    num_steps: int = 8
    first_step: int = 6
    last_step: int = 90
    smoothing: float = 0.01
    ratio_clip: float = 5.0
    lowest_tokens: int | None = None
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("form", FORMS), ("masks", MASKS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")
        spread_steps(self.num_steps, self.first_step, self.last_step)
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing is {self.smoothing}, expected a number in [0, 1)")
        if not self.ratio_clip > 0.0:
            raise ValueError(f"ratio_clip is {self.ratio_clip}, expected a positive number")
        if self.lowest_tokens is not None and self.lowest_tokens < 1:
            raise ValueError(
                f"lowest_tokens is {self.lowest_tokens}, expected a whole number of at least 1, or null"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """The diffusion steps of "stratified"."""
        return spread_steps(self.num_steps, self.first_step, self.last_step)

    @property
    def reward_choice(self) -> str:
        """The name in `configs/reward/`."""
        return "relative"

    def cheap_siblings(self) -> tuple[RelativeRewardConfig, ...]:
        """Other forms too where one forward pass per model is all they need; r1 also where a network was just trained."""
        forms = ["r1"] * (self.form == "r3")
        if self.masks == "all":
            forms = [form for form in ("r1", "r2") if form != self.form]
        return (self, *(replace(self, form=form) for form in forms))

    def signature(self) -> str:
        """Key of the statistics: two configs share it only if their raw rewards mean the same."""
        parts = [self.form, "all_masked"]
        if self.masks == "stratified":
            parts[1] = f"steps{self.num_steps}-{self.first_step}-{self.last_step}"
        if self.form == "r1":
            parts += [f"smoothing{self.smoothing:g}", f"clip{self.ratio_clip:g}"]
            if self.lowest_tokens is not None:
                parts.append(f"lowest{self.lowest_tokens}")
        return "/".join(parts)


@register("relative")
class RelativeReward(StandardisedReward):
    """Turns frames into one reward per frame: a pure function of (weights, frames, seed), inference only.

    Row t belongs to the time step whose observation is frame t: it compares how probable the two models find the
    tokens of this very frame, given the frames before it (relative reward functions, Nuti, Franzmeyer, Henriques,
    NeurIPS 2023, for discrete tokens). What both models find strange, or both find easy such as a still picture, cancels.

    Args:
        pair: Expert and base model and their codec.
        config: How rewards are computed.
        folder: Checkpoint folder; statistics are read from and written to it.
        network: The learned reward, for form r3.

    Raises:
        ValueError: if the config asks for diffusion steps that the models do not have or were not trained at.
    """

    config_class = RelativeRewardConfig
    needs_other_behaviours = True
    config: RelativeRewardConfig

    def __init__(
        self,
        pair: VideoPair,
        config: RelativeRewardConfig,
        folder: str | Path,
        network: CodeReward | None = None,
    ) -> None:
        super().__init__(pair.meta, config, folder, pair.codec.config.resolution_px)
        self._require_known_steps(pair, config)
        self.codec = pair.codec.for_encoding(config.precision)
        self.predictions = PairPredictions(pair, config.precision, config.compile)
        self.model_config, self.device = self.predictions.config, self.predictions.device
        self.network = network

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        config: RelativeRewardConfig | Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> RelativeReward:
        """Reads a reward-model folder.

        Args:
            folder: Written by `python launch/pretrain.py stage=relative`.
            config: How rewards are computed, as a config or as plain values; None is the default one.
            device: Where the networks run.

        Raises:
            FileNotFoundError: if the folder or a part of it is missing.
            ValueError: if it holds another kind of model, or `config` has an unknown key or a bad value.
        """
        if not isinstance(config, RelativeRewardConfig):
            config = RelativeRewardConfig.from_dict(config or {})
        pair = load_pair(folder, device)
        return cls(
            pair, config, folder, _network(folder, config, pair, device) if config.form == "r3" else None
        )

    def _require_known_steps(self, pair: VideoPair, config: RelativeRewardConfig) -> None:
        if config.masks != "stratified":
            return
        if config.last_step >= pair.expert.num_steps:
            raise ValueError(
                f"last_step is {config.last_step}, but the models of {self.folder} have {pair.expert.num_steps} "
                "diffusion steps; give a lower one"
            )
        if not pair.knows_partial_masks:
            raise ValueError(
                f"masks='stratified' shows the models of {self.folder} partly masked frames, but they were trained on fully "
                "masked ones only (video_training.all_mask_fraction=1): use frame_reward.masks=all, or train both with a "
                "lower fraction"
            )

    def _raw(self, frames: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
        lengths = [len(video) for video in frames]
        tokens = self.encode(self.codec, frames)
        table = with_clock(tokens)
        histories = self._histories(lengths)
        uniform = self._uniform(lengths, seeds)
        size = self.batch_rows(self.device)
        rewards = []
        for start in range(0, len(tokens), size):
            rows = slice(start, min(start + size, len(tokens)))
            history = rearrange(table[histories[rows]], "row frame token -> row (frame token)")
            looks = self._looks(tokens[rows], None if uniform is None else uniform[rows])
            rewards.append(self._score_chunk(history, tokens[rows], looks))
        return np.split(torch.cat(rewards).cpu().numpy(), np.cumsum(lengths)[:-1])

    def _histories(self, lengths: Sequence[int]) -> Tensor:
        """Rows of the token table that each row is conditioned on: (sum T_i, F) int64."""
        model = self.model_config
        settings = (model.num_history_frames, model.frame_skip, model.history, model.content_len)
        rows = [
            placed(likelihood_history(length, *settings), start)
            for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths)
        ]
        return torch.from_numpy(np.concatenate(rows)).to(self.device)

    def _uniform(self, lengths: Sequence[int], seeds: Sequence[int]) -> Tensor | None:
        """(sum T_i, steps, L) uniform numbers behind the masks: each episode's own, row by row, whatever the batch."""
        if self.config.masks == "all":
            return None
        shape = (self.config.num_steps, self.model_config.content_len)
        numbers = [
            torch.rand((length, *shape), generator=torch.Generator().manual_seed(seed))
            for length, seed in zip(lengths, seeds)
        ]
        return torch.cat(numbers).to(self.device)

    def _looks(self, tokens: Tensor, uniform: Tensor | None) -> list[Look]:
        if uniform is None:
            return [self.predictions.full_look()]
        return [
            self.predictions.look(tokens, step, uniform[:, number])
            for number, step in enumerate(self.config.steps)
        ]

    def _score_chunk(self, history: Tensor, tokens: Tensor, looks: Sequence[Look]) -> Tensor:
        """Raw rewards of some rows, (B,) float32: the mean over the looks."""
        config = self.config
        histories = self.predictions.histories(history, shared=config.masks == "all")
        rewards = []
        for look in looks:
            if config.form == "r1":
                logs = self.predictions.log_probabilities(look, histories)
                masked = (tokens, look.masked)
                ratio = masked_log_ratio(
                    *logs, *masked, config.smoothing, config.ratio_clip, config.lowest_tokens
                )
                rewards.append(ratio)
                continue
            expert, base = self.predictions.expected(look, histories)
            if config.form == "r2":
                rewards.append(embedding_contrast(expert, base, self.predictions.codes[tokens], look.masked))
            else:
                rewards.append(self._learned(look, history, tokens, base))
        return torch.stack(rewards).mean(0)

    def _learned(self, look: Look, history: Tensor, tokens: Tensor, base: Tensor) -> Tensor:
        """R3: rho at the observed frame less rho at what the base expects, which takes out what is free in (c, t)."""
        assert self.network is not None
        codes = self.predictions.codes
        observed, masked = codes[tokens], look.masked.expand_as(tokens)
        expected = torch.where(masked[..., None], base, observed)
        both = [self.network(frame, codes[history], masked, look.step) for frame in (observed, expected)]
        return both[0] - both[1]


def _network(
    folder: str | Path, config: RelativeRewardConfig, pair: VideoPair, device: str | torch.device
) -> CodeReward:
    network, meta = load_reward_network(Path(folder) / NETWORK_FOLDER, device)
    wanted = list(diffusion_steps(config, pair.expert.num_steps))
    if meta["steps"] != wanted:
        raise ValueError(
            f"the reward network of {folder} was trained for the diffusion steps {meta['steps']}, but the configuration asks "
            f"for {wanted}: use the same frame_reward.masks, num_steps, first_step and last_step"
        )
    return network


def diffusion_steps(config: RelativeRewardConfig, num_diffusion_steps: int) -> tuple[int, ...]:
    """The diffusion steps that a reward looks at: the spread ones, or the last one, where every token is masked."""
    return config.steps if config.masks == "stratified" else (num_diffusion_steps - 1,)
