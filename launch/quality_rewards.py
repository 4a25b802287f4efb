"""Every reward as a function from videos to one value per frame, so that they can be judged alike.

Frozen rewards are read from their checkpoint. Rewards that keep learning have no fixed value for a video: they are
trained here on the frames that a run would start with (the random behaviour; AMP also on the expert's), then held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from launch.cli import build
from launch.score import load_reward
from launch.sections import section_class
from learner.batch import TensorBatch
from learner.bonus import Bonus, make_bonus
from models.episode import Episode
from models.frames import FrameSampler
from models.videos import VideoSet
from reward_service.contract import episode_seed

# Episodes -> one (T_i+1,) float array per episode.
Scorer = Callable[[Sequence[Episode]], list[np.ndarray]]
SCORED_FRAMES = 256


def frozen_scorer(config: DictConfig, checkpoint: Path, task: str) -> Scorer:
    """The frozen reward of `reward.frozen`, standardised with the statistics of `task`."""
    reward = load_reward(config, checkpoint)

    def score(episodes: Sequence[Episode]) -> list[np.ndarray]:
        seeds = [episode_seed(e.episode_id, 0) for e in episodes]
        return reward.score([e.frames for e in episodes], [task] * len(episodes), seeds)

    return score


def learning_scorer(config: DictConfig, policy_videos: VideoSet, updates: int, seed: int) -> Scorer:
    """The bonus of the section `bonus`, trained on frames of a policy and then held fixed.

    Args:
        config: Composed training configuration of the reward.
        policy_videos: Their training split stands for what the replay holds.
        updates: Calls of the bonus, as many as the agent's updates would make.
        seed: Seed of the networks and of the batches.
    """
    settings = build(section_class("bonus", config.bonus.name), config.bonus, "bonus.")
    # A running scale would change from one scored frame to the next.
    settings = replace(settings, norm="none")
    bonus = make_bonus(settings, config.env.render.height_px, torch.device("cpu"), seed)
    sampler = FrameSampler([e.frames for e in policy_videos.split("train")], seed)
    for _ in range(updates):
        frames = sampler.frames(sampler.draw(config.agent.batch_size))
        batch = _batch(frames)
        bonus.bonus(batch)
        bonus.update(batch)

    def score(episodes: Sequence[Episode]) -> list[np.ndarray]:
        return [_bonus_of(bonus, e.frames) for e in episodes]

    return score


def sparse_scorer(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """The environment's own sparse reward; frame 0, before the first action, has 0."""
    return [np.concatenate([[0.0], e.env_rewards]).astype(np.float32) for e in episodes]


def _batch(frames: np.ndarray) -> TensorBatch:
    """A batch that shows one frame as s_t and as s_{t+n}; nothing else of it matters to a bonus."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames))
    zeros = torch.zeros(len(frames), 1)
    return TensorBatch(pixels, zeros, zeros, zeros, pixels)


def _bonus_of(bonus: Bonus, frames: np.ndarray) -> np.ndarray:
    parts = [frames[i : i + SCORED_FRAMES] for i in range(0, len(frames), SCORED_FRAMES)]
    values = [bonus.bonus(_batch(part)) for part in parts]
    return torch.cat([v for v in values if v is not None]).reshape(-1).detach().numpy()
