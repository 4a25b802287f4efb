"""The Ray shell of `Evaluator`; wrap it with `ray.remote(EvaluatorActor)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actors.envs.gl import select_egl_device
from actors.envs.registry import EnvConfig
from actors.evaluation import Evaluator
from actors.policy import NO_VERSION, NoWeightsError, PolicyFactory, resolve_factory
from actors.rollout_actor import weight_puller
from actors.seeding import indexed_seed
from models.episode import Episode


class EvaluatorActor:
    """Evaluates published weights on the CPU, always on the same scenes. It keeps no state that a restart would lose."""

    def __init__(
        self,
        env: Mapping[str, Any],
        policy_factory: PolicyFactory | str,
        policy_config: Any,
        weight_store_name: str,
        seed: int = 0,
        num_envs: int = 1,
        num_threads: int = 1,
        egl_device: int | None = None,
    ) -> None:
        """Builds environments and policy.

        Args:
            env: Fields of `EnvConfig`.
            policy_factory: `policy_config -> Policy`, or "module:function".
            policy_config: Given to the factory.
            weight_store_name: Name of the weight store actor.
            seed: Base of the scenes.
            num_envs: Environments stepped side by side.
            num_threads: Torch threads of this process.
            egl_device: GPU that draws the frames, where there are several; None leaves the choice to EGL.
        """
        torch.set_num_threads(num_threads)
        if egl_device is not None:
            select_egl_device(egl_device)
        indexed_seed("evaluation", seed, 0)  # refuses a bad seed at the start, not at the first evaluation
        self._policy = resolve_factory(policy_factory)(policy_config)
        self._pull = weight_puller(weight_store_name)
        self._seed = seed
        self._version = NO_VERSION
        self._evaluator = Evaluator(EnvConfig.from_dict(env), num_envs)

    def ping(self) -> bool:
        """Answers once the constructor is done."""
        return True

    def evaluate(
        self, published_version: int, num_episodes: int, num_videos: int = 0
    ) -> tuple[dict[str, Any], list[Episode]]:
        """Evaluates the newest weights; call it with `num_returns=2`.

        Args:
            published_version: Version just published; as a Ray argument it makes the evaluation wait for it. Should the
                store hold another one by then (newer, or older after a crash), that one is evaluated and reported.
            num_episodes: Episodes to run, 1 or more.
            num_videos: How many of them to return for videos.

        Returns:
            `EvaluationResult.metrics()` (with the version that was evaluated), and the first `num_videos` episodes.

        Raises:
            NoWeightsError: if the weight store is empty.
        """
        news = self._pull(self._version)
        if news is not None:
            self._version, weights = news
            self._policy.load(weights)
        if self._version == NO_VERSION:
            raise NoWeightsError(
                f"the weight store holds no weights, but version {published_version} was to be evaluated; publish it first"
            )
        result = self._evaluator.evaluate(self._policy, num_episodes, self._seed, self._version)
        return result.metrics(), list(result.episodes[:num_videos])
