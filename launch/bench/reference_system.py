"""The whole training in one process, one thing after the other: the structure of the official loop.

Built from the same parts as the distributed system, so that only the structure differs: step the environment, run
the due updates between steps, score the episode at its end, store it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.envs.registry import make_env
from actors.recording import EpisodeRecorder
from actors.seeding import block_generator, training_seed
from launch.settings import TrainSettings
from learner.learner_core import Learner, LearnerConfig
from learner.networks import noisy_action
from learner.replay import EpisodeStore
from models.episode import Episode
from models.memory import keep_freed_memory
from reward_service.contract import episode_seed, reward_class


class SequentialTraining:
    """One process that takes turns: a step, the due updates, and at an episode's end its reward and the replay.

    Args:
        settings: The training; of `cluster` only devices matter.
        folder: New folder for the replay store.

    Attributes:
        agent_steps: Agent steps so far.
        episodes: Episodes so far.
        seconds: Time spent in "rollout", "reward", "replay" and "update".
    """

    def __init__(self, settings: TrainSettings, folder: Path, device: str = "cpu") -> None:
        self.settings = settings
        env, seed = settings.env, settings.seed
        keep_freed_memory()  # As the learner's process.
        self._reward = reward_class(str(settings.reward.frozen)).from_checkpoint(
            str(settings.reward.checkpoint), asdict(settings.frame_reward), device
        )
        self._store = EpisodeStore(folder, settings.replay_config, env.render.height_px, env.action_dim)
        self._learner = Learner(
            env.render.height_px,
            env.action_dim,
            settings.agent,
            settings.bonus_config,
            self._batch,
            LearnerConfig(prefetch_batches=0, precision=settings.learner.precision, second_thread=False),
            seed,
            device,
        )
        self._env = make_env(env)
        self.agent_steps = self.episodes = 0
        self.seconds: Counter[str] = Counter()

    @property
    def updates(self) -> int:
        """Updates so far."""
        return self._learner.updates

    def run(self, agent_steps: int, updates: int) -> None:
        """Whole episodes of `agent_steps` steps in all, with `updates` updates spread evenly between the steps.

        Args:
            agent_steps: A multiple of the episode length.
            updates: Updates on the way; 0 while the replay fills.
        """
        first_steps, first_updates = self.agent_steps, self.updates
        while self.agent_steps < first_steps + agent_steps:
            for done in self._episode_steps():
                due = (done - first_steps) * updates // agent_steps - (self.updates - first_updates)
                with self._timed("update"):
                    self._update(due)

    def _episode_steps(self) -> Iterator[int]:
        """Rolls out one episode, yielding after each step, then scores and stores it."""
        settings, env = self.settings, self._env
        name = f"s{self.episodes:07d}"
        rng = block_generator(settings.seed, name)
        with self._timed("rollout"):
            frame, _ = env.reset(seed=training_seed(settings.seed, name, 0))
            recorder = EpisodeRecorder(f"{name}-0", settings.env.task, frame)
        is_over = False
        while not is_over:
            with self._timed("rollout"):
                action = self._act(recorder.frame, rng)
                frame, reward, terminated, truncated, info = env.step(action)
                recorder.add(action, frame, reward, info)
            is_over = terminated or truncated
            self.agent_steps += 1
            yield self.agent_steps
        self._keep(recorder.build())

    def _update(self, updates: int) -> None:
        self._learner.run_updates(updates, self.agent_steps)

    def _act(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        agent, size = self._learner.agent, self.settings.env.action_dim
        if self.agent_steps < self.settings.agent.num_expl_steps:
            return rng.uniform(-1.0, 1.0, size).astype(np.float32)
        noise = torch.from_numpy(rng.standard_normal((1, size), dtype=np.float32)).to(agent.device)
        with torch.inference_mode():
            images = torch.from_numpy(frame[None].copy()).to(agent.device)
            mean = agent.actor(agent.encoder(images))
            action = noisy_action(mean, self.settings.agent.stddev(self.agent_steps), noise)
        return action[0].cpu().numpy()

    def _keep(self, episode: Episode) -> None:
        with self._timed("reward"):
            rewards = self._score(episode)
        with self._timed("replay"):
            self._store.insert(episode.with_learned_rewards(rewards))
        self.episodes += 1

    def _score(self, episode: Episode) -> np.ndarray:
        name = episode.episode_id
        seeds = [episode_seed(name, self.settings.seed)]
        return self._reward.score([episode.frames], [episode.task], seeds, [name])[0]

    def _batch(self, update_index: int) -> Any:
        rng = np.random.default_rng([self.settings.seed, update_index])
        return self._store.sample(self.settings.agent.batch_size, rng)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start_s

    def close(self) -> None:
        """Closes the environment, the store and the learner's threads."""
        self._learner.close()
        self._store.close()
        self._env.close()
