"""Copies each new checkpoint of a training to a store, beside the training: it never waits and never fails for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from launch.replay_copies import ReplayCopies
from launch.run_folder import RunFolder
from launch.storage import METRICS, REPLAY_INDEX, StoredRun

FINISH_TIMEOUT_S = 900.0
FINISH_ATTEMPTS = 3
RETRY_PAUSE_S = 5.0


@dataclass(frozen=True)
class Job:
    """One checkpoint to copy, with the length of metrics.jsonl when it was made."""

    checkpoint: Path
    metrics_bytes: int


class Uploads:
    """A thread that copies the newest checkpoint; while it is busy, a newer one takes the place of one that waits.

    Args:
        store: Where to.
        folder: The run.
        keep: How many checkpoints stay in the store.
        replay: Copies the replay with them, or None.

    Attributes:
        failures: Copies that failed so far.
        copied: Checkpoints copied so far.
    """

    def __init__(
        self, store: StoredRun, folder: RunFolder, keep: int, replay: ReplayCopies | None = None
    ) -> None:
        self._store, self._folder, self._keep, self._replay = store, folder, keep, replay
        self._changed = threading.Condition()
        self._waiting: Job | None = None
        self._busy: Job | None = None
        self._failed: Job | None = None
        self._news: list[str] = []
        self._is_failing = False
        self.failures = self.copied = 0
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def submit(self, checkpoint: Path) -> None:
        """Asks for a copy of a checkpoint; returns at once. It is kept on disk until it is copied."""
        self._submit(Job(checkpoint, (self._folder.path / METRICS).stat().st_size))

    def _submit(self, job: Job) -> None:
        with self._changed:
            if self._waiting is not None:
                self._folder.in_use.discard(self._waiting.checkpoint)
            self._folder.in_use.add(job.checkpoint)
            self._waiting, self._failed = job, None
            self._changed.notify_all()

    def news(self) -> list[str]:
        """What went wrong or well again since the last call, in sentences."""
        with self._changed:
            news, self._news = self._news, []
        return news

    def metrics(self) -> dict[str, float]:
        """Counts for metrics.jsonl."""
        return {"storage_copies": self.copied, "storage_failures": self.failures}

    def finish(self) -> None:
        """Waits until the last checkpoint is copied, trying again if it fails; gives up after a while and says so."""
        for attempt in range(FINISH_ATTEMPTS):
            with self._changed:
                is_idle = self._changed.wait_for(self._is_idle, FINISH_TIMEOUT_S)
                failed = self._failed
            if is_idle and failed is None:
                return
            if failed is None or attempt == FINISH_ATTEMPTS - 1:
                break
            time.sleep(RETRY_PAUSE_S)
            self._submit(failed)
        with self._changed:
            self._news.append(
                f"WARNING: the last checkpoint is not in {self._store.url}. It is in {self._folder.path}; "
                "resume=<that folder> copies it again"
            )

    def _is_idle(self) -> bool:
        return self._waiting is None and self._busy is None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                job, self._waiting = self._waiting, None
                self._busy = job
            assert job is not None
            error = self._copy(job)
            with self._changed:
                self._count(job, error)
                self._busy = None
                if self._waiting != job:
                    self._folder.in_use.discard(job.checkpoint)
                self._changed.notify_all()

    def _copy(self, job: Job) -> Exception | None:
        try:
            with (self._folder.path / METRICS).open("rb") as file:
                metrics = file.read(job.metrics_bytes)
            extra = {METRICS: metrics}
            if self._replay is not None:
                extra[REPLAY_INDEX] = self._replay.update()
            self._store.upload(job.checkpoint, extra, self._keep)
        except (
            Exception
        ) as error:  # Clients of stores raise exceptions of their own; none may end the training.
            return error
        return None

    def _count(self, job: Job, error: Exception | None) -> None:
        if error is None:
            self.copied += 1
            self._failed = None  # What failed before is older than what is there now.
            if self._is_failing:
                self._news.append(f"checkpoint {job.checkpoint.name} is copied to {self._store.url} again")
        else:
            self.failures += 1
            self._failed = job
            self._news.append(
                f"WARNING: checkpoint {job.checkpoint.name} is not copied to {self._store.url}: {error}. Training goes on, "
                "the next checkpoint is tried again"
            )
        self._is_failing = error is not None
