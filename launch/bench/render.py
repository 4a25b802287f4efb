"""Part `render`: pictures of given states, ours in both qualities against Gymnasium's `render()` at its defaults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig
from launch.bench.env_process import GYMNASIUM, OURS, EnvProcess, open_pair
from launch.bench.harness import Comparison, Contender, compare, race
from launch.bench.settings import BenchSettings
from launch.cli import build, compose

PEERS = ("gymnasium",)
TASKS = ("door-close", "adroit-door", "adroit-pen")
SMOKE_TASKS = ("door-close", "adroit-door")
# Quality -> the preset that draws with it.
PRESETS = {"fast": "laptop", "full": "paper"}
TARGET = {"cpu": 10.0, "cuda": 3.0}
TURN_S = 1.2
SMOKE_TURN_S = 0.4


def measure(settings: BenchSettings) -> list[Comparison]:
    """Races the two renderers over the same states, each in a process of its own.

    Args:
        settings: `threads` cores are given to each contender.

    Returns:
        One comparison per task and quality (in a smoke run quality fast only).
    """
    if not settings.wants("gymnasium"):
        return []
    tasks = SMOKE_TASKS if settings.smoke else TASKS
    # With full quality the ratio says only how busy the other cores are, which is nothing to guard.
    qualities = ("fast",) if settings.smoke else tuple(PRESETS)
    results = []
    with processes(settings, OURS, GYMNASIUM) as (ours, peer):
        for task in tasks:
            for quality in qualities:
                results.append(_race(settings, ours, peer, task, quality))
    return results


def task_config(task: str, quality: str) -> EnvConfig:
    """The environment of a task as `python launch/train.py task=... preset=...` makes it."""
    config = compose("collect", [f"task={task}", f"preset={PRESETS[quality]}"])
    built: EnvConfig = build(EnvConfig, config.env, "env")
    return built


@contextmanager
def processes(settings: BenchSettings, *kinds: str) -> Iterator[list[EnvProcess]]:
    """Processes that share the cores of the benchmark; ours with its defaults, the peer with Mesa's."""
    started = [EnvProcess(kind, cores=settings.threads) for kind in kinds]
    try:
        yield started
    finally:
        for process in started:
            process.close()


def check_device(gl: dict[str, Any], device: str) -> None:
    """Refuses figures of the wrong device.

    Raises:
        RuntimeError: if a GPU was asked for and the CPU draws, or the other way round.
    """
    on_gpu = "nvidia" in gl["vendor"].lower()
    if on_gpu != (device == "cuda"):
        hint = (
            "install the driver's GL libraries and set MUJOCO_GL=egl"
            if device == "cuda"
            else "use device=cuda, or hide the GPU from EGL with __EGL_VENDOR_LIBRARY_FILENAMES (Mesa's JSON file)"
        )
        raise RuntimeError(f"device is {device!r}, but frames are drawn by {gl['renderer']!r}; {hint}")


def amount_for(process: EnvProcess, method: str, seconds: float) -> int:
    """How much of a call (`draw`: passes, `play`: agent steps) takes about `seconds`; runs it once to see."""
    process.call(method, 1)
    start = time.perf_counter()
    process.call(method, 1)
    return max(1, round(seconds / (time.perf_counter() - start)))


def _race(settings: BenchSettings, ours: EnvProcess, peer: EnvProcess, task: str, quality: str) -> Comparison:
    config = task_config(task, quality)
    open_pair(ours, [peer], config, settings.seed)
    states = ours.call("record", 3 if settings.smoke else 10)
    for process in (ours, peer):
        process.call("load", states)
    checks = _checks(settings, ours, peer)
    turn_s = SMOKE_TURN_S if settings.smoke else TURN_S
    contenders = []
    for name, process in (("ours", ours), ("gymnasium", peer)):
        passes = amount_for(process, "draw", turn_s)
        contenders.append(Contender(name, partial(process.call, "draw", passes)))
    case = f"{task}, {quality}"
    rates = race(contenders, settings.rounds, 0, lambda line: settings.report(f"{case}: {line}"))
    target = TARGET[settings.device] if quality == "fast" else None
    return compare(
        rates,
        "ours",
        "gymnasium",
        part="render",
        case=case,
        unit="frames/s",
        target=target,
        checks=checks,
    )


def _checks(settings: BenchSettings, ours: EnvProcess, peer: EnvProcess) -> dict[str, Any]:
    mine, theirs = ours.call("pictures"), peer.call("pictures")
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        raise RuntimeError(
            f"pictures differ in form: {mine.shape} {mine.dtype}, {theirs.shape} {theirs.dtype}"
        )
    difference = np.abs(mine.astype(int) - theirs.astype(int))
    gl = {"ours": ours.call("gl"), "gymnasium": peer.call("gl")}
    for found in gl.values():
        check_device(found, settings.device)
    return {
        "same": "task, goal, states (mj_setState, mj_forward), camera pose, colours, size",
        "mean_abs_pixel_difference_of_255": float(difference.mean()),
        "max_abs_pixel_difference_of_255": int(difference.max()),
        "gl": gl,
    }
