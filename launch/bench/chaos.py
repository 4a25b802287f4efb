"""A training on several nodes of one machine in which processes and nodes are killed at random; exact counts at the end.

With `kill_every_s=0` nothing is killed: a soak that shows whether the memory of every process stays flat.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.bench.harness import Curve, Row, spread
from launch.bench.settings import BenchSettings
from launch.bench.workload import make_workload, prepare_ray

PEERS: tuple[str, ...] = ()
KINDS = ("rollout", "reward", "replay", "learner", "evaluator", "weights", "node")
NODES = 3
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}
NODE_BACK_AFTER_S = 8.0
# Without any progress for so long after a kill the training has failed, and waiting on would never end.
RECOVERY_LIMIT_S = 600.0
OVERRIDES = (
    *(
        "rollout.num_actors=2",
        "replay.num_shards=2",
        "cluster.spread=true",
        "cluster.wait_for_resources_s=120",
    ),
    *(f"cluster.{who}_cpus=0.25" for who in ("learner", "rollout", "reward", "evaluator", "shard")),
    *("limiter.min_steps=400", "agent.num_expl_steps=400", "checkpoint_every_s=10", "log_every_s=2"),
    *("eval_every_agent_steps=2000", "replay.capacity_transitions=1000000"),
)


def measure(settings: BenchSettings) -> list[Row | Curve]:
    """Trains for `minutes` and counts what was acknowledged, found, doubled, and how long recoveries took."""
    prepare_ray()
    # Dead nodes are noticed within seconds. Ray reads it when the head starts.
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
            return _train(cluster, settings, Path(folder))
    finally:
        cluster.shutdown()


def _train(cluster: Any, settings: BenchSettings, folder: Path) -> list[Row | Curve]:
    import ray

    from launch.bench.ray_training import Unstoppable
    from launch.console import TrainingView
    from launch.metrics import MetricsLog
    from launch.system import build_system, start_ray

    nodes = [cluster.add_node(**NODE) for _ in range(NODES)]
    overrides = [*OVERRIDES, f"cluster.address={cluster.address}"]
    training, run = make_workload(folder, "laptop", overrides, settings.seed)
    view, log = TrainingView("", "off"), MetricsLog(run.path)
    start_ray(training.cluster, namespace=f"drr-chaos-{time.time_ns():x}")
    try:
        system = build_system(training, run.path)
        coordinator = counting_coordinator()(training, system, run, log, view, Unstoppable())
        killer = Killer(cluster, nodes, coordinator, settings)
        coordinator.start()
        end_s = time.monotonic() + 60 * settings.minutes
        while time.monotonic() < end_s or killer.is_recovering:
            coordinator.turn()
            killer.act(is_over=time.monotonic() >= end_s)
        rows = [row for row in run.metric_lines() if row["phase"] == "train"]
        return [*_counts(coordinator, killer), *killer.rows(), memory_curve(rows)]
    finally:
        log.close()
        view.close()
        ray.shutdown()


def counting_coordinator() -> Any:
    """The driver's loop, which remembers what was acknowledged. (A class made late: Ray reads its settings on import.)"""
    from launch.coordinator import Coordinator

    class CountingCoordinator(Coordinator):
        acknowledged: Counter[str]

        def start(self) -> None:
            self.acknowledged = Counter()
            super().start()

        def _block_done(self, block: Any, acknowledgement: Mapping[str, Any], *rest: Any) -> None:
            self.acknowledged.update([*acknowledgement["inserted"], *acknowledgement["duplicates"]])
            super()._block_done(block, acknowledgement, *rest)

    return CountingCoordinator


def _counts(coordinator: Any, killer: Killer) -> list[Row]:
    import ray

    stored = Counter(
        name for ids in ray.get([s.ids.remote() for s in coordinator.system.shards]) for name in ids
    )
    acknowledged = coordinator.acknowledged
    limiter, updates = coordinator.limiter, coordinator.learner.updates
    due = limiter.updates_due(coordinator.agent_steps, 0)
    return [
        Row(
            "chaos",
            "counts",
            {
                "kills": sum(len(times) for times in killer.recovery_s.values()),
                "recoveries": coordinator.recoveries,
                "episodes_acknowledged": len(acknowledged),
                "acknowledged_and_missing": len(acknowledged.keys() - stored.keys()),
                "stored_twice": sum(count > 1 for count in stored.values()),
                "acknowledged_twice": sum(count > 1 for count in acknowledged.values()),
                "updates": updates,
                "updates_behind_the_ratio": due - updates,
                "updates_allowed_behind": round(limiter.tolerance_steps * limiter.updates_per_step),
            },
        )
    ]


class Killer:
    """Kills one thing after another, at random times on a seeded schedule, and waits until training goes on after each.

    Args:
        cluster: Of Ray, on this machine.
        nodes: Those that may die; a dead one is replaced after a while.
        coordinator: Whose actors die.
        settings: Seed and mean time between kills.

    Attributes:
        recovery_s: Kind -> seconds from each kill until an episode was acknowledged and an update done.
    """

    def __init__(self, cluster: Any, nodes: list[Any], coordinator: Any, settings: BenchSettings) -> None:
        self._cluster, self._nodes, self._coordinator = cluster, nodes, coordinator
        self._every_s, self._report = settings.kill_every_s, settings.report
        self._rng = random.Random(settings.seed)
        self._order: list[str] = []
        self._next_s = time.monotonic() + 2 * self._every_s
        self._killed: tuple[str, float, int, int] | None = None
        self._node_back_s: float | None = None
        self.recovery_s: dict[str, list[float]] = {kind: [] for kind in KINDS}

    @property
    def is_recovering(self) -> bool:
        """Whether training has not gone on yet after the last kill."""
        return self._killed is not None

    def act(self, is_over: bool) -> None:
        """Notices a recovery, replaces a node, kills if it is time to.

        Args:
            is_over: Kill nothing more.
        """
        now_s = time.monotonic()
        if self._node_back_s is not None and now_s > self._node_back_s:
            self._nodes.append(self._cluster.add_node(**NODE))
            self._node_back_s = None
        self._notice(now_s)
        if self._every_s > 0 and not is_over and self._killed is None and now_s > self._next_s:
            self._kill(now_s)

    def _notice(self, now_s: float) -> None:
        if self._killed is None:
            return
        kind, killed_s, steps, updates = self._killed
        # A learner goes back to its last checkpoint: what counts is that it does updates again.
        updates = min(updates, self._coordinator.learner.updates)
        self._killed = (kind, killed_s, steps, updates)
        if self._coordinator.agent_steps > steps and self._coordinator.learner.updates > updates:
            self.recovery_s[kind].append(now_s - killed_s)
            self._report(f"{kind}: training goes on after {now_s - killed_s:.1f} s")
            self._killed = None
            self._next_s = now_s + self._rng.expovariate(1 / self._every_s)
        elif now_s - killed_s > RECOVERY_LIMIT_S:
            raise RuntimeError(
                f"{RECOVERY_LIMIT_S:g} s after the {kind} was killed training has not gone on: agent steps {steps} -> "
                f"{self._coordinator.agent_steps}, updates {updates} -> {self._coordinator.learner.updates}"
            )

    def _kill(self, now_s: float) -> None:
        # Each kind once before any comes again.
        if not self._order:
            self._order = self._rng.sample(KINDS, len(KINDS))
        kind = self._order.pop()
        if kind == "node":
            self._cluster.remove_node(
                self._nodes.pop(self._rng.randrange(len(self._nodes))), allow_graceful=False
            )
            self._node_back_s = now_s + NODE_BACK_AFTER_S
        else:
            handles = [h for name, h in self._coordinator.system.by_name().items() if name.startswith(kind)]
            os.kill(process_id(self._rng.choice(handles)), signal.SIGKILL)
        self._killed = (kind, now_s, self._coordinator.agent_steps, self._coordinator.learner.updates)

    def rows(self) -> list[Row]:
        """Kills and recovery times of each kind."""
        return [
            Row(
                "chaos",
                f"killed: {kind}",
                {"kills": len(s), "median_recovery_s": spread(s).median, "longest_recovery_s": max(s)},
            )
            for kind, s in self.recovery_s.items()
            if s
        ]


def process_id(handle: Any) -> int:
    """Of the process that an actor runs in."""
    from ray._private.state import actors

    return int(actors(handle._actor_id.hex())["Pid"])


def memory_curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Resident memory of each kind of process over the run, ten points, in MiB."""
    names = sorted({name for row in rows for name in row if name.endswith("_private_bytes")})
    chosen = rows[:: max(1, len(rows) // 10)]
    points = [
        {"wall_s": row["wall_s"], **{name: row[name] / 2**20 for name in names if row.get(name) is not None}}
        for row in chosen
    ]
    return Curve(
        "memory in MiB",
        "wall_s",
        points,
        "Without mapped files and shared memory; of a kind with several processes the largest.",
    )
