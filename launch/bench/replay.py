"""Replay sampling beside TorchRL, RLlib and the DataLoader design of the original DrQ-v2."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from launch.bench.harness import Comparison, Contender, Curve, Row, compare, race, spread
from launch.bench.reference_replay import (
    LEARNED_WEIGHT,
    BufferActor,
    DataLoaderReplay,
    RLlibReplay,
    TorchRLReplay,
    total_rewards,
)
from launch.bench.settings import BenchSettings
from learner.batch import Batch, TensorBatch, to_tensors
from learner.memory import keep_freed_memory
from learner.replay import EpisodeStore, ReplayConfig
from learner.ring import ReadAhead
from learner.sharding import ShardSampler
from models.episode import Episode

PEERS = ("torchrl", "rllib", "dataloader")
PART, UNIT, TARGET = "replay", "batches/s", 2.0
BATCH_SIZE, N_STEP, GAMMA = 256, 3, 0.99
EPISODE_STEPS, RESOLUTION_PX, ACTION_DIM = 100, 64, 4
PREFETCH_BATCHES = 4  # the default of learner.prefetch_batches
SHARD = "bench-replay-0"
CURVE_TRANSITIONS = (10_000, 100_000, 300_000, 1_000_000)
LARGEST_CURVE_FREE_BYTES = 40 * 10**9
Sample = Callable[[], TensorBatch]


class Peer(NamedTuple):
    """One way in which a peer is used.

    Attributes:
        name: Shown in tables.
        wanted_as: Its name in PEERS.
        kind: Class of launch/bench/reference_replay.py.
        arguments: Keyword arguments of that class.
        batches: Batches per turn, so that turns of all contenders take about as long.
    """

    name: str
    wanted_as: str
    kind: type
    arguments: dict[str, Any]
    batches: int


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


def make_episodes(count: int, seed: int) -> list[Episode]:
    """Episodes of random pixels; the action tells which transition it belongs to (see `checked`).

    They end at a time limit, as those of MetaWorld do: TorchRL's MultiStepTransform keeps the end flags of the
    first of the n steps, so at a true end it would bootstrap where the others do not.
    """
    rng = np.random.default_rng(seed)
    step = np.arange(EPISODE_STEPS)
    episodes = []
    for number in range(count):
        actions = np.zeros((EPISODE_STEPS, ACTION_DIM), np.float32)
        actions[:, 0], actions[:, 1] = number / 2**14, step / 2**14
        shape = (EPISODE_STEPS + 1, RESOLUTION_PX, RESOLUTION_PX, 3)
        episodes.append(
            Episode(
                episode_id=f"e{number:05d}",
                task="door-close",
                frames=rng.integers(0, 256, shape, dtype=np.uint8),
                actions=actions,
                env_rewards=rng.random(EPISODE_STEPS, dtype=np.float32),
                discounts=np.ones(EPISODE_STEPS, np.float32),
                successes=np.zeros(EPISODE_STEPS, bool),
                learned_rewards=rng.standard_normal(EPISODE_STEPS, dtype=np.float32),
            )
        )
    return episodes


def checked(batch: TensorBatch, episodes: Sequence[Episode]) -> dict[str, float]:
    """Compares a batch with transitions computed from the episodes one by one.

    Starts in the last n - 1 steps are left out: peers draw them too, with returns of fewer steps.

    Returns:
        Number of transitions compared and the largest difference of rewards and discounts.

    Raises:
        RuntimeError: if shapes, types or any pixel differ, or a number by more than 1e-5.
    """
    pixels = (BATCH_SIZE, RESOLUTION_PX, RESOLUTION_PX, 3)
    found = [(tuple(value.shape), value.dtype) for value in batch]
    column = ((BATCH_SIZE, 1), torch.float32)
    wanted = [(pixels, torch.uint8), ((BATCH_SIZE, ACTION_DIM), torch.float32), column, column]
    if found != [*wanted, wanted[0]]:
        raise RuntimeError(f"a batch has {found}, expected {[*wanted, wanted[0]]}")
    compared, largest = 0, 0.0
    for row in range(BATCH_SIZE):
        number, start = (round(float(value) * 2**14) for value in batch.action[row, :2])
        if start > EPISODE_STEPS - N_STEP:
            continue
        episode = episodes[number]
        reward, discount = 0.0, 1.0
        for step in range(start, start + N_STEP):
            reward += discount * float(total_rewards(episode)[step])
            discount *= GAMMA * float(episode.discounts[step])
        for value, frame in ((batch.obs, start), (batch.next_obs, start + N_STEP)):
            if not np.array_equal(value[row].numpy(), episode.frames[frame]):
                raise RuntimeError(f"pixels of frame {frame} of episode {number} differ")
        difference = max(abs(float(batch.reward[row]) - reward), abs(float(batch.discount[row]) - discount))
        compared, largest = compared + 1, max(largest, difference)
    if compared < BATCH_SIZE // 2 or largest > 1e-5:
        raise RuntimeError(f"{compared} transitions compared, rewards or discounts differ by {largest:.3g}")
    return {"transitions_compared": compared, "largest_difference": largest}


def _config(transitions: int) -> ReplayConfig:
    return ReplayConfig(
        capacity_transitions=transitions,
        n_step=N_STEP,
        discount=GAMMA,
        learned_weight=LEARNED_WEIGHT,
        episode_steps=EPISODE_STEPS,
    )


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
        store = EpisodeStore(folder, _config(len(episodes) * EPISODE_STEPS), RESOLUTION_PX, ACTION_DIM)
        stack.callback(store.close)
        for episode in episodes:
            store.insert(episode)
        rng = np.random.default_rng(settings.seed)

        def ours() -> TensorBatch:
            return to_tensors(store.sample(BATCH_SIZE, rng), torch.device("cpu"))

        checks = {"ours": checked(ours(), episodes)}
        turn = 100 if settings.smoke else 400
        contenders = [
            Contender("ours", partial(_draw, ours, turn)),
            Contender("memory copy", memory_copy(episodes, settings.seed, turn)),
        ]
        for peer in peers:
            buffer = peer.kind(**peer.arguments)
            stack.callback(buffer.close)
            buffer.fill(episodes)
            checks[peer.name] = checked(buffer.sample(), episodes)
            buffer.rest()
            contenders.append(
                Contender(peer.name, _turn(partial(_draw, buffer.sample, peer.batches), buffer.rest))
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
    return [*_comparisons(rates, case, peers, checks), Row(PART, "roofline, in process", values)]


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


def through_ray(
    settings: BenchSettings, folder: Path, episodes: Sequence[Episode], peers: Sequence[Peer]
) -> list[Comparison | Row]:
    """Batches as tensors in the learner's process, the buffer in a Ray actor, prefetched as the learner does."""
    case = f"batch {BATCH_SIZE}, n-step {N_STEP}, through Ray"
    with ExitStack() as stack:
        stack.enter_context(_ray())
        import ray

        pool = stack.enter_context(ThreadPoolExecutor(PREFETCH_BATCHES))
        block = ray.put(list(episodes))
        turn = 100 if settings.smoke else 400
        shard = _our_shard(folder, block, len(episodes))  # lives as long as this handle
        samplers = _our_samplers(settings)
        same_batches(*samplers.values())
        checks: dict[str, Any] = {
            name: checked(to_tensors(sampler(0), torch.device("cpu")), episodes)
            for name, sampler in samplers.items()
        }
        checks["ours"]["equals_asked_shard"] = True
        contenders = [
            Contender("ours", _our_turn(samplers["ours"], pool, turn)),
            Contender("ours, shard asked", _our_turn(samplers["ours, shard asked"], pool, turn // 4)),
        ]
        actors = [_peer_in_ray(settings, peer) for peer in peers]
        ray.get([actor.fill.remote(block) for actor in actors])
        for peer, actor in zip(peers, actors):
            sample, rest = _calls(actor)
            checks[peer.name] = checked(sample(), episodes)
            rest()
            fetch = partial(_prefetched, lambda _, sample=sample: sample(), pool, peer.batches)
            contenders.append(Contender(peer.name, _turn(fetch, rest)))
        settings.report(f"{case}: all contenders agree")
        rates = race(contenders, settings.rounds, report=settings.report)
        ray.get(shard.close.remote())
    asked = {"batches_per_s": spread(rates["ours, shard asked"]).median}
    return [
        *_comparisons(rates, case, peers, checks),
        Row(PART, "through Ray, shard asked (other node)", asked),
    ]


@contextmanager
def _ray() -> Iterator[None]:
    from launch.ray_access import protect_local_ray

    if "ray" not in sys.modules:
        protect_local_ray("local")  # it is read when Ray is imported
    import ray

    from launch.settings import ClusterSettings
    from launch.system import start_ray

    start_ray(ClusterSettings(address="local"), namespace=f"bench-replay-{time.time_ns():x}")
    try:
        yield
    finally:
        ray.shutdown()


def _our_shard(folder: Path, block: Any, num_episodes: int) -> Any:
    """A replay shard as the training makes it, filled."""
    import ray

    from learner.replay_actor import ReplayShard

    options = {"name": SHARD, "num_cpus": 0, "max_concurrency": 1}
    config = _config(num_episodes * EPISODE_STEPS)
    shard = ray.remote(ReplayShard).options(**options).remote(str(folder), config, RESOLUTION_PX, ACTION_DIM)
    ray.get(shard.insert.remote("block", block))
    return shard


def _our_samplers(settings: BenchSettings) -> dict[str, ShardSampler]:
    """Batches by update index as the learner gets them: shard on this machine, and as if it were elsewhere."""
    from learner.learner_actor import RayShards

    samplers = {}
    for name, local_reads in (("ours", True), ("ours, shard asked", False)):
        shards = RayShards([SHARD], local_reads=local_reads)
        samplers[name] = ShardSampler(shards.sample, shards.sizes, BATCH_SIZE, settings.seed)
        samplers[name].refresh()
    return samplers


def same_batches(first: Callable[[int], Batch], second: Callable[[int], Batch]) -> None:
    """Raises RuntimeError unless two samplers give the same batches, bit for bit."""
    for update_index in range(3):
        for name, a, b in zip(Batch._fields, first(update_index), second(update_index)):
            if not np.array_equal(a, b):
                raise RuntimeError(f"{name} of update {update_index} depends on how the shard is read")


def _our_turn(sampler: ShardSampler, pool: ThreadPoolExecutor, batches: int) -> Callable[[], float]:
    def run() -> float:
        sampler.refresh()  # once per call of run_updates
        return _prefetched(lambda index: to_tensors(sampler(index), torch.device("cpu")), pool, batches)

    return run


def _peer_in_ray(settings: BenchSettings, peer: Peer) -> Any:
    """A peer's buffer in an actor of its own."""
    import ray

    arguments = dict(peer.arguments)
    if "folder" in arguments:
        arguments["folder"] = Path(arguments["folder"]).with_name(f"ray-{peer.name.replace(' ', '-')}")
    actor = ray.remote(BufferActor).options(num_cpus=0)
    return actor.remote(kind=peer.kind.__name__, arguments=arguments, threads=settings.threads)


def _calls(actor: Any) -> tuple[Sample, Callable[[], None]]:
    import ray

    def sample() -> TensorBatch:
        return to_tensors(Batch(*ray.get(actor.sample.remote())), torch.device("cpu"))

    return sample, lambda: ray.get(actor.rest.remote())


def _prefetched(fetch: Callable[[int], TensorBatch], pool: ThreadPoolExecutor, batches: int) -> float:
    """Takes batches in order while the next ones are fetched, as `Learner.run_updates` does."""
    pending: deque[Future[TensorBatch]] = deque()
    for index in range(batches):
        while len(pending) < PREFETCH_BATCHES + 1 and index + len(pending) < batches:
            pending.append(pool.submit(fetch, index + len(pending)))
        pending.popleft().result()
    return batches


def _draw(sample: Sample, batches: int) -> float:
    for _ in range(batches):
        sample()
    return batches


def _turn(run: Callable[[], float], rest: Callable[[], None]) -> Callable[[], float]:
    def turn() -> float:
        try:
            return run()
        finally:
            rest()

    return turn


def _comparisons(
    rates: dict[str, list[float]], case: str, peers: Sequence[Peer], checks: dict[str, Any]
) -> list[Comparison]:
    return [
        compare(
            rates,
            "ours",
            peer.name,
            part=PART,
            case=case,
            unit=UNIT,
            target=TARGET,
            checks={"ours": checks["ours"], "peer": checks[peer.name]},
        )
        for peer in peers
    ]


def cold_reads(settings: BenchSettings, folder: Path, episodes: Sequence[Episode]) -> list[Row]:
    """Time per batch when no frame is in the page cache: what a store larger than memory costs at worst."""
    config = _config(len(episodes) * EPISODE_STEPS)
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
    store = EpisodeStore(folder, _config(sizes[-1]), RESOLUTION_PX, ACTION_DIM)
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
