"""LearnerActor: the learner as a Ray actor, fed by named replay shards."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from learner.batch import Batch
from learner.bonus import bonus_class
from learner.drqv2_config import DrQV2Config
from learner.learner_core import Learner, LearnerConfig
from learner.local_reads import LocalStore, StoreSnapshot, machine_id, open_local
from learner.sharding import SampleRequest, ShardSampler, ShardSize
from models.memory import keep_freed_memory

SETTLE_TIMEOUT_S = 30.0
LOCAL_ATTEMPTS = 3  # the rows of a draw are reused while it is read; then the shard itself is asked


class LearnerRestartedError(RuntimeError):
    """A call was meant for the learner before it was restarted."""


class RayShards:
    """Draws from replay shards, named so that a restarted learner finds them again.

    A shard on this machine is read through its files, which moves each frame once instead of three times; any
    other shard is asked for the rows. Both draw the same batch from the same contents.

    Args:
        names: Names of the shards' actors.
        local_reads: Read the files of shards on this machine.
    """

    def __init__(self, names: Sequence[str], local_reads: bool = True) -> None:
        self._shards = [ray.get_actor(name) for name in names]
        self._machine = machine_id() if local_reads else None
        self._local: dict[int, LocalStore] = {}

    def sample(self, requests: Sequence[SampleRequest]) -> list[Batch]:
        """Draws the parts of a batch; shards elsewhere work on theirs meanwhile."""
        calls = [None if r.shard in self._local else self._ask(r) for r in requests]
        return [self._read(r) if call is None else ray.get(call) for r, call in zip(requests, calls)]

    def _ask(self, request: SampleRequest) -> Any:
        return self._shards[request.shard].sample.remote(
            request.batch_size, request.seed, request.success_share
        )

    def _read(self, request: SampleRequest) -> Batch:
        for _ in range(LOCAL_ATTEMPTS):
            store = self._local.get(request.shard)
            if store is None:
                break
            batch = store.sample(request.batch_size, request.seed, request.success_share)
            if batch is not None:
                return batch
            self._refresh([request.shard])  # rows were reused since: take the index as it is now
        return ray.get(self._ask(request))

    def sizes(self) -> list[ShardSize]:
        """Start rows of every shard; takes their present contents as what is drawn from."""
        return self._refresh(range(len(self._shards)))

    def _refresh(self, shards: Sequence[int]) -> list[ShardSize]:
        answers: list[tuple[ShardSize, StoreSnapshot | None]] = ray.get(
            [self._shards[shard].snapshot.remote(self._machine) for shard in shards]
        )
        for shard, (_, snapshot) in zip(shards, answers):
            store = open_local(snapshot, self._local.get(shard))
            if store is None:
                self._local.pop(shard, None)
            else:
                self._local[shard] = store
        return [size for size, _ in answers]


class RayWeightStore:
    """Publishes to a named WeightStore; training goes on meanwhile."""

    def __init__(self, name: str) -> None:
        self._store = ray.get_actor(name)
        self._sent: list[Any] = []

    def publish(self, version: int, weights: dict[str, Any]) -> None:
        """Sends weights."""
        self._sent = [self._store.publish.remote(version, weights)]

    def settle(self) -> None:
        """Waits until the weights sent last have arrived, or cannot.

        Without it a rollout that starts after an answer of the learner could ask the store before they are there: on a
        busy machine two synchronous runs would differ.
        """
        if self._sent:
            ray.wait(self._sent, timeout=SETTLE_TIMEOUT_S)
            self._sent = []


class LearnerActor:
    """The learner in a process of its own.

    After a restart it comes back untrained and says so through `ping`; the driver then calls `load`
    with the last checkpoint.

    Args:
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        agent: Fields of `DrQV2Config`.
        bonus: Fields of the bonus's `config_class`; "name" says which.
        learner: Fields of `LearnerConfig`.
        shards: Names of the replay shards, or an object with the methods of `RayShards`.
        weight_store: Name of the weight store, or an object with the methods of `RayWeightStore`.
        seed: Seed of weights, noise and batches.
        device: Torch device, "cpu" or "cuda".
        success_share: Share of every batch that comes from episodes with a success (`ReplayConfig`).
        success_factor: Its bound.
    """

    def __init__(
        self,
        resolution_px: int,
        action_dim: int,
        agent: dict[str, Any],
        bonus: dict[str, Any],
        learner: dict[str, Any],
        shards: Sequence[str] | Any,
        weight_store: str | Any,
        seed: int = 0,
        device: str = "cpu",
        success_share: float = 0.0,
        success_factor: float | None = None,
    ) -> None:
        agent_config, self._config = DrQV2Config(**agent), LearnerConfig(**learner)
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        keep_freed_memory()
        source: Any = shards if hasattr(shards, "sample") else RayShards(shards)
        self._store = RayWeightStore(weight_store) if isinstance(weight_store, str) else weight_store
        self._sampler = ShardSampler(
            *(source.sample, source.sizes, agent_config.batch_size, seed, success_share, success_factor)
        )
        self._learner = Learner(
            resolution_px,
            action_dim,
            agent_config,
            bonus_class(bonus["name"]).config_class(**bonus),
            self._sampler,
            self._config,
            seed,
            device,
        )
        self._busy = threading.Lock()  # ping may be answered by another thread meanwhile
        self._state = "fresh"

    def run_updates(
        self, num_updates: int, agent_steps: int, expected_updates: int | None = None
    ) -> dict[str, Any]:
        """Runs updates, publishing weights every `publish_every_updates`.

        Args:
            num_updates: Number of updates.
            agent_steps: Global agent steps so far.
            expected_updates: Updates that the caller believes to be done. An actor that was restarted
                between two calls answers the next one untrained, without an error; this refuses it.

        Returns:
            `metrics` (means), `updates` done in total, and `batch_wait_s`, the time spent waiting for
            batches since the actor started.

        Raises:
            LearnerRestartedError: if another number of updates is done than expected.
        """
        with self._busy:
            self._check_updates(expected_updates)
            self._state = "ready"
            self._sampler.refresh()
            try:
                metrics = self._learner.run_updates(num_updates, agent_steps, self._publish_if_due)
            finally:
                self._state = "fresh" if self._learner.needs_load else "ready"
            self._store.settle()
            return {
                "metrics": metrics,
                "updates": self._learner.updates,
                "batch_wait_s": self._learner.batch_wait_s,
            }

    def _check_updates(self, expected_updates: int | None) -> None:
        if expected_updates is not None and expected_updates != self._learner.updates:
            raise LearnerRestartedError(
                f"the learner (state {self._state!r}) has done {self._learner.updates} updates, the caller expects "
                f"{expected_updates}; it was probably restarted: load the last checkpoint into it"
            )

    def _publish_if_due(self) -> None:
        if self._learner.updates % self._config.publish_every_updates == 0:
            self._store.publish(*self._learner.weights())

    def publish(self, expected_updates: int | None = None) -> int:
        """Publishes the present weights; returns their version.

        Raises:
            LearnerRestartedError: if another number of updates is done than expected (see `run_updates`).
        """
        with self._busy:
            self._check_updates(expected_updates)
            version, weights = self._learner.weights()
            self._store.publish(version, weights)
            self._store.settle()
            return version

    def policy_config(self) -> dict[str, Any]:
        """What `learner.policy.build_policy` needs."""
        return self._learner.agent.policy_config()

    def save(self, folder: str | Path, expected_updates: int | None = None) -> str:
        """Writes a checkpoint into an existing folder; returns the file's path.

        Raises:
            LearnerRestartedError: if another number of updates is done than expected (see `run_updates`).
        """
        with self._busy:
            self._check_updates(expected_updates)
            return str(self._learner.save(folder))

    def load(self, folder: str | Path) -> int:
        """Restores a checkpoint and publishes its weights; returns the number of updates in it."""
        with self._busy:
            self._learner.load(folder)
            self._state = "ready"
            self._store.publish(*self._learner.weights())
            self._store.settle()
            return self._learner.updates

    def ping(self) -> dict[str, Any]:
        """`state` ("fresh" until the first update or load, and after a failure that only a load mends; else "ready"), `updates`, `pid`."""
        return {"state": self._state, "updates": self._learner.updates, "pid": os.getpid()}
