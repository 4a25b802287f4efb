"""Replay buffers of others, filled with the same episodes and asked for the same batches.

Each has `fill(episodes)`, `sample() -> TensorBatch` and `close()`. The class names of packages that may be missing
are imported when a buffer is made.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from learner.batch import TensorBatch
from models.episode import Episode

FETCH_EVERY_SAMPLES = 1000  # how often a worker of the DataLoader design looks for new episodes
LEARNED_WEIGHT = 0.05


class Buffer(Protocol):
    """What is raced."""

    def fill(self, episodes: Sequence[Episode]) -> None:
        """Stores episodes."""

    def sample(self) -> TensorBatch:
        """Draws a batch, as tensors on the CPU."""

    def rest(self) -> None:
        """Stops worker processes until the next `sample`, where there are some."""

    def close(self) -> None:
        """Ends processes and files."""


def total_rewards(episode: Episode) -> np.ndarray:
    """(T,) float32, environment reward and weighted learned reward; peers store the sum."""
    learned = episode.learned_rewards
    assert learned is not None
    return episode.env_rewards + np.float32(LEARNED_WEIGHT) * learned


class TorchRLReplay:
    """TorchRL's replay buffer with `MultiStepTransform`, which computes n-step returns when episodes are added.

    Args:
        storage: "tensor" (LazyTensorStorage) or "memmap" (LazyMemmapStorage).
        capacity_transitions: Size of the buffer.
        batch_size: Transitions per batch.
        n_step: Length of the return.
        gamma: Discount per step.
        folder: For the memory-mapped storage's files.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        storage: str,
        capacity_transitions: int,
        batch_size: int,
        n_step: int,
        gamma: float,
        folder: Path,
        seed: int,
    ) -> None:
        from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.envs.transforms import MultiStepTransform

        logging.getLogger("torchrl").setLevel(logging.WARNING)
        torch.manual_seed(seed)  # the sampler draws with torch's own generator
        kept: Any
        if storage == "memmap":
            kept = LazyMemmapStorage(capacity_transitions, scratch_dir=str(folder))
        else:
            kept = LazyTensorStorage(capacity_transitions)
        self._buffer = TensorDictReplayBuffer(storage=kept, batch_size=batch_size)
        self._buffer.append_transform(MultiStepTransform(n_steps=n_step, gamma=gamma))

    def fill(self, episodes: Sequence[Episode]) -> None:
        """Adds episodes one after the other, as a collector hands them over."""
        from tensordict import TensorDict

        for episode in episodes:
            steps = len(episode)
            truncated = torch.zeros(steps, 1, dtype=torch.bool)
            truncated[-1] = True
            terminated = torch.tensor(episode.discounts == 0)[:, None]
            frames = torch.tensor(episode.frames)
            following = {
                "observation": frames[1:],
                "reward": torch.tensor(total_rewards(episode))[:, None],
                "done": truncated | terminated,
                "terminated": terminated,
                "truncated": truncated,
            }
            values = {
                "observation": frames[:-1],
                "action": torch.tensor(episode.actions),
                "next": TensorDict(following, [steps]),
            }
            self._buffer.extend(TensorDict(values, [steps]))

    def sample(self) -> TensorBatch:
        """A batch; starts whose return was cut at the end of an episode are among it."""
        drawn = self._buffer.sample()
        following = drawn["next"]
        return TensorBatch(
            obs=drawn["observation"],
            action=drawn["action"],
            reward=following["reward"],
            discount=drawn["gamma"][:, None] * ~following["terminated"],
            next_obs=following["observation"],
        )

    def rest(self) -> None:
        """Nothing runs between samples."""

    def close(self) -> None:
        """Lets go of the storage."""
        del self._buffer


class RLlibReplay:
    """RLlib's EpisodeReplayBuffer, sampled with `n_step`; its one-step episodes are stacked into a batch.

    Args:
        capacity_transitions: Size of the buffer.
        batch_size: Transitions per batch.
        n_step: Length of the return.
        gamma: Discount per step.
        seed: Seed of the draws.
    """

    def __init__(
        self, capacity_transitions: int, batch_size: int, n_step: int, gamma: float, seed: int
    ) -> None:
        from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

        self._batch_size, self._n_step, self._gamma = batch_size, n_step, gamma
        self._buffer = EpisodeReplayBuffer(capacity=capacity_transitions, batch_size_B=batch_size)
        self._buffer.rng = np.random.default_rng(seed)

    def fill(self, episodes: Sequence[Episode]) -> None:
        """Adds finished episodes in RLlib's array form."""
        from ray.rllib.env.single_agent_episode import SingleAgentEpisode

        for episode in episodes:
            terminated = bool(episode.discounts[-1] == 0)
            kept = SingleAgentEpisode(
                id_=episode.episode_id,
                observations=list(episode.frames),
                actions=list(episode.actions),
                rewards=total_rewards(episode).tolist(),
                infos=[{} for _ in episode.frames],
                terminated=terminated,
                truncated=not terminated,
                len_lookback_buffer=0,
            )
            self._buffer.add(kept.to_numpy())

    def sample(self) -> TensorBatch:
        """A batch; near the end of an episode its returns have fewer steps."""
        drawn = self._buffer.sample(
            batch_size_B=self._batch_size, n_step=self._n_step, gamma=self._gamma, sample_episodes=True
        )
        discounts = [0.0 if item.is_terminated else self._gamma**self._n_step for item in drawn]
        rewards = [item.get_rewards(0) for item in drawn]
        return TensorBatch(
            obs=_stack([item.get_observations(0) for item in drawn]),
            action=_stack([item.get_actions(0) for item in drawn]),
            reward=torch.tensor(rewards, dtype=torch.float32)[:, None],
            discount=torch.tensor(discounts, dtype=torch.float32)[:, None],
            next_obs=_stack([item.get_observations(-1) for item in drawn]),
        )

    def rest(self) -> None:
        """Nothing runs between samples."""

    def close(self) -> None:
        """Lets go of the episodes."""
        del self._buffer


def _stack(rows: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows))


class EpisodeFiles(IterableDataset):
    """The dataset of the original DrQ-v2 design: worker processes keep episodes and yield single transitions.

    Every worker loads its share of the episode files into memory and looks for new ones now and then. A transition
    is drawn by episode first and start second.

    Args:
        folder: One npz file per episode.
        n_step: Length of the return.
        gamma: Discount per step.
        seed: Seed of the draws, to which each worker adds its index.
        working: Shared flag; workers rest while it is 0, so that they take no processor from the next contender.
    """

    def __init__(self, folder: Path, n_step: int, gamma: float, seed: int, working: Any) -> None:
        self._folder, self._n_step, self._gamma, self._seed = folder, n_step, gamma, seed
        self._working = working
        self._names: list[str] = []
        self._episodes: dict[str, dict[str, np.ndarray]] = {}
        self._since_fetch = FETCH_EVERY_SAMPLES

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        info = get_worker_info()
        self._worker, self._num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        self._rng = random.Random(self._seed * 1000 + self._worker)
        while True:
            while not self._working.value:
                time.sleep(1e-3)
            yield self._transition()

    def _fetch(self) -> None:
        for number, path in enumerate(sorted(self._folder.glob("*.npz"))):
            if number % self._num_workers == self._worker and path.name not in self._episodes:
                with np.load(path, allow_pickle=False) as file:
                    self._episodes[path.name] = {name: file[name] for name in file.files}
        self._names = list(self._episodes)

    def _transition(self) -> tuple[np.ndarray, ...]:
        self._since_fetch += 1
        if self._since_fetch >= FETCH_EVERY_SAMPLES:
            self._since_fetch = 0
            self._fetch()
        episode = self._episodes[self._rng.choice(self._names)]
        start = self._rng.randrange(len(episode["actions"]) - self._n_step + 1)
        reward = np.zeros(1, np.float32)
        discount = np.ones(1, np.float32)
        for step in range(start, start + self._n_step):
            reward += discount * episode["rewards"][step]
            discount *= episode["discounts"][step] * np.float32(self._gamma)
        frames = episode["frames"]
        return frames[start], episode["actions"][start], reward, discount, frames[start + self._n_step]


class DataLoaderReplay:
    """Episodes as npz files, read by the worker processes of a torch DataLoader that collates batches.

    Args:
        batch_size: Transitions per batch.
        n_step: Length of the return.
        gamma: Discount per step.
        folder: For the episode files; made if it is missing.
        seed: Seed of the draws.
        workers: Number of worker processes.
    """

    def __init__(
        self, batch_size: int, n_step: int, gamma: float, folder: Path, seed: int, workers: int
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._working = multiprocessing.RawValue(ctypes.c_int, 0)
        dataset = EpisodeFiles(folder, n_step, gamma, seed, self._working)
        self._loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
        self._batches: Any = None

    def fill(self, episodes: Sequence[Episode]) -> None:
        """Writes the files and starts the workers, which load them."""
        for episode in episodes:
            np.savez(
                self._folder / f"{episode.episode_id}.npz",
                frames=episode.frames,
                actions=episode.actions,
                rewards=total_rewards(episode),
                discounts=episode.discounts,
            )
        self._batches = iter(self._loader)

    def sample(self) -> TensorBatch:
        """The next batch that the workers have made."""
        self._working.value = 1
        return TensorBatch(*next(self._batches))

    def rest(self) -> None:
        """Stops the workers until the next `sample`."""
        self._working.value = 0

    def close(self) -> None:
        """Ends the workers."""
        self._working.value = 1  # a worker that rests does not see that it is to end
        self._batches = None


class BufferActor:
    """A peer's buffer in a Ray actor. Batches leave as numpy arrays, which Ray moves without copying them twice.

    Args:
        kind: Name of a class of this module.
        arguments: Its keyword arguments.
        threads: Threads of torch.
    """

    def __init__(self, kind: str, arguments: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._buffer: Buffer = globals()[kind](**arguments)

    def fill(self, episodes: Sequence[Episode]) -> int:
        """Stores episodes."""
        self._buffer.fill(episodes)
        return len(episodes)

    def sample(self) -> tuple[np.ndarray, ...]:
        """A batch."""
        return tuple(value.numpy() for value in self._buffer.sample())

    def rest(self) -> None:
        """Stops worker processes until the next `sample`, where there are some."""
        self._buffer.rest()

    def close(self) -> None:
        """Ends processes and files."""
        self._buffer.close()
