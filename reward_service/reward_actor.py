"""The RewardActor: scores episodes of many rollouts together. Wrapped by `ray.remote` where it is created."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.episode import Episode
from models.memory import keep_freed_memory
from reward_service.batching import Batcher, BatcherConfig
from reward_service.contract import episode_seed, reward_class


def choose_device(device: str) -> str:
    """The device for "auto", "cpu", "cuda" or "cuda:<n>".

    Raises:
        ValueError: if CUDA is asked for and there is none, or the name is unknown.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device != "cpu" and device.partition(":")[0] != "cuda":
        raise ValueError(f"device is {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:<n>'")
    if device != "cpu" and not available:
        raise ValueError(
            f"device is {device!r}, but no CUDA device is visible to this process; use device='cpu'"
        )
    return device


class RewardActor:
    """Asynchronous scoring of episodes with one frozen reward.

    Stateless but for its counters, so a restarted actor gives the same rewards: the noise of an episode depends on
    its id and the run's seed only.

    Args:
        checkpoint: Folder of the reward model.
        config: Plain values of the reward's config.
        kind: Name of the frozen reward.
        device: "auto", "cpu", "cuda", "cuda:<n>". Ray does not hide GPUs from CPU actors: say "cpu".
        num_threads: CPU threads of torch, 1 or more.
        seed: The run's seed.
        batching: Plain values of `BatcherConfig`.

    Raises:
        FileNotFoundError: if the checkpoint is missing.
        ValueError: if anything does not fit.
    """

    def __init__(
        self,
        checkpoint: str,
        config: Mapping[str, Any],
        kind: str = "diffusion",
        device: str = "auto",
        num_threads: int = 1,
        seed: int = 0,
        batching: Mapping[str, Any] | None = None,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}, expected 1 or more")
        torch.set_num_threads(num_threads)
        keep_freed_memory()
        self.device = choose_device(device)
        self.reward = reward_class(kind).from_checkpoint(checkpoint, config, self.device)
        self._seed = seed
        self._batcher: Batcher[Sequence[Episode], list[np.ndarray]] = Batcher(
            self._score_batch,
            BatcherConfig(**(batching or {})),
            # OpenMP counts threads per calling thread
            thread_start=lambda: torch.set_num_threads(num_threads),
        )

    async def score(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Standardised rewards of a block of episodes.

        Args:
            episodes: Of T_i steps each.

        Returns:
            One (T_i + 1,) float32 array per episode, a reward for each frame.

        Raises:
            ValueError: if a task has no statistics, frames do not fit, or a reward is not finite.
        """
        if not episodes:
            return []
        return await self._batcher.submit(episodes, sum(len(episode.frames) for episode in episodes))

    def _score_batch(self, blocks: Sequence[Sequence[Episode]]) -> list[list[np.ndarray]]:
        """One call for all blocks of a batch."""
        episodes = [episode for block in blocks for episode in block]
        names = [episode.episode_id for episode in episodes]
        rewards = iter(
            self.reward.score(
                [episode.frames for episode in episodes],
                [episode.task for episode in episodes],
                [episode_seed(name, self._seed) for name in names],
                names,
            )
        )
        return [[next(rewards) for _ in block] for block in blocks]

    async def stats(self) -> dict[str, float]:
        """Counters of the batcher, see `Batcher.stats`."""
        return self._batcher.stats()

    async def ping(self) -> str:
        """Answers with the device, once the model is loaded."""
        await asyncio.sleep(0)
        return self.device
