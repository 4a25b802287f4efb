"""Append-only journal of a replay store: which episodes lie where, and which ids were ever stored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.ring import disk_full
from models.files import sync_to_disk, write_atomic

IDS_PER_LINE = 1000


@dataclass(frozen=True)
class StoredEpisode:
    """Where one episode lies in the ring.

    Attributes:
        episode_id: Unique id.
        task: Task name.
        start_row: Row of frame 0.
        steps: Number of agent steps T; the episode fills T + 1 rows.
    """

    episode_id: str
    task: str
    start_row: int
    steps: int


class Journal:
    """JSON lines: `commit` (an episode), `evict` (an id), `past` (ids and steps of evicted episodes).

    A line counts once its newline is there, so a line torn by a kill is dropped on reading. When more
    than half of a long journal speaks of evicted episodes it is rewritten in short form, atomically.

    Args:
        path: The journal file; made if it is missing.
        sync: Wait for the disk itself after every line (survives the machine, not only the process).
    """

    def __init__(self, path: Path, sync: bool) -> None:
        self.path, self._sync = path, sync
        self.live: dict[str, StoredEpisode] = {}
        self.ids: set[str] = set()
        self.total_steps = 0
        self._lines = 0
        self._lines_at_compaction = 0
        for left_by_a_kill in path.parent.glob(f".{path.name}.*"):
            left_by_a_kill.unlink()
        if path.exists():
            self._replay()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _replay(self) -> None:
        text = self.path.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        if len(complete) < len(text):
            os.truncate(self.path, len(complete))
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"replay journal {self.path} line {number} is not readable ({error!r}): {line[:80]!r}; "
                    "the file was changed from outside: restore it or start a new replay folder"
                ) from error

    def _apply(self, entry: dict) -> None:
        operation = entry["op"]
        if operation == "commit":
            episode = StoredEpisode(entry["id"], entry["task"], entry["start_row"], entry["steps"])
            self.live[episode.episode_id] = episode
            self.ids.add(episode.episode_id)
            self.total_steps += episode.steps
        elif operation == "evict":
            del self.live[entry["id"]]
        elif operation == "past":
            self.ids.update(entry["ids"])
            self.total_steps += entry["steps"]
        else:
            raise ValueError(f"unknown operation {operation!r}")
        self._lines += 1

    def commit(self, episode: StoredEpisode) -> None:
        """Records an episode whose rows are written; it is stored from here on."""
        self._append([_commit_entry(episode)])

    def past(self, ids: Sequence[str], steps: int) -> None:
        """Records episodes that were stored and evicted elsewhere, and their agent steps together."""
        entries = _past_entries(ids, steps)
        if entries:
            self._append(entries)

    def evict(self, episodes: Iterable[StoredEpisode]) -> None:
        """Records that the rows of these episodes may now be overwritten."""
        entries = [{"op": "evict", "id": episode.episode_id} for episode in episodes]
        if entries:
            self._append(entries)
            self._compact_if_long()

    def _append(self, entries: list[dict]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, text) < len(text):
                raise OSError(28, "short write")
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)  # half a line in the middle would make the rest unreadable
            raise disk_full(self.path, error) from error
        for entry in entries:
            self._apply(entry)

    def _compact_if_long(self) -> None:
        if self._lines < 2 * self._lines_at_compaction + IDS_PER_LINE:
            return
        entries = self._short_form()
        text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        try:
            write_atomic(self.path, lambda file: file.write(text))
            if self._sync:
                sync_to_disk(
                    self.path.parent
                )  # Else the former file may be back after a power cut, without what follows.
        except OSError as error:
            raise disk_full(self.path, error) from error
        os.close(self._fd)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self._lines = self._lines_at_compaction = len(entries)

    def _short_form(self) -> list[dict]:
        return _past_entries(self.past_ids, self.past_steps) + [
            _commit_entry(episode) for episode in self.live.values()
        ]

    @property
    def past_ids(self) -> list[str]:
        """Ids of the evicted episodes, sorted."""
        return sorted(self.ids - self.live.keys())

    @property
    def past_steps(self) -> int:
        """Agent steps of the evicted episodes."""
        return self.total_steps - sum(episode.steps for episode in self.live.values())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _past_entries(ids: Sequence[str], steps: int) -> list[dict]:
    entries: list[dict] = [
        {"op": "past", "ids": list(ids[first : first + IDS_PER_LINE]), "steps": 0}
        for first in range(0, len(ids), IDS_PER_LINE)
    ]
    if entries:
        entries[0]["steps"] = steps
    return entries


def _commit_entry(episode: StoredEpisode) -> dict:
    return {
        "op": "commit",
        "id": episode.episode_id,
        "task": episode.task,
        "start_row": episode.start_row,
        "steps": episode.steps,
    }
