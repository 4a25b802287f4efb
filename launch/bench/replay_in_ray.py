"""Replay sampling through Ray: our shards as the learner reads them, and the peers' buffers in actors."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.bench.harness import Comparison, Contender, Row, race, spread
from launch.bench.reference_replay import BufferActor
from launch.bench.replay_work import (
    ACTION_DIM,
    BATCH_SIZE,
    EPISODE_STEPS,
    N_STEP,
    PART,
    RESOLUTION_PX,
    Peer,
    Sample,
    checked,
    comparisons,
    store_config,
    turn,
)
from launch.bench.settings import BenchSettings
from learner.batch import Batch, TensorBatch
from learner.sharding import ShardSampler
from learner.staging import to_tensors
from models.episode import Episode

PREFETCH_BATCHES = 4  # the default of learner.prefetch_batches
SHARD = "bench-replay-0"


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
        batches = 100 if settings.smoke else 400
        shard = _our_shard(folder, block, len(episodes))  # lives as long as this handle
        samplers = _our_samplers(settings)
        same_batches(*samplers.values())
        checks: dict[str, Any] = {
            name: checked(to_tensors(sampler(0), torch.device("cpu")), episodes)
            for name, sampler in samplers.items()
        }
        checks["ours"]["equals_asked_shard"] = True
        contenders = [
            Contender("ours", _our_turn(samplers["ours"], pool, batches)),
            Contender("ours, shard asked", _our_turn(samplers["ours, shard asked"], pool, batches // 4)),
        ]
        actors = [_peer_in_ray(settings, peer) for peer in peers]
        ray.get([actor.fill.remote(block) for actor in actors])
        for peer, actor in zip(peers, actors):
            sample, rest = _calls(actor)
            checks[peer.name] = checked(sample(), episodes)
            rest()
            fetch = partial(_prefetched, partial(_any, sample), pool, peer.batches)
            contenders.append(Contender(peer.name, turn(fetch, rest)))
        settings.report(f"{case}: all contenders agree")
        rates = race(contenders, settings.rounds, report=settings.report)
        ray.get(shard.close.remote())
    asked = {"batches_per_s": spread(rates["ours, shard asked"]).median}
    return [
        *comparisons(rates, case, peers, checks),
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
    config = store_config(num_episodes * EPISODE_STEPS)
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


def _any(sample: Sample, _: int) -> TensorBatch:
    """Peers draw whatever comes next; ours draw the batch of an index."""
    return sample()


def _prefetched(fetch: Callable[[int], TensorBatch], pool: ThreadPoolExecutor, batches: int) -> float:
    """Takes batches in order while the next ones are fetched, as `Learner.run_updates` does."""
    pending: deque[Future[TensorBatch]] = deque()
    for index in range(batches):
        while len(pending) < PREFETCH_BATCHES + 1 and index + len(pending) < batches:
            pending.append(pool.submit(fetch, index + len(pending)))
        pending.popleft().result()
    return batches
