"""Starting Ray and wiring the actors: who exists, what it may use, and what to say when it cannot start."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from launch.cli import UsageError
from launch.failures import get_or_explain
from launch.ray_access import ray_address
from launch.settings import ClusterSettings, TrainSettings

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class System:
    """Handles of the actors of one run."""

    weights: Any
    shards: list[Any]
    rewards: list[Any]
    learner: Any
    rollouts: list[Any]
    evaluator: Any


def start_ray(cluster: ClusterSettings, namespace: str, *, show_logs: bool = True) -> None:
    """Starts a local Ray, or attaches to a cluster.

    Args:
        cluster: Address and resources.
        namespace: Namespace of the named actors; one per run.
        show_logs: Whether what the actors print appears here as well as in Ray's logs.
    """
    environment = {"PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)}
    if "MUJOCO_GL" in os.environ:
        environment["MUJOCO_GL"] = os.environ["MUJOCO_GL"]
    common: dict[str, Any] = {
        "namespace": namespace,
        "runtime_env": {"env_vars": environment},
        "log_to_driver": show_logs,
    }
    address = ray_address(cluster.address)
    if address == "local":
        ray.init(
            "local",
            include_dashboard=cluster.include_dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=cluster.object_store_bytes,
            logging_level="warning",
            **common,
        )
    else:
        ray.init(address, logging_level="warning", **common)


def require_resources(settings: TrainSettings) -> None:
    """Refuses a run that the cluster cannot hold, before anything waits for ever.

    Raises:
        UsageError: naming what is asked for, what there is, and which keys to lower.
    """
    cluster, rollouts = settings.cluster, settings.rollout.num_actors
    rewards = cluster.num_reward_actors if settings.reward.frozen else 0
    needed = {
        "CPU": cluster.learner_cpus
        + rollouts * cluster.rollout_cpus
        + rewards * cluster.reward_cpus
        + cluster.num_shards * cluster.shard_cpus
        + cluster.evaluator_cpus,
        "GPU": cluster.learner_gpus + rewards * cluster.reward_gpus,
    }
    there = ray.cluster_resources()
    for resource, amount in needed.items():
        if amount > there.get(resource, 0.0) + 1e-6:
            raise UsageError(
                f"too few {resource}s: {rollouts} rollout actors, {rewards} reward actors, "
                f"{cluster.num_shards} shards, the learner and the evaluator ask for {amount:g} {resource}, the "
                f"cluster has {there.get(resource, 0.0):g}. Lower rollout.num_actors or the cluster.*_"
                f"{resource.lower()}s keys, or add nodes"
            )


# A dead reward actor or shard is replaced and its calls are repeated by Ray; the other actors are replaced too, but
# the driver decides what to do about a call that was lost.
RETRIED = {"max_restarts": -1, "max_task_retries": -1}
RESTARTED = {"max_restarts": -1, "max_task_retries": 0}


def build_system(settings: TrainSettings, folder: Path) -> System:
    """Creates every actor and waits until all answer.

    Args:
        settings: Everything configurable.
        folder: Run folder (replay shards live in it).

    Raises:
        RuntimeError: naming the actor that does not start, and why.
    """
    from learner.weights_actor import WeightStore

    system = System(
        weights=ray.remote(WeightStore).options(name="weights", num_cpus=0, **RETRIED).remote(),
        shards=_shards(settings, folder),
        rewards=_rewards(settings) if settings.reward.frozen else [],
        learner=_learner(settings),
        rollouts=_rollouts(settings),
        evaluator=_evaluator(settings),
    )
    _wait_until_ready(system, settings.cluster.start_timeout_s)
    return system


def _shards(settings: TrainSettings, folder: Path) -> list[Any]:
    from learner.replay_actor import ReplayShard

    return [
        ray.remote(ReplayShard)
        .options(name=f"replay-{i}", num_cpus=settings.cluster.shard_cpus, max_concurrency=1, **RETRIED)
        .remote(
            str(folder / "replay" / f"shard_{i}"),
            asdict(settings.replay_config),
            settings.env.render.height_px,
            settings.env.action_dim,
        )
        for i in range(settings.cluster.num_shards)
    ]


def _rewards(settings: TrainSettings) -> list[Any]:
    from reward_service.reward_actor import RewardActor

    cluster = settings.cluster
    options = {
        "num_cpus": cluster.reward_cpus,
        "num_gpus": cluster.reward_gpus,
        "max_concurrency": 256,
        **RETRIED,
    }
    return [
        ray.remote(RewardActor)
        .options(name=f"reward-{i}", **options)
        .remote(
            settings.reward.checkpoint,
            asdict(settings.frame_reward),
            kind=settings.reward.frozen,
            device="cuda" if cluster.reward_gpus > 0 else "cpu",
            num_threads=cluster.reward_threads,
            seed=settings.seed,
        )
        for i in range(cluster.num_reward_actors)
    ]


def _learner(settings: TrainSettings) -> Any:
    from learner.learner_actor import LearnerActor

    cluster = settings.cluster
    options = {"num_cpus": cluster.learner_cpus, "num_gpus": cluster.learner_gpus, **RESTARTED}
    return (
        ray.remote(LearnerActor)
        .options(name="learner", **options)
        .remote(
            resolution_px=settings.env.render.height_px,
            action_dim=settings.env.action_dim,
            agent=asdict(settings.agent),
            bonus=asdict(settings.bonus_config),
            learner=asdict(settings.learner),
            shards=[f"replay-{i}" for i in range(cluster.num_shards)],
            weight_store="weights",
            seed=settings.seed,
            device="cuda" if cluster.learner_gpus > 0 else "cpu",
        )
    )


def _acting(settings: TrainSettings) -> dict[str, Any]:
    """What rollout actors and the evaluator have in common."""
    from learner.drqv2 import policy_config

    return {
        "env": asdict(settings.env),
        "policy_factory": "learner.policy:build_policy",
        "policy_config": policy_config(
            settings.agent, settings.env.render.height_px, settings.env.action_dim
        ),
        "weight_store_name": "weights",
        "seed": settings.seed,
        "num_envs": settings.rollout.envs_per_actor,
        "num_threads": settings.cluster.rollout_threads,
    }


def _rollouts(settings: TrainSettings) -> list[Any]:
    from actors.rollout_actor import RolloutActor

    agent = settings.agent
    return [
        ray.remote(RolloutActor)
        .options(name=f"rollout-{i}", num_cpus=settings.cluster.rollout_cpus, **RESTARTED)
        .remote(
            **_acting(settings),
            weight_refresh_steps=settings.rollout.weight_refresh_steps,
            num_expl_steps=agent.num_expl_steps,
            stddev_start=agent.stddev_start,
            stddev_end=agent.stddev_end,
            stddev_duration_steps=agent.stddev_duration_steps,
            dense=settings.reward.environment == "dense",
            egl_device=_egl_device(settings.cluster, i),
        )
        for i in range(settings.rollout.num_actors)
    ]


def _evaluator(settings: TrainSettings) -> Any:
    from actors.evaluator_actor import EvaluatorActor

    return (
        ray.remote(EvaluatorActor)
        .options(name="evaluator", num_cpus=settings.cluster.evaluator_cpus, **RESTARTED)
        .remote(**_acting(settings), egl_device=_egl_device(settings.cluster, settings.rollout.num_actors))
    )


def _egl_device(cluster: ClusterSettings, number: int) -> int | None:
    return cluster.egl_devices[number % len(cluster.egl_devices)] if cluster.egl_devices else None


def _wait_until_ready(system: System, timeout_s: float) -> None:
    named = [
        ("the weight store", system.weights),
        ("the learner", system.learner),
        ("the evaluator", system.evaluator),
    ]
    named += [(f"replay shard {i}", actor) for i, actor in enumerate(system.shards)]
    named += [(f"reward actor {i}", actor) for i, actor in enumerate(system.rewards)]
    named += [(f"rollout actor {i}", actor) for i, actor in enumerate(system.rollouts)]
    pings = [(name, actor.ping.remote()) for name, actor in named]
    for name, ping in pings:
        free = ", ".join(f"{k} {v:g}" for k, v in ray.available_resources().items() if k in ("CPU", "GPU"))
        get_or_explain(ping, name, timeout_s, f"free resources now: {free or 'none'}; see the Ray logs")
