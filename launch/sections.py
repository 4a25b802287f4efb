"""Which config sections a verb has, and the dataclass that gives each its keys and defaults."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

DATACLASSES = {
    "env": "actors.envs.registry:EnvConfig",
    "codec": "models.vqgan:VQGANConfig",
    "codec_training": "models.codec_config:CodecTrainingConfig",
    "video": "models.vqdiffusion.config:VQDiffusionConfig",
    "video_training": "models.video_training_config:VideoTrainingConfig",
    "frame_reward": "reward_service.config:DiffusionRewardConfig",
    "reward": "launch.settings:RewardSettings",
    "agent": "learner.drqv2:DrQV2Config",
    "bonus": "learner.bonus:BonusConfig",
    "replay": "learner.replay:ReplayConfig",
    "learner": "learner.learner_core:LearnerConfig",
    "limiter": "learner.limiter:UpdateRatioLimiter",
    "rollout": "launch.settings:RolloutSettings",
    "cluster": "launch.settings:ClusterSettings",
}
SECTIONS = {
    "collect": ("env",),
    "pretrain": ("env", "codec", "codec_training", "video", "video_training", "frame_reward"),
    "score": ("env", "frame_reward"),
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
    "evaluate": (),
    "demo": ("env",),
}
# Keys whose value follows from others; they are not offered on the command line.
DERIVED = {
    "bonus": ("weight",),  # reward.alpha
    "replay": ("env_weight", "learned_weight", "episode_steps"),  # reward.*, env.episode_steps
    "codec_training": ("seed",),  # seed
    "video_training": ("seed",),
}
TRAIN_SCALARS = "launch.settings:TrainSettings"


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


def verb_defaults(verb: str) -> dict[str, Any]:
    """Every key of a verb's sections with the dataclass default (the paper's value); the YAML goes on top."""
    values = {s: _defaults(_load(DATACLASSES[s]), DERIVED.get(s, ())) for s in SECTIONS[verb]}
    if verb == "train":
        values |= _defaults(_load(TRAIN_SCALARS))
    return values
