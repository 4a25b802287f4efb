"""What the driver costs with very many rollout actors: the real data path, rollout actors that only wait."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.bench.harness import Curve
from launch.bench.settings import BenchSettings
from launch.bench.workload import NEVER_STEPS, make_workload, noise_episode, prepare_ray
from models.episode import Episode

if TYPE_CHECKING:
    from launch.system import System

PEERS: tuple[str, ...] = ()
# An episode of 100 agent steps takes a rollout actor about this long on one core (docs/performance/system.md).
EPISODE_S = 3.0
# Short episodes of full frames: 1,000 actors make more pixels than two cores can store, the driver sees none of them.
EPISODE_STEPS = 5
ACTORS_PER_PROCESS = 250
SHARDS = 2
# Actors that are only counted: their shares of a core are too small to be placed by.
OVERRIDES = (
    *("rollout.num_actors=1", "cluster.rollout_cpus=0.05", "cluster.learner_cpus=0.1"),
    "cluster.evaluator_cpus=0.05",
    *(
        f"replay.num_shards={SHARDS}",
        f"env.episode_steps={EPISODE_STEPS}",
        "replay.capacity_transitions=20000",
    ),
    *(f"limiter.min_steps={NEVER_STEPS}", "agent.num_expl_steps=0"),
)


def measure(settings: BenchSettings) -> list[Curve]:
    """Episodes per second and the driver's work per episode, against the number of rollout actors."""
    prepare_ray()
    points = []
    for count in (10, 100) if settings.smoke else (10, 100, 300, 1000, 3000):
        points.append(_point(count, 15.0 if settings.smoke else 30.0, settings.seed))
        settings.report("  ".join(f"{name} {value:.4g}" for name, value in points[-1].items()))
    note = (
        f"Simulated rollout actors: an episode of {EPISODE_STEPS} agent steps after {EPISODE_S:g} s, so the most that they can "
        f"make is actors / {EPISODE_S:g} s; the real data path into {SHARDS} replay shards, sparse reward, no updates. The driver is "
        "one process: it is saturated where its share of a core comes near 1."
    )
    return [Curve("driver", "rollout_actors", points, note)]


def _point(count: int, seconds: float, seed: int) -> dict[str, float]:
    import ray

    from launch.bench.ray_training import Unstoppable, WindowedCoordinator
    from launch.console import TrainingView
    from launch.metrics import MetricsLog
    from launch.system import build_system, start_ray

    with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
        settings, run = make_workload(Path(folder), "laptop", OVERRIDES, seed, reward="sparse")
        size = settings.env.render.height_px
        episode = noise_episode(
            np.random.default_rng(seed),
            "simulated",
            settings.env.task,
            EPISODE_STEPS,
            size,
            settings.env.action_dim,
        )
        view, log = TrainingView("", "off"), MetricsLog(run.path)
        start_ray(settings.cluster, namespace=f"drr-bench-{time.time_ns():x}")
        try:
            system = build_system(settings, run.path)
            _simulate_rollouts(system, count, episode)
            coordinator = WindowedCoordinator(settings, system, run, log, view, Unstoppable())
            coordinator.start()
            _advance(coordinator, EPISODE_S + 2.0)  # Until the first ones come in.
            return {"rollout_actors": count, **_rates(coordinator, seconds)}
        finally:
            log.close()
            view.close()
            ray.shutdown()


def _simulate_rollouts(system: System, count: int, episode: Episode) -> None:
    """Puts `count` simulated rollout actors in the place of the system's own."""
    import ray

    from launch.bench.simulated import SimulatedActor, SimulatedRollouts

    processes = [
        ray.remote(SimulatedRollouts)
        .options(num_cpus=0.05, max_concurrency=4 * ACTORS_PER_PROCESS)
        .remote(episode, EPISODE_S)
        for _ in range(-(-count // ACTORS_PER_PROCESS))
    ]
    ray.get([process.ping.remote() for process in processes])
    ray.kill(system.rollouts.pop(0))
    for number in range(count):
        system.rollouts[number] = SimulatedActor(processes[number // ACTORS_PER_PROCESS], number)


def _rates(coordinator: Any, seconds: float) -> dict[str, float]:
    steps, cpu_s, start_s = coordinator.agent_steps, time.process_time(), time.perf_counter()
    _advance(coordinator, seconds)
    elapsed_s = time.perf_counter() - start_s
    used_s = time.process_time() - cpu_s
    episodes = (coordinator.agent_steps - steps) / EPISODE_STEPS
    return {
        "episodes_per_s": episodes / elapsed_s,
        "driver_cpu_ms_per_episode": 1000 * used_s / max(1.0, episodes),
        "driver_share_of_a_core": used_s / elapsed_s,
    }


def _advance(coordinator: Any, seconds: float) -> None:
    """Runs the driver's loop for a while."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        coordinator.turn()
