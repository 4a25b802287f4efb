"""What an update needs before the agent's part: its batch, and the bonus of it, made while earlier updates run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from learner.batch import Batch, TensorBatch
from learner.bonus import Bonus
from learner.staging import StagedBatch, Staging


class Prepared(NamedTuple):
    """All that the agent's update takes.

    Attributes:
        batch: On the device.
        bonus: (B, 1) float32 at s_{t+n}, without its weight, or None.
        metrics: Of the bonus's own training.
    """

    batch: TensorBatch
    bonus: torch.Tensor | None
    metrics: dict[str, torch.Tensor]


class Preparation:
    """Fetches batches ahead, and shows them to the bonus in their order.

    A bonus depends on the batches and on itself, never on the agent, so a thread of its own computes the same numbers
    as taking turns does.

    Args:
        fetch_batch: Returns the batch of an update index; called from threads, several at a time.
        bonus: Asked, then trained, with every batch.
        device: Of the learner.
        ahead: Batches fetched ahead of the update that needs them, at least 0.
        bonus_thread: Whether the bonus works beside the caller, up to `ahead` batches ahead.

    Attributes:
        bonus_index: Index of the batch that the bonus sees next.
        wait_s: Seconds that the caller has waited in all.
    """

    def __init__(
        self,
        fetch_batch: Callable[[int], Batch],
        bonus: Bonus,
        device: torch.device,
        ahead: int,
        bonus_thread: bool,
    ) -> None:
        self.bonus_index, self.wait_s = 0, 0.0
        self._fetch_batch, self._bonus, self._ahead = fetch_batch, bonus, ahead
        self._staging = Staging(device)
        self._fetching = ThreadPoolExecutor(max(1, ahead), thread_name_prefix="prefetch")
        # One thread keeps the order. torch's number of threads holds for the thread that set it.
        self._asking = (
            ThreadPoolExecutor(1, "bonus", torch.set_num_threads, (torch.get_num_threads(),))
            if bonus_thread
            else None
        )

    def take(self, first: int, last: int) -> Generator[Prepared, None, None]:
        """Everything for the updates `first` to `last - 1`, in order.

        Nothing is fetched or shown to the bonus beyond them, so that what a batch contains does not depend on timing as
        long as nothing is inserted meanwhile, and the bonus ends where the agent ends.
        """
        waiting: deque[Future[StagedBatch] | Future[Prepared]] = deque()
        try:
            for index in range(first, last):
                for ahead in range(index + len(waiting), min(index + 1 + self._ahead, last)):
                    waiting.append(self._start(ahead))
                started_s = time.monotonic()
                result = waiting.popleft().result()
                self.wait_s += time.monotonic() - started_s
                yield result if isinstance(result, Prepared) else self._ask(index, result)
        finally:
            for future in waiting:
                future.cancel()

    def _start(self, index: int) -> Future[StagedBatch] | Future[Prepared]:
        fetched = self._fetching.submit(lambda: self._staging.send(self._fetch_batch(index)))
        if self._asking is None:
            return fetched
        return self._asking.submit(lambda: self._ask(index, fetched.result()))

    def _ask(self, index: int, staged: StagedBatch) -> Prepared:
        if index != self.bonus_index:
            raise RuntimeError(
                f"batch {index} follows a failure: the bonus waits for batch {self.bonus_index}; load the last checkpoint"
            )
        batch = self._staging.receive(staged)
        value = self._bonus.bonus(batch)
        prepared = Prepared(batch, value, self._bonus.update(batch))
        self.bonus_index += 1
        return prepared

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._asking, self._fetching):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
