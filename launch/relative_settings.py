"""The sections that mazes and locomotion share: checked before the first stage, and against what is trained already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from launch.cli import UsageError, build
from models.checkpoints import require_same_config
from models.diffuser.config import DiffuserConfig, DiffuserTrainingConfig
from models.files import read_json
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig, SteeringConfig
from models.relative.networks import trajectory_network
from models.relative.reward import pair_weights
from models.training_folder import SETTINGS_FILE, SUMMARY_FILE


class TrajectorySections(NamedTuple):
    """What the stages after the trajectories are done with.

    Attributes:
        diffuser: Sizes; the lengths of observations and actions are the data's and stand at their defaults here.
        diffuser_training: Of the base.
        reward: Network of the reward.
        reward_training: Of the reward.
        steering: Of the evaluation.
    """

    diffuser: DiffuserConfig
    diffuser_training: DiffuserTrainingConfig
    reward: RelativeRewardConfig
    reward_training: RelativeTrainingConfig
    steering: SteeringConfig

    def of_a_diffuser(self) -> dict[str, dict[str, Any]]:
        """What `training.json` of a diffuser holds of them."""
        model = {k: v for k, v in asdict(self.diffuser).items() if k not in ("observation_dim", "action_dim")}
        return {"training": asdict(self.diffuser_training), "model": model}

    def of_a_reward(self, base: Path, expert: Path) -> dict[str, dict[str, Any]]:
        """What `training.json` of a reward of these diffusers holds of them."""
        sections = {"training": asdict(self.reward_training), "model": asdict(self.reward)}
        return {**sections, "weights": pair_weights(base, expert)}


def trajectory_sections(config: DictConfig) -> TrajectorySections:
    """All sections; what is wrong in the last stage's is found before the hours of the first.

    Raises:
        UsageError: naming the key, the value and what is allowed.
    """
    seed = {"seed": config.seed}
    sections = TrajectorySections(
        build(DiffuserConfig, config.diffuser, "diffuser."),
        build(DiffuserTrainingConfig, {**config.diffuser_training, **seed}, "diffuser_training."),
        build(RelativeRewardConfig, config.relative_reward, "relative_reward."),
        build(RelativeTrainingConfig, {**config.relative_training, **seed}, "relative_training."),
        build(SteeringConfig, config.steering, "steering."),
    )
    try:
        trajectory_network(sections.reward, sections.diffuser.horizon, sections.diffuser.transition_dim)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return sections


def is_trained(
    folder: Path, label: str, wanted: Mapping[str, Mapping[str, Any]], words: str = "there already"
) -> bool:
    """Whether a training is finished, so that `all` takes it as it is; says so.

    Args:
        folder: Training folder.
        label: Of the line that says so.
        wanted: What is asked for, by section of `training.json`. Keys that it does not hold, because it is of an
            earlier version, are not compared.
        words: What that line says of the folder.

    Raises:
        ValueError: if it was trained with other settings, naming each key.
    """
    if not (folder / SUMMARY_FILE).exists():
        return False
    saved = read_json(folder / SETTINGS_FILE)
    common = {name: saved.get(name, {}).keys() & values.keys() for name, values in wanted.items()}
    require_same_config(
        {name: {key: saved[name][key] for key in keys} for name, keys in common.items()},
        {name: {key: wanted[name][key] for key in keys} for name, keys in common.items()},
        folder,
    )
    print(f"[{label}] {folder} is {words}", flush=True)
    return True
