"""Rollouts: blocks of training episodes, with exploration by the global agent step and fresh weights on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig, make_env
from actors.noise import Excursions, correlated
from actors.policy import NO_VERSION, NoWeightsError, Policy, PullWeights
from actors.recording import EpisodeRecorder, run_wave, waves
from actors.seeding import block_generator, training_seed
from models.episode import Episode


@dataclass(frozen=True)
class RolloutConfig:
    """How training episodes are made. Defaults are the paper's (Diffusion Reward, arXiv 2312.14134).

    Attributes:
        seed: Run seed, 0 or more; with the block id it fixes scenes and noise.
        num_envs: Environments stepped side by side in one process, 1 or more.
        weight_refresh_steps: Agent steps of each environment between two looks for newer weights, 1 or more.
        num_expl_steps: Global agent steps of uniform actions at the start of training, 0 or more.
        stddev_start: Standard deviation of the exploration noise at global agent step 0, 0 or more.
        stddev_end: Standard deviation from `stddev_duration_steps` on, 0 or more.
        stddev_duration_steps: Global agent steps of the linear decay, 1 or more.
        noise_correlation: Correlation of the exploration, noise and uniform actions alike, from one agent step of an
            episode to the next, in [0, 1); 0 in the paper.
        excursion_prob: Probability per agent step that a random action begins which is held for a while, in [0, 1)
            (`actors.noise.Excursions`); 0 in the paper.
        dense: Whether episodes carry the simulator's shaped reward in place of the sparse one.
    """

    seed: int = 0
    num_envs: int = 1
    weight_refresh_steps: int = 100
    num_expl_steps: int = 2000
    stddev_start: float = 1.0
    stddev_end: float = 0.1
    stddev_duration_steps: int = 3_000_000
    noise_correlation: float = 0.0
    excursion_prob: float = 0.0
    dense: bool = False

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "num_envs": 1,
            "weight_refresh_steps": 1,
            "num_expl_steps": 0,
            "stddev_start": 0,
            "stddev_end": 0,
            "stddev_duration_steps": 1,
        }
        for key, minimum in least.items():
            value = getattr(self, key)
            if not value >= minimum:
                raise ValueError(f"{key} is {value!r}, expected {minimum} or more")
        for key in ("noise_correlation", "excursion_prob"):
            value = getattr(self, key)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{key} is {value!r}, expected in [0, 1)")

    def stddev(self, global_agent_steps: int) -> float:
        """Exploration noise at a global agent step: linear decay, then constant (DrQ-v2, arXiv 2107.09645)."""
        progress = min(max(global_agent_steps / self.stddev_duration_steps, 0.0), 1.0)
        return (1.0 - progress) * self.stddev_start + progress * self.stddev_end


class Rollout:
    """Makes blocks of episodes with a policy whose weights it keeps fresh.

    Given the config, the block id, the global agent step and the weights, a block is always the same: one that was
    lost is made again by sending the same block id.
    """

    def __init__(
        self, env_config: EnvConfig, config: RolloutConfig, policy: Policy, pull_weights: PullWeights
    ) -> None:
        """Builds the environments.

        Args:
            env_config: Task and renderer setting.
            config: Environments, exploration, weight refresh.
            policy: Acts; its weights are replaced as newer ones come.
            pull_weights: `version -> (published version, weights)`, or None without news; -1 asks for any.
        """
        self._env_config, self._config = env_config, config
        self._policy, self._pull_weights = policy, pull_weights
        self._envs = [make_env(env_config) for _ in range(config.num_envs)]
        self._version = NO_VERSION

    @property
    def weight_version(self) -> int:
        """Version of the weights in use, -1 before the first."""
        return self._version

    def collect(
        self, block_id: str, num_episodes: int, global_agent_steps: int
    ) -> tuple[list[Episode], dict[str, Any]]:
        """Makes one block.

        Args:
            block_id: Unique name of the block; episode ids are `<block_id>-<number>`.
            num_episodes: Episodes in the block, 1 or more.
            global_agent_steps: Agent steps of the whole run before this block, for the exploration schedule.

        Returns:
            The episodes, and facts: block_id, agent_steps, wall_s, weight_version, exploration_stddev (at the end
            of the block), and `episodes`: per episode episode_id, seed, length_steps, env_return, dense_return,
            success, weight_version (the newest used in it).

        Raises:
            NoWeightsError: if the exploration steps are over and the weight store is empty.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes is {num_episodes}, expected 1 or more")
        started = time.perf_counter()
        schedule = _Schedule(self, global_agent_steps, block_generator(self._config.seed, block_id))
        episodes: list[Episode] = []
        facts: list[dict[str, Any]] = []
        for wave in waves(num_episodes, len(self._envs)):
            ids = [f"{block_id}-{i}" for i in wave]
            seeds = [training_seed(self._config.seed, block_id, i) for i in wave]
            task = self._env_config.task
            schedule.start_wave()
            for recorder, seed in zip(
                run_wave(self._envs, task, ids, seeds, schedule.act, schedule.count), seeds
            ):
                episodes.append(recorder.build(dense=self._config.dense))
                facts.append(_episode_facts(episodes[-1], recorder, seed, self._version))
        return episodes, {
            "block_id": block_id,
            "agent_steps": sum(len(episode) for episode in episodes),
            "wall_s": time.perf_counter() - started,
            "weight_version": self._version,
            "exploration_stddev": self._config.stddev(schedule.global_steps),
            "episodes": facts,
        }

    def _refresh_weights(self) -> None:
        news = self._pull_weights(self._version)
        if news is not None:
            self._version, weights = news
            self._policy.load(weights)


class _Schedule:
    """Acts within one block: counts agent steps, looks for weights, chooses the exploration."""

    def __init__(self, rollout: Rollout, global_agent_steps: int, rng: np.random.Generator) -> None:
        self._rollout, self._config, self._rng = rollout, rollout._config, rng
        self.global_steps = global_agent_steps
        self._queries = 0
        self.start_wave()

    def start_wave(self) -> None:
        """Episodes do not share noise."""
        self._noise: np.ndarray | None = None
        self._excursions = Excursions(
            self._config.excursion_prob,
            len(self._rollout._envs),
            self._rollout._env_config.action_dim,
            self._rng,
        )

    def count(self, agent_steps: int) -> None:
        self.global_steps += agent_steps

    def act(self, frames: np.ndarray) -> np.ndarray:
        if self._queries % self._config.weight_refresh_steps == 0:
            self._rollout._refresh_weights()
        self._queries += 1
        uniform = self.global_steps < self._config.num_expl_steps
        if not uniform and self._rollout.weight_version == NO_VERSION:
            raise NoWeightsError(
                f"no policy weights at agent step {self.global_steps}, but uniform exploration ended at step "
                f"{self._config.num_expl_steps}; publish version 0 before the first rollout"
            )
        stddev = self._config.stddev(self.global_steps)
        actions = self._rollout._policy.act(frames, stddev, self._next_noise(len(frames)), uniform=uniform)
        return actions if uniform else self._excursions.replace(actions)

    def _next_noise(self, num_envs: int) -> np.ndarray:
        """(num_envs, A) standard normals, each an AR(1) process over the steps of its episode.

        (Where episodes end early, those that go on may take over the noise or excursion of a neighbour.)
        """
        size = (num_envs, self._rollout._env_config.action_dim)
        fresh, correlation = self._rng.standard_normal(size, dtype=np.float32), self._config.noise_correlation
        previous = None if self._noise is None else self._noise[:num_envs]
        self._noise = correlated(previous, fresh, correlation).astype(np.float32)
        return self._noise


def _episode_facts(episode: Episode, recorder: EpisodeRecorder, seed: int, version: int) -> dict[str, Any]:
    return {
        "episode_id": episode.episode_id,
        "seed": seed,
        "length_steps": len(episode),
        "env_return": episode.env_return,
        "dense_return": recorder.dense_return,
        "success": episode.is_success,
        "weight_version": version,
    }
