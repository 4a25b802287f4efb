"""The official loop in its own parts: one process that takes turns, each part with the cost structure of the original.

Gymnasium's own environment and renderer, the denoising chain as published, the plain eager update. The replay is ours:
its cost is a thousandth of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.envs.registry import EnvConfig
from launch.bench.env_process import GYMNASIUM, OURS, EnvProcess, open_pair
from launch.bench.learner import Plain, frames_first
from launch.bench.reference_reward import ReferenceReward
from launch.bench.reference_system import SequentialTraining
from launch.settings import TrainSettings
from learner.networks import noisy_action
from models.episode import Episode
from models.frames import images_to_tensor
from models.vqdiffusion.checkpoint import load_video_model
from reward_service.config import DiffusionRewardConfig


class GymnasiumEnv:
    """Gymnasium's pipeline in a process of its own, as an environment; the caller waits for it at every step.

    Args:
        config: Task and size of the pictures.
        cores: That the renderer may use.
        seed: Of the scene; every episode starts in the same one.
    """

    def __init__(self, config: EnvConfig, cores: int, seed: int) -> None:
        self._process, ours = EnvProcess(GYMNASIUM, cores), EnvProcess(OURS, cores)
        self._scene = open_pair(ours, [self._process], config, seed)
        ours.close()

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode."""
        return self._process.call("reset", seed, self._scene), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One agent step."""
        frame, reward, is_over = self._process.call("step", action)
        return frame, reward, False, is_over, {"discount": 1.0, "success": reward > 0, "dense_reward": 0.0}

    def close(self) -> None:
        """Ends the process."""
        self._process.close()


class OfficialTraining(SequentialTraining):
    """`SequentialTraining` with the original's environment and update, and its reward where it has one.

    Args:
        settings: The training.
        folder: New folder for the replay store.
        device: Of the networks.
        cores: That the renderer may use.

    Attributes:
        has_official_reward: Whether the reward is the original's chain; a reward that the publication does not have
            (another shape of network, another estimator) is computed by ours.
    """

    def __init__(self, settings: TrainSettings, folder: Path, device: str, cores: int) -> None:
        super().__init__(settings, folder, device)
        self._env.close()
        self._env = GymnasiumEnv(settings.env, cores, settings.seed)
        self._plain = Plain(self._learner, settings, [], read_metrics=True)
        self._updates = 0
        published = DiffusionRewardConfig(precision=settings.frame_reward.precision)
        self.has_official_reward = settings.frame_reward == published
        if self.has_official_reward:
            model, codec, _ = load_video_model(str(settings.reward.checkpoint), device)
            self._chain = ReferenceReward(model, codec)

    @property
    def updates(self) -> int:
        """Updates so far."""
        return self._updates

    def _update(self, updates: int) -> None:
        for _ in range(updates):
            self._plain.update_on(frames_first(self._batch(self._updates)))
            self._updates += 1

    def _act(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        agent, size = self._plain.agent, self.settings.env.action_dim
        if self.agent_steps < self.settings.agent.num_expl_steps:
            return rng.uniform(-1.0, 1.0, size).astype(np.float32)
        noise = torch.from_numpy(rng.standard_normal((1, size), dtype=np.float32)).to(agent.device)
        with torch.no_grad():
            images = torch.from_numpy(frame.transpose(2, 0, 1)[None].copy()).to(agent.device).float()
            mean = agent.actor(agent.encoder(images))
            action = noisy_action(mean, self.settings.agent.stddev(self.agent_steps), noise)
        return action[0].cpu().numpy()

    def _score(self, episode: Episode) -> np.ndarray:
        if not self.has_official_reward:
            return super()._score(episode)
        frames = images_to_tensor(episode.frames).to(self._plain.device)
        return self._chain.score(frames).cpu().numpy()
