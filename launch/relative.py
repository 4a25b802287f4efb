"""Extracts a reward from two diffusion models, a base and an expert, looks at it and steers with it (arXiv 2306.01804).

    python launch/relative.py all                                  (a toy in two dimensions, about a minute)
    python launch/relative.py all domain=maze                      (trajectories, diffusers, rewards, evaluation)
    python launch/relative.py all domain=locomotion
    python launch/relative.py all domain=images
    python launch/relative.py train domain=maze base=checkpoints/diffuser/pointmaze-large/base \\
        expert=checkpoints/diffuser/pointmaze-large/expert-3-6
    python launch/relative.py evaluate domain=maze

`train` trains a reward, or with relative_training.objective=discriminator the baseline; `evaluate` makes the domain's
tables and pictures; `all` does every stage and skips what is finished.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig

from launch import cli
from launch.cli import UsageError, build, group_options, suggest
from launch.diffuser_stage import DEFAULT_FAMILY, family_of, goal_name
from launch.paths import absolute_path
from launch.pretrain import choose_device
from launch.progress import LastValues
from models.checkpoints import load_checkpoint_config
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig
from models.relative.relative_training import train_relative_reward
from models.trajectories import TrajectorySet, read_trajectories

ACTIONS = ("train", "evaluate", "all")
# Domain -> its module, with `evaluate(config) -> int` and `run_all(config) -> int`; one that has `train(config) -> int`
# trains in its own way. Imported only when asked for: simulators are heavy.
DOMAINS = {
    "toy": "launch.relative_toy",
    "maze": "launch.relative_maze",
    "locomotion": "launch.relative_locomotion",
    "images": "launch.relative_images",
}
DEFAULT_DOMAIN = "toy"


def main() -> None:
    """Entry point of `python launch/relative.py`."""
    cli.main("relative", __doc__ or "", relative, with_action_and_family)


def with_action_and_family(overrides: list[str]) -> list[str]:
    """Turns the first word into `action=`, `task=` into the domain's, and puts the family of the task in front.

    A family that is given stays.

    Raises:
        UsageError: if the first word is no action.
    """
    overrides = list(overrides)
    if overrides and "=" not in overrides[0]:
        if overrides[0] not in ACTIONS:
            raise UsageError(f"unknown action {overrides[0]!r}; {suggest(overrides[0], ACTIONS)}")
        overrides[0] = f"action={overrides[0]}"
    given = dict(o.partition("=")[::2] for o in overrides)
    domain = given.get("domain", DEFAULT_DOMAIN)
    # A domain's task is a key of its section; `task=` says the same in short.
    overrides = [f"{domain}.{o}" if o.startswith("task=") else o for o in overrides]
    given = dict(o.partition("=")[::2] for o in overrides)
    return overrides if "family" in given else [f"family={_family(given)}", *overrides]


def _family(given: Mapping[str, str]) -> str:
    domain = given.get("domain", DEFAULT_DOMAIN)
    task = given.get(f"{domain}.task")
    base = cli.read_value(f"base={given.get('base', 'null')}")
    if task is None and base is not None and domain in ("maze", "locomotion"):
        task = load_checkpoint_config(absolute_path(base, "base"), "diffuser")["task"]
    if task is not None:
        return family_of(task)
    if domain in group_options("family"):
        return domain
    return "halfcheetah" if domain == "locomotion" else DEFAULT_FAMILY


def relative(config: DictConfig) -> int:
    """Runs the action in the domain.

    Raises:
        UsageError: for an unknown action or domain, or a key that the action does not read.
    """
    if config.action not in ACTIONS:
        raise UsageError(f"unknown action {config.action!r}; {suggest(str(config.action), ACTIONS)}")
    if config.threads is not None:
        torch.set_num_threads(int(config.threads))
    domain = domain_module(str(config.domain))
    _require_only_its_own_keys(config)
    if config.action == "all":
        return int(domain.run_all(config))
    if config.action == "evaluate":
        return int(domain.evaluate(config))
    if hasattr(domain, "train"):
        return int(domain.train(config))
    return train(config)


def _require_only_its_own_keys(config: DictConfig) -> None:
    """Refuses models and data that only `train` of trajectories takes, where they would be left unread.

    Raises:
        UsageError: naming the first such key.
    """
    # images reads `base` in every action, and refuses `expert` itself
    if config.domain == "images" or (config.action == "train" and config.domain != "toy"):
        return
    for key in ("base", "expert", "base_data", "expert_data"):
        if config[key] is not None:
            raise UsageError(
                f"{key}= is for `relative.py train domain=maze|locomotion`; {config.action} domain={config.domain} does "
                f"not read it: leave it out (--cfg lists the keys of the section {config.domain})"
            )


def domain_module(name: str) -> ModuleType:
    """The module of a domain.

    Raises:
        UsageError: for an unknown one.
    """
    if name not in DOMAINS:
        raise UsageError(f"unknown domain {name!r}; {suggest(name, DOMAINS)}")
    return importlib.import_module(DOMAINS[name])


def train(config: DictConfig) -> int:
    """Trains a reward of trajectories from the diffusers in `base` and `expert`.

    Raises:
        UsageError: if one is not given, or for bad settings.
        FileNotFoundError: if a model or its trajectories are missing.
    """
    folders = {}
    for key in ("base", "expert"):
        if config[key] is None:
            raise UsageError(
                f"relative.py train needs {key}=<folder of a diffuser>; train one with "
                "`python launch/pretrain.py stage=diffuser data=<folder>`, or run `relative.py all`"
            )
        folders[key] = absolute_path(str(config[key]), key)
    out = config.out if config.out is not None else default_folder(config, folders["expert"])
    reward_from(
        config,
        folders["base"],
        folders["expert"],
        absolute_path(str(out), "out"),
        choose_device(config.device),
    )
    return 0


def default_folder(config: DictConfig, expert: Path) -> str:
    """checkpoints/<objective>/<task>, with the expert's goal where it has one."""
    facts = load_checkpoint_config(expert, "diffuser")
    goal = "" if facts["goal"] is None else f"-{goal_name(facts['goal'])}"
    return f"checkpoints/{config.relative_training.objective}/{facts['task']}{goal}"


def reward_from(config: DictConfig, base: Path, expert: Path, out: Path, device: torch.device) -> Path:
    """Trains a reward with the sections `relative_reward` and `relative_training`, and says so.

    Args:
        config: With these sections, `seed`, and, where they are wanted, `base_data` and `expert_data`.
        base: Folder of the base diffuser.
        expert: Folder of the expert diffuser.
        out: Folder of the reward; an unfinished one is resumed.
        device: Where to train.

    Returns:
        `out`.
    """
    training = build(
        RelativeTrainingConfig, {**config.relative_training, "seed": config.seed}, "relative_training."
    )
    network = build(RelativeRewardConfig, config.relative_reward, "relative_reward.")
    label = "reward" if training.objective == "relative" else training.objective
    print(f"[{label}] base {base}, expert {expert}", flush=True)
    shown = LastValues(label, ("loss", "validation_loss", "explained", "accuracy"))
    data: dict[str, Any] = {key: _trajectories(config.get(key), key) for key in ("base_data", "expert_data")}
    summary = train_relative_reward(training, network, base, expert, out, device, shown, **data)
    print(f"[{label}] done: {out} {summary}", flush=True)
    return out


def _trajectories(folder: str | None, key: str) -> TrajectorySet | None:
    return None if folder is None else read_trajectories(absolute_path(str(folder), key))


if __name__ == "__main__":
    main()
