"""`pretrain.py stage=diffuser`: a diffuser of a folder of trajectories, as a base or as the expert of a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from launch import cli
from launch.cli import UsageError, build
from launch.paths import absolute_path
from launch.progress import LastValues
from models.diffuser.config import DiffuserConfig, DiffuserTrainingConfig
from models.diffuser.diffuser_training import train_diffuser
from models.trajectories import TrajectorySet, read_trajectories

DEFAULT_FAMILY = "maze2d"
# First word of a task -> the family of sizes and hyperparameters in configs/family.
FAMILIES = {"pointmaze": "maze2d", "halfcheetah": "halfcheetah", "hopper": "hopper", "walker2d": "walker2d"}


def family_of(task: str) -> str:
    """Family of a task: "pointmaze-large" -> "maze2d", "Hopper-v5" -> "hopper"."""
    return FAMILIES.get(task.lower().partition("-")[0], DEFAULT_FAMILY)


def with_family_of_the_data(overrides: list[str]) -> list[str]:
    """Puts the family of the trajectories in `data` in front, unless one is given or the stage is another."""
    given = dict(o.partition("=")[::2] for o in overrides)
    if given.get("stage") != "diffuser" or "family" in given:
        return overrides
    data_folder = cli.read_value(f"data={given.get('data', 'null')}")
    if data_folder is None:
        raise UsageError(
            "stage=diffuser needs data=<folder of trajectories>, as `launch/collect.py` makes them"
        )
    data = read_trajectories(absolute_path(data_folder, "data"))
    return [f"family={family_of(data.index['task'])}", *overrides]


def default_folder(data: TrajectorySet) -> str:
    """checkpoints/diffuser/<task>/<mode>, with the goal where there is one: expert-3-6."""
    goal = data.index["goal"]
    name = data.index["mode"] if goal is None else f"{data.index['mode']}-{goal_name(goal)}"
    return f"checkpoints/diffuser/{data.index['task']}/{name}"


def goal_name(goal: Any) -> str:
    """Goals in names of folders: (3, 6) -> "3-6", (1.3, 2.7) -> "1.3-2.7"."""
    return "-".join(f"{value:g}" for value in goal)


def train_diffuser_stage(config: DictConfig, device: torch.device) -> Path:
    """Trains the diffuser that the config describes.

    Returns:
        Its folder.

    Raises:
        UsageError: for bad settings.
        FileNotFoundError: if trajectories or the base are missing.
    """
    data = read_trajectories(absolute_path(str(config.data), "data"))
    out = absolute_path(str(config.out) if config.out is not None else default_folder(data), "out")
    base = None if config.base is None else absolute_path(str(config.base), "base")
    return diffuser_from(config, data, out, base, device)


def diffuser_from(
    config: DictConfig, data: TrajectorySet, out: Path, base: Path | None, device: torch.device
) -> Path:
    """Trains a diffuser of `data` into `out` with the sections `diffuser` and `diffuser_training`, and says so.

    Args:
        config: With these sections and `seed`.
        data: Trajectories.
        out: Folder; an unfinished one is resumed.
        base: Folder of the base diffuser of an expert, or None.
        device: Where to train.

    Returns:
        `out`.
    """
    training = build(
        DiffuserTrainingConfig, {**config.diffuser_training, "seed": config.seed}, "diffuser_training."
    )
    sizes = {
        **config.diffuser,
        "observation_dim": data.index["observation_dim"],
        "action_dim": data.index["action_dim"],
    }
    model = build(DiffuserConfig, sizes, "diffuser.")
    counts = ", ".join(f"{len(data.split(s))} {s}" for s in ("train", "validation"))
    print(
        f"[diffuser] {data.index['task']}: {counts} {data.index['mode']} trajectories, "
        f"{data.index['transitions']:,} transitions",
        flush=True,
    )
    shown = LastValues("diffuser", ("loss", "validation_loss", "learning_rate"))
    summary = train_diffuser(training, model, data, out, device, shown, base=base)
    print(f"[diffuser] {summary}", flush=True)
    return out
