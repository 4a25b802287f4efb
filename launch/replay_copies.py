"""The replay in a store: which pieces of each shard are there, what is new, and the way back.

<URL>/<run>/replay/shard_0-000000000-000000120-3f9a1c02.npz   episodes 0 to 119 of shard 0, written once
<URL>/<run>/step_000012000/replay.json                        which pieces make the replay of that checkpoint
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from launch.manifest import file_record
from launch.run_folder import RunFolder
from launch.storage import REPLAY, StoredRun

# While a shard writes one, inserts and draws wait.
PIECE_BYTES = 32 << 20
SHARD_TIMEOUT_S = 300.0


class ReplayCopies:
    """Brings the copy of the replay up to date.

    Args:
        store: Where to.
        folder: The run; the shards write into it, the driver reads.
        shards: Handles of the replay shards.
    """

    def __init__(self, store: StoredRun, folder: RunFolder, shards: Sequence[Any]) -> None:
        self._store, self._folder, self._shards = store, folder, list(shards)
        self._copied: list[list[dict[str, Any]]] | None = None

    def update(self) -> bytes:
        """Copies every episode that is not in the store yet.

        Returns:
            replay.json, for the checkpoint that needs them.

        Raises:
            Exception: whatever the store's client or Ray raises; the next call goes on where this one stopped.
        """
        if self._copied is None:
            known = self._store.newest_replay()
            shards = [] if known is None else known["shards"]
            self._copied = [shard["pieces"] for shard in shards]
        self._copied += [[] for _ in range(len(self._shards) - len(self._copied))]
        shards = [self._update_shard(number) for number in range(len(self._shards))]
        replay = {"began": asdict(self._folder.replay_start()), "shards": shards}
        return json.dumps(replay).encode()

    def _update_shard(self, number: int) -> dict[str, Any]:
        assert self._copied is not None
        shard = self._folder.path / "replay" / f"shard_{number}"
        for pattern in ("outgoing-*.npz", ".outgoing-*.npz.*"):  # The second in the middle of writing it.
            for left_by_a_kill in shard.glob(pattern):
                left_by_a_kill.unlink(missing_ok=True)
        while True:
            # A name of its own: of a name that it deleted, an NFS client may go on saying for a while that it is not there.
            path = shard / f"outgoing-{uuid.uuid4().hex}.npz"
            pieces = self._copied[number]
            after = pieces[-1]["piece"] if pieces else None
            call = self._shards[number].export.remote(after, str(path), PIECE_BYTES)
            answer = ray.get(call, timeout=SHARD_TIMEOUT_S)
            kept = [p for p in pieces if answer["follows"] and p["piece"]["end"] > answer["evicted"]]
            if answer["piece"] is not None:
                kept.append(self._copy(number, answer["piece"], path))
            self._copied[number] = kept
            if answer["is_complete"]:
                return {key: answer[key] for key in ("store", "past_ids", "past_steps")} | {"pieces": kept}

    def _copy(self, number: int, piece: dict[str, Any], path: Path) -> dict[str, Any]:
        record = file_record(path)
        name = f"shard_{number}-{piece['first']:09d}-{piece['end']:09d}-{record['sha256'][:8]}.npz"
        self._store.copy_in(path, f"{REPLAY}/{name}")
        path.unlink()
        return {"piece": piece, "name": name, **record}
