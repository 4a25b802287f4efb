"""Training of the video model, resumable at any moment (Diffusion Reward, arXiv 2312.14134).

A training folder holds `config.json` + `weights.pt` + `codec/` (the best averaged model so far, self-contained),
`training.json` (what was asked for), `training_state.pt` (where to go on), `metrics.jsonl`, `tensorboard/`, and,
once finished, `summary.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import apply_weights
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
from models.video_start import VideoStart
from models.video_training_config import LearningRate, VideoTrainingConfig
from models.video_windows import TokenWindows, corrupt_tokens
from models.videos import VideoSet
from models.vqdiffusion.checkpoint import require_codec_fits, save_video_model
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.sampling import generate_tokens
from models.vqgan import VQGAN, load_codec

__all__ = ["VideoTrainingConfig", "train_video_model"]

PICTURE_JUMPS = 11


def train_video_model(
    config: VideoTrainingConfig,
    model_config: VQDiffusionConfig,
    videos: Sequence[VideoSet],
    codec_folder: str | Path,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    resume: bool = True,
    extra: dict[str, Any] | None = None,
    init_from: str | Path | None = None,
) -> dict[str, Any]:
    """Trains a video model on the videos of one or several tasks, or goes on with a training that was cut off.

    Args:
        config: How to train.
        model_config: Sizes of the model; `num_codes` and `latent_size` must be the codec's.
        videos: Video sets of one domain, rendered alike, with one action repeat.
        codec_folder: A trained codec; copied into the folder.
        folder: Training folder; afterwards `load_video_model(folder)` gives the best model.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        resume: Whether an unfinished training in the folder may be gone on with.
        extra: More facts for `config.json`.
        init_from: A trained video model with the same sizes and the same codec, whose weights the training starts
            from; None starts from random ones. `config.json` remembers it under "init_from".

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best validation loss and its step.

    Raises:
        FileExistsError: if the folder holds a finished training, or an unfinished one and `resume` is off.
        FileNotFoundError: if there is no codec.
        ValueError: if videos, codec, model and `init_from` do not fit together, the folder was started with
            another configuration or codec (the keys are named), or the workers cannot share a batch.
        FloatingPointError: if the loss is no longer finite.
    """
    config.require_shares(num_workers())
    forbid_tf32()
    if config.hold_frames is not None and model_config.sees_past:
        raise ValueError(
            f"hold_frames={config.hold_frames} is for models of the first frame, this one has history="
            f"{model_config.history!r}: a frame that is held after the frames before it would teach stillness. Leave it "
            "out, or set video.history=first video.num_history_frames=1"
        )
    folder = Path(folder)
    facts = dataset_facts(videos)
    codec_config_facts = codec_facts(codec_folder, videos[0].render)
    codec = load_codec(codec_folder, device)
    require_codec_fits(model_config, codec)
    check_resolution(videos[0].render, codec)
    settings = video_settings(config, model_config, videos, codec_folder)
    _require_windows(model_config, videos)
    start = None if init_from is None else VideoStart.read(init_from, model_config, codec, facts)
    if start is not None:
        settings["init_from"] = {"weights": start.checksum}
        facts["init_from"] = start.facts()
    claim_folder(folder, settings, resume, "video model", "video")
    run = _VideoRun(config, model_config, videos, codec, folder, torch.device(device), start)
    run.config_facts = {**facts, **(extra or {})}
    run.codec_facts = codec_config_facts
    return run_training(run, config, folder, progress)


def _require_windows(config: VQDiffusionConfig, videos: Sequence[VideoSet]) -> None:
    """Refuses videos that are all too short for one window, before a folder is made."""
    for split in ("train", "validation"):
        longest = max(len(episode.frames) for video in videos for episode in video.split(split))
        if config.sees_past and longest <= config.frame_skip:
            raise ValueError(
                f"the longest {split} video has {longest} frames, a window needs {config.frame_skip + 1} (frame_skip="
                f"{config.frame_skip}): give longer videos, or lower frame_skip"
            )


class _VideoRun(TrainingState):
    """State of one training: model, its average, optimiser, and the best result so far."""

    model: VQDiffusion
    picture_name = "history_truth_sample"
    config_facts: dict[str, Any]
    codec_facts: dict[str, Any]

    def __init__(
        self,
        config: VideoTrainingConfig,
        model_config: VQDiffusionConfig,
        videos: Sequence[VideoSet],
        codec: VQGAN,
        folder: Path,
        device: torch.device,
        start: VideoStart | None = None,
    ) -> None:
        self.config, self.codec = config, codec
        frames = {s: [e.frames for v in videos for e in v.split(s)] for s in ("train", "validation")}
        self.train_windows, self.validation_windows = (
            TokenWindows.encode(
                codec,
                frames[split],
                model_config.num_history_frames,
                model_config.frame_skip,
                kind=model_config.history,
                hold_frames=config.hold_frames,
            )
            for split in ("train", "validation")
        )
        self.total_steps = config.steps_for(len(self.train_windows))
        with seeded(device, config.seed):
            model = VQDiffusion(model_config).to(device).train()
        if start is not None:
            apply_weights(model, start.weights, start.folder)
        same_weights(model)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            trained,
            config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.learning_rate = LearningRate(config, self.total_steps)
        super().__init__("video model", model, optimiser, folder, device)

    def kept_parts(self) -> dict[str, Any]:
        """The average and the schedule as well."""
        return {**super().kept_parts(), "average": self.average, "learning_rate": self.learning_rate}

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_windows": len(self.train_windows),
            "validation_windows": len(self.validation_windows),
        }

    def train_step(self) -> None:
        """One optimiser step and, when due, one step of the average."""
        config = self.config
        with seeded(self.device, config.seed, self.step):
            index = torch.randint(len(self.train_windows), (config.batch_windows,), device=self.device)
            history, target = self.train_windows.rows(index)
            if config.condition_corruption_prob > 0:
                history = corrupt_tokens(
                    history,
                    config.condition_corruption_prob,
                    config.condition_corruption_fraction,
                    self.model.num_codes,
                )
            loss = self._loss(self.model, history, target)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        (loss,) = average_gradients(self.model.parameters(), [loss.detach()])
        self._clip()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate.at(self.step)
        self.optimiser.step()
        self.count(loss)
        if self.step % config.ema_every_steps == 0:
            self._update_average()

    def _loss(self, model: VQDiffusion, history: Tensor, target: Tensor) -> Tensor:
        """Variational and all-mask loss of a batch, weighted by their rows; nats per token.

        In training it is that of this worker's rows of the batch; all workers together have those of one process.
        """
        rows = len(target)
        masked = round(rows * self.config.all_mask_fraction)
        noise = _noise(model, target[masked:]) if masked < rows else ()
        parts = [target[:masked], history[:masked], target[masked:], history[masked:], *noise]
        if model.training:
            parts = [own_rows(part) for part in parts]
            draw_apart()
        masked_target, masked_history, *rest = parts
        loss = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if masked:
                loss = loss + masked / rows * model.all_mask_loss(masked_target, masked_history)
            if masked < rows:
                bound, _ = model.training_loss(*rest)
                loss = loss + (rows - masked) / rows * bound
        return loss

    def _clip(self) -> None:
        config = self.config
        clips = config.clip_until_steps is None or self.step < config.clip_until_steps
        self.grad_norm = clip_gradients(self.model.parameters(), config.clip_grad_norm if clips else None)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = self.config.ema_decay
        for weight, new_weight in zip(self.average.parameters(), self.model.parameters()):
            weight.lerp_(new_weight, 1 - decay)
        for buffer, new_buffer in zip(self.average.buffers(), self.model.buffers()):
            buffer.copy_(new_buffer)

    def numbers(self) -> dict[str, float]:
        """Mean loss since the last call, learning rate and gradient norm, as plain numbers."""
        mean_loss = self.take_mean_loss(self.config.learning_rate)
        self.learning_rate.observe(self.step, mean_loss)
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": mean_loss, "learning_rate": rate, "grad_norm": float(self.grad_norm)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged model on held-out windows, the same ones every time; keeps it if it is the best."""
        index = self.validation_windows.even(self.config.validation_windows).to(self.device)
        loss = self._mean_loss(self.average, index)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            facts = {**self.config_facts, "trained_steps": self.step, "validation_loss": loss}
            facts["all_mask_fraction"] = self.config.all_mask_fraction
            facts["hold_frames"] = self.config.hold_frames
            save_video_model(
                self.folder, self.average, self.codec, facts, codec_extra=self.codec_facts, overwrite=True
            )
        return {"validation_loss": loss, "best_validation_loss": self.best_loss}

    def _mean_loss(self, model: VQDiffusion, index: Tensor) -> float:
        total = 0.0
        with seeded(self.device, self.config.seed):
            shuffled = index[torch.randperm(len(index), device=self.device)]
            for part in shuffled.split(max(self.config.batch_windows, 64)):
                history, target = self.validation_windows.rows(part)
                total += float(self._loss(model, history, target)) * len(part)
        return total / len(index)

    @torch.no_grad()
    def pictures(self, count: int = 8) -> np.ndarray:
        """(count, H, 3 W, 3) uint8: last history frame, the true next frame, a sample of the averaged model."""
        index = self.validation_windows.even(count).to(self.device)
        history, target = self.validation_windows.rows(index)
        jumps = 1 if self.config.all_mask_fraction == 1 else min(PICTURE_JUMPS, self.average.num_steps)
        with seeded(self.device, self.config.seed):
            sample = generate_tokens(self.average, self.average.condition(history), jumps)
        last = history[:, -target.shape[1] :]
        frames = [tensor_to_images(self.codec.decode_tokens(tokens)) for tokens in (last, target, sample)]
        return np.concatenate(frames, axis=2)


def _noise(model: VQDiffusion, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps (B,), their probabilities (B,) and noisy tokens (B, L) of targets (B, L)."""
    rows = len(target)
    if model.training:
        t, pt = model.sample_steps(rows)
    else:  # a validation must not depend on the changing importance distribution
        t = torch.randint(model.num_steps, (rows,), device=target.device)
        pt = torch.full((rows,), 1 / model.num_steps, device=target.device)
    return t, pt, model.schedule.noisy_tokens(target, t)
