"""Small reward-model folders for tests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.nn import Module

from models.videos import RenderSettings
from models.vqdiffusion import VQDiffusion, VQDiffusionConfig
from models.vqdiffusion.checkpoint import save_video_model
from models.vqgan import VQGAN, VQGANConfig

RENDER = RenderSettings(quality="fast", camera="corner2", height_px=64, width_px=64)
Model = TypeVar("Model", bound=Module)
META = {"tasks": ["door-close"], "domain": "metaworld", "render": asdict(RENDER), "action_repeat": 3}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of an npz file as tensors."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def tiny_codec() -> VQGAN:
    """A few weights, large enough that tokens of different pictures differ."""
    torch.manual_seed(1)
    codec = VQGAN(
        VQGANConfig(architecture="compact", num_codes=16, latent_dim=4, channels=(16,), residual_blocks=1)
    )
    return with_noise(codec, 0.1)


def tiny_model(**changes) -> VQDiffusion:
    """Two layers with weights large enough that predictions differ between histories."""
    torch.manual_seed(2)
    sizes = {"num_codes": 16, "num_layers": 2, "width": 16, "num_heads": 2, "condition_dim": 8}
    return with_noise(VQDiffusion(VQDiffusionConfig(**{**sizes, **changes})), 0.3)


def with_noise(model: Model, scale: float) -> Model:
    """Adds normal noise to all weights; for evaluation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def write_tiny_folder(folder: Path, meta: dict | None = None, **changes) -> Path:
    """A complete reward-model folder with random weights."""
    save_video_model(folder, tiny_model(**changes), tiny_codec(), META if meta is None else meta)
    return folder


def random_video(seed: int, num_frames: int) -> np.ndarray:
    """(T, 64, 64, 3) uint8 of coloured blocks that differ from frame to frame."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)
