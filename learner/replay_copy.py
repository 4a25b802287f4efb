"""Copies of a replay store in pieces: files of whole episodes, each written once, that make the same store elsewhere.

A store that goes on growing needs only the pieces that it had not written before. Put together, they hold the same
episodes in the same order, so the same seed draws the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learner.replay import EpisodeStore, ReplayConfig
from learner.rows import episode_of, rows_of
from models.episode import Episode
from models.files import read_json, write_atomic


@dataclass(frozen=True)
class Piece:
    """Episodes that were written into one file.

    Attributes:
        first: Number of the first episode in its store.
        end: Number after the last one.
        last_id: Id of the last one.
    """

    first: int
    end: int
    last_id: str


def export_piece(store: EpisodeStore, after: Piece | None, path: Path, most_steps: int) -> dict[str, Any]:
    """Writes the next episodes that no piece holds yet.

    Args:
        store: The store.
        after: The newest piece that was written before. If it is none of this store (a store that lost its last
            episodes with the power), all live episodes are written again.
        path: The file; not written if there is nothing new.
        most_steps: Agent steps of one piece, or one episode if that has more.

    Returns:
        "piece": fields of the new `Piece`, or None; "follows": whether older pieces are of this store; "is_complete":
        whether nothing is left to write; "evicted": number of evicted episodes; "past_ids" and "past_steps", of them;
        "store": settings in the store's file.
    """
    evicted = store.index.evicted
    follows = after is not None and _is_of(store, after)
    first = max(evicted, after.end) if after is not None and follows else evicted
    episodes = store.episodes(first, most_steps)
    if episodes:
        write_piece(path, episodes)
    end, (past_ids, past_steps) = first + len(episodes), store.past
    return {
        "piece": asdict(Piece(first, end, episodes[-1].episode_id)) if episodes else None,
        "follows": follows,
        "is_complete": end == store.total_inserted_episodes,
        "evicted": evicted,
        "past_ids": past_ids,
        "past_steps": past_steps,
        "store": read_json(store.folder / "store.json"),
    }


def _is_of(store: EpisodeStore, piece: Piece) -> bool:
    position = piece.end - 1 - store.index.evicted
    return 0 <= position < store.size_episodes and store.ids[position] == piece.last_id


def write_piece(path: Path, episodes: Sequence[Episode]) -> None:
    """Writes episodes into one file, without compression (pictures of a simulator would take the time of many)."""
    rows = [rows_of(episode) for episode in episodes]
    arrays: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    arrays["ids"] = np.array([episode.episode_id for episode in episodes])
    arrays["tasks"] = np.array([episode.task for episode in episodes])
    arrays["row_counts"] = np.array([len(episode) + 1 for episode in episodes])
    write_atomic(path, lambda file: np.savez(file, **arrays))


def read_piece(path: Path) -> Iterable[Episode]:
    """Episodes of a piece, in order."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    ids, tasks, counts = (arrays.pop(name) for name in ("ids", "tasks", "row_counts"))
    ends = np.cumsum(counts)
    for episode_id, task, count, end in zip(ids, tasks, counts, ends):
        rows = {name: values[end - count : end] for name, values in arrays.items()}
        yield episode_of(rows, str(episode_id), str(task))


def restore_store(folder: Path, copy: Mapping[str, Any], pieces: Iterable[Path]) -> None:
    """Makes the store again of which the pieces are.

    Args:
        folder: New folder.
        copy: "store", "past_ids" and "past_steps" of the last `export_piece`.
        pieces: Files, oldest first.
    """
    shape = copy["store"]
    config = ReplayConfig(
        capacity_transitions=shape["capacity_transitions"], episode_steps=shape["episode_steps"]
    )
    store = EpisodeStore(folder, config, shape["resolution_px"], shape["action_dim"])
    try:
        store.add_past(copy["past_ids"], copy["past_steps"])
        for path in pieces:
            for episode in read_piece(path):
                store.insert(episode)  # Not those that were evicted after their piece was written.
    finally:
        store.close()
