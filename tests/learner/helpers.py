"""Small episodes with recognisable contents."""

from __future__ import annotations

import numpy as np
import torch

from learner.batch import TensorBatch
from models.episode import Episode

RESOLUTION_PX = 64
ACTION_DIM = 2


def make_episode(number: int, steps: int, resolution_px: int = 4) -> Episode:
    """Frame k is filled with 10 * number + k; step k has rewards number + k / 10 and 100 + k."""
    row = np.arange(steps + 1)
    frames = np.broadcast_to(
        (10 * number + row)[:, None, None, None], (steps + 1, resolution_px, resolution_px, 3)
    )
    return Episode(
        episode_id=f"e{number}",
        task="door-close",
        frames=frames.astype(np.uint8),
        actions=np.stack([np.full(steps, number), row[:-1]], axis=1).astype(np.float32) / 100,
        env_rewards=(number + row[:-1] / 10).astype(np.float32),
        discounts=np.ones(steps, np.float32),
        successes=np.zeros(steps, bool),
        learned_rewards=(100 + row[:-1]).astype(np.float32),
    )


def noise_episode(number: int, steps: int = 12) -> Episode:
    """A full-size episode of random pixels, for tests that run networks."""
    rng = np.random.default_rng(number)
    return Episode(
        episode_id=f"e{number}",
        task="door-close",
        frames=rng.integers(0, 256, (steps + 1, RESOLUTION_PX, RESOLUTION_PX, 3), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32),
        env_rewards=rng.random(steps).astype(np.float32),
        discounts=np.ones(steps, np.float32),
        successes=np.zeros(steps, bool),
        learned_rewards=rng.standard_normal(steps).astype(np.float32),
    )


def make_tensor_batch(seed: int, device: str = "cpu") -> TensorBatch:
    """Six random transitions of full-size frames."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 6, 64, 64, 3), generator=generator, dtype=torch.uint8)
    action, scalars = torch.rand(6, 2, generator=generator), torch.rand(2, 6, 1, generator=generator)
    batch = TensorBatch(frames[0], action, scalars[0], scalars[1], frames[1])
    return TensorBatch(*(tensor.to(device) for tensor in batch))
