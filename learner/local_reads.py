"""Sampling from a replay store that another process of the same machine writes, without asking that process.

The reader maps the store's files and draws from a copy of the store's index. What it must know is whether rows
were reused since that copy was made. Two facts make that a single comparison:

- Episodes are evicted in the order in which they were numbered, and the writer publishes the number of evicted
  episodes (`EvictionCounter`) before it writes over their rows.
- Rows of an episode that is not evicted are never written again.

So a batch whose oldest episode has number k is whole if the counter, looked at after reading, is at most k. If it
is more, the batch is thrown away; the caller fetches the index anew. A restarted writer counts on from its journal.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from learner.batch import Batch
from learner.index import EpisodeIndex
from learner.replay import EVICTIONS_FILE, EpisodeStore, ReplayConfig
from learner.ring import EvictionCounter, map_rows, read_ahead_if_large
from learner.rows import read_transitions, row_fields

_log = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StoreSnapshot(NamedTuple):
    """What a reader needs to know of a store at one moment.

    Attributes:
        folder: Absolute path of the store.
        file: Device and inode of its eviction counter, so that a folder of the same name elsewhere is no match.
        config: Settings of the store.
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        evicted: Number of episodes evicted so far.
        start_rows: (E,) int64, row of frame 0 of each live episode, oldest first.
        steps: (E,) int64, their agent steps.
        succeeded: (E,) bool, whether they were a success.
    """

    folder: str
    file: tuple[int, int]
    config: ReplayConfig
    resolution_px: int
    action_dim: int
    evicted: int
    start_rows: np.ndarray
    steps: np.ndarray
    succeeded: np.ndarray


def machine_id() -> str | None:
    """What two processes that share memory have in common; None where local reads are not supported.

    They need the order of loads and stores of x86-64, and Linux's name for the running kernel.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not _BOOT_ID.exists():
        return None
    return _BOOT_ID.read_text().strip()


def take_snapshot(store: EpisodeStore) -> StoreSnapshot:
    """Describes a store for readers, at the cost of a copy of its index (17 bytes per episode)."""
    return StoreSnapshot(
        folder=str(store.folder.absolute()),
        file=_identity(store.folder / EVICTIONS_FILE),
        config=store.config,
        resolution_px=store.resolution_px,
        action_dim=store.action_dim,
        evicted=store.index.evicted,
        start_rows=store.index.start_rows.copy(),
        steps=store.index.steps.copy(),
        succeeded=store.index.succeeded.copy(),
    )


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _store_identity(snapshot: StoreSnapshot) -> tuple[Any, ...]:
    return snapshot.folder, snapshot.file, snapshot.config, snapshot.resolution_px, snapshot.action_dim


class LocalStore:
    """Read-only view of a store.

    Args:
        snapshot: Where it is, and its index.

    Raises:
        OSError: if the files are not there or may not be read.
        ValueError: if other files are in their place.
    """

    def __init__(self, snapshot: StoreSnapshot) -> None:
        folder = Path(snapshot.folder)
        self.identity = _store_identity(snapshot)
        if _identity(folder / EVICTIONS_FILE) != snapshot.file:
            raise ValueError(f"{folder} holds other files than those of the replay shard that was asked")
        self._evictions = EvictionCounter(folder / EVICTIONS_FILE, writable=False)
        fields = row_fields(snapshot.resolution_px, snapshot.action_dim)
        self._data = {
            name: map_rows(folder / f"{name}.bin", snapshot.config.rows, shape, dtype)
            for name, (shape, dtype) in fields.items()
        }
        frames = self._data["frames"]
        self._read_ahead = read_ahead_if_large(folder / "frames.bin", frames[0].nbytes)
        self._config = snapshot.config
        self.update(snapshot)

    def fits(self, snapshot: StoreSnapshot) -> bool:
        """Whether this is a view of the snapshot's store."""
        return self.identity == _store_identity(snapshot)

    def update(self, snapshot: StoreSnapshot) -> None:
        """Takes over a newer index of the same store; safe while other threads sample."""
        self._index = EpisodeIndex(
            self._config.n_step, snapshot.start_rows, snapshot.steps, snapshot.evicted, snapshot.succeeded
        )

    def sample(self, batch_size: int, seed: int, success_share: float | None = None) -> Batch | None:
        """What `ReplayShard.sample` draws from the episodes of the snapshot, bit for bit.

        Returns:
            The batch, or None if there is nothing to draw from or rows of it were reused since the snapshot.
        """
        index = self._index
        if index.size_starts == 0:
            return None
        share = self._config.own_share(index) if success_share is None else success_share
        rows, oldest = index.draw(batch_size, np.random.default_rng(seed), share)
        batch = read_transitions(self._data, rows, self._config, self._read_ahead)
        return batch if self._evictions.value <= oldest else None


def open_local(snapshot: StoreSnapshot | None, present: LocalStore | None) -> LocalStore | None:
    """The view that fits a snapshot: the present one brought up to date, or a new one.

    Args:
        snapshot: What the shard answered; None if it is on another machine.
        present: The view so far.

    Returns:
        None if the shard must be asked: it is elsewhere, or its files cannot be read from here (then said in the log, with the
        reason).
    """
    if snapshot is None:
        return None
    if present is not None and present.fits(snapshot):
        present.update(snapshot)
        return present
    try:
        return LocalStore(snapshot)
    except (OSError, ValueError) as error:
        _say_why(f"replay shard {snapshot.folder} is asked over Ray, which is slower: {error}")
        return None


@functools.cache
def _say_why(text: str) -> None:
    """Warns once of every cause: a learner asks again before every series of updates."""
    _log.warning(text)
