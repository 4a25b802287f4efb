"""Evaluation: success rate of a policy on fixed scenes, with a 95 % interval and the frames for videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig, make_env
from actors.policy import NO_VERSION, Policy
from actors.recording import run_wave, waves
from actors.seeding import indexed_seed
from models.episode import Episode
from models.intervals import wilson_interval


@dataclass(frozen=True)
class EvaluationResult:
    """What a policy did on a fixed list of scenes.

    Attributes:
        task: Task name.
        weight_version: Version of the weights, -1 if not stated.
        episodes: Full episodes with frames, in the order of the scenes.
        seeds: Environment seed of each episode.
        dense_returns: MetaWorld's shaped return of each episode (never used for learning here).
        wall_s: Seconds the evaluation took.
    """

    task: str
    weight_version: int
    episodes: tuple[Episode, ...]
    seeds: tuple[int, ...]
    dense_returns: tuple[float, ...]
    wall_s: float

    @property
    def successes(self) -> tuple[bool, ...]:
        """Whether each episode was a success at any agent step, the last one included."""
        return tuple(episode.is_success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of successful episodes, 0 to 1."""
        return sum(self.successes) / len(self.successes)

    @property
    def success_interval(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return wilson_interval(sum(self.successes), len(self.successes))

    def metrics(self) -> dict[str, Any]:
        """The result in numbers, ready for JSON."""
        low, high = self.success_interval
        return {
            "success_rate": self.success_rate,
            "success_low": low,
            "success_high": high,
            "episodes": len(self.episodes),
            "env_return": float(np.mean([episode.env_return for episode in self.episodes])),
            "dense_return": float(np.mean(self.dense_returns)),
            "length_steps": float(np.mean([len(episode) for episode in self.episodes])),
            "weight_version": self.weight_version,
            "evaluation_wall_s": self.wall_s,
        }


class Evaluator:
    """Evaluates policies on one task; keeps its environments between evaluations."""

    def __init__(self, env_config: EnvConfig, num_envs: int = 1) -> None:
        """Builds `num_envs` environments, stepped side by side."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected 1 or more")
        self._env_config = env_config
        self._envs = [make_env(env_config) for _ in range(num_envs)]

    def evaluate(
        self,
        policy: Policy,
        episodes: int,
        seed: int,
        weight_version: int = NO_VERSION,
        on_progress: Callable[[int], None] | None = None,
    ) -> EvaluationResult:
        """Runs the mean action of a policy.

        Args:
            policy: Acts; used with `stddev=None`.
            episodes: Episodes to run, 1 or more.
            seed: Base of the scenes (`actors.seeding`, purpose "evaluation"): the same seed gives the same scenes to
                every policy, and none of them is met in training or in videos.
            weight_version: For the record.
            on_progress: Called with the number of finished episodes.
        """
        if episodes < 1:
            raise ValueError(f"episodes is {episodes}, expected 1 or more")
        started = time.perf_counter()
        seeds = [indexed_seed("evaluation", seed, i) for i in range(episodes)]
        ids = [f"evaluation-v{weight_version}-s{seed}-{i}" for i in range(episodes)]
        built: list[Episode] = []
        dense_returns: list[float] = []
        for wave in waves(episodes, len(self._envs)):
            recorders = run_wave(
                self._envs,
                self._env_config.task,
                _pick(ids, wave),
                _pick(seeds, wave),
                lambda frames: policy.act(frames, None),
            )
            # Built at once: a recorder holds its frames a second time.
            built += [recorder.build() for recorder in recorders]
            dense_returns += [recorder.dense_return for recorder in recorders]
            if on_progress is not None:
                on_progress(len(built))
        return EvaluationResult(
            task=self._env_config.task,
            weight_version=weight_version,
            episodes=tuple(built),
            seeds=tuple(seeds),
            dense_returns=tuple(dense_returns),
            wall_s=time.perf_counter() - started,
        )


def evaluate(
    policy: Policy, env_config: EnvConfig, episodes: int, seed: int, num_envs: int = 1
) -> EvaluationResult:
    """Evaluates a policy once; see `Evaluator.evaluate`."""
    return Evaluator(env_config, num_envs).evaluate(policy, episodes, seed)


def _pick(values: Sequence[Any], numbers: range) -> list[Any]:
    return [values[i] for i in numbers]
