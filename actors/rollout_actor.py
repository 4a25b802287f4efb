"""The Ray shell of `Rollout`; wrap it with `ray.remote(RolloutActor)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actors.envs.gl import describe_gl, select_egl_device
from actors.envs.registry import EnvConfig
from actors.policy import PolicyFactory, PullWeights, Weights, resolve_factory
from actors.rollout import Rollout, RolloutConfig
from models.episode import Episode


def weight_puller(store_name: str) -> PullWeights:
    """A function that asks the weight store "anything newer than version v?".

    The store is looked up by name at every call: after a restart of either side an old handle would be dead.

    Args:
        store_name: Name of the Ray actor; it answers `newer_than(version)` with (version, weights) or None.
    """
    import ray

    def pull(version: int) -> tuple[int, Weights] | None:
        news: Any = ray.get(ray.get_actor(store_name).newer_than.remote(version))
        return news

    return pull


class RolloutActor:
    """Makes blocks of training episodes on the CPU. It keeps no state that a restart would lose."""

    def __init__(
        self,
        env: Mapping[str, Any],
        policy_factory: PolicyFactory | str,
        policy_config: Any,
        weight_store_name: str,
        num_threads: int = 1,
        egl_device: int | None = None,
        **rollout: Any,
    ) -> None:
        """Builds environments and policy.

        Args:
            env: Fields of `EnvConfig`.
            policy_factory: `policy_config -> Policy`, or "module:function".
            policy_config: Given to the factory.
            weight_store_name: Name of the weight store actor.
            num_threads: Torch threads of this process.
            egl_device: GPU that draws the frames, where there are several; None leaves the choice to EGL.
            rollout: Fields of `RolloutConfig`: seed, num_envs, weight_refresh_steps, num_expl_steps, stddev_start,
                stddev_end, stddev_duration_steps, noise_correlation, excursion_prob, dense.
        """
        torch.set_num_threads(num_threads)
        if egl_device is not None:
            select_egl_device(egl_device)
        policy = resolve_factory(policy_factory)(policy_config)
        pull = weight_puller(weight_store_name)
        self._rollout = Rollout(EnvConfig.from_dict(env), RolloutConfig(**rollout), policy, pull)

    def ping(self) -> bool:
        """Answers once the constructor is done."""
        return True

    def describe_gl(self) -> dict[str, Any]:
        """What draws the frames in this process: `renderer` (text) and `warning` (text or None)."""
        info = describe_gl()
        return {"renderer": str(info), "warning": info.warning}

    def collect(
        self, block_id: str, num_episodes: int, global_agent_steps: int
    ) -> tuple[list[Episode], dict[str, Any]]:
        """Makes one block; call it with `num_returns=2`. See `Rollout.collect`."""
        return self._rollout.collect(block_id, num_episodes, global_agent_steps)
