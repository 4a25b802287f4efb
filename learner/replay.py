"""Episode store: a durable ring on disk that keeps every frame once and draws n-step batches."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from learner.batch import Batch
from learner.index import EpisodeIndex, bounded_share
from learner.journal import Journal, StoredEpisode
from learner.ring import EvictionCounter, RowFile, read_ahead_if_large
from learner.rows import episode_of, read_transitions, row_fields, rows_of
from models.episode import Episode
from models.files import read_json, sync_to_disk, try_lock, write_json

FORMAT = 1
EVICTIONS_FILE = "evictions.bin"
LOCK_WAIT_S = 10.0  # a restarted shard may start a moment before its dead predecessor is gone


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of one store (of each shard, if there are several).

    Attributes:
        capacity_transitions: Transitions kept at most, at least 1; the oldest episodes go first.
        n_step: Length of the return in agent steps, at least 1.
        discount: Gamma per agent step, in (0, 1].
        env_weight: Weight of the environment's sparse reward, finite.
        learned_weight: Weight of the standardised learned reward (1 - alpha), finite.
        episode_steps: Usual episode length in agent steps, at least 1. Each episode needs one row more
            than it has steps; shorter episodes than this make the ring hold a little less.
        preallocate: Reserve all disk space at the start, so that a full disk shows then.
        sync: Wait for the disk itself before acknowledging. Without it an acknowledged episode
            survives the death of any process, but not a power cut.
        success_share: Share of a batch, in [0, 1), that is drawn from episodes with a success alone, once there are any:
            drawn uniformly, one success among 200 episodes is half a percent of a batch. 0, as in DrQ-v2: uniform draws.
        success_factor: Of `success_share`: the share is at most so many times, at least 1, what these episodes have of the
            replay, so that the first success does not fill that share of every batch alone; None: no bound.
        absorbing_ends: Whether an episode that terminates (discount 0) goes on for ever in its last state, with the reward
            of its last step in every later one: worth r / (1 - discount) at once, nothing left to be guessed. Otherwise
            nothing comes after it.
    """

    capacity_transitions: int = 1_000_000
    n_step: int = 3
    discount: float = 0.99
    env_weight: float = 1.0
    learned_weight: float = 0.05
    episode_steps: int = 100
    preallocate: bool = False
    sync: bool = False
    success_share: float = 0.0
    success_factor: float | None = None
    absorbing_ends: bool = False

    def __post_init__(self) -> None:
        for name in ("capacity_transitions", "n_step", "episode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"replay.{name}={getattr(self, name)!r} is not allowed: expected a whole number of at least 1"
                )
        if not 0 < self.discount <= 1:
            raise ValueError(f"replay.discount={self.discount!r} is not allowed: expected a number in (0, 1]")
        if self.absorbing_ends and self.discount == 1:
            raise ValueError(
                "replay.discount=1 is not allowed with env.success_hold_steps: a solved episode is worth its reward for ever, "
                "which has a value below 1 only"
            )
        if not 0 <= self.success_share < 1:
            raise ValueError(
                f"replay.success_share={self.success_share!r} is not allowed: expected a number in [0, 1)"
            )
        if self.success_factor is not None and not self.success_factor >= 1:
            raise ValueError(
                f"replay.success_factor={self.success_factor!r} is not allowed: expected a number of at least 1, or null"
            )
        for name in ("env_weight", "learned_weight"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(
                    f"replay.{name}={getattr(self, name)!r} is not allowed: expected a finite number"
                )

    @property
    def rows(self) -> int:
        """Rows of the ring: one per transition and one more per usual episode."""
        return self.capacity_transitions + max(1, self.capacity_transitions // self.episode_steps)

    def own_share(self, index: EpisodeIndex) -> float:
        """Share of draws from episodes with a success, for a store that is drawn from alone."""
        if self.success_share == 0:
            return 0.0
        return bounded_share(
            self.success_share, self.success_factor, index.size_success_starts, index.size_starts
        )


class EpisodeStore:
    """Ring of episodes in a folder; what `insert` returned for is still there after a SIGKILL.

    The order of writes keeps that promise: evicted ids are recorded before their rows are reused,
    and an episode is recorded after its rows are written. One process writes; `close` before another
    opens the same folder.

    Args:
        folder: Made if it is missing; an existing store in it is loaded.
        config: Settings; `capacity_transitions` and `episode_steps` must equal those of an existing
            store, the rest may change.
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        lock_wait_s: How long another process may still have the store open; None: 10 s.

    Raises:
        ValueError: naming the keys that do not fit an existing store.
        ReplayDiskFullError: if `preallocate` finds too little space.
        RuntimeError: if another process has the store open.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ReplayConfig,
        resolution_px: int,
        action_dim: int,
        lock_wait_s: float | None = None,
    ) -> None:
        self.folder, self.config = Path(folder), config
        self.resolution_px, self.action_dim = resolution_px, action_dim
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder / "lock", LOCK_WAIT_S if lock_wait_s is None else lock_wait_s)
        try:
            self._check_shape(
                {
                    "format": FORMAT,
                    "capacity_transitions": config.capacity_transitions,
                    "episode_steps": config.episode_steps,
                    "resolution_px": resolution_px,
                    "action_dim": action_dim,
                }
            )
            self._journal = Journal(self._journal_path(), config.sync)
            self._files = self._open_files(resolution_px, action_dim)
            frames = self._files["frames"]
            self.read_ahead = read_ahead_if_large(frames.path, frames.row_bytes)
            self._evictions = EvictionCounter(self.folder / EVICTIONS_FILE, writable=True)
            if config.sync:
                sync_to_disk(self.folder)  # The names of the files, too.
        except BaseException:
            os.close(self._lock)
            raise
        self._load_index()

    def _check_shape(self, shape: dict[str, Any]) -> None:
        path = self.folder / "store.json"
        if not path.exists():
            write_json(path, shape)
            return
        stored = read_json(path)
        wrong = [
            f"{key} is {stored.get(key)!r}, asked for {value!r}"
            for key, value in shape.items()
            if stored.get(key) != value
        ]
        if wrong:
            raise ValueError(
                f"replay store {self.folder} does not fit: {'; '.join(wrong)}; "
                "use the settings it was made with or another folder"
            )

    def _journal_path(self) -> Path:
        """The journal; it is there before the rows, so that rows without one are of episodes that would be forgotten."""
        path = self.folder / "journal.jsonl"
        if not path.exists() and any(self.folder.glob("*.bin")):
            raise ValueError(
                f"replay journal {path} is missing, though there are rows beside it: the file was lost; restore it, or "
                f"move {self.folder} away to begin this store again"
            )
        return path

    def _open_files(self, resolution_px: int, action_dim: int) -> dict[str, RowFile]:
        rows, preallocate, must_exist = self.config.rows, self.config.preallocate, bool(self._journal.live)
        return {
            name: RowFile(self.folder / f"{name}.bin", rows, shape, dtype, preallocate, must_exist)
            for name, (shape, dtype) in row_fields(resolution_px, action_dim).items()
        }

    def _load_index(self) -> None:
        """Takes over what the journal says."""
        self._live = deque(self._journal.live.values())
        self.index = EpisodeIndex(
            self.config.n_step,
            [episode.start_row for episode in self._live],
            [episode.steps for episode in self._live],
            evicted=len(self._journal.ids) - len(self._live),
            succeeded=[self._succeeded(episode) for episode in self._live],
        )
        self._evictions.publish(self.index.evicted)

    def _succeeded(self, episode: StoredEpisode) -> bool:
        rows = (episode.start_row + np.arange(episode.steps)) % self.config.rows
        return bool(self._files["successes"].data[rows].any())

    @property
    def size_starts(self) -> int:
        """Number of different n-step transitions that can be drawn."""
        return self.index.size_starts

    @property
    def size_transitions(self) -> int:
        """Number of agent steps that are there now."""
        return self.index.size_transitions

    @property
    def size_episodes(self) -> int:
        """Number of episodes that are there now."""
        return len(self.index)

    @property
    def total_inserted_steps(self) -> int:
        """Agent steps ever inserted, evicted ones included."""
        return self._journal.total_steps

    @property
    def total_inserted_episodes(self) -> int:
        """Episodes ever inserted, evicted ones included."""
        return len(self._journal.ids)

    @property
    def ids(self) -> list[str]:
        """Ids of the episodes that are there now, oldest first."""
        return list(self._journal.live)

    @property
    def past(self) -> tuple[list[str], int]:
        """Ids of all evicted episodes, and their agent steps together."""
        return self._journal.past_ids, self._journal.past_steps

    def add_past(self, ids: Sequence[str], steps: int) -> None:
        """Counts episodes that another store, whose copy this one becomes, had evicted; this one must be empty.

        Raises:
            ValueError: if it is not.
        """
        if self._journal.ids:
            raise ValueError(f"replay store {self.folder} is not empty: a copy needs a new folder")
        self._journal.past(ids, steps)
        self._load_index()

    def __contains__(self, episode_id: str) -> bool:
        """Whether an episode of this id was ever inserted."""
        return episode_id in self._journal.ids

    def insert(self, episode: Episode) -> bool:
        """Stores an episode; once this returns, it survives the death of the process.

        Args:
            episode: Without learned rewards, those are stored as 0.

        Returns:
            False if the id was inserted before (nothing is stored then), else True.

        Raises:
            ValueError: if the shapes do not fit, or the episode is larger than the ring.
            ReplayDiskFullError: if the disk is full; the episode is not stored.
        """
        if episode.episode_id in self:
            return False
        self._check_episode(episode)
        start_row = self._make_room(len(episode))
        for name, values in rows_of(episode).items():
            self._files[name].write(start_row, values)
            if self.config.sync:
                self._files[name].sync()
        stored = StoredEpisode(episode.episode_id, episode.task, start_row, len(episode))
        self._journal.commit(stored)
        self._live.append(stored)
        self.index.append(start_row, len(episode), episode.is_success)
        return True

    def _check_episode(self, episode: Episode) -> None:
        for name, got in (("frames", episode.frames), ("actions", episode.actions)):
            expected = self._files[name].row_shape
            if got.shape[1:] != expected:
                raise ValueError(
                    f"episode {episode.episode_id!r}: each row of {name} has shape {got.shape[1:]}, "
                    f"the replay store {self.folder} holds {expected}"
                )
        if len(episode) > self.config.capacity_transitions:
            raise ValueError(
                f"episode {episode.episode_id!r} has {len(episode)} steps, more than "
                f"replay.capacity_transitions={self.config.capacity_transitions}; raise the capacity"
            )

    def _make_room(self, steps: int) -> int:
        """Evicts the oldest episodes until `steps` more fit; returns the first free row."""
        transitions, episodes, evicted = self.size_transitions, len(self.index), 0
        while (
            transitions + steps > self.config.capacity_transitions
            or transitions + episodes - evicted + steps + 1 > self.config.rows
        ):
            transitions -= self._live[evicted].steps
            evicted += 1
        newest = self._live[-1] if evicted < episodes else None
        if evicted:
            self._evict(evicted)
        return 0 if newest is None else (newest.start_row + newest.steps + 1) % self.config.rows

    def _evict(self, count: int) -> None:
        """Gives up the oldest episodes: first on disk, then to readers in other processes."""
        try:
            self._journal.evict([self._live[i] for i in range(count)])
        except BaseException:
            self._load_index()  # the journal knows how far it came
            raise
        for _ in range(count):
            self._live.popleft()
        self.index.drop_first(count)
        self._evictions.publish(self.index.evicted)

    def sample(self, batch_size: int, rng: np.random.Generator, success_share: float | None = None) -> Batch:
        """Draws n-step transitions with replacement, uniformly over all start rows but for `success_share`.

        (The official sampler draws an episode first and a start second; for episodes of one length,
        as here, that is the same distribution.)

        Args:
            batch_size: Number B of transitions.
            rng: Source of the draw.
            success_share: Share drawn from episodes with a success; None for what the settings say of this store alone.

        Raises:
            RuntimeError: if no episode is long enough yet.
        """
        if self.size_starts == 0:
            raise RuntimeError(
                f"replay store {self.folder} has no episode of at least n_step={self.config.n_step} steps yet; "
                "insert episodes before sampling"
            )
        share = self.config.own_share(self.index) if success_share is None else success_share
        rows, _ = self.index.draw(batch_size, rng, share)
        return self.transitions(rows)

    def episodes(self, first: int, most_steps: int) -> list[Episode]:
        """Whole episodes, oldest first.

        Args:
            first: Number of the first one; live ones are numbered from `index.evicted` on.
            most_steps: Stop before the sum of their agent steps is more, but not before one episode.
        """
        found: list[Episode] = []
        steps = 0
        for stored in islice(self._live, max(0, first - self.index.evicted), None):
            steps += stored.steps
            if found and steps > most_steps:
                break
            rows = (stored.start_row + np.arange(stored.steps + 1)) % self.config.rows
            data = {name: file.data[rows] for name, file in self._files.items()}
            found.append(episode_of(data, stored.episode_id, stored.task))
        return found

    def transitions(self, rows: np.ndarray) -> Batch:
        """Reads the n-step transitions that start at the given rows (modulo the ring).

        Args:
            rows: (B,) int64 start rows.
        """
        data = {name: file.data for name, file in self._files.items()}
        return read_transitions(data, rows, self.config, self.read_ahead)

    def close(self) -> None:
        """Closes the files and lets another process open the store."""
        for file in self._files.values():
            file.close()
        self._journal.close()
        os.close(self._lock)


def _lock(path: Path, wait_s: float) -> int:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            return try_lock(path)
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"replay store {path.parent} is open in another process; "
                    "stop that run, or give this one another folder"
                ) from error
            time.sleep(0.1)
