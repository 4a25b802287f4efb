"""Starting Ray and wiring the actors: who exists, what it may use, and what to say when it cannot start."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from launch.cli import UsageError
from launch.failures import get_or_explain
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


def start_ray(cluster: ClusterSettings, namespace: str) -> None:
    """Starts a local Ray, or attaches to a cluster.

    Args:
        cluster: Address and resources.
        namespace: Namespace of the named actors; one per run.
    """
    environment = {"PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)}
    if "MUJOCO_GL" in os.environ:
        environment["MUJOCO_GL"] = os.environ["MUJOCO_GL"]
    common: dict[str, Any] = {
        "namespace": namespace,
        "runtime_env": {"env_vars": environment},
        "log_to_driver": True,
    }
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.setdefault(
            "RAY_AUTH_MODE", "disabled"
        )  # Loopback only; no token left in the home directory.
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


def build_system(settings: TrainSettings, folder: Path) -> System:
    """Creates every actor and waits until all answer.

    Args:
        settings: Everything configurable.
        folder: Run folder (replay shards live in it).

    Raises:
        RuntimeError: naming the actor that does not start, and why.
    """
    from actors.evaluator_actor import EvaluatorActor
    from actors.rollout_actor import RolloutActor
    from learner.drqv2 import policy_config
    from learner.learner_actor import LearnerActor
    from learner.replay_actor import ReplayShard
    from learner.weights_actor import WeightStore
    from reward_service.reward_actor import RewardActor

    cluster, seed = settings.cluster, settings.seed
    retried = {"max_restarts": -1, "max_task_retries": -1}
    restarted = {"max_restarts": -1, "max_task_retries": 0}
    weights = ray.remote(WeightStore).options(name="weights", num_cpus=0, **retried).remote()
    resolution_px, action_dim = settings.env.render.height_px, settings.env.action_dim
    shards = [
        ray.remote(ReplayShard)
        .options(name=f"replay-{i}", num_cpus=cluster.shard_cpus, max_concurrency=1, **retried)
        .remote(
            str(folder / "replay" / f"shard_{i}"),
            asdict(settings.replay_config),
            resolution_px,
            action_dim,
        )
        for i in range(cluster.num_shards)
    ]
    rewards = []
    if settings.reward.frozen:
        device = "cuda" if cluster.reward_gpus > 0 else "cpu"
        rewards = [
            ray.remote(RewardActor)
            .options(
                name=f"reward-{i}",
                num_cpus=cluster.reward_cpus,
                num_gpus=cluster.reward_gpus,
                max_concurrency=256,
                **retried,
            )
            .remote(
                settings.reward.checkpoint,
                asdict(settings.frame_reward),
                kind=settings.reward.frozen,
                device=device,
                num_threads=cluster.reward_threads,
                seed=seed,
            )
            for i in range(cluster.num_reward_actors)
        ]
    learner = (
        ray.remote(LearnerActor)
        .options(name="learner", num_cpus=cluster.learner_cpus, num_gpus=cluster.learner_gpus, **restarted)
        .remote(
            resolution_px=resolution_px,
            action_dim=action_dim,
            agent=asdict(settings.agent),
            bonus=asdict(settings.bonus_config),
            learner=asdict(settings.learner),
            shards=[f"replay-{i}" for i in range(cluster.num_shards)],
            weight_store="weights",
            seed=seed,
            device="cuda" if cluster.learner_gpus > 0 else "cpu",
        )
    )
    policy = policy_config(settings.agent, resolution_px, action_dim)
    rollouts = [
        ray.remote(RolloutActor)
        .options(name=f"rollout-{i}", num_cpus=cluster.rollout_cpus, **restarted)
        .remote(
            env=asdict(settings.env),
            policy_factory="learner.policy:build_policy",
            policy_config=policy,
            weight_store_name="weights",
            seed=seed,
            num_envs=settings.rollout.envs_per_actor,
            weight_refresh_steps=settings.rollout.weight_refresh_steps,
            num_expl_steps=settings.agent.num_expl_steps,
            stddev_start=settings.agent.stddev_start,
            stddev_end=settings.agent.stddev_end,
            stddev_duration_steps=settings.agent.stddev_duration_steps,
            egl_device=_egl_device(cluster, i),
            num_threads=cluster.rollout_threads,
        )
        for i in range(settings.rollout.num_actors)
    ]
    evaluator = (
        ray.remote(EvaluatorActor)
        .options(name="evaluator", num_cpus=cluster.evaluator_cpus, **restarted)
        .remote(
            env=asdict(settings.env),
            policy_factory="learner.policy:build_policy",
            policy_config=policy,
            weight_store_name="weights",
            seed=seed,
            num_envs=settings.rollout.envs_per_actor,
            num_threads=cluster.rollout_threads,
            egl_device=_egl_device(cluster, settings.rollout.num_actors),
        )
    )
    system = System(weights, shards, rewards, learner, rollouts, evaluator)
    _wait_until_ready(system, cluster.start_timeout_s)
    return system


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
