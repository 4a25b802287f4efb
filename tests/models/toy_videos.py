"""Videos of a bar that moves through 16 x 16 pixels, a codec and a video model of their size: what trains in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.episode import Episode
from models.video_training import VideoTrainingConfig
from models.videos import RenderSettings, VideoSet
from models.vqdiffusion import VQDiffusionConfig
from models.vqgan import VQGANConfig

CODEC = VQGANConfig(
    architecture="compact", resolution_px=16, latent_size=4, latent_dim=4, num_codes=8, channels=(8, 8)
)
MODEL = VQDiffusionConfig(num_codes=8, latent_size=4, num_layers=1, width=16, num_heads=2, condition_dim=16)
TRAINING = VideoTrainingConfig(
    train_steps=12,
    batch_windows=8,
    learning_rate=3e-3,
    warmup_steps=2,
    ema_decay=0.5,
    ema_every_steps=2,
    log_every_steps=4,
    validate_every_steps=4,
    validation_windows=32,
    save_every_steps=4,
)
RENDER = RenderSettings(height_px=16, width_px=16)


class Killed(Exception):
    """Stands for a kill in the middle of training."""


def moving_bar(start: int, frames: int = 10) -> np.ndarray:
    picture = np.zeros((frames, 16, 16, 3), np.uint8)
    for t in range(frames):
        picture[t, :, (start + t) % 16] = 255
    return picture


def episode(number: int) -> Episode:
    frames = moving_bar(number)
    steps = len(frames) - 1
    zeros = np.zeros(steps, np.float32)
    return Episode(
        f"e{number}", "bar", frames, np.zeros((steps, 2), np.float32), zeros, zeros + 1, zeros.astype(bool)
    )


def video_set(folder: Path, task: str = "bar", **changes: Any) -> VideoSet:
    """Four videos to train on and one held out."""
    episodes = tuple(episode(n) for n in range(5))
    records = tuple({"split": "validation" if n == 4 else "train"} for n in range(5))
    values = {"domain": "toy", "mode": "expert", "render": RENDER, "action_repeat": 2, **changes}
    return VideoSet(folder=folder / task, task=task, episodes=episodes, records=records, **values)


def metric_lines(folder: Path) -> list[dict]:
    """What a training has logged, without wall time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "wall_s"} for line in lines]
