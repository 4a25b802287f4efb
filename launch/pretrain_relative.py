"""What `pretrain.py` needs for a relative video reward: fewer expert videos for the base, and the stage itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from launch.cli import build
from launch.paths import absolute_path
from models.videos import VideoSet


def with_few_experts(videos: Sequence[VideoSet], count: int | None) -> list[VideoSet]:
    """The same videos with at most `count` of each set of expert videos, its first ones; null leaves all.

    A base model that sees as much of the expert as of everything else leaves the expert model nothing to add.

    Raises:
        ValueError: if `count` is below 1.
    """
    if count is None:
        return list(videos)
    if count < 1:
        raise ValueError(f"expert_videos is {count}, expected at least 1, or null for all")
    return [
        replace(v, episodes=v.episodes[:count], records=v.records[:count]) if v.mode == "expert" else v
        for v in videos
    ]


def train_relative(
    config: DictConfig,
    videos: Sequence[VideoSet],
    name: str,
    out: Path,
    device: torch.device,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Trains the expert model from the weights of `base`, which must be there; with frame_reward.form=r3 also the network.

    A finished expert is left as it is where only the network is missing.

    Args:
        config: Composed configuration of `pretrain.py`.
        videos: The expert's and others'.
        name: What <task> stands for in the default base folder.
        out: Training folder.
        device: Where to train.
        progress: Shows the training.

    Returns:
        Summaries of what was trained: "expert", "network".

    Raises:
        FileNotFoundError: if there is no base model.
        FileExistsError: if everything is trained already.
        ValueError: if base, videos and settings do not fit together.
    """
    from models.checkpoints import load_checkpoint_config
    from models.relative_video.config import RewardNetworkConfig
    from models.relative_video.network_training import train_reward_network, videos_by_kind
    from models.relative_video.training import is_finished, train_expert
    from models.video_training import VideoTrainingConfig
    from reward_service.relative_reward import RelativeRewardConfig, diffusion_steps

    reward = build(RelativeRewardConfig, config.frame_reward, "frame_reward.")
    training = build(VideoTrainingConfig, {**config.video_training, "seed": config.seed}, "video_training.")
    given = config.base if config.base is not None else f"checkpoints/base/{name}"
    base = absolute_path(str(given), "base")
    if not (base / "config.json").is_file():
        raise FileNotFoundError(
            f"no base model at {base}: train one on diverse videos with `python launch/pretrain.py stage=video "
            f"data=[data/{name}/random,data/{name}/half,data/{name}/noisy,data/{name}/expert] expert_videos=15 out={given}`, "
            "or give base=<its folder>"
        )
    if reward.form == "r3":
        videos_by_kind(videos)  # refused before the expert is trained, not after
    summaries = {}
    if reward.form != "r3" or not is_finished(out):
        summaries["expert"] = train_expert(training, base, videos, out, device, progress)
    if reward.form == "r3":
        values = {**config.reward_network, "seed": config.seed}
        network = build(RewardNetworkConfig, values, "reward_network.")
        num_steps = load_checkpoint_config(base, "vqdiffusion")["model"]["num_diffusion_steps"]
        steps = diffusion_steps(reward, num_steps)
        summaries["network"] = train_reward_network(network, out, videos, steps, device, progress)
    return summaries
