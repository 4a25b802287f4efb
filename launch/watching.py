"""What a run is watched by besides its learning: episodes kept and lost, the reward service, delays, memory.

Nothing here waits for an actor: questions are asked while it works, and whoever is busy or dead answers a later row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from launch.failures import describe, is_process_failure
from launch.system import System
from models.memory import memory_use

LAST_ANSWERS_WAIT_S = 1.0
ROLLOUTS_PER_ROW = 8  # Of very many rollout actors not each is asked for its memory in every row.


class StoredEpisodes:
    """What the replay shards hold, by their own account, and what was rolled out and never arrived.

    Args:
        shards: `ReplayShard.stats()` of every shard.

    Attributes:
        shards: The newest ones.
    """

    def __init__(self, shards: Sequence[Mapping[str, int]]) -> None:
        self.shards = list(shards)
        self._dropped = self._duplicates = 0

    def add(self, shard: int, acknowledgement: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Takes the acknowledgement of a block, and what its rollout actor says about the episodes in it."""
        known = "total_inserted_episodes"
        # Two acknowledgements of one shard may be handled in either order; its total only grows.
        if acknowledgement[known] >= self.shards[shard][known]:
            self.shards[shard] = {key: acknowledgement[key] for key in self.shards[shard]}
        held = {*acknowledgement["inserted"], *acknowledgement["duplicates"]}
        self._dropped += sum(episode["episode_id"] not in held for episode in meta["episodes"])
        self._duplicates += len(acknowledgement["duplicates"])

    @property
    def agent_steps(self) -> int:
        """Agent steps ever stored."""
        return sum(stats["total_inserted_steps"] for stats in self.shards)

    def metrics(self) -> dict[str, int]:
        """Episodes ever stored, transitions held now, episodes that no shard holds, and those that came twice."""
        return {
            "episodes": sum(stats["total_inserted_episodes"] for stats in self.shards),
            "replay_transitions": sum(stats["size_transitions"] for stats in self.shards),
            "dropped_episodes": self._dropped,
            "duplicate_episodes": self._duplicates,
        }


class RewardService:
    """The reward actors' counters, added up over actors and over their restarts, with means since the last row."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, float]] = {}
        self._queues: dict[str, float] = {}
        self._total: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()

    def add(self, actor: str, stats: Mapping[str, float]) -> None:
        """Takes `Batcher.stats()` of one actor."""
        now = {key: stats[key] for key in ("requests", "batches", "frames", "failed_batches", "busy_s")}
        now["latency_sum_s"] = stats["latency_s"] * stats["requests"]
        now["fill_sum"] = stats["batch_fill"] * stats["batches"]
        last = self._last.get(actor, {})
        if now["requests"] < last.get("requests", 0.0):
            last = {}  # A new process counts from zero.
        self._total.update({key: value - last.get(key, 0.0) for key, value in now.items()})
        self._last[actor] = now
        self._queues[actor] = stats["queue_requests"]

    def metrics(self) -> dict[str, float]:
        """Numbers of a row; means are left out while no batch was finished since the last one."""
        if not self._last:
            return {}
        new = {key: value - self._reported[key] for key, value in self._total.items()}
        self._reported = Counter(self._total)
        sums = ("requests", "batches", "frames", "failed_batches", "busy_s")
        metrics = {f"reward_{key}": self._total[key] for key in sums}
        metrics["reward_queue_requests"] = sum(self._queues.values())
        # A new process that has had as many requests as the old one is not noticed; the sums are little wrong then.
        if new["batches"] > 0 and new["requests"] > 0:
            metrics["reward_batch_fill"] = new["fill_sum"] / new["batches"]
            metrics["reward_latency_s"] = new["latency_sum_s"] / new["requests"]
            metrics["reward_frames_per_s"] = new["frames"] / max(new["busy_s"], 1e-9)
        return metrics


class Memory:
    """Memory of the processes of a run: of each kind the largest, as of the last row in which one answered."""

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}
        self._new: dict[str, float] = {}

    def add(self, kind: str, used: Mapping[str, int]) -> None:
        """Takes `memory_use()` of one process."""
        for name, value in used.items():
            key = f"{kind}_{name}"
            self._new[key] = max(value, self._new.get(key, 0))

    def metrics(self) -> dict[str, float]:
        """`<kind>_rss_bytes` and `<kind>_private_bytes`."""
        self._reported |= self._new
        self._new = {}
        return dict(self._reported)


class Questions:
    """Calls of which at most one per name is on its way; a call that its process did not survive has no answer."""

    def __init__(self) -> None:
        self._asked: dict[Any, str] = {}

    def ask(self, calls: Mapping[str, Callable[[], Any]]) -> None:
        """Starts the calls by name, but for those that are still on their way."""
        pending = set(self._asked.values())
        for name, call in calls.items():
            if name not in pending:
                self._asked[call()] = name

    def answers(self, wait_s: float = 0.0) -> dict[str, Any]:
        """Results that have come in, by name.

        Args:
            wait_s: How long to wait for all of them.

        Raises:
            RuntimeError: if a call failed for another reason than a dead process.
        """
        if not self._asked:
            return {}
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=wait_s)
        found = {}
        for ref in ready:
            name = self._asked.pop(ref)
            try:
                found[name] = ray.get(ref)
            except ray.exceptions.RayError as error:
                if not is_process_failure(error):
                    raise RuntimeError(f"{name} failed: {describe(error)}") from error
        return found


class Watch:
    """The numbers of a row that depend on timing; a synchronous run has none of them.

    Args:
        system: Actor handles, looked at afresh for every row.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._questions = Questions()
        self._rewards = RewardService()
        self._memory = Memory()
        self._block_latencies_s: list[float] = []
        self._turn = 0

    def block_done(self, started_s: float) -> None:
        """Notes an acknowledged block that was begun at `started_s` (`time.monotonic()`)."""
        self._block_latencies_s.append(time.monotonic() - started_s)

    def metrics(self, last: bool = False) -> dict[str, float]:
        """Numbers of a row, and the questions for the next one.

        Args:
            last: Whether no row follows: then the answers are waited for, for a second at most.
        """
        answers = self._questions.answers()
        self._questions.ask(self._calls())
        if last:
            answers |= self._questions.answers(LAST_ANSWERS_WAIT_S)
        for name, answer in answers.items():
            question, _, actor = name.partition(" ")
            if question == "stats":
                self._rewards.add(actor, answer)
            else:
                self._memory.add(actor.partition("-")[0], answer)
        self._memory.add("driver", memory_use())
        return {
            **self._rewards.metrics(),
            **self._block_metrics(),
            **self._memory.metrics(),
            **object_store_use(),
        }

    def _calls(self) -> dict[str, Callable[[], Any]]:
        calls = {f"stats reward-{i}": actor.stats.remote for i, actor in enumerate(self._system.rewards)}
        actors = self._system.by_name()
        many = [name for name in actors if name.startswith("rollout-")]
        self._turn += ROLLOUTS_PER_ROW
        asked = {many[(self._turn + i) % len(many)] for i in range(min(ROLLOUTS_PER_ROW, len(many)))}
        for name, actor in actors.items():
            if name in asked or name not in many:
                calls[f"memory {name}"] = lambda actor=actor: actor.__ray_call__.remote(memory_use)
        return calls

    def _block_metrics(self) -> dict[str, float]:
        latencies_s, self._block_latencies_s = self._block_latencies_s, []
        if not latencies_s:
            return {}
        return {"block_latency_s": sum(latencies_s) / len(latencies_s)}


def object_store_use() -> dict[str, float]:
    """Bytes of the cluster's object stores that are in use, and their share of what there is."""
    total = ray.cluster_resources().get("object_store_memory", 0.0)
    if total <= 0:
        return {}
    used = total - ray.available_resources().get("object_store_memory", 0.0)
    return {"object_store_bytes": used, "object_store_share": used / total}
