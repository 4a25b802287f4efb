"""Training of the image codec, resumable at any moment (VQGAN, arXiv 2012.09841; Diffusion Reward, arXiv 2312.14134).

A training folder holds `config.json` + `weights.pt` (the best codec so far), `training.json` (what was
asked for), `training_state.pt` (where to go on), `metrics.jsonl`, `tensorboard/`, and, once finished,
`summary.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.checkpoints import STATE_FILE, apply_weights, load_tensors, save_tensors
from models.codec_config import CodecTrainingConfig
from models.codec_losses import CodecLosses
from models.distributed import all_rows, average_gradients, num_workers, own_rows, same_weights
from models.frames import FrameSampler, FrameSplits, images_to_tensor, tensor_to_images
from models.training_folder import claim_folder, require_finite, run_training
from models.training_log import Progress
from models.videos import VideoSet
from models.vqgan import VQGAN, VQGANConfig, save_codec

__all__ = ["CodecTrainingConfig", "code_use", "train_codec"]


def train_codec(
    config: CodecTrainingConfig,
    model_config: VQGANConfig,
    videos: Sequence[VideoSet] | FrameSplits,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    resume: bool = True,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a codec, or goes on with one whose training was cut off.

    Args:
        config: How to train.
        model_config: Sizes of the codec.
        videos: Video sets, or frames already split.
        folder: Training folder; afterwards `load_codec(folder)` gives the best codec.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        resume: Whether an unfinished training in the folder may be gone on with.
        extra: More facts for the codec's `config.json`.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best_validation_l1 and best_step.

    Raises:
        FileExistsError: if the folder holds a finished training, or an unfinished one and `resume` is off.
        ValueError: if the folder was started with another configuration (the keys are named), the frames do not
            fit the codec, or the workers cannot share a batch.
        FloatingPointError: if the loss is no longer finite.
    """
    config.require_shares(num_workers())
    splits = videos if isinstance(videos, FrameSplits) else FrameSplits.from_videos(videos)
    folder = Path(folder)
    _check_frames(splits, model_config)
    claim_folder(folder, _settings(config, model_config, splits), resume, "codec", "codec")
    run = _CodecRun(config, model_config, splits, folder, torch.device(device), extra or {})
    return run_training(run, config, folder, progress)


def _check_frames(splits: FrameSplits, config: VQGANConfig) -> None:
    shape, wanted = (
        splits.train[0].shape[1:],
        (config.resolution_px, config.resolution_px, config.image_channels),
    )
    if shape != wanted:
        raise ValueError(
            f"frames are {shape}, the codec takes {wanted}: set the codec's resolution_px to the frames', or "
            "collect videos at the codec's resolution"
        )


def _settings(config: CodecTrainingConfig, model_config: VQGANConfig, splits: FrameSplits) -> dict[str, Any]:
    return {
        "training": asdict(config),
        "model": asdict(model_config),
        "data": {
            "train_videos": len(splits.train),
            "train_frames": splits.num_train_frames,
            "validation_frames": splits.num_validation_frames,
        },
    }


class _CodecRun:
    """State of one training: model, losses, optimisers, batches and the best result so far."""

    picture_name = "reconstructions"

    def __init__(
        self,
        config: CodecTrainingConfig,
        model_config: VQGANConfig,
        splits: FrameSplits,
        folder: Path,
        device: torch.device,
        extra: dict[str, Any],
    ) -> None:
        self.config, self.folder, self.device, self.extra = config, folder, device, extra
        self.sampler = FrameSampler(splits.train, config.seed, config.still_of)
        self.validation = FrameSampler(splits.validation, config.seed)
        self.total_steps = config.steps_for(splits.num_train_frames)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = VQGAN(model_config).to(device)
            self.losses = CodecLosses(self.model, config).to(device)
        for module in self._parts().values():
            same_weights(module)
        betas = (config.adam_beta1, config.adam_beta2)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, config.learning_rate, betas)
        self.disc_optimiser: torch.optim.Adam | None = None
        if self.losses.discriminator is not None:
            self.disc_optimiser = torch.optim.Adam(
                self.losses.discriminator.parameters(), config.learning_rate, betas
            )
        self.code_last_used = torch.full((model_config.num_codes,), -1, device=device)
        self.step = 0
        self.last_metrics: dict[str, torch.Tensor] = {}
        self.best_l1, self.best_step = math.inf, 0

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        config = self.config
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_frames": len(self.sampler),
            "perceptual_loss": "LPIPS" if self.losses.lpips is not None else "off (use_lpips=False)",
            "adversarial_loss": f"from step {config.disc_start_step}" if config.disc_weight > 0 else "off",
        }

    def train_step(self) -> None:
        """One optimiser step of codec and discriminator; reads only the loss, which has to be finite."""
        positions = own_rows(self.sampler.draw(self.config.batch_frames))
        images = images_to_tensor(self.sampler.frames(positions)).to(self.device)
        stills = None
        if self.config.motion_weight > 0:
            stills = images_to_tensor(self.sampler.stills(positions)).to(self.device)
        if self.config.revive_every_steps and self.step % self.config.revive_every_steps == 0:
            self._revive(images)
        self._set_learning_rate()
        metrics, vectors, tokens = self.losses.backward(images, stills, self.step)
        metrics = self._of_all_workers(metrics)
        config = self.config
        advice = f" or a disc_weight below {config.disc_weight:g}" if config.disc_weight > 0 else ""
        require_finite(metrics["loss"].item(), self.step, "codec", config.learning_rate, advice)
        self.optimiser.step()
        if self.disc_optimiser is not None and self.losses.uses_discriminator(self.step):
            self.disc_optimiser.step()
        if self.model.config.codebook == "ema":
            self.model.codebook.ema_update(vectors, tokens)
        self.code_last_used[metrics["tokens"]] = self.step
        self.step += 1
        self.last_metrics = metrics

    def _of_all_workers(self, metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Makes gradients and metrics those of the whole batch."""
        trained = list(self.model.parameters())
        if self.losses.discriminator is not None and self.losses.uses_discriminator(self.step):
            trained += self.losses.discriminator.parameters()
        names = [name for name in metrics if name != "tokens"]
        means = average_gradients(trained, [metrics[name] for name in names])
        return {**dict(zip(names, means)), "tokens": all_rows(metrics["tokens"])}

    def _set_learning_rate(self) -> None:
        rate = self.config.learning_rate * min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        if self.config.learning_rate_decay == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * self.step / self.total_steps))
        for optimiser in filter(None, (self.optimiser, self.disc_optimiser)):
            for group in optimiser.param_groups:
                group["lr"] = rate

    @torch.no_grad()
    def _revive(self, images: torch.Tensor) -> None:
        """Moves unused codes onto random encoder outputs of this batch."""
        rows = (self.code_last_used < self.step - self.config.revive_every_steps).nonzero().flatten()
        if self.step == 0:
            rows = torch.arange(len(self.code_last_used), device=self.device)
        if not len(rows):
            return
        vectors = all_rows(self.model.encode(images).movedim(1, -1)).flatten(0, -2)
        chosen = torch.randint(len(vectors), (len(rows),), generator=self.sampler.generator)
        self.model.codebook.set_codes(rows, vectors[chosen.to(self.device)])
        self.code_last_used[rows] = self.step

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean absolute error and code use on held-out frames; keeps the weights if they are the best."""
        positions = self.validation.even(self.config.validation_frames)
        used = torch.zeros(self.model.config.num_codes, dtype=torch.int64)
        error = 0.0
        self.model.eval()
        for part in np.array_split(positions, math.ceil(len(positions) / self.config.batch_frames)):
            images = images_to_tensor(self.validation.frames(part)).to(self.device)
            tokens = self.model.encode_tokens(images)
            error += (self.model.decode_tokens(tokens) - images).abs().mean().item() * len(part)
            used += torch.bincount(tokens.flatten(), minlength=len(used)).cpu()
        self.model.train()
        l1 = error / len(positions)
        if l1 < self.best_l1:
            self.best_l1, self.best_step = l1, self.step
            facts = {"trained_steps": self.step, "validation_l1": l1, **self.extra}
            save_codec(self.folder, self.model, facts, overwrite=True)
        use = {f"validation_{name}": value for name, value in code_use(used).items()}
        return {"validation_l1": l1, "best_validation_l1": self.best_l1, **use}

    def numbers(self) -> dict[str, float]:
        """Metrics of the last step as plain numbers, with the learning rate."""
        metrics = self.last_metrics
        tokens = metrics["tokens"]
        counts = torch.bincount(tokens, minlength=self.model.config.num_codes).cpu()
        values = {name: value.item() for name, value in metrics.items() if name != "tokens"}
        return {**values, **code_use(counts), "learning_rate": self.optimiser.param_groups[0]["lr"]}

    @torch.no_grad()
    def pictures(self, count: int = 8) -> np.ndarray:
        """(count, H, 2 W, 3) uint8: held-out frames on the left, their reconstructions on the right."""
        frames = self.validation.frames(self.validation.even(count))
        tokens = self.model.encode_tokens(images_to_tensor(frames).to(self.device))
        return np.concatenate([frames, tensor_to_images(self.model.decode_tokens(tokens))], axis=2)

    def _parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {"model": self.model}
        if self.losses.discriminator is not None:
            parts["discriminator"] = self.losses.discriminator
        return parts

    def save(self) -> None:
        """Writes everything needed to go on as if nothing had happened."""
        state = {
            **{name: module.state_dict() for name, module in self._parts().items()},
            "optimiser": self.optimiser.state_dict(),
            "disc_optimiser": None if self.disc_optimiser is None else self.disc_optimiser.state_dict(),
            "sampler": self.sampler.generator.get_state(),
            "code_last_used": self.code_last_used,
            "step": self.step,
            "best_l1": self.best_l1,
            "best_step": self.best_step,
        }
        save_tensors(self.folder / STATE_FILE, state)

    def restore(self) -> None:
        """The inverse of `save`."""
        path = self.folder / STATE_FILE
        state = load_tensors(path)
        for name, module in self._parts().items():
            apply_weights(module, state[name], path)
        self.optimiser.load_state_dict(state["optimiser"])
        if self.disc_optimiser is not None:
            self.disc_optimiser.load_state_dict(state["disc_optimiser"])
        self.sampler.generator.set_state(state["sampler"])
        self.code_last_used = state["code_last_used"].to(self.device)
        self.step, self.best_l1, self.best_step = state["step"], state["best_l1"], state["best_step"]

    def best(self) -> dict[str, float]:
        """The best validation result, for the summary."""
        return {"best_validation_l1": self.best_l1, "best_step": self.best_step}


def code_use(counts: torch.Tensor) -> dict[str, float]:
    """How many codes are in use.

    Args:
        counts: (K,) int64 how often each code occurred.

    Returns:
        `codes_used`, the number of codes that occurred, and `perplexity`, exp of the entropy of their frequencies.
    """
    probabilities = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(probabilities, probabilities).sum()
    return {"codes_used": int((counts > 0).sum()), "perplexity": float(entropy.exp())}
