"""The system that `launch/train.py` runs, advanced window by window for measurements."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import ray

from launch.bench.memory import peak_bytes
from launch.bench.workload import Workload
from launch.console import TrainingView
from launch.coordinator import Coordinator
from launch.interrupts import StopFlag
from launch.metrics import MetricsLog
from launch.placement import require_resources
from launch.ray_metrics import RayMetrics
from launch.system import build_system, start_ray


class Usage(NamedTuple):
    """What a process has used so far: processor time, and its largest memory."""

    cpu_s: float
    peak_bytes: int


class WindowedCoordinator(Coordinator):
    """The driver's loop with a last update, so that a window ends with a known number of both."""

    last_update = 0

    def _updates_due(self, updates: int) -> int:
        return min(super()._updates_due(updates), self.last_update - updates)


class Unstoppable(StopFlag):
    """Leaves signals alone: Ctrl-C ends a measurement at once."""

    def __init__(self) -> None:
        self.reason = None


class RayTraining:
    """A running system.

    Args:
        coordinator: Of the driver.

    Attributes:
        episodes: Episodes acknowledged by the replay.
        seconds: Processor time of each process while it ran.
    """

    def __init__(self, coordinator: WindowedCoordinator) -> None:
        self._coordinator = coordinator
        self.episodes = 0
        self.seconds: Counter[str] = Counter()

    @property
    def agent_steps(self) -> int:
        """Agent steps acknowledged by the replay."""
        return self._coordinator.agent_steps

    @property
    def updates(self) -> int:
        """Updates done."""
        return self._coordinator.learner.updates

    def fill(self, agent_steps: int, updates: int = 0) -> None:
        """Starts: the first evaluation, and the first agent steps and updates."""
        self._coordinator.start()
        self.run(agent_steps, updates)

    def warm_up(self) -> None:
        """Fills the replay, evaluates, does the first updates, and stops where a running system would be.

        In steady state the rollouts are ahead of the learner by what the limiter tolerates, less the block that is
        on its way. Windows start and end there, so that none of them begins or ends with an idle learner.
        """
        settings = self._coordinator.settings
        limiter, block = settings.limiter, settings.block_steps
        ahead_steps = limiter.tolerance_steps - block
        first_steps = round(2 * settings.updates_per_call / limiter.updates_per_step)
        steps = -(-(limiter.min_steps + ahead_steps + first_steps) // block) * block
        self.fill(steps, limiter.updates_due(steps - ahead_steps, 0))

    def run(self, agent_steps: int, updates: int) -> None:
        """Trains for so many more agent steps, whole blocks, and exactly so many more updates."""
        coordinator = self._coordinator
        coordinator.last_update = self.updates + updates
        total = self.agent_steps + agent_steps
        coordinator.settings = replace(coordinator.settings, total_agent_steps=total)
        before = self.usage()
        coordinator.advance()
        self.episodes += agent_steps // coordinator.settings.env.episode_steps
        for name, now in self.usage().items():
            self.seconds[name] += now.cpu_s - before[name].cpu_s

    def usage(self) -> dict[str, Usage]:
        """What the driver and every actor have used so far."""
        actors = self._coordinator.system.by_name()
        answers = ray.get([actor.__ray_call__.remote(process_usage) for actor in actors.values()])
        return {"driver": process_usage(None), **dict(zip(actors, answers))}


def process_usage(_actor: Any) -> Usage:
    """Of the process that calls; all threads."""
    return Usage(time.process_time(), peak_bytes())


@contextmanager
def ray_training(workload: Workload) -> Iterator[RayTraining]:
    """Starts a local Ray and the actors of a training; shuts everything down at the end."""
    settings, folder = workload
    view = TrainingView("", settings.console)
    try:
        start_ray(settings.cluster, namespace=f"drr-bench-{time.time_ns():x}")
        require_resources(settings)
        tags = {"run": folder.path.name, "task": settings.env.task, "reward": settings.reward.name}
        log = MetricsLog(folder.path, sink=RayMetrics(tags))
        try:
            system = build_system(settings, folder.path)
            yield RayTraining(WindowedCoordinator(settings, system, folder, log, view, Unstoppable()))
        finally:
            log.close()
    finally:
        view.close()
        ray.shutdown()
