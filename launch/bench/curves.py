"""Cost curves: time and memory against rollout actors, the reward's batch, the horizon, and episodes in the replay."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from launch.bench.harness import Curve, spread
from launch.bench.memory import peak_bytes, reset_peak
from launch.bench.settings import BenchSettings
from launch.bench.workload import NEVER_STEPS, make_workload, noise_episode, prepare_ray
from launch.settings import TrainSettings

PEERS: tuple[str, ...] = ()
MIB = 2**20
REPEATS = 3


def measure(settings: BenchSettings) -> list[Curve]:
    """All curves."""
    from launch.bench.replay import replay_curve

    prepare_ray()
    return [
        rollout_curve(settings),
        reward_curve(settings, "laptop"),
        *([] if settings.smoke else [reward_curve(settings, "paper")]),
        horizon_curve(settings),
        replay_curve(settings),
    ]


# ---- rollout actors


def rollout_curve(settings: BenchSettings) -> Curve:
    """Agent steps per second, the driver's work and the memory of an actor, against the number of rollout actors."""
    counts = (1, 2) if settings.smoke else (1, 2, 4, 8)
    points = []
    for count in counts:
        points.append(_rollout_point(count, settings))
        settings.report(_line(points[-1]))
    note = (
        "Sparse reward and no updates, so that nothing but rolling out and storing limits the rate. The driver sees "
        "counts and no frames: its work per step stays the same. More actors than cores bring nothing."
    )
    return Curve("rollout", "rollout_actors", points, note)


def _rollout_point(count: int, settings: BenchSettings) -> dict[str, float]:
    from launch.bench.ray_training import ray_training

    overrides = [f"rollout.num_actors={count}", "cluster.rollout_cpus=0.05", "cluster.learner_cpus=0.1"]
    overrides += [f"limiter.min_steps={NEVER_STEPS}", "agent.num_expl_steps=0"]
    with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
        workload = make_workload(Path(folder), "laptop", overrides, settings.seed, reward="sparse")
        block_steps = workload.settings.block_steps
        with ray_training(workload) as system:
            system.fill(2 * block_steps * count)
            busy_s = system.seconds["driver"]
            start_s = time.perf_counter()
            steps = block_steps * max(2 * count, 2 if settings.smoke else 8)
            system.run(steps, 0)
            elapsed_s = time.perf_counter() - start_s
            usage = system.usage()
            driver_s = system.seconds["driver"] - busy_s
        actors = [used.peak_bytes / MIB for name, used in usage.items() if name.startswith("rollout")]
    return {
        "rollout_actors": count,
        "agent_steps_per_s": steps / elapsed_s,
        "driver_cpu_s_per_1000_steps": 1000 * driver_s / steps,
        "actor_peak_mib": sum(actors) / len(actors),
    }


# ---- reward


class RewardJob(NamedTuple):
    """What one fresh process scores; in a process of its own, because its peak memory never falls.

    Attributes:
        settings: Of a training; names the reward model.
        lengths_frames: Length of each episode.
        batch: Rows of the denoiser and frames of the codec in one call, or None for the configured numbers.
        threads: Threads of torch.
        device: "cpu" or "cuda".
        repeats: Measured calls.
        seed: Seed of the frames.
    """

    settings: TrainSettings
    lengths_frames: tuple[int, ...]
    batch: int | None
    threads: int
    device: str
    repeats: int
    seed: int


def reward_curve(settings: BenchSettings, preset: str) -> Curve:
    """Frames per second and memory against the rows of one call of the reward model."""
    batches: tuple[int, ...] = (8, 32, 128, 512) if preset == "laptop" else (16, 64, 256)
    batches = (8, 32) if settings.smoke else batches
    frames = batches[-1]
    points = []
    with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
        workload = make_workload(Path(folder), preset, (), settings.seed)
        for batch in batches:
            repeats = REPEATS if preset == "laptop" else 1
            lengths = (frames // 2, frames - frames // 2)
            job = RewardJob(
                workload.settings, lengths, batch, settings.threads, settings.device, repeats, settings.seed
            )
            points.append({"rows_per_call": batch, **_in_fresh_process(score_noise, job)})
            settings.report(f"preset={preset}: {_line(points[-1])}")
    reward = workload.settings.frame_reward
    note = f"preset={preset}, {reward.signature()}, {frames} frames in all, {settings.device}."
    return Curve(f"reward, preset={preset}", "rows_per_call", points, note)


def score_noise(job: RewardJob) -> dict[str, float]:
    """Scores random frames: rate of the median call, and what the process grew by."""
    from reward_service.contract import reward_class

    torch.set_num_threads(job.threads)
    config = asdict(job.settings.frame_reward)
    if job.batch is not None:
        config |= {"batch_rows": job.batch, "batch_frames": job.batch}
    reward = reward_class(str(job.settings.reward.frozen)).from_checkpoint(
        str(job.settings.reward.checkpoint), config, job.device
    )
    rng = np.random.default_rng(job.seed)
    size_px, action_dim = job.settings.env.render.height_px, job.settings.env.action_dim
    task = job.settings.env.task
    episodes = [
        noise_episode(rng, f"e{i}", task, frames - 1, size_px, action_dim)
        for i, frames in enumerate(job.lengths_frames)
    ]
    small = [episode.frames[:2] for episode in episodes[:1]]
    reward.score(small, [task], [0])  # Whatever is made at the first call is not the batch's.
    before_bytes = _reset_peak(job.device)
    seconds, cpu_start_s = [], time.process_time()
    for _ in range(job.repeats):
        start_s = time.perf_counter()
        reward.score([e.frames for e in episodes], [task] * len(episodes), list(range(len(episodes))))
        seconds.append(time.perf_counter() - start_s)
    grown_mib = (_peak_bytes(job.device) - before_bytes) / MIB
    frames, cpu_s = sum(job.lengths_frames), time.process_time() - cpu_start_s
    return {
        "frames_per_s": frames / spread(seconds).median,
        # Of all threads; unlike the rate it hardly suffers from other programs.
        "cpu_ms_per_frame": 1000 * cpu_s / job.repeats / frames,
        "peak_above_idle_mib": grown_mib,
    }


def _peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()


def _reset_peak(device: str) -> int:
    """Starts a new peak; returns the memory in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    return _peak_bytes(device)


# ---- horizon


def horizon_curve(settings: BenchSettings) -> Curve:
    """Cost of one step of reward and replay, against the length of an episode."""
    lengths = (50, 100) if settings.smoke else (50, 100, 200, 400, 800)
    points = []
    with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
        workload = make_workload(Path(folder), "laptop", (), settings.seed)
        for steps in lengths:
            job = RewardJob(
                workload.settings,
                (steps + 1,),
                None,
                settings.threads,
                settings.device,
                REPEATS,
                settings.seed,
            )
            scored = _in_fresh_process(score_noise, job)
            points.append(
                {
                    "episode_steps": steps,
                    "reward_ms_per_frame": 1000 / scored["frames_per_s"],
                    "reward_cpu_ms_per_frame": scored["cpu_ms_per_frame"],
                    "reward_peak_above_idle_mib": scored["peak_above_idle_mib"],
                    "insert_ms_per_step": _insert_ms(
                        workload.settings, Path(folder) / f"store-{steps}", steps
                    ),
                }
            )
            settings.report(_line(points[-1]))
    note = "preset=laptop, one episode. A step of a long episode costs what a step of a short one does."
    return Curve("horizon", "episode_steps", points, note)


def _insert_ms(settings: TrainSettings, folder: Path, steps: int) -> float:
    """Time per agent step of storing an episode: the median of some."""
    from learner.replay import EpisodeStore

    env = settings.env
    config = replace(settings.replay_config, capacity_transitions=20 * steps, episode_steps=steps)
    store = EpisodeStore(folder, config, env.render.height_px, env.action_dim)
    rng = np.random.default_rng(settings.seed)
    seconds = []
    for number in range(10):
        episode = noise_episode(rng, f"e{number}", env.task, steps, env.render.height_px, env.action_dim)
        start_s = time.perf_counter()
        store.insert(episode)
        seconds.append(time.perf_counter() - start_s)
    store.close()
    return 1000 * spread(seconds).median / steps


# ---- shared


def _in_fresh_process(function: Callable[[Any], dict[str, float]], argument: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, argument).result()


def _line(point: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in point.items())


# ---- pictures


def plot_curves(curves: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws each curve as a picture, one panel per cost.

    Args:
        curves: As in the benchmark's JSON: part, x, points, note.
        folder: Made if missing; pictures of the same names are replaced.

    Returns:
        The pictures' paths.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for curve in curves:
        x, points = curve["x"], curve["points"]
        costs = [name for name in points[0] if name != x]
        figure = Figure(figsize=(3.2 * len(costs), 2.8), layout="constrained")
        for number, name in enumerate(costs, start=1):
            axes = figure.add_subplot(1, len(costs), number)
            axes.plot([p[x] for p in points], [p.get(name) for p in points], marker="o")
            axes.set_xscale("log", base=2 if points[-1][x] <= 10_000 else 10)
            axes.set_xticks([p[x] for p in points], [f"{p[x]:g}" for p in points])
            axes.minorticks_off()
            axes.set_ylim(0, 1.15 * max(p.get(name) or 0 for p in points) or 1)
            axes.set_xlabel(x.replace("_", " "))
            axes.set_title(name.replace("_", " "), fontsize=9)
            axes.grid(alpha=0.3)
        words = "".join(c if c.isalnum() else " " for c in f"{curve['part']} {x}").split()
        paths.append(folder / f"curve_{'_'.join(words)}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths
