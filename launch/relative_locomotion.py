"""Relative rewards of HalfCheetah, Hopper and Walker2d: from SAC's trajectories to the table of steered returns.

The experiment of section 5.2 of arXiv 2306.01804: the base diffuser plans, one plan per environment step, unsteered,
steered by a discriminator, and steered by the relative reward. Scale and last pushed step of both are tuned on rollouts
of their own.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from actors.envs.locomotion import LOCOMOTION_TASKS
from launch import cli
from launch.cli import UsageError, build, suggest
from launch.diffuser_stage import diffuser_from
from launch.locomotion_data import VERB as COLLECT_VERB
from launch.locomotion_data import LocomotionDataConfig, collect_locomotion, reference_steps
from launch.locomotion_evaluation import (
    PHASE_SEEDS,
    Cell,
    CellFile,
    Models,
    References,
    Rollouts,
    best_cells,
    difference,
    grid,
    measure,
    reported,
    summary_rows,
    table_text,
)
from launch.paths import absolute_path
from launch.pretrain import choose_device
from launch.relative_settings import is_trained, trajectory_sections
from models.checkpoints import WEIGHTS_FILE
from models.diffuser.diffuser import load_diffuser
from models.files import write_atomic, write_json
from models.relative.config import SteeringConfig
from models.relative.reward import load_relative_reward, require_pair_of_reward
from models.trajectories import read_trajectories

STEERED = ("discriminator", "relative")


@dataclass(frozen=True)
class LocomotionSettings:
    """Section `locomotion`. Defaults: the paper's number of rollouts and full episodes.

    Attributes:
        task: "halfcheetah", "hopper" or "walker2d".
        data_folder: Where data/<task>/base and expert are.
        checkpoint_folder: Where diffusers and rewards are.
        rollouts: Of each reported planner, at least 1.
        episode_steps: Time limit of the reported rollouts; the data has references of the score for multiples of 50.
        tune_rollouts: Of each cell of the grid; 0 takes scale and stop_steps of the section `steering` for both rewards.
        tune_episode_steps: Time limit of these, likewise.
        scales: Of the grid.
        stop_steps: Of the grid: below this diffusion step nothing is pushed.
        lockstep: Rollouts, of all planners, whose plans are one batch of the network, at least 1.
    """

    task: str = "halfcheetah"
    data_folder: str = "data"
    checkpoint_folder: str = "checkpoints"
    rollouts: int = 512
    episode_steps: int = 1000
    tune_rollouts: int = 64
    tune_episode_steps: int = 1000
    scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0)
    stop_steps: tuple[int, ...] = (0, 5, 10)
    lockstep: int = 128

    def __post_init__(self) -> None:
        if self.task not in LOCOMOTION_TASKS:
            raise ValueError(f"unknown task {self.task!r}; {suggest(self.task, LOCOMOTION_TASKS)}")
        for key in ("rollouts", "episode_steps", "tune_episode_steps", "lockstep"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.tune_rollouts < 0:
            raise ValueError(f"tune_rollouts must not be negative, got {self.tune_rollouts}")
        if self.tune_rollouts and not (self.scales and self.stop_steps):
            raise ValueError("scales and stop_steps must hold a value each; tune_rollouts=0 turns tuning off")
        if any(not scale > 0 for scale in self.scales) or any(step < 0 for step in self.stop_steps):
            raise ValueError(
                f"scales must be above 0 and stop_steps 0 or more, got {self.scales} and {self.stop_steps}"
            )

    def data(self, mode: str) -> Path:
        """Folder of the "base" or "expert" trajectories."""
        return absolute_path(f"{self.data_folder}/{self.task}/{mode}", "locomotion.data_folder")

    def diffuser(self, mode: str) -> Path:
        """Folder of the "base" or "expert" diffuser."""
        return absolute_path(f"{self.checkpoint_folder}/diffuser/{self.task}/{mode}", "checkpoint_folder")

    def reward(self, objective: str) -> Path:
        """Folder of the "relative" reward or the "discriminator"."""
        return absolute_path(f"{self.checkpoint_folder}/{objective}/{self.task}", "checkpoint_folder")

    def references(self, extra: Mapping[str, Any]) -> dict[str, References]:
        """References of the rollouts of each phase that is played, from the index of the data.

        Raises:
            UsageError: if the data has none for so many steps.
        """
        found = {"report": References.of_the_data(extra, self.episode_steps, "locomotion.episode_steps")}
        if self.tune_rollouts:
            key = "locomotion.tune_episode_steps"
            found["tune"] = References.of_the_data(extra, self.tune_episode_steps, key)
        return found


def settings_of(config: DictConfig) -> LocomotionSettings:
    """The section `locomotion`.

    Raises:
        UsageError: naming key, value and what is allowed.
    """
    return build(LocomotionSettings, OmegaConf.to_container(config.locomotion), "locomotion.")  # type: ignore[arg-type]


def evaluate(config: DictConfig) -> int:
    """Tunes the steering, plays the reported rollouts, and writes tables; cells that are there are not played again.

    Raises:
        UsageError: if results in the folder come from other settings.
        FileNotFoundError: if a model or the data is missing.
    """
    settings = settings_of(config)
    device = choose_device(config.device)
    steering = build(SteeringConfig, config.steering, "steering.")
    extra = read_trajectories(settings.data("expert")).index["extra"]
    references = settings.references(extra)
    models, facts = load_models(settings, device)
    out = absolute_path(config.out or f"runs/relative/locomotion/{settings.task}", "out")
    out.mkdir(parents=True, exist_ok=True)
    facts |= {"task": settings.task, "seed": int(config.seed), "units": steering.units}
    facts |= {name: getattr(settings, name) for name in ("rollouts", "episode_steps", "lockstep")}
    facts |= {name: getattr(settings, name) for name in ("tune_rollouts", "tune_episode_steps")}
    cells = CellFile(out / "cells.json", facts)

    chosen, tuned = choose_steering(settings, steering, models, cells, int(config.seed))
    rollouts = Rollouts(settings.rollouts, settings.episode_steps, settings.lockstep)
    final = [Cell("report", "unsteered"), *chosen, Cell("report", "expert")]
    play(final, settings.task, models, rollouts, cells, int(config.seed))
    rows = summary_rows(final, cells.results(), references["report"])
    tuning = summary_rows(tuned, cells.results(), references["tune"]) if tuned else []
    write_results(out, rows, tuning, references["report"], config, cells)
    print(table_text(rows))
    print(verdict(cells, chosen, references["report"]))
    print(f"[locomotion] written: {out}", flush=True)
    return 0


def load_models(settings: LocomotionSettings, device: torch.device) -> tuple[Models, dict[str, Any]]:
    """Both diffusers and both rewards, and digests of their weights, which results depend on.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if a reward was trained from other diffusers.
    """
    folders = {mode: settings.diffuser(mode) for mode in ("base", "expert")}
    base, _ = load_diffuser(folders["base"], device)
    expert, _ = load_diffuser(folders["expert"], device)
    rewards = {}
    for objective in STEERED:
        folders[objective] = settings.reward(objective)
        rewards[objective], made = load_relative_reward(folders[objective], device)
        require_pair_of_reward(folders[objective], made, folders["base"], folders["expert"])
    return Models(base, expert, rewards), {name: _digest(folder) for name, folder in folders.items()}


def _digest(folder: Path) -> str:
    """Of a model's weights: a model that was trained again is another one."""
    return hashlib.blake2b((folder / WEIGHTS_FILE).read_bytes(), digest_size=8).hexdigest()


def choose_steering(
    settings: LocomotionSettings, steering: SteeringConfig, models: Models, cells: CellFile, seed: int
) -> tuple[list[Cell], list[Cell]]:
    """The reported cell of each reward: the best of the grid on the tuning rollouts, or the configured one.

    Returns:
        Cells to report, and all cells that were tuned on.
    """
    if not settings.tune_rollouts:
        return [Cell("report", method, steering) for method in STEERED], []
    rollouts = Rollouts(settings.tune_rollouts, settings.tune_episode_steps, settings.lockstep)
    wanted = grid(STEERED, settings.scales, settings.stop_steps, steering.units)
    tuned = [Cell("tune", "unsteered"), *wanted]
    play(tuned, settings.task, models, rollouts, cells, seed)
    best = best_cells(cells.results(), wanted)
    return [reported(best[method]) for method in STEERED], tuned


def play(
    wanted: Sequence[Cell], task: str, models: Models, rollouts: Rollouts, cells: CellFile, seed: int
) -> None:
    """Plays the cells that have no result yet."""
    missing = [cell for cell in wanted if cells.get(cell.key) is None]
    if not missing:
        return
    print(
        f"[locomotion] {len(missing)} planners, {rollouts.count} rollouts each of at most {rollouts.episode_steps} steps",
        flush=True,
    )
    results = measure(missing, task, models, rollouts, seed)
    cells.put(results)
    for cell in missing:
        found = results[cell.key]
        mean = sum(found["returns"]) / len(found["returns"])
        print(
            f"[locomotion] {cell.key}: return {mean:,.1f}, {found['plans']:,} plans at {found['plans_per_s']:,.0f}/s",
            flush=True,
        )


def verdict(cells: CellFile, chosen: Sequence[Cell], references: References) -> str:
    """What the rollouts say about the relative reward, in a sentence per comparison."""
    found = {cell.method: cells.results()[cell.key]["returns"] for cell in chosen}
    found["unsteered"] = cells.results()["report/unsteered"]["returns"]
    lines = []
    for other in ("unsteered", "discriminator"):
        gap, error = difference(found["relative"], found[other], references)
        word = (
            "better than" if gap > 2 * error else "worse than" if gap < -2 * error else "not told apart from"
        )
        lines.append(
            f"relative reward {word} {other}: {gap:+.2f} +- {error:.2f} points of the normalised score (mean and "
            "standard error of the differences, 2 standard errors decide)"
        )
    return "\n".join(lines)


def write_results(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    tuning: Sequence[Mapping[str, Any]],
    references: References,
    config: DictConfig,
    cells: CellFile,
) -> None:
    """Writes table.csv, grid.csv (of the tuning) and evaluation.json, in place of those of an earlier evaluation."""
    _write_csv(out / "table.csv", rows)
    if tuning:
        _write_csv(out / "grid.csv", tuning)
    write_json(
        out / "evaluation.json",
        {
            "command": ["launch/relative.py", *config.overrides],
            "random_return": references.random_return,
            "expert_return": references.expert_return,
            "seed": int(config.seed),
            "settings": cells.settings,
            "seed_bases": {phase: base + int(config.seed) for phase, base in PHASE_SEEDS.items()},
            "table": list(rows),
            "cells": cells.results(),
        },
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def run_all(config: DictConfig) -> int:
    """Training of SAC, both sets of trajectories, both diffusers, both rewards, evaluation; what is there is kept.

    Raises:
        UsageError: for bad settings of any stage.
        ValueError: if a diffuser or a reward is finished with other settings.
    """
    settings = settings_of(config)
    _check_before_the_first_stage(config, settings)
    device = choose_device(config.device)
    for mode in ("base", "expert"):
        if not _is_collected(settings.data(mode)) and _collect(config, settings, mode):
            return 1
    for mode in ("base", "expert"):
        folder = settings.diffuser(mode)
        if not is_trained(folder, "locomotion", trajectory_sections(config).of_a_diffuser()):
            base = None if mode == "base" else settings.diffuser("base")
            diffuser_from(config, read_trajectories(settings.data(mode)), folder, base, device)
    for objective in STEERED:
        _train_reward(config, settings, objective, device)
    return evaluate(config)


def _check_before_the_first_stage(config: DictConfig, settings: LocomotionSettings) -> None:
    """Finds what the evaluation would refuse after hours of training.

    Raises:
        UsageError: for bad values of any section, a diffuser that cannot plan step by step, or rollouts of so many
            steps that the data has no references, or would have none.
    """
    diffuser = trajectory_sections(config).diffuser
    if diffuser.given_steps != (0,):
        raise UsageError(
            f"diffuser.conditioning={diffuser.conditioning!r}: planning step by step needs 'first'"
        )
    data = build(LocomotionDataConfig, config.locomotion_data, "locomotion_data.")
    expert = settings.data("expert")
    if (expert / "index.json").exists():
        settings.references(read_trajectories(expert).index["extra"])
        return
    steps = reference_steps(data.episode_steps)
    zeros, ones = [0.0] * len(steps), [1.0] * len(steps)
    settings.references({"reference_curve": {"steps": steps, "random": zeros, "expert": ones}})


def _is_collected(folder: Path) -> bool:
    if not (folder / "index.json").exists():
        return False
    print(f"[locomotion] {folder} is there already", flush=True)
    return True


def _collect(config: DictConfig, settings: LocomotionSettings, mode: str) -> int:
    chosen = [f"preset={config.preset_name}", f"task={settings.task}", f"mode={mode}", f"seed={config.seed}"]
    wanted = cli.compose(COLLECT_VERB, [*chosen, cli.path_override("out", settings.data(mode))])
    wanted.locomotion_data = config.locomotion_data
    return collect_locomotion(wanted)


def _train_reward(
    config: DictConfig, settings: LocomotionSettings, objective: str, device: torch.device
) -> None:
    from launch.relative import reward_from

    folder = settings.reward(objective)
    chosen = OmegaConf.merge(config, {"relative_training": {"objective": objective}})
    assert isinstance(chosen, DictConfig)
    base, expert = settings.diffuser("base"), settings.diffuser("expert")
    if not is_trained(folder, "locomotion", trajectory_sections(chosen).of_a_reward(base, expert)):
        reward_from(chosen, base, expert, folder, device)
