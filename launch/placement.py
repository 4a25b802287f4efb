"""Where actors go: what each asks Ray for, whether the cluster can hold them, and which of them are waiting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ray

# Public calls say what the cluster has; which actor has no node, and what is free on each node, only these do
# (ray.util.state asks the dashboard, which a local Ray does not start).
from ray._private.state import actors as actor_table
from ray._private.state import available_resources_per_node

from launch.cli import UsageError
from launch.settings import TrainSettings

EPSILON = 1e-6  # Ray counts resources in units of 1e-4.


@dataclass(frozen=True)
class Need:
    """What one actor, by its name, asks Ray for; fractions are allowed."""

    name: str
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.resources})"

    @property
    def resources(self) -> str:
        """What it asks for, for messages: "1 CPU, 0.5 GPU"."""
        return resources_text({"CPU": self.cpus, "GPU": self.gpus})

    def fits(self, free: Mapping[str, float]) -> bool:
        """Whether a node with these free resources can hold it."""
        return self.cpus <= free.get("CPU", 0.0) + EPSILON and self.gpus <= free.get("GPU", 0.0) + EPSILON


def resources_text(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs for messages: "2 CPU, 0.5 GPU", or "none"."""
    return ", ".join(f"{resources[k]:g} {k}" for k in ("CPU", "GPU") if resources.get(k)) or "none"


def needs_of(settings: TrainSettings) -> list[Need]:
    """Every actor of a run; of `rollout.num_actors=auto` those that it starts with."""
    cluster = settings.cluster
    rewards = settings.reward.num_actors if settings.reward.frozen else 0
    return [
        Need("learner", cluster.learner_cpus, cluster.learner_gpus),
        *(Need(f"reward-{i}", cluster.reward_cpus, cluster.reward_gpus) for i in range(rewards)),
        *(Need(f"replay-{i}", cluster.shard_cpus) for i in range(settings.replay.num_shards)),
        Need("evaluator", cluster.evaluator_cpus),
        *(rollout_need(settings, slot) for slot in range(settings.rollout.first_actors)),
    ]


def rollout_need(settings: TrainSettings, slot: int) -> Need:
    """What the rollout actor of a slot asks for."""
    return Need(rollout_name(slot), settings.cluster.rollout_cpus)


def rollout_name(slot: int) -> str:
    """Name of the rollout actor of a slot."""
    return f"rollout-{slot}"


def unplaced(needs: Iterable[Need], nodes: Iterable[Mapping[str, float]]) -> list[Need]:
    """Those that find no node, when the largest choose first.

    Args:
        needs: Of all actors.
        nodes: Resources of each node.

    Returns:
        Empty if all fit.
    """
    free = [dict(node) for node in nodes]
    left = []
    for need in sorted(needs, key=lambda need: (-need.gpus, -need.cpus)):
        node = next((node for node in free if need.fits(node)), None)
        if node is None:
            left.append(need)
            continue
        node["CPU"] = node.get("CPU", 0.0) - need.cpus
        node["GPU"] = node.get("GPU", 0.0) - need.gpus
    return left


def node_resources() -> list[dict[str, float]]:
    """CPUs and GPUs of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_resources() -> list[dict[str, float]]:
    """CPUs and GPUs of each living node that no actor or task has; a second or so old."""
    return list(available_resources_per_node().values())


def cluster_text() -> str:
    """What the cluster has, node by node: "3 nodes: 8 CPU, 1 GPU; 4 CPU; 4 CPU"."""
    nodes = node_resources()
    shown = "; ".join(resources_text(node) for node in nodes[:8]) + ("; ..." if len(nodes) > 8 else "")
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}: {shown}"


def free_text() -> str:
    """What of it is free: "1.5 CPU"."""
    free = free_resources()
    return resources_text({name: sum(node.get(name, 0.0) for node in free) for name in ("CPU", "GPU")})


def require_resources(settings: TrainSettings) -> None:
    """Refuses a run that the cluster cannot hold, unless it may wait for nodes.

    Raises:
        UsageError: naming an actor that fits nowhere, what it asks for, what there is, and which keys to lower.
    """
    if settings.cluster.wait_for_resources_s > 0:
        return
    needs = needs_of(settings)
    left = unplaced(needs, node_resources())
    if not left:
        return
    names = ", ".join(map(str, left[:3])) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    raise UsageError(
        f"too few resources: of {len(needs)} actors there is no room for {names}; the cluster has {cluster_text()}. "
        "Lower rollout.num_actors, reward.num_actors or the cluster.*_cpus and cluster.*_gpus keys, add nodes, or wait "
        "for nodes with cluster.wait_for_resources_s=600"
    )


@dataclass(frozen=True)
class NotRunning:
    """The actors of this job that cannot work now.

    Attributes:
        names: All of them: waiting for a node, or with one and still starting.
        without_node: Names of those that no node has room for, or not yet.
        dead: Names of those that Ray will not start again: it does so for a process that died, but not where the actor's
            constructor raised. Actors that were given up are among them.
    """

    names: frozenset[str] = frozenset()
    without_node: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()


def not_running() -> NotRunning:
    """Asks Ray which actors of this job are waiting, starting or dead; the cost does not depend on how many run."""
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    records = [
        record
        for state in ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
        for record in actor_table(None, job, state).values()
    ]
    # With a node an actor has an address, even while its constructor runs; without one it has none, or that of the raylet
    # which looks for a place.
    nowhere = {("", 0)} | {(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes()}
    return NotRunning(
        frozenset(record["Name"] for record in records),
        frozenset(
            record["Name"]
            for record in records
            if (record["Address"]["IPAddress"], record["Address"]["Port"]) in nowhere
        ),
        frozenset(record["Name"] for record in actor_table(None, job, "DEAD").values()),
    )
