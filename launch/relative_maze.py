"""Relative rewards of mazes: the whole way from trajectories to a reward, and what that reward knows about the goal.

The experiment of section 5.1 of arXiv 2306.01804, on Gymnasium-Robotics' mazes: heatmaps of the reward, whether their
best place is the goal, and plans of the base diffuser steered towards it.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from omegaconf import DictConfig, OmegaConf

from actors.envs.pointmaze import Cell
from launch import cli
from launch.cli import UsageError, build
from launch.collect_trajectories import VERB as COLLECT_VERB
from launch.collect_trajectories import collect_into, data_settings, goal_name
from launch.diffuser_stage import diffuser_from
from launch.maze_evaluation import Evaluation, evaluate_goal, overview, weights_of
from launch.maze_report import table_text, write_tables
from launch.maze_settings import MazeSettings
from launch.paths import absolute_path
from launch.pretrain import choose_device
from launch.relative_settings import is_trained, trajectory_sections
from models.diffuser.diffuser import load_diffuser
from models.relative.config import SteeringConfig
from models.training_folder import SUMMARY_FILE
from models.trajectories import read_trajectories

# Seeds of the noise of heatmaps, of the starts and of the plans, apart from those of the trainings.
EVALUATION_SEED = 1_000_000


def settings_of(config: DictConfig) -> MazeSettings:
    """The section `maze`.

    Raises:
        UsageError: naming key, value and what is allowed.
    """
    return build(MazeSettings, OmegaConf.to_container(config.maze), "maze.")  # type: ignore[arg-type]


def evaluate(config: DictConfig) -> int:
    """Makes heatmaps, plans and tables of all goals whose rewards are trained.

    Raises:
        UsageError: if no reward is trained.
        FileNotFoundError: if the base's trajectories or diffuser are missing.
    """
    settings = settings_of(config)
    # A config.json alone is that of a training that is still on its way.
    trained = [goal for goal in settings.cells if (settings.reward(goal, "relative") / SUMMARY_FILE).exists()]
    if config.maze.goals is not None:
        trained = list(settings.cells)  # asked for by name: a missing one is an error
    if not trained:
        raise UsageError(
            f"no relative reward of {settings.task} in {settings.checkpoint_folder}/relative; train them all with "
            f"`python launch/relative.py all domain=maze maze.task={settings.task}`, or one with `relative.py train`"
        )
    device = choose_device(config.device)
    out = absolute_path(
        str(config.out) if config.out is not None else f"runs/relative/maze/{settings.task}", "out"
    )
    base, _ = load_diffuser(settings.diffuser(None), device)
    held_out = read_trajectories(settings.data(None)).split("validation")
    steering = build(SteeringConfig, config.steering, "steering.")
    shared = Evaluation(settings, steering, EVALUATION_SEED + int(config.seed), out, device, base, held_out)
    for goal in trained:
        weights_of(shared, goal)  # a missing model is said now, not after the goals before
    results = []
    for number, goal in enumerate(trained, 1):
        print(f"[maze] evaluating goal {goal_name(goal)} ({number} of {len(trained)})", flush=True)
        results.append(evaluate_goal(shared, goal))
    overview(shared, trained)
    facts = {
        "task": settings.task,
        "settings": asdict(settings),
        "steering": asdict(steering),
        "seed": int(config.seed),
        "command": list(config.overrides),
        "diffuser": base.config.__dict__ | {"multipliers": list(base.config.multipliers)},
    }
    print(table_text(write_tables(out, results, facts)))
    print(f"[maze] written: {out}", flush=True)
    return 0


def run_all(config: DictConfig) -> int:
    """Trajectories, base diffuser, expert diffusers, rewards, evaluation; finished stages are skipped.

    Raises:
        UsageError: for bad settings of any stage.
        ValueError: if a diffuser or a reward is finished with other settings.
    """
    settings = settings_of(config)
    trajectory_sections(config)
    device = choose_device(config.device)
    for goal in (None, *settings.cells):
        _collect(config, settings, goal)
    _train_diffuser(config, settings, None, device)
    for number, goal in enumerate(settings.cells, 1):
        print(f"[maze] goal {goal_name(goal)} ({number} of {len(settings.cells)})", flush=True)
        _train_diffuser(config, settings, goal, device)
        for objective in ("relative", "discriminator") if settings.discriminator else ("relative",):
            _train_reward(config, settings, goal, objective, device)
    return evaluate(config)


def _collect(config: DictConfig, settings: MazeSettings, goal: Cell | None) -> None:
    folder = settings.data(goal)
    if (folder / "index.json").exists():
        print(f"[maze] {folder} is there already", flush=True)
        return
    overrides = [f"preset={config.preset_name}", f"task={settings.task}", f"seed={config.seed}"]
    if settings.transitions is not None:
        overrides.append(f"transitions={settings.transitions}")
    if settings.workers is not None:
        overrides.append(f"workers={settings.workers}")
    if goal is not None:
        overrides += ["mode=expert", f"goal=[{goal[0]:g},{goal[1]:g}]"]
    wanted = data_settings(cli.compose(COLLECT_VERB, overrides))
    collect_into(wanted, folder)


def _train_diffuser(
    config: DictConfig, settings: MazeSettings, goal: Cell | None, device: torch.device
) -> None:
    folder = settings.diffuser(goal)
    chosen = config if goal is None else _of_an_expert(config, settings)
    if is_trained(folder, "maze", trajectory_sections(chosen).of_a_diffuser()):
        return
    base = None if goal is None else settings.diffuser(None)
    diffuser_from(chosen, read_trajectories(settings.data(goal)), folder, base, device)


def _of_an_expert(config: DictConfig, settings: MazeSettings) -> DictConfig:
    """The configuration with what an expert's diffuser does in another way than the base's."""
    own: dict[str, int | bool] = {"initialise_from_base": settings.init_from_base}
    if settings.expert_train_steps is not None:
        own["train_steps"] = settings.expert_train_steps
    expert = OmegaConf.merge(config, {"diffuser_training": own})
    assert isinstance(expert, DictConfig)
    return expert


def _train_reward(
    config: DictConfig, settings: MazeSettings, goal: Cell, objective: str, device: torch.device
) -> None:
    from launch.relative import reward_from

    folder = settings.reward(goal, objective)
    chosen = OmegaConf.merge(config, {"relative_training": {"objective": objective}})
    assert isinstance(chosen, DictConfig)
    base, expert = settings.diffuser(None), settings.diffuser(goal)
    if not is_trained(folder, "maze", trajectory_sections(chosen).of_a_reward(base, expert)):
        reward_from(chosen, base, expert, folder, device)
