"""Training of the learned reward of two video models by gradient matching (arXiv 2306.01804), resumable at any moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import WEIGHTS_FILE
from models.diffuser.averaged_run import AveragedRun
from models.files import checksum
from models.frames import tensor_to_images
from models.model_folder import CODEC_FOLDER
from models.relative.matching import gradient_matching_loss
from models.relative_video.checkpoint import BASE_FOLDER, VideoPair, load_pair
from models.relative_video.config import RewardNetworkConfig
from models.relative_video.network import NETWORK_FOLDER, SIZES, CodeReward, save_reward_network
from models.relative_video.predictions import Look, PairPredictions
from models.training_folder import claim_folder, run_training, seeded, video_settings
from models.training_log import Progress
from models.video_windows import TokenWindows
from models.videos import VideoSet

PICTURES = 8


def train_reward_network(
    config: RewardNetworkConfig,
    folder: str | Path,
    videos: Sequence[VideoSet],
    steps: Sequence[int],
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains rho(u, c, t) for the pair of models in a folder, into its `network/`, or goes on where it was cut off.

    Its gradient with respect to each masked code vector is matched to (expected code of the expert) - (of the base), at a
    random point between what the base expects and what was observed.

    Args:
        config: Network and training.
        folder: Of a relative video reward (`load_pair`).
        videos: The expert's and others'; batches mix both.
        steps: Diffusion steps to train for; the models' last one means that every token is masked.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.

    Returns:
        The summary, as in `network/summary.json`; `explained` is the share of the target's square that the gradient
        explains on held-out windows.

    Raises:
        FileExistsError: if the network is trained already.
        ValueError: if one kind of videos or one of its splits is missing, or the folder was started with other settings.
        FloatingPointError: if the loss is no longer finite.
    """
    folder = Path(folder)
    pair = load_pair(folder, device)
    sets = videos_by_kind(videos)
    settings = {
        **video_settings(config, pair.expert.config, videos, folder / CODEC_FOLDER),
        "steps": list(steps),
        "weights": {
            name: checksum(folder / sub / WEIGHTS_FILE)
            for name, sub in (("expert", ""), ("base", BASE_FOLDER))
        },
    }
    own = folder / NETWORK_FOLDER
    claim_folder(own, settings, True, "reward network", "reward network")
    return run_training(
        _NetworkRun(config, pair, sets, steps, own, torch.device(device)), config, own, progress
    )


def videos_by_kind(videos: Sequence[VideoSet]) -> dict[str, list[VideoSet]]:
    """What a reward network learns from: "expert" and "others" -> videos.

    Raises:
        ValueError: if one kind is missing, or has no training or no validation videos.
    """
    sets = {
        kind: [v for v in videos if (v.mode == "expert") == (kind == "expert")]
        for kind in ("expert", "others")
    }
    for kind, found in sets.items():
        if not found:
            raise ValueError(
                f"there are no videos of {kind}: the reward network learns from expert videos and from others"
            )
        for split in ("train", "validation"):
            if not any(v.split(split) for v in found):
                raise ValueError(
                    f"there are no {split} videos of {kind}, the reward network needs both splits of both kinds: collect "
                    "more videos, every fifth goes to the validation split by default"
                )
    return sets


class _NetworkRun(AveragedRun):
    """State of one training.

    Args:
        config: Network and training.
        pair: The two models.
        sets: "expert" and "others" -> videos.
        steps: Diffusion steps to train for.
        folder: Training folder.
        device: Where to train.
    """

    picture_name = "truth_expert_base"

    def __init__(
        self,
        config: RewardNetworkConfig,
        pair: VideoPair,
        sets: Mapping[str, Sequence[VideoSet]],
        steps: Sequence[int],
        folder: Path,
        device: torch.device,
    ) -> None:
        model = pair.expert.config
        self.steps, self.codec = tuple(steps), pair.codec
        self.predictions = PairPredictions(pair)
        self.sizes: dict[str, Any] = {
            "latent_size": model.latent_size,
            "latent_dim": pair.codec.config.latent_dim,
            "num_history_frames": model.num_history_frames,
            **{key: getattr(config, key) for key in SIZES},
        }
        self.windows = {
            split: {kind: _windows(pair, found, split, kind) for kind, found in sets.items()}
            for split in ("train", "validation")
        }
        with seeded(device, config.seed):
            network = CodeReward(**self.sizes).to(device)
        super().__init__(config, network, folder, device, "reward network")

    def batch_loss(self) -> Tensor:
        expert = round(self.config.batch_windows * self.config.expert_share)
        counts = {"expert": expert, "others": self.config.batch_windows - expert}
        parts = [
            windows.rows(torch.randint(len(windows), (counts[kind],), device=self.device))
            for kind, windows in self.windows["train"].items()
        ]
        history, tokens = (torch.cat(values) for values in zip(*parts))
        # one step for the whole batch, each in turn
        return self._loss(self.model, history, tokens, self.steps[self.step % len(self.steps)])[0]

    def _loss(self, network: Any, history: Tensor, tokens: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Matching loss, and the mean square of its target, which a zero reward would have as loss."""
        predictions = self.predictions
        with torch.no_grad():
            look = self._look(tokens, step)
            expert, base = predictions.expected(look, predictions.histories(history))
            observed, masked = predictions.codes[tokens], look.masked.expand_as(tokens)
            between = torch.rand(len(tokens), 1, 1, device=self.device)
            hidden = masked[..., None]
            point = torch.where(hidden, torch.lerp(base, observed, between), observed)
            target = (expert - base) * hidden
            seen = predictions.codes[history]

        def reward(codes: Tensor, t: Tensor) -> Tensor:
            return network(codes, seen, masked, step)

        t = torch.full((len(tokens),), step, device=self.device)
        loss = gradient_matching_loss(reward, point, t, target, ~hidden)
        return loss, target.square().sum() / hidden.expand_as(target).sum()

    def _look(self, tokens: Tensor, step: int) -> Look:
        if step == self.predictions.config.num_diffusion_steps - 1:
            return self.predictions.full_look()
        return self.predictions.look(tokens, step, torch.rand(tokens.shape, device=self.device))

    def validation(self) -> dict[str, float]:
        half = max(self.config.validation_windows // 2, 1)
        totals, count = np.zeros(2), 0
        for windows in self.windows["validation"].values():
            for step in self.steps:
                for index in windows.even(half).to(self.device).split(self.config.batch_windows):
                    loss, power = self._loss(self.average, *windows.rows(index), step)
                    totals += np.array([float(loss.detach()), float(power)]) * len(index)
                    count += len(index)
        mean_loss, mean_power = (float(value) for value in totals / count)
        explained = 1.0 - mean_loss / mean_power if mean_power > 0 else 1.0
        return {"validation_loss": mean_loss, "explained": explained}

    def keep(self, facts: Mapping[str, Any]) -> None:
        network = self.average
        assert isinstance(network, CodeReward)
        training = {k: v for k, v in asdict(self.config).items() if k not in SIZES}
        sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in self.sizes.items()}
        save_reward_network(
            self.folder, network, sizes, {"steps": list(self.steps), "training": training, **facts}
        )

    @torch.no_grad()
    def pictures(self) -> np.ndarray:
        """(N, H, 3 W, 3) uint8: held-out expert frames, then what the two models find most likely with all masked."""
        windows = self.windows["validation"]["expert"]
        history, tokens = windows.rows(windows.even(PICTURES).to(self.device))
        look = self.predictions.full_look()
        guesses = self.predictions.log_probabilities(look, self.predictions.histories(history))
        shown = (tokens, *(guess.argmax(-1) for guess in guesses))
        return np.concatenate([tensor_to_images(self.codec.decode_tokens(frame)) for frame in shown], axis=2)


def _windows(pair: VideoPair, videos: Sequence[VideoSet], split: str, kind: str) -> TokenWindows:
    """The expert's videos are held at their end as the expert model has seen them, other videos are not."""
    model = pair.expert.config
    hold_frames = pair.meta.get("hold_frames") if kind == "expert" else None
    frames = [episode.frames for video in videos for episode in video.split(split)]
    return TokenWindows.encode(
        *(pair.codec, frames, model.num_history_frames, model.frame_skip),
        kind=model.history,
        hold_frames=hold_frames,
    )
