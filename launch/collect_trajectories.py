"""Collects trajectories through a point maze with a waypoint planner, for relative reward functions.

python launch/collect.py task=pointmaze-large mode=base
python launch/collect.py task=pointmaze-large mode=expert goal=3,6
python launch/collect.py task=pointmaze-umaze mode=expert goal=1.3,2.7 transitions=1000000 preset=paper
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from actors.envs.pointmaze import MAZE_TASKS, PREFIX, PointMazeConfig, require_goal
from actors.maze_planner import MODES, Block, PlannerConfig, collect_block
from launch import cli
from launch.cli import UsageError, build, suggest
from launch.interrupts import end_with_parent
from launch.paths import absolute_path
from launch.progress import Progress
from models.trajectories import TrajectoryWriter

VERB = "collect_trajectories"
DOMAIN = "pointmaze"
# Seeds are drawn per block, so that the data does not depend on the number of processes.
BLOCK_TRANSITIONS = 20_000


@dataclass(frozen=True)
class TrajectoryAmount:
    """How much is collected.

    Attributes:
        transitions: At least so many, 1 or more; the last trajectory is whole. The paper: 10,000,000 for each set.
    """

    transitions: int = 1_000_000

    def __post_init__(self) -> None:
        if self.transitions < 1:
            raise ValueError(f"transitions must be at least 1, got {self.transitions}")


@dataclass(frozen=True)
class MazeDataSettings:
    """Which trajectories to collect.

    Attributes:
        maze: Task, action repeat and time limit.
        mode: "base" or "expert".
        goal: (row, column) of an expert, else None.
        transitions: At least so many.
        seed: Fixes all trajectories, 0 or more.
        workers: Processes, or None for one per core.
        planner: How the maze is walked.
    """

    maze: PointMazeConfig
    mode: str = "base"
    goal: tuple[float, float] | None = None
    transitions: int = 1_000_000
    seed: int = 0
    workers: int | None = None
    planner: PlannerConfig = field(default_factory=PlannerConfig)

    def __post_init__(self) -> None:
        TrajectoryAmount(self.transitions)
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}; {suggest(self.mode, MODES)}")
        if (self.mode == "expert") != (self.goal is not None):
            need = (
                "needs a goal, for example goal=3,6"
                if self.goal is None
                else "has random goals; leave goal= out"
            )
            raise ValueError(f"mode={self.mode} {need}")
        if self.goal is not None:
            if len(self.goal) != 2:
                raise ValueError(f"goal is {self.goal}, expected row,column")
            require_goal(self.maze.task, self.goal, self.planner.clearance)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    @property
    def name(self) -> str:
        """Of the folder: base, expert-3-6, expert-1.3-2.7."""
        return self.mode if self.goal is None else f"{self.mode}-{goal_name(self.goal)}"


def goal_name(goal: tuple[float, float]) -> str:
    """A goal in the name of a folder: "3-6", "1.3-2.7"."""
    return f"{goal[0]:g}-{goal[1]:g}"


def is_trajectory_task(overrides: list[str]) -> bool:
    """Whether `collect.py` is asked for trajectories of states rather than for videos."""
    tasks = [o.partition("=")[2] for o in overrides if o.startswith("task=")]
    return bool(tasks) and tasks[-1].startswith(PREFIX)


def with_goal_as_list(overrides: list[str]) -> list[str]:
    """Turns `goal=3,6`, which Hydra would take for two runs, into `goal=[3,6]`."""
    return [re.sub(r"^goal=([^\[\]'\"]*,[^\[\]'\"]*)$", r"goal=[\1]", o) for o in overrides]


def main() -> None:
    """Entry point of `python launch/collect.py task=pointmaze-...`."""
    cli.main(VERB, __doc__ or "", collect_trajectories, with_goal_as_list)


def collect_trajectories(config: DictConfig) -> int:
    """Collects into a new folder; it appears under its name only when it is complete.

    Raises:
        UsageError: if a setting is bad or the folder exists.
    """
    settings = data_settings(config)
    default = f"data/{settings.maze.task}/{settings.name}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    collect_into(settings, out)
    return 0


def data_settings(config: DictConfig) -> MazeDataSettings:
    """The settings in a composed configuration.

    Raises:
        UsageError: naming key, value and what is allowed.
    """
    if config.task not in MAZE_TASKS:
        raise UsageError(f"unknown task {config.task!r}; {suggest(str(config.task), MAZE_TASKS)}")
    names = ("mode", "goal", "transitions", "seed", "workers", "planner")
    values = {name: config[name] for name in names}
    maze = build(PointMazeConfig, {**config.pointmaze, "task": config.task}, "pointmaze.")
    if values["goal"] is not None and not _is_cell(values["goal"]):
        raise UsageError(f"goal is {config.goal!r}, expected row,column: goal=3,6 or goal=1.3,2.7")
    return build(MazeDataSettings, {**values, "maze": maze})


def _is_cell(goal: object) -> bool:
    numbers = list(goal) if hasattr(goal, "__iter__") else []
    return len(numbers) == 2 and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)


def collect_into(settings: MazeDataSettings, out: Path) -> None:
    """Walks the maze in several processes and writes the folder.

    Args:
        settings: What to collect.
        out: New folder.

    Raises:
        FileExistsError: if the folder exists.
    """
    started_s = time.monotonic()
    arrived = discarded = 0
    facts = {
        "action_repeat": settings.maze.action_repeat,
        "episode_frames": settings.maze.episode_frames,
        "planner": asdict(settings.planner),
    }
    with TrajectoryWriter(
        out,
        domain=DOMAIN,
        task=settings.maze.task,
        mode=settings.mode,
        goal=settings.goal,
        observation_dim=4,
        action_dim=2,
        seed=settings.seed,
        extra=facts,
    ) as writer:
        for block in collect_blocks(settings):
            for stop, length in zip(np.cumsum(block.lengths), block.lengths):
                rows = slice(stop - length, stop)
                writer.add(block.observations[rows], block.actions[rows], block.rewards[rows])
            arrived, discarded = arrived + block.arrived, discarded + block.discarded
        count, transitions = len(writer.ends), writer.transitions
        writer.index["extra"] |= {"arrived": arrived, "discarded": discarded}
    rate = transitions / (time.monotonic() - started_s)
    print(
        f"[collect] {count:,} {settings.name} trajectories of {settings.maze.task}, {transitions:,} transitions "
        f"({rate:,.0f}/s), {arrived:,} arrived, {discarded:,} more discarded near walls: {out}",
        flush=True,
    )


def collect_blocks(settings: MazeDataSettings) -> Iterator[Block]:
    """Yields blocks of trajectories, in an order and with a content that do not depend on the number of processes."""
    count = -(-settings.transitions // BLOCK_TRANSITIONS)
    shares = [settings.transitions // count + (i < settings.transitions % count) for i in range(count)]
    workers = min(settings.workers or os.cpu_count() or 1, count)
    progress = Progress("collect", "transitions")
    progress(0, settings.transitions)
    done = 0
    for block in (
        _in_this_process(settings, shares) if workers == 1 else _in_a_pool(settings, shares, workers)
    ):
        done += len(block.rewards)
        progress(min(done, settings.transitions), settings.transitions)
        yield block


def _in_this_process(settings: MazeDataSettings, shares: list[int]) -> Iterator[Block]:
    for number, share in enumerate(shares):
        yield _block(settings, share, number)


def _in_a_pool(settings: MazeDataSettings, shares: list[int], workers: int) -> Iterator[Block]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        futures = deque(pool.submit(_block, settings, share, number) for number, share in enumerate(shares))
        try:
            while futures:
                yield futures.popleft().result()  # let go of, so that a large set is not held in memory
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _block(settings: MazeDataSettings, transitions: int, number: int) -> Block:
    return collect_block(settings.maze, settings.planner, settings.goal, transitions, settings.seed, number)


if __name__ == "__main__":
    main()
