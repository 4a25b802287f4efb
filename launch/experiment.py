"""Runs an experiment: every task with every reward and every seed, by the same train.py, one after the other.

    python launch/experiment.py experiment=metaworld_laptop list=true
    python launch/experiment.py experiment=metaworld_laptop plan.tasks=[door-close] plan.seeds=[0]
    python launch/report.py     experiment=metaworld_laptop

Finished runs are skipped and interrupted ones go on, so the same command can be given again at any time. Models that the
rewards need are made first, where they are missing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf

from actors.envs.registry import task_names
from launch import cli
from launch.cli import UsageError, build, group_options, path_override, show, suggest
from launch.paths import absolute_path
from launch.run_folder import RunFolder
from launch.steps import run_step
from reward_service.statistics import is_complete


@dataclass(frozen=True)
class Plan:
    """One table: `configs/experiment/<name>.yaml`.

    Attributes:
        name: Of the experiment, as its file.
        title: Headline of its results.
        about: What is compared, a paragraph.
        tasks: Task names.
        rewards: Rewards; with keys of their own after the name, as on the command line.
        seeds: Of the runs, 0 or more each.
        train: Overrides of every run.
        own: Reward -> overrides of its runs.
        prepare: Reward -> the command (verb, then overrides) that makes its `reward.checkpoint` where it is missing. In
            both, {task} stands for the run's task.
    """

    name: str
    title: str
    about: str
    tasks: tuple[str, ...]
    rewards: tuple[str, ...]
    seeds: tuple[int, ...]
    train: tuple[str, ...] = ()
    own: Mapping[str, Any] | None = None
    prepare: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key in ("tasks", "rewards", "seeds", "train"):
            if not isinstance(getattr(self, key), tuple):
                raise ValueError(f"{key} must be a list: plan.{key}=[{getattr(self, key)}]")
        _require("tasks", self.tasks, task_names())
        _require("rewards", [str(reward).split()[0] for reward in self.rewards], group_options("reward"))
        if not self.seeds or any(type(seed) is not int or seed < 0 for seed in self.seeds):
            raise ValueError(f"seeds must be numbers of 0 or more, got {self.seeds}")
        for key in ("own", "prepare"):
            _require(key, [reward.split()[0] for reward in getattr(self, key) or {}], group_options("reward"))
        for reward in self.prepare or {}:
            self.checkpoint(reward)

    def checkpoint(self, reward: str, task: str = "{task}") -> str:
        """Folder of the model of a reward for a task.

        Raises:
            ValueError: if `own` does not say.
        """
        for override in (self.own or {}).get(reward, ()):
            key, _, folder = override.partition("=")
            if key == "reward.checkpoint":
                return str(folder).replace("{task}", task)
        raise ValueError(
            f"prepare has a command for {reward!r}, but own[{reward!r}] has no reward.checkpoint=..."
        )

    def runs(self) -> list[Run]:
        """Every run, seed by seed, so that a first seed of everything is there early."""
        return [
            Run(task, reward, seed) for seed, task, reward in product(self.seeds, self.tasks, self.rewards)
        ]

    def overrides(self, run: Run) -> list[str]:
        """What train.py is given, but for the folder."""
        name, *keys = run.reward.split()
        own = [str(o).replace("{task}", run.task) for o in (self.own or {}).get(run.reward, ())]
        return [f"task={run.task}", f"reward={name}", f"seed={run.seed}", *self.train, *own, *keys]


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    reward: str
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of its run folder."""
        reward = self.reward.replace(" ", "_").replace("=", "-").replace("/", "-")
        return f"{self.task}_{reward}_seed{self.seed}"


def _require(key: str, values: Sequence[Any], valid: Sequence[str]) -> None:
    unknown = [value for value in values if value not in valid]
    if unknown:
        raise ValueError(f"{key} has {unknown[0]!r}; {suggest(str(unknown[0]), valid)}")
    if key in ("tasks", "rewards") and not values:
        raise ValueError(f"{key} is empty")


def main() -> None:
    """Entry point of `python launch/experiment.py`."""
    cli.main("experiment", __doc__ or "", run_experiment)


def plan_of(config: DictConfig) -> Plan:
    """The chosen experiment.

    Raises:
        UsageError: for a task, reward or key that does not exist.
    """
    values = OmegaConf.to_container(config.plan, resolve=True)
    assert isinstance(values, dict)
    return build(Plan, {str(key): value for key, value in values.items()}, "plan.")


def run_experiment(config: DictConfig) -> int:
    """Makes what is missing and does every run that is not finished.

    Returns:
        0 when all runs are finished, 1 if one of them failed or was stopped.

    Raises:
        UsageError: for a task, reward or key that does not exist.
        RuntimeError: if a model cannot be made.
    """
    plan = plan_of(config)
    root = absolute_path(f"{config.runs}/{plan.name}", "runs")
    runs = plan.runs()
    states = {run: state_of(root / run.folder_name) for run in runs}
    left = [run for run in runs if states[run] != "finished"]
    lines = [f"  {states[run]:<12} {run.folder_name}{begun_without(plan, run, root)}" for run in runs]
    show("\n".join([*lines, f"[experiment] {plan.name}: {len(left)} of {len(runs)} runs to do in {root}"]))
    if config.list or not left:
        return 0
    failed = []
    for number, run in enumerate(left, 1):
        folder = root / run.folder_name
        state = state_of(folder)  # somebody else may have done it meanwhile
        if state == "finished":
            show(f"[experiment] {run.folder_name} has been finished meanwhile")
            continue
        if state == "new":
            arguments = [*plan.overrides(run), *config.extra, path_override("out", folder)]
        else:
            arguments = [path_override("resume", folder), *config.extra]
        try:
            prepare(plan, run)
            run_step(f"run {number} of {len(left)}: {run.folder_name}", ["train", *arguments])
        except RuntimeError as error:
            failed.append(f"{run.folder_name}: {error}")
            continue
        if state_of(folder) != "finished":  # Ctrl-C or SIGTERM: train.py has saved and ended well.
            print(f"[experiment] stopped within {run.folder_name}; the same command goes on", flush=True)
            return 1
    for line in failed:
        print(f"[experiment] failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def begun_without(plan: Plan, run: Run, root: Path) -> str:
    """Which of the plan's overrides a run was begun without, to be said beside it; empty if it has them all."""
    if state_of(root / run.folder_name) == "new":
        return ""
    begun = RunFolder(root / run.folder_name).config().get("overrides")
    absent = [] if begun is None else [o for o in plan.overrides(run) if o not in begun]
    return f"   WARNING: begun without {' '.join(absent)}" if absent else ""


def prepare(plan: Plan, run: Run) -> None:
    """Makes the reward model of a run, if the plan says how and it is missing or was cut off.

    Raises:
        RuntimeError: if it cannot be made.
    """
    if run.reward not in (plan.prepare or {}):
        return
    checkpoint = plan.checkpoint(run.reward, run.task)
    if not is_complete(absolute_path(checkpoint, "reward.checkpoint")):
        command = str(plan.prepare[run.reward]).replace("{task}", run.task)
        run_step(f"making {checkpoint}", shlex.split(command))


def state_of(path: Path) -> str:
    """Of a run folder: "new", "interrupted" or "finished"."""
    if not (path / "config.yaml").is_file():
        return "new"
    folder = RunFolder(path)
    try:
        checkpoint = folder.latest_checkpoint(read_files=False)
    except UsageError:  # none is whole: train.py says so, and the other runs are done all the same
        checkpoint = None
    if checkpoint is None:
        return "interrupted"
    total = folder.config().total_agent_steps
    is_trained = folder.counters(checkpoint)["agent_steps"] >= total
    is_evaluated = any(
        row["phase"] == "eval" and row["agent_steps"] >= total for row in folder.metric_lines()
    )
    return "finished" if is_trained and is_evaluated else "interrupted"


if __name__ == "__main__":
    main()
