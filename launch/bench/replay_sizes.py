"""What the size of a replay store costs: time, memory, and a disk that must be asked."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.bench.harness import Curve, Row, spread
from launch.bench.replay_work import (
    ACTION_DIM,
    BATCH_SIZE,
    EPISODE_STEPS,
    N_STEP,
    PART,
    RESOLUTION_PX,
    make_episodes,
    store_config,
)
from launch.bench.settings import BenchSettings
from learner.replay import EpisodeStore
from learner.ring import ReadAhead
from learner.staging import to_tensors
from models.episode import Episode
from models.memory import keep_freed_memory

CURVE_TRANSITIONS = (10_000, 100_000, 300_000, 1_000_000)
LARGEST_CURVE_FREE_BYTES = 40 * 10**9


def cold_reads(settings: BenchSettings, folder: Path, episodes: Sequence[Episode]) -> list[Row]:
    """Time per batch when no frame is in the page cache: what a store larger than memory costs at worst."""
    config = store_config(len(episodes) * EPISODE_STEPS)
    store: Any = EpisodeStore(folder, config, RESOLUTION_PX, ACTION_DIM)
    for episode in episodes:
        store.insert(episode)
    store.close()
    samples_ms: dict[bool, list[float]] = {True: [], False: []}
    for number in range(settings.rounds):
        for ahead, samples in samples_ms.items():
            store = None  # pages that are mapped stay in the cache
            for path in folder.glob("*.bin"):
                _drop_from_page_cache(path)
            store = EpisodeStore(folder, config, RESOLUTION_PX, ACTION_DIM)
            frame_bytes = RESOLUTION_PX * RESOLUTION_PX * 3
            store.read_ahead = ReadAhead(folder / "frames.bin", frame_bytes) if ahead else None
            started_s = time.perf_counter()
            store.sample(BATCH_SIZE, np.random.default_rng(settings.seed + number))
            samples.append(1e3 * (time.perf_counter() - started_s))
            store.close()
    values = {
        "with_read_ahead_ms": spread(samples_ms[True]).median,
        "without_ms": spread(samples_ms[False]).median,
    }
    return [Row(PART, "first batch, nothing in the page cache", values)]


def _drop_from_page_cache(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def replay_curve(settings: BenchSettings) -> Curve:
    """Time per batch and per insert, and private memory, while one store grows.

    Raises:
        RuntimeError: if psutil is missing.
    """
    if importlib.util.find_spec("psutil") is None:
        raise RuntimeError("the replay curve needs psutil: pip install -e .[bench]")
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as folder:
        sizes = CURVE_TRANSITIONS[:2] if settings.smoke else CURVE_TRANSITIONS
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < LARGEST_CURVE_FREE_BYTES and not settings.smoke:
            sizes = sizes[:-1]
            settings.report(f"{folder}: {free_bytes / 1e9:.0f} GB free, 1,000,000 transitions left out")
        points = list(_grow(settings, Path(folder), sizes))
    return Curve(
        part=PART,
        x="transitions",
        points=points,
        note=f"Batch {BATCH_SIZE}, n-step {N_STEP}, episodes of {EPISODE_STEPS} steps; the last inserts evict.",
    )


def _grow(settings: BenchSettings, folder: Path, sizes: Sequence[int]) -> Iterator[dict[str, float]]:
    episodes = make_episodes(20, settings.seed)
    store = EpisodeStore(folder, store_config(sizes[-1]), RESOLUTION_PX, ACTION_DIM)
    rng = np.random.default_rng(settings.seed)
    number = 0

    def insert() -> float:
        nonlocal number
        episode = replace(episodes[number % len(episodes)], episode_id=f"c{number}")
        number += 1
        started_s = time.perf_counter()
        store.insert(episode)
        return time.perf_counter() - started_s

    def sample() -> float:
        started_s = time.perf_counter()
        to_tensors(store.sample(BATCH_SIZE, rng), torch.device("cpu"))
        return time.perf_counter() - started_s

    for size in sizes:
        inserts_s = [insert() for _ in range(size // EPISODE_STEPS - number)]
        for _ in range(50 + size // 500):  # until most pages are mapped, as they are in a long run
            sample()
        samples_s = [sample() for _ in range(100)]
        point = {
            "transitions": float(size),
            "batch_ms": 1e3 * spread(samples_s).median,
            "insert_ms": 1e3 * spread(inserts_s[-90:]).median,
            "private_memory_mib": _private_bytes() / 2**20,
        }
        if size == sizes[-1]:
            point["evicting_insert_ms"] = 1e3 * spread([insert() for _ in range(90)]).median
        settings.report("  ".join(f"{name} {value:.4g}" for name, value in point.items()))
        yield point
    store.close()


def _private_bytes() -> int:
    """Resident memory of this process without shared file pages (the frames in the page cache)."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
