"""Replay sampling beside TorchRL, RLlib and the DataLoader design of the original DrQ-v2."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from launch.bench.harness import Comparison, Contender, Row, race, spread
from launch.bench.reference_replay import DataLoaderReplay, RLlibReplay, TorchRLReplay
from launch.bench.replay_in_ray import through_ray
from launch.bench.replay_sizes import cold_reads, replay_curve
from launch.bench.replay_work import (
    ACTION_DIM,
    BATCH_SIZE,
    EPISODE_STEPS,
    GAMMA,
    N_STEP,
    PART,
    RESOLUTION_PX,
    Peer,
    checked,
    comparisons,
    draw,
    make_episodes,
    store_config,
    turn,
)
from launch.bench.settings import BenchSettings
from learner.batch import TensorBatch
from learner.replay import EpisodeStore
from learner.staging import to_tensors
from models.episode import Episode
from models.memory import keep_freed_memory

__all__ = ["PEERS", "measure", "replay_curve"]

PEERS = ("torchrl", "rllib", "dataloader")


def measure(settings: BenchSettings) -> list[Comparison | Row]:
    """Races sampling in one process and through Ray, after checking that all return the same transitions."""
    keep_freed_memory()  # as the learner does; it serves every contender in this process
    episodes = make_episodes(20 if settings.smoke else 200, settings.seed)
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as folder:
        peers = _peers(settings, Path(folder), len(episodes))
        results = in_process(settings, Path(folder) / "process", episodes, peers)
        if not settings.smoke:
            results += cold_reads(settings, Path(folder) / "cold", episodes)
        return results + through_ray(settings, Path(folder) / "ray", episodes, peers)


def _peers(settings: BenchSettings, folder: Path, num_episodes: int) -> list[Peer]:
    """The peers that were asked for and are there.

    Raises:
        RuntimeError: if one was asked for by name and is not installed.
    """
    common = {"batch_size": BATCH_SIZE, "n_step": N_STEP, "gamma": GAMMA, "seed": settings.seed}
    sized = {**common, "capacity_transitions": num_episodes * EPISODE_STEPS}
    torchrl = {**sized, "folder": folder / "torchrl"}
    share = 4 if settings.smoke else 1
    offered = [
        Peer("torchrl", "torchrl", TorchRLReplay, {**torchrl, "storage": "tensor"}, 80 // share),
        Peer("torchrl memmap", "torchrl", TorchRLReplay, {**torchrl, "storage": "memmap"}, 80 // share),
        Peer("rllib", "rllib", RLlibReplay, sized, 8 // share),
        Peer(
            "dataloader",
            "dataloader",
            DataLoaderReplay,
            {**common, "folder": folder / "episodes", "workers": settings.threads},
            80 // share,
        ),
    ]
    if settings.smoke:
        offered = [peer for peer in offered if peer.name != "torchrl memmap"]  # the slower of the two
    there = importlib.util.find_spec("torchrl") is not None
    if settings.wants("torchrl") and not there:
        advice = "torchrl is not installed: pip install -e .[bench]"
        if settings.against is not None:
            raise RuntimeError(advice)
        settings.report(advice)
    return [
        peer for peer in offered if settings.wants(peer.wanted_as) and (peer.wanted_as != "torchrl" or there)
    ]


def in_process(
    settings: BenchSettings, folder: Path, episodes: Sequence[Episode], peers: Sequence[Peer]
) -> list[Comparison | Row]:
    """Batches as tensors, drawn one after the other in this process."""
    case = f"batch {BATCH_SIZE}, n-step {N_STEP}, in process"
    with ExitStack() as stack:
        store = EpisodeStore(folder, store_config(len(episodes) * EPISODE_STEPS), RESOLUTION_PX, ACTION_DIM)
        stack.callback(store.close)
        for episode in episodes:
            store.insert(episode)
        rng = np.random.default_rng(settings.seed)

        def ours() -> TensorBatch:
            return to_tensors(store.sample(BATCH_SIZE, rng), torch.device("cpu"))

        checks = {"ours": checked(ours(), episodes)}
        batches = 100 if settings.smoke else 400
        contenders = [
            Contender("ours", partial(draw, ours, batches)),
            Contender("memory copy", memory_copy(episodes, settings.seed, batches)),
        ]
        for peer in peers:
            buffer = peer.kind(**peer.arguments)
            stack.callback(buffer.close)
            buffer.fill(episodes)
            checks[peer.name] = checked(buffer.sample(), episodes)
            buffer.rest()
            contenders.append(
                Contender(peer.name, turn(partial(draw, buffer.sample, peer.batches), buffer.rest))
            )
        settings.report(f"{case}: {len(episodes) * EPISODE_STEPS:,} transitions, all contenders agree")
        rates = race(contenders, settings.rounds, report=settings.report)
    share = [ours / copy for ours, copy in zip(rates["ours"], rates["memory copy"])]
    bytes_moved = 2 * BATCH_SIZE * RESOLUTION_PX * RESOLUTION_PX * 3
    values = {
        "copied_mb": bytes_moved / 1e6,
        "floor_ms": 1e3 / spread(rates["memory copy"]).median,
        "ours_ms": 1e3 / spread(rates["ours"]).median,
        "share_of_memory_copy": spread(share).median,
    }
    return [*comparisons(rates, case, peers, checks), Row(PART, "roofline, in process", values)]


def memory_copy(episodes: Sequence[Episode], seed: int, batches: int) -> Callable[[], float]:
    """The floor: copies as many bytes as a batch holds, in two contiguous pieces, out of memory not in the cache."""
    source = np.concatenate([episode.frames for episode in episodes])
    target = np.empty((2, BATCH_SIZE, *source.shape[1:]), np.uint8)
    rng = np.random.default_rng(seed)

    def run() -> float:
        for _ in range(batches):
            for piece, start in zip(target, rng.integers(len(source) - BATCH_SIZE, size=2)):
                np.copyto(piece, source[start : start + BATCH_SIZE])
        return batches

    return run
