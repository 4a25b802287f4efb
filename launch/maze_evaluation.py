"""What the reward of one goal in a maze is worth: heatmaps, the goal's rank, and steered plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.envs.pointmaze import Cell, maze_layout
from launch.cli import UsageError
from launch.collect_trajectories import goal_name
from launch.maze_heatmap import Heatmap, Judgement, heatmap, judge, maze_windows, window_rewards
from launch.maze_pictures import draw_heatmaps, draw_plans
from launch.maze_report import TIMES
from launch.maze_settings import MazeSettings
from launch.maze_steering import plan_cells, plans, random_starts, score_plans
from models.checkpoints import WEIGHTS_FILE, load_checkpoint_config
from models.diffuser.diffuser import KIND as DIFFUSER_KIND
from models.diffuser.diffuser import Diffuser, load_diffuser
from models.files import checksum, read_json, write_json
from models.relative.config import SteeringConfig
from models.relative.reward import KIND as REWARD_KIND
from models.relative.reward import RelativeReward, load_relative_reward, require_pair_of_reward
from models.relative.steering import reward_push
from models.trajectories import TrajectorySet

RESULT_FILE = "result.json"
PLANS_IN_PICTURE = 24
# Of a reward's checkpoint: steps, share of the squared gradient explained (relative), accuracy (discriminator).
TRAINING_FACTS = ("trained_steps", "explained", "accuracy")


@dataclass(frozen=True)
class Evaluation:
    """What all goals of an evaluation share.

    Attributes:
        settings: Maze, folders and sizes of heatmaps.
        steering: How plans are steered.
        seed: Of noise and starts.
        out: Folder of the results.
        device: Where models run.
        base: Base diffuser.
        held_out: Validation split of the base's trajectories.
    """

    settings: MazeSettings
    steering: SteeringConfig
    seed: int
    out: Path
    device: torch.device
    base: Diffuser
    held_out: TrajectorySet


def evaluate_goal(shared: Evaluation, goal: Cell) -> dict[str, Any]:
    """Everything about one goal, into its own folder; one that is done is read again.

    Returns:
        `goal`, `trainings`: reward -> how well it was learned, `heatmaps`: reward -> "band" | "zero" -> judgement, `plans`: whose -> scores.

    Raises:
        UsageError: if it was done with other settings, or its models were trained again since.
        FileNotFoundError: if a model is missing.
    """
    folder = shared.out / goal_name(goal)
    made_with = {"settings": _facts_of(shared), "seed": shared.seed, "weights": weights_of(shared, goal)}
    if (folder / RESULT_FILE).exists():
        result = read_json(folder / RESULT_FILE)
        # A result from before the weights were remembered is taken to be of these.
        before = {"weights": made_with["weights"], **result.get("made_with", {})}
        different = [key for key, value in made_with.items() if before.get(key) != value]
        if different:
            raise UsageError(
                f"{folder} was evaluated with other {' and '.join(different)}; nothing is overwritten, choose another out="
            )
        return result
    folder.mkdir(parents=True, exist_ok=True)
    rewards, trainings = _rewards(shared, goal)
    judged, places = {}, {}
    for name, reward in rewards.items():
        judged[name], places[name] = _heatmaps(shared, reward, goal)
    panels = {
        f"{name}, {'t > 0' if time == 'band' else 't = 0'}": (
            places[name][time],
            goal,
            judged[name][time].best,
        )
        for name in rewards
        for time in TIMES
    }
    layout = maze_layout(shared.settings.task)
    title = f"{shared.settings.task}: reward for goal {goal_name(goal)} (star); cross: best place"
    draw_heatmaps(folder / "heatmaps.png", layout, panels, title)
    values: dict[str, Any] = {f"{n}_{t}": places[n][t].values for n in rewards for t in TIMES}
    np.savez_compressed(folder / "heatmaps.npz", **values)
    result = {
        "goal": list(goal),
        "made_with": made_with,
        "trainings": trainings,
        "heatmaps": {n: {t: j[t]._asdict() for t in TIMES} for n, j in judged.items()},
        "plans": _plans(shared, rewards, goal, folder),
    }
    write_json(folder / RESULT_FILE, result)
    return result


def _facts_of(shared: Evaluation) -> dict[str, Any]:
    keys = ("task", "bins_per_cell", "heatmap_windows", "heatmap_times", "plans", "discriminator")
    values = {key: getattr(shared.settings, key) for key in keys} | {"steering": asdict(shared.steering)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def weights_of(shared: Evaluation, goal: Cell) -> dict[str, str]:
    """Checksums of all models that a result depends on: one that was trained again is another one.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if a reward was trained from other diffusers.
    """
    settings = shared.settings
    folders = {"base": settings.diffuser(None), "expert": settings.diffuser(goal)}
    load_checkpoint_config(folders["expert"], DIFFUSER_KIND)
    for name in _objectives(settings):
        folders[name] = settings.reward(goal, name)
        if name == "discriminator" and not (folders[name] / WEIGHTS_FILE).exists():
            raise FileNotFoundError(
                f"no discriminator at {folders[name]}: train it with `python launch/relative.py train domain=maze "
                "relative_training.objective=discriminator base=... expert=...`, or leave it out with "
                "maze.discriminator=false"
            )
        facts = load_checkpoint_config(folders[name], REWARD_KIND)
        require_pair_of_reward(folders[name], facts, folders["base"], folders["expert"])
    return {name: checksum(folder / WEIGHTS_FILE) for name, folder in folders.items()}


def _objectives(settings: MazeSettings) -> tuple[str, ...]:
    return ("relative", "discriminator") if settings.discriminator else ("relative",)


def _rewards(shared: Evaluation, goal: Cell) -> tuple[dict[str, RelativeReward], dict[str, dict[str, float]]]:
    """The trained rewards of a goal, and how well they were learned, on held-out windows."""
    rewards, trainings = {}, {}
    for name in _objectives(shared.settings):
        rewards[name], facts = load_relative_reward(shared.settings.reward(goal, name), shared.device)
        trainings[name] = {key: facts[key] for key in TRAINING_FACTS if key in facts}
    return rewards, trainings


def _heatmaps(
    shared: Evaluation, reward: RelativeReward, goal: Cell
) -> tuple[dict[str, Judgement], dict[str, Heatmap]]:
    settings, base, layout = shared.settings, shared.base, maze_layout(shared.settings.task)
    steps = reward.config.window_steps if reward.config.network == "mlp" else reward.horizon
    windows = maze_windows(shared.held_out, base, layout, steps, settings.heatmap_windows)
    last = base.config.num_steps - 1  # a time just below 1 would round to one step more
    band = tuple(sorted({min(round(time * (last + 1)), last) for time in settings.heatmap_times}))
    judged, places = {}, {}
    for time, diffusion_steps in zip(TIMES, (band, (0,))):
        values = window_rewards(reward, base, windows.x, diffusion_steps, shared.seed)
        places[time] = heatmap(values, windows.cells, layout, settings.bins_per_cell)
        judged[time] = judge(places[time], goal)
    return judged, places


def _plans(
    shared: Evaluation, rewards: Mapping[str, RelativeReward], goal: Cell, folder: Path
) -> dict[str, dict[str, float]]:
    """Plans of the base, of the base steered by each reward, and of the expert: scores, and a picture."""
    layout = maze_layout(shared.settings.task)
    starts = random_starts(shared.held_out, shared.settings.plans, shared.seed)
    expert, _ = load_diffuser(shared.settings.diffuser(goal), shared.device)
    sampled = {"base": plans(shared.base, starts, shared.seed)}
    for name, reward in rewards.items():
        push = reward_push(reward, shared.steering)
        sampled[f"base steered by {name}"] = plans(shared.base, starts, shared.seed, push)
    sampled["expert"] = plans(expert, starts, shared.seed)
    scores = {name: score_plans(layout, states, goal)._asdict() for name, states in sampled.items()}
    panels = {
        f"{name}: {scores[name]['at_goal']:.0%} at the goal": plan_cells(layout, states)[:PLANS_IN_PICTURE]
        for name, states in sampled.items()
    }
    title = f"{shared.settings.task}: plans from random starts, goal {goal_name(goal)} (star)"
    draw_plans(folder / "plans.png", layout, panels, goal, title)
    return scores


def overview(shared: Evaluation, goals: list[Cell]) -> None:
    """One picture with the relative reward's main heatmap of every goal."""
    panels = {}
    for goal in goals:
        folder = shared.out / goal_name(goal)
        judged = read_json(folder / RESULT_FILE)["heatmaps"]["relative"]["band"]
        with np.load(folder / "heatmaps.npz", allow_pickle=False) as saved:
            values = saved["relative_band"]
        places = Heatmap(values, np.zeros_like(values, np.int64), shared.settings.bins_per_cell)
        mark = "recovered" if judged["recovered"] else f"off by {judged['distance_cells']:.1f} cells"
        panels[f"goal {goal_name(goal)}: {mark}"] = (places, goal, tuple(judged["best"]))
    layout = maze_layout(shared.settings.task)
    title = f"{shared.settings.task}: relative reward by place; star: goal, cross: best place"
    draw_heatmaps(shared.out / "heatmaps.png", layout, panels, title)
