"""Which config sections a verb has, and the dataclass that gives each its keys and defaults."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

DATACLASSES = {
    "env": "actors.envs.registry:EnvConfig",
    "imitation": "actors.imitation:ImitationConfig",
    "codec": "models.vqgan:VQGANConfig",
    "codec_training": "models.codec_config:CodecTrainingConfig",
    "video": "models.vqdiffusion.config:VQDiffusionConfig",
    "video_training": "models.video_training_config:VideoTrainingConfig",
    "reward_network": "models.relative_video.config:RewardNetworkConfig",
    "videogpt": "models.videogpt.config:VideoGPTConfig",
    "videogpt_training": "models.videogpt_training_config:VideoGPTTrainingConfig",
    "reward": "launch.settings:RewardSettings",
    "agent": "learner.drqv2_config:DrQV2Config",
    "replay": "launch.settings:ReplaySettings",
    "learner": "learner.learner_core:LearnerConfig",
    "limiter": "learner.limiter:UpdateRatioLimiter",
    "rollout": "launch.settings:RolloutSettings",
    "cluster": "launch.settings:ClusterSettings",
    "sac": "launch.sac:SACConfig",
    "pointmaze": "actors.envs.pointmaze:PointMazeConfig",
    "planner": "actors.maze_planner:PlannerConfig",
    "maze": "launch.maze_settings:MazeSettings",
    "diffuser": "models.diffuser.config:DiffuserConfig",
    "diffuser_training": "models.diffuser.config:DiffuserTrainingConfig",
    "relative_reward": "models.relative.config:RelativeRewardConfig",
    "relative_training": "models.relative.config:RelativeTrainingConfig",
    "steering": "models.relative.config:SteeringConfig",
    "toy": "models.relative.toy:ToyConfig",
    "images": "launch.relative_images:ImagesSettings",
    "guidance": "models.images.config:SafeGuidanceConfig",
    "pairs": "models.images.config:PairConfig",
    "locomotion_data": "launch.locomotion_data:LocomotionDataConfig",
    "locomotion": "launch.relative_locomotion:LocomotionSettings",
    "plan": "launch.experiment:Plan",
}
# Sections whose dataclass is that of a chosen reward or bonus: the key that names it -> how its class is found.
# Without a choice the section has the keys that all share.
CHOSEN = {
    "frame_reward": ("reward.frozen", "reward_service.contract:reward_class"),
    "bonus": ("bonus.name", "learner.bonus:bonus_class"),
}
SHARED_BY_ALL = {
    "frame_reward": "reward_service.config:FrameRewardConfig",
    "bonus": "learner.bonus:BonusConfig",
}
SECTIONS = {
    "collect": ("env",),
    "collect_trajectories": ("pointmaze", "planner"),
    "collect_locomotion": ("locomotion_data",),
    "imitate": ("env", "imitation"),
    "pretrain": (
        *("env", "codec", "codec_training", "video", "video_training", "videogpt", "videogpt_training"),
        *("reward", "frame_reward", "reward_network", "diffuser", "diffuser_training"),
    ),
    "relative": (
        *("diffuser", "diffuser_training", "relative_reward", "relative_training", "steering"),
        *("toy", "maze", "locomotion", "locomotion_data", "images"),
    ),
    "score": ("env", "reward", "frame_reward"),
    "train": (
        *(
            "env",
            "reward",
            "frame_reward",
            "agent",
            "bonus",
            "replay",
            "learner",
            "limiter",
            "rollout",
            "cluster",
        ),
    ),
    "convert": (),
    "stable_diffusion": ("guidance", "pairs"),
    "evaluate": (),
    "train_expert": ("env", "sac"),
    "demo": ("env",),
    "quality": ("env",),
    "levers": (),
    "experiment": ("plan",),
    "report": ("plan",),
    "benchmark": (),
}
# Keys whose value follows from others; they are not offered on the command line.
DERIVED = {
    "bonus": ("weight",),  # reward.alpha
    "replay": ("env_weight", "learned_weight", "episode_steps", "absorbing_ends"),  # reward.*, env.*
    "codec_training": ("seed",),  # seed
    "video_training": ("seed",),
    "videogpt_training": ("seed",),
    "reward_network": ("seed",),
    "diffuser": ("observation_dim", "action_dim"),  # the data
    "diffuser_training": ("seed",),
    "relative_training": ("seed",),
}
# Keys outside of sections.
SCALARS = {
    "train": "launch.settings:TrainSettings",
    "collect_trajectories": "launch.collect_trajectories:TrajectoryAmount",
}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _defaults(cls: Any, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in left_out or not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
            values[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def section_class(section: str, choice: str | None = None) -> Any:
    """The dataclass of a section.

    Args:
        section: Name of the section.
        choice: For a section of `CHOSEN`: which reward or bonus, or None for what all share.

    Raises:
        ValueError: if there is no such reward or bonus, naming the nearest one.
    """
    if section not in CHOSEN:
        return _load(DATACLASSES[section])
    return _load(CHOSEN[section][1])(choice).config_class if choice else _load(SHARED_BY_ALL[section])


def verb_defaults(verb: str, choices: Mapping[str, str | None]) -> dict[str, Any]:
    """Every key of a verb's sections with the dataclass default (the paper's value); the YAML goes on top.

    Args:
        verb: Name of the verb.
        choices: Section of `CHOSEN` -> which reward or bonus.
    """
    values = {
        section: _defaults(section_class(section, choices.get(section)), DERIVED.get(section, ()))
        for section in SECTIONS[verb]
    }
    if verb in SCALARS:
        values |= _defaults(_load(SCALARS[verb]))
    return values
