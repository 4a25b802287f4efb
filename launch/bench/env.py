"""Part `env`: agent steps with their frame, ours against the straightforward Gymnasium pipeline; one and more processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from launch.bench.env_process import GYMNASIUM, OURS, EnvProcess, open_pair
from launch.bench.harness import Comparison, Contender, Curve, compare, race
from launch.bench.render import TARGET, amount_for, check_device, processes, task_config
from launch.bench.settings import BenchSettings

PEERS = ("gymnasium",)
TASKS = ("door-close", "assembly", "adroit-door", "adroit-pen")
SMOKE_TASKS = ("door-close", "adroit-door")
CURVE_TASKS = ("door-close", "adroit-door")
TURN_S = 1.2
SMOKE_TURN_S = 0.5
CURVE_TURN_S = 0.5
# Name -> whose pipeline, and LP_NUM_THREADS (None: what its own code or else Mesa chooses).
CURVE_VARIANTS: dict[str, tuple[str, int | None]] = {
    "ours": (OURS, None),
    "ours_LP_NUM_THREADS_1": (OURS, 1),
    "ours_LP_NUM_THREADS_2": (OURS, 2),
    "gymnasium": (GYMNASIUM, None),
    "gymnasium_LP_NUM_THREADS_0": (GYMNASIUM, 0),
}
CHECKED_STEPS = 10
MAX_POSITION_DIFFERENCE = 1e-9


def measure(settings: BenchSettings) -> list[Comparison | Curve]:
    """Races agent steps, then lets one and more processes draw at once.

    Args:
        settings: `threads` cores are shared by all processes of a contender.

    Returns:
        One comparison per task, and curves of frames/s against processes (not in a smoke run).
    """
    if not settings.wants("gymnasium"):
        return []
    results: list[Comparison | Curve] = []
    with processes(settings, OURS, GYMNASIUM) as (ours, peer):
        for task in SMOKE_TASKS if settings.smoke else TASKS:
            results.append(_race(settings, ours, peer, task))
    if not settings.smoke:
        results += _curves(settings)
    return results


def _race(settings: BenchSettings, ours: EnvProcess, peer: EnvProcess, task: str) -> Comparison:
    config = task_config(task, "fast")
    vector = open_pair(ours, [peer], config, settings.seed)
    checks = _checks(settings, ours, peer)
    turn_s = SMOKE_TURN_S if settings.smoke else TURN_S
    contenders = []
    for name, process in (("ours", ours), ("gymnasium", peer)):
        process.call("reset", settings.seed, vector)
        steps = amount_for(process, "play", turn_s)
        contenders.append(Contender(name, partial(process.call, "play", steps)))
    case = f"{task}, action repeat {config.action_repeat}"
    rates = race(contenders, settings.rounds, 0, lambda line: settings.report(f"{case}: {line}"))
    return compare(
        rates,
        "ours",
        "gymnasium",
        part="env",
        case=case,
        unit="agent steps/s",
        target=TARGET[settings.device],
        checks=checks,
    )


def _checks(settings: BenchSettings, ours: EnvProcess, peer: EnvProcess) -> dict[str, Any]:
    """Plays the same actions in both and compares; refuses to race different simulations."""
    mine, theirs = ours.call("trace", CHECKED_STEPS), peer.call("trace", CHECKED_STEPS)
    positions, speeds = (float(np.abs(mine[name] - theirs[name]).max()) for name in ("qpos", "qvel"))
    if positions > MAX_POSITION_DIFFERENCE or not np.array_equal(mine["rewards"], theirs["rewards"]):
        raise RuntimeError(
            f"ours and the peer simulate different things: positions differ by {positions}, rewards "
            f"{mine['rewards']} against {theirs['rewards']}"
        )
    gl = {"ours": ours.call("gl"), "gymnasium": peer.call("gl")}
    for found in gl.values():
        check_device(found, settings.device)
    pixels = np.abs(mine["frames"].astype(int) - theirs["frames"].astype(int))
    return {
        "agent_steps_compared": CHECKED_STEPS,
        "max_position_difference": positions,
        "max_speed_difference": speeds,
        "sparse_rewards_equal": True,
        "mean_abs_pixel_difference_of_255": float(pixels.mean()),
        "gl": gl,
    }


def _curves(settings: BenchSettings) -> list[Curve]:
    """Aggregate agent steps/s of 1, 2, ... processes on the same cores, for Mesa's thread settings; one per task."""
    counts = [n for n in (1, 2, 4, 8, 16) if n <= settings.threads]
    points: dict[str, list[dict[str, float]]] = {
        task: [{"processes": count} for count in counts] for task in CURVE_TASKS
    }
    guide = EnvProcess(OURS, settings.threads)
    for name, (kind, llvmpipe_threads) in CURVE_VARIANTS.items():
        started = [EnvProcess(kind, settings.threads, llvmpipe_threads) for _ in range(max(counts))]
        try:
            for task in CURVE_TASKS:
                open_pair(guide, started, task_config(task, "fast"), settings.seed)
                for point, count in zip(points[task], counts):
                    point[name] = _together(started[:count])
                    settings.report(f"{task}, {count} processes: {name} {point[name]:.4g}")
        finally:
            for process in started:
                process.close()
    guide.close()
    note = "agent steps/s (one frame each) of all processes together"
    return [
        Curve("env", "processes", points[task], f"{task}: {note}, on {settings.threads} cores.")
        for task in CURVE_TASKS
    ]


def _together(started: Sequence[EnvProcess]) -> float:
    """Agent steps/s of processes that play at the same time; median of three turns."""
    steps = amount_for(started[0], "play", CURVE_TURN_S)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for process in started:
            process.start("play", steps)
        total = sum(process.result() for process in started)
        rates.append(total / (time.perf_counter() - start))
    return float(np.median(rates))
