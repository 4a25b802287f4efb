"""Training of VideoGPT, resumable at any moment (VIPER, arXiv 2305.14343; Diffusion Reward, arXiv 2312.14134).

A training folder holds `config.json` + `weights.pt` + `codec/` (the best model so far, self-contained),
`training.json` (what was asked for), `training_state.pt` (where to go on), `metrics.jsonl`, `tensorboard/`, and,
once finished, `summary.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.distributed import average_gradients, draw_apart, num_workers, own_rows, same_weights
from models.frames import tensor_to_images
from models.precision import forbid_tf32
from models.training_folder import (
    claim_folder,
    clip_gradients,
    run_training,
    seeded,
    video_settings,
)
from models.training_log import Progress
from models.training_state import TrainingState
from models.video_facts import check_resolution, codec_facts, dataset_facts
from models.video_windows import TokenWindows
from models.videogpt.checkpoint import require_codec_fits, save_videogpt
from models.videogpt.config import VideoGPTConfig
from models.videogpt.gpt import VideoGPT
from models.videogpt_training_config import VideoGPTTrainingConfig
from models.videos import VideoSet
from models.vqgan import VQGAN, load_codec

__all__ = ["VideoGPTTrainingConfig", "train_videogpt"]


def train_videogpt(
    config: VideoGPTTrainingConfig,
    model_config: VideoGPTConfig,
    videos: Sequence[VideoSet],
    codec_folder: str | Path,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    resume: bool = True,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains VideoGPT on the videos of one or several tasks, or goes on with a training that was cut off.

    Args:
        config: How to train.
        model_config: Sizes of the model; `num_codes`, `latent_size` and `latent_dim` must be the codec's.
        videos: Video sets of one domain, rendered alike, with one action repeat.
        codec_folder: A trained codec; copied into the folder.
        folder: Training folder; afterwards `load_videogpt(folder)` gives the best model.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        resume: Whether an unfinished training in the folder may be gone on with.
        extra: More facts for `config.json`.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best validation loss and its step.

    Raises:
        FileExistsError: if the folder holds a finished training, or an unfinished one and `resume` is off.
        FileNotFoundError: if there is no codec.
        ValueError: if videos, codec and model do not fit together, the folder was started with another
            configuration or codec (the keys are named), or the workers cannot share a batch.
        FloatingPointError: if the loss is no longer finite.
    """
    config.require_shares(num_workers())
    forbid_tf32()
    folder = Path(folder)
    facts = {**dataset_facts(videos), **(extra or {})}
    facts_of_codec = codec_facts(codec_folder, videos[0].render)
    codec = load_codec(codec_folder, device)
    require_codec_fits(model_config, codec)
    check_resolution(videos[0].render, codec)
    settings = video_settings(config, model_config, videos, codec_folder)
    _require_windows(model_config, videos)
    claim_folder(folder, settings, resume, "VideoGPT", "VideoGPT")
    run = _VideoGPTRun(config, model_config, videos, codec, folder, torch.device(device))
    run.config_facts, run.codec_facts = facts, facts_of_codec
    return run_training(run, config, folder, progress)


class _VideoGPTRun(TrainingState):
    """State of one training: model, optimiser, and the best result so far."""

    model: VideoGPT
    picture_name = "history_truth_sample"
    config_facts: dict[str, Any]
    codec_facts: dict[str, Any]

    def __init__(
        self,
        config: VideoGPTTrainingConfig,
        model_config: VideoGPTConfig,
        videos: Sequence[VideoSet],
        codec: VQGAN,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config, self.codec = config, codec
        self.train_windows = _windows(codec, model_config, videos, "train")
        self.validation_windows = _windows(codec, model_config, videos, "validation")
        self.total_steps = config.steps_for(len(self.train_windows))
        with seeded(device, config.seed):
            model = VideoGPT(model_config, codec.codebook.embedding.weight).to(device).train()
        same_weights(model)
        optimiser = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay),
            config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        super().__init__("VideoGPT", model, optimiser, folder, device)

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_windows": len(self.train_windows),
            "validation_windows": len(self.validation_windows),
        }

    def train_step(self) -> None:
        """One optimiser step."""
        config = self.config
        with seeded(self.device, config.seed, self.step):
            index = torch.randint(len(self.train_windows), (config.batch_windows,), device=self.device)
            tokens = torch.cat(self.train_windows.rows(index), 1)
            keep = self.model.draw_kept(tokens)
            draw_apart()
            loss = self._loss(own_rows(tokens), None if keep is None else own_rows(keep))
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        (loss,) = average_gradients(self.model.parameters(), [loss.detach()])
        self.grad_norm = clip_gradients(self.model.parameters(), config.clip_grad_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(self.step, self.total_steps)
        self.optimiser.step()
        self.count(loss)

    def _loss(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Cross entropy of windows (B, S) int64, nats per token; `keep` as in `VideoGPT.training_loss`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return self.model.training_loss(tokens, keep)

    def numbers(self) -> dict[str, float]:
        """Mean loss since the last call, learning rate and gradient norm, as plain numbers."""
        mean_loss = self.take_mean_loss(self.config.learning_rate)
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": mean_loss, "learning_rate": rate, "grad_norm": float(self.grad_norm)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on held-out windows without dropped tokens, the same ones every time; keeps the best weights."""
        index = self.validation_windows.even(self.config.validation_windows).to(self.device)
        self.model.eval()
        loss = self._mean_loss(index)
        self.model.train()
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            facts = {**self.config_facts, "trained_steps": self.step, "validation_loss": loss}
            save_videogpt(
                self.folder, self.model, self.codec, facts, codec_extra=self.codec_facts, overwrite=True
            )
        return {"validation_loss": loss, "best_validation_loss": self.best_loss}

    def _mean_loss(self, index: Tensor) -> float:
        total = 0.0
        for part in index.split(self.config.batch_windows):
            tokens = torch.cat(self.validation_windows.rows(part), 1)
            total += float(self._loss(tokens)) * len(part)
        return total / len(index)

    @torch.no_grad()
    def pictures(self, count: int = 8) -> np.ndarray:
        """(count, H, 3 W, 3) uint8: last history frame, the true next frame, a sample of the model."""
        index = self.validation_windows.even(count).to(self.device)
        history, target = self.validation_windows.rows(index)
        self.model.eval()
        with seeded(self.device, self.config.seed):
            sample = self.model.sample_frame(history)
        self.model.train()
        last = history[:, -target.shape[1] :]
        frames = [tensor_to_images(self.codec.decode_tokens(tokens)) for tokens in (last, target, sample)]
        return np.concatenate(frames, axis=2)


def _require_windows(config: VideoGPTConfig, videos: Sequence[VideoSet]) -> None:
    """Refuses videos that are all too short for one window, before a folder is made."""
    steps = config.num_history_frames if config.history_padding == "current" else 1
    needed = steps * config.frame_skip + 1
    for split in ("train", "validation"):
        longest = max(len(episode.frames) for video in videos for episode in video.split(split))
        if longest < needed:
            raise ValueError(
                f"the longest {split} video has {longest} frames, a window needs {needed} (num_history_frames="
                f"{config.num_history_frames}, frame_skip={config.frame_skip}, history_padding="
                f"{config.history_padding}): give longer videos, lower frame_skip, or set history_padding=first"
            )


def _windows(codec: VQGAN, config: VideoGPTConfig, videos: Sequence[VideoSet], split: str) -> TokenWindows:
    """Windows of one split; with history_padding="current" only those that lie inside their video."""
    frames = [episode.frames for video in videos for episode in video.split(split)]
    windows = TokenWindows.encode(codec, frames, config.num_history_frames, config.frame_skip)
    if config.history_padding == "first":
        return windows
    whole = (windows.windows.diff(dim=1) == config.frame_skip).all(1)
    return replace(windows, windows=windows.windows[whole])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of linear layers decay; biases, norms and position embeddings do not."""
    decayed = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    return [
        {"params": [p for p in model.parameters() if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
