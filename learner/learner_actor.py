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
from learner.drqv2 import DrQV2Config
from learner.learner_core import Learner, LearnerConfig
from learner.memory import keep_freed_memory
from learner.sharding import SampleRequest, ShardSampler


class RayShards:
    """Calls replay shards by name, so that a restarted learner finds them again."""

    def __init__(self, names: Sequence[str]) -> None:
        self._shards = [ray.get_actor(name) for name in names]

    def sample(self, requests: Sequence[SampleRequest]) -> list[Batch]:
        """Draws the parts of a batch from all shards at the same time."""
        calls = [self._shards[r.shard].sample.remote(r.batch_size, r.seed) for r in requests]
        return ray.get(calls)

    def sizes(self) -> list[int]:
        """Start rows of every shard."""
        answers: list[dict[str, int]] = ray.get([shard.stats.remote() for shard in self._shards])
        return [stats["size_starts"] for stats in answers]


class RayWeightStore:
    """Publishes to a named WeightStore without waiting for it."""

    def __init__(self, name: str) -> None:
        self._store = ray.get_actor(name)

    def publish(self, version: int, weights: dict[str, Any]) -> None:
        """Sends weights."""
        self._store.publish.remote(version, weights)


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
    ) -> None:
        agent_config, self._config = DrQV2Config(**agent), LearnerConfig(**learner)
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        keep_freed_memory()
        source: Any = shards if hasattr(shards, "sample") else RayShards(shards)
        self._store = RayWeightStore(weight_store) if isinstance(weight_store, str) else weight_store
        self._sampler = ShardSampler(source.sample, source.sizes, agent_config.batch_size, seed)
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
            RuntimeError: if another number of updates is done than expected.
        """
        with self._busy:
            self._check_updates(expected_updates)
            self._state = "ready"
            self._sampler.refresh()
            metrics = self._learner.run_updates(num_updates, agent_steps, self._publish_if_due)
            return {
                "metrics": metrics,
                "updates": self._learner.updates,
                "batch_wait_s": self._learner.batch_wait_s,
            }

    def _check_updates(self, expected_updates: int | None) -> None:
        if expected_updates is not None and expected_updates != self._learner.updates:
            raise RuntimeError(
                f"the learner (state {self._state!r}) has done {self._learner.updates} updates, the caller expects "
                f"{expected_updates}; it was probably restarted: load the last checkpoint into it"
            )

    def _publish_if_due(self) -> None:
        if self._learner.updates % self._config.publish_every_updates == 0:
            self._store.publish(*self._learner.weights())

    def publish(self) -> int:
        """Publishes the present weights; returns their version."""
        with self._busy:
            version, weights = self._learner.weights()
            self._store.publish(version, weights)
            return version

    def policy_config(self) -> dict[str, Any]:
        """What `learner.policy.build_policy` needs."""
        return self._learner.agent.policy_config()

    def save(self, folder: str | Path, expected_updates: int | None = None) -> str:
        """Writes a checkpoint into an existing folder; returns the file's path.

        Raises:
            RuntimeError: if another number of updates is done than expected (see `run_updates`).
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
            return self._learner.updates

    def ping(self) -> dict[str, Any]:
        """`state` ("fresh" until the first update or load, then "ready"), `updates`, `pid`."""
        return {"state": self._state, "updates": self._learner.updates, "pid": os.getpid()}
