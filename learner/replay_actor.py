"""ReplayShard: an episode store as an actor. Persists before it acknowledges."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.annotations import RayDeprecationWarning

from learner.batch import Batch
from learner.local_reads import StoreSnapshot, machine_id, take_snapshot
from learner.replay import EpisodeStore, ReplayConfig
from learner.replay_copy import Piece, export_piece
from learner.sharding import ShardSize
from models.episode import Episode

# Where a node died, an NFS server keeps its locks until the lease of that client ends, after 90 s on Linux.
RESTART_LOCK_WAIT_S = 150.0


class ReplayShard:
    """One shard of the replay. Run with `max_restarts=-1, max_task_retries=-1`.

    A restarted shard loads its folder; an insert that is retried is recognised by its episode ids.

    Args:
        folder: Folder of this shard alone, an absolute path.
        config: `ReplayConfig` or its fields as a dict.
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
    """

    def __init__(
        self, folder: str | Path, config: ReplayConfig | dict[str, Any], resolution_px: int, action_dim: int
    ) -> None:
        config = ReplayConfig(**config) if isinstance(config, dict) else config
        wait_s = RESTART_LOCK_WAIT_S if _is_restarted() else None
        self._store = EpisodeStore(folder, config, resolution_px, action_dim, wait_s)

    def insert(
        self,
        block_id: str,
        episodes: Sequence[Episode],
        frame_rewards: Sequence[np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """Stores a block of episodes.

        Args:
            block_id: Echoed in the answer.
            episodes: Episodes in the order in which they were collected.
            frame_rewards: For every episode one standardised reward per frame, (T+1,) float32; None if
                nothing scored them (sparse reward), or if the episodes carry their rewards already.

        Returns:
            block_id, ids `inserted` now and `duplicates` stored before, `inserted_steps` of the new
            ones, and the counters of `stats()`.

        Raises:
            ValueError: if rewards and episodes do not match or a reward is not finite.
            ReplayDiskFullError: if the disk is full; the episodes before stay stored.
        """
        if frame_rewards is not None:
            if len(frame_rewards) != len(episodes):
                raise ValueError(
                    f"block {block_id!r}: got rewards of {len(frame_rewards)} episodes for {len(episodes)}; "
                    "the reward service must answer for every episode of the block"
                )
            episodes = [
                episode.with_learned_rewards(rewards) for episode, rewards in zip(episodes, frame_rewards)
            ]
        is_new = [self._store.insert(episode) for episode in episodes]
        inserted = [episode for episode, new in zip(episodes, is_new) if new]
        return {
            "block_id": block_id,
            "inserted": [episode.episode_id for episode in inserted],
            "duplicates": [episode.episode_id for episode, new in zip(episodes, is_new) if not new],
            "inserted_steps": sum(len(episode) for episode in inserted),
            **self.stats(),
        }

    def sample(self, batch_size: int, seed: int, success_share: float | None = None) -> Batch:
        """Draws n-step transitions; the same seed and contents give the same batch.

        Args:
            batch_size: Number B of transitions.
            seed: Of the draw.
            success_share: See `EpisodeStore.sample`.
        """
        return self._store.sample(batch_size, np.random.default_rng(seed), success_share)

    def snapshot(self, machine: str | None) -> tuple[ShardSize, StoreSnapshot | None]:
        """What a reader needs to draw from this shard by itself.

        Args:
            machine: The reader's `machine_id()`.

        Returns:
            Numbers of start rows, and the snapshot if the reader is on this machine, else None.
        """
        here = machine is not None and machine == machine_id()
        index = self._store.index
        size = ShardSize(index.size_starts, index.size_success_starts)
        return size, take_snapshot(self._store) if here else None

    def stats(self) -> dict[str, int]:
        """Counters of the store."""
        return {
            "size_transitions": self._store.size_transitions,
            "size_starts": self._store.size_starts,
            "size_episodes": self._store.size_episodes,
            "total_inserted_steps": self._store.total_inserted_steps,
            "total_inserted_episodes": self._store.total_inserted_episodes,
        }

    def export(self, after: dict[str, Any] | None, path: str, most_bytes: int) -> dict[str, Any]:
        """Writes the next episodes for a copy of this shard (`replay_copy.export_piece`); inserts wait meanwhile.

        Args:
            after: Fields of the newest `Piece` that was written before, or None.
            path: File in a folder that the caller sees as well.
            most_bytes: About how large the file may be.
        """
        piece = None if after is None else Piece(**after)
        most_steps = most_bytes // (3 * self._store.resolution_px**2)
        return export_piece(self._store, piece, Path(path), most_steps)

    def ids(self) -> list[str]:
        """Ids of the episodes that are stored now, the oldest first."""
        return list(self._store.ids)

    def ping(self) -> dict[str, int]:
        """Process id; answers once the store is loaded."""
        return {"pid": os.getpid()}

    def close(self) -> None:
        """Closes the store's files."""
        self._store.close()


def _is_restarted() -> bool:
    """Whether this process is an actor that Ray has started again."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    with warnings.catch_warnings():  # Ray uses a name there that it has deprecated itself.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
