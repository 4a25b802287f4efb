"""Starting Ray and wiring the actors: who exists, and what it may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from launch.failures import get_or_explain
from launch.placement import cluster_text, free_text, needs_of, not_running, rollout_name
from launch.ray_access import ray_address
from launch.settings import ClusterSettings, TrainSettings

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class System:
    """Handles of the actors of one run.

    Attributes:
        weights: The weight store.
        shards: Replay shards.
        rewards: Reward actors; none without a frozen reward.
        learner: The learner.
        rollouts: Rollout actors by slot; they may come and go (`launch.rollout_pool`).
        evaluator: The evaluator.
    """

    weights: Any
    shards: list[Any]
    rewards: list[Any]
    learner: Any
    rollouts: dict[int, Any]
    evaluator: Any

    def by_name(self) -> dict[str, Any]:
        """Handles by the actors' names."""
        return {
            "weights": self.weights,
            "learner": self.learner,
            "evaluator": self.evaluator,
            **{f"replay-{i}": actor for i, actor in enumerate(self.shards)},
            **{f"reward-{i}": actor for i, actor in enumerate(self.rewards)},
            **{rollout_name(slot): actor for slot, actor in self.rollouts.items()},
        }


def start_ray(cluster: ClusterSettings, namespace: str, *, show_logs: bool = True) -> None:
    """Starts a local Ray, or attaches to a cluster.

    Args:
        cluster: Address and resources.
        namespace: Namespace of the named actors; one per run.
        show_logs: Whether what the actors print appears here as well as in Ray's logs.
    """
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}
    if "MUJOCO_GL" in os.environ:
        environment["MUJOCO_GL"] = os.environ["MUJOCO_GL"]
    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": show_logs, "logging_level": "warning"}
    address = ray_address(cluster.address)
    if address == "local":
        # The processes of a local Ray inherit it. Given as a runtime environment it would start a second Python for
        # every actor, and leave the processes that Ray starts in advance unused.
        os.environ |= environment
        ray.init(
            "local",
            include_dashboard=cluster.include_dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=cluster.object_store_bytes,
            _metrics_export_port=cluster.metrics_port,
            **common,
        )
    else:
        # A submitted job may set these as well. Then they are in this process's environment, so that these are the
        # job's own (behind the project's folder, in PYTHONPATH), which Ray would refuse as a conflict.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        ray.init(address, runtime_env={"env_vars": environment}, **common)


# A dead reward actor or shard is replaced and its calls are repeated by Ray; the other actors are replaced too, but
# the driver decides what to do about a call that was lost.
RETRIED = {"max_restarts": -1, "max_task_retries": -1}
RESTARTED = {"max_restarts": -1, "max_task_retries": 0}


def build_system(
    settings: TrainSettings,
    folder: Path,
    on_event: Callable[[str], None] = print,
    is_stopped: Callable[[], bool] = lambda: False,
) -> System:
    """Creates every actor and waits until all answer.

    Args:
        settings: Everything configurable.
        folder: Run folder (replay shards live in it).
        on_event: Called with a sentence when actors wait for resources that the cluster does not have.
        is_stopped: Whether somebody has asked for an end; looked at while actors wait for nodes.

    Raises:
        KeyboardInterrupt: if so.
        RuntimeError: naming the actor that does not start, and why.
    """
    from learner.weights_actor import WeightStore

    system = System(
        weights=ray.remote(WeightStore).options(name="weights", num_cpus=0, **RETRIED).remote(),
        shards=_shards(settings, folder),
        rewards=_rewards(settings) if settings.reward.frozen else [],
        learner=_learner(settings),
        rollouts={slot: make_rollout(settings, slot) for slot in range(settings.rollout.first_actors)},
        evaluator=_evaluator(settings),
    )
    _wait_for_nodes(settings, on_event, is_stopped)
    _wait_until_ready(system, settings)
    return system


def _shards(settings: TrainSettings, folder: Path) -> list[Any]:
    from learner.replay_actor import ReplayShard

    return [
        ray.remote(ReplayShard)
        .options(
            name=f"replay-{i}",
            num_cpus=settings.cluster.shard_cpus,
            max_concurrency=1,
            scheduling_strategy=_strategy(settings.cluster),
            **RETRIED,
        )
        .remote(
            str(folder / "replay" / f"shard_{i}"),
            asdict(settings.replay_config),
            settings.env.render.height_px,
            settings.env.action_dim,
        )
        for i in range(settings.replay.num_shards)
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
        for i in range(settings.reward.num_actors)
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
            shards=[f"replay-{i}" for i in range(settings.replay.num_shards)],
            weight_store="weights",
            seed=settings.seed,
            device="cuda" if cluster.learner_gpus > 0 else "cpu",
            success_share=settings.replay.success_share,
            success_factor=settings.replay.success_factor,
        )
    )


def _acting(settings: TrainSettings) -> dict[str, Any]:
    """What rollout actors and the evaluator have in common."""
    from learner.drqv2_config import policy_config

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


def make_rollout(settings: TrainSettings, slot: int) -> Any:
    """Creates the rollout actor of a slot."""
    from actors.rollout_actor import RolloutActor

    agent = settings.agent
    return (
        ray.remote(RolloutActor)
        .options(
            name=rollout_name(slot),
            num_cpus=settings.cluster.rollout_cpus,
            scheduling_strategy=_strategy(settings.cluster),
            **RESTARTED,
        )
        .remote(
            **_acting(settings),
            weight_refresh_steps=settings.rollout.weight_refresh_steps,
            num_expl_steps=agent.num_expl_steps,
            stddev_start=agent.stddev_start,
            stddev_end=agent.stddev_end,
            stddev_duration_steps=agent.stddev_duration_steps,
            noise_correlation=agent.noise_correlation,
            excursion_prob=agent.excursion_prob,
            dense=settings.reward.environment == "dense",
            egl_device=_egl_device(settings.cluster, slot),
        )
    )


def _strategy(cluster: ClusterSettings) -> str:
    """Ray's scheduling strategy of the actors that there are many of."""
    return "SPREAD" if cluster.spread else "DEFAULT"


def _evaluator(settings: TrainSettings) -> Any:
    from actors.evaluator_actor import EvaluatorActor

    return (
        ray.remote(EvaluatorActor)
        .options(name="evaluator", num_cpus=settings.cluster.evaluator_cpus, **RESTARTED)
        .remote(**_acting(settings), egl_device=_egl_device(settings.cluster, settings.rollout.first_actors))
    )


def _egl_device(cluster: ClusterSettings, number: int) -> int | None:
    return cluster.egl_devices[number % len(cluster.egl_devices)] if cluster.egl_devices else None


def _wait_until_ready(system: System, settings: TrainSettings) -> None:
    """Waits for the constructors of all actors."""
    for name, actor in system.by_name().items():
        hint = f"its constructor has not returned; the cluster has {cluster_text()}; see the Ray logs"
        get_or_explain(actor.ping.remote(), name, settings.cluster.start_timeout_s, hint)


def _wait_for_nodes(
    settings: TrainSettings, on_event: Callable[[str], None], is_stopped: Callable[[], bool]
) -> None:
    """Waits until every actor has a node, and says what is missing while it waits.

    Raises:
        RuntimeError: naming what found no node within the time allowed.
        KeyboardInterrupt: if somebody has asked for an end.
    """
    cluster = settings.cluster
    started_s = time.monotonic()
    # A run that may not wait was refused before if the cluster is too small; others may have what it has.
    patience_s = cluster.patience_s
    reported = False
    while left := not_running().without_node:
        waited_s = time.monotonic() - started_s
        needs = ", ".join(str(need) for need in needs_of(settings) if need.name in left)
        text = f"no node for {needs} after {waited_s:.0f} s; the cluster has {cluster_text()}, {free_text()} of it free"
        if waited_s > patience_s:
            raise RuntimeError(
                f"{text}. Wait longer for nodes with cluster.wait_for_resources_s=..., or ask for less"
            )
        if waited_s > cluster.report_unplaced_after_s and not reported:
            on_event(f"{text}; waiting up to {patience_s:.0f} s")
            reported = True
        if is_stopped():
            raise KeyboardInterrupt
        time.sleep(0.2)
