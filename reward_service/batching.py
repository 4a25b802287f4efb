"""An asyncio batcher: many small requests, one function call per batch, in one executor thread.

No Ray here; a Ray actor with `async` methods uses it as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatcherConfig:
    """When a batch is closed, and how many may wait.

    Attributes:
        max_batch_frames: A batch closes once it holds at least this many frames, 1 or more. A single request
            may be larger; it is never split here.
        max_wait_s: Seconds that the first request of a batch waits for company, 0 or more.
        max_queue_requests: Requests that may wait; further ones are held back until there is room, 1 or more.
    """

    max_batch_frames: int = 2048
    max_wait_s: float = 0.02
    max_queue_requests: int = 256

    def __post_init__(self) -> None:
        if self.max_batch_frames < 1:
            raise ValueError(f"max_batch_frames is {self.max_batch_frames}, expected 1 or more")
        if not 0 <= self.max_wait_s < float("inf"):
            raise ValueError(f"max_wait_s is {self.max_wait_s}, expected 0 or more seconds")
        if self.max_queue_requests < 1:
            raise ValueError(f"max_queue_requests is {self.max_queue_requests}, expected 1 or more")


class _Waiting(NamedTuple):
    request: Any
    num_frames: int
    since_s: float
    result: asyncio.Future


class Batcher(Generic[Request, Result]):
    """Gathers requests until a frame count or a deadline, and runs a function on them together.

    Args:
        function: Called in one thread with the requests of a batch; returns one result per request, in order.
        config: When a batch is closed.
        thread_start: Called once in the executor thread before the first batch.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Request]], Sequence[Result]],
        config: BatcherConfig | None = None,
        thread_start: Callable[[], None] | None = None,
    ) -> None:
        self.config = config or BatcherConfig()
        self._function = function
        self._executor = ThreadPoolExecutor(1, "reward-batch", initializer=thread_start)
        self._queue: asyncio.Queue[_Waiting] | None = None
        self._worker: asyncio.Task | None = None
        self._held_back: _Waiting | None = None
        self._batches = self._requests = self._frames = self._failures = 0
        self._latency_s = self._busy_s = 0.0

    async def submit(self, request: Request, num_frames: int) -> Result:
        """Waits for the result of one request.

        Args:
            request: Handed to the function.
            num_frames: Its size.

        Raises:
            Exception: whatever the function raised for the batch of this request; other batches do not see it.
        """
        if self._queue is None or self._worker is None:
            self._queue = asyncio.Queue(self.config.max_queue_requests)
            self._worker = asyncio.create_task(self._work(self._queue))
        waiting = _Waiting(request, num_frames, time.monotonic(), asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.result

    def stats(self) -> dict[str, float]:
        """Counters and means since the start.

        Returns:
            "batches", "requests", "frames", "failed_batches", "queue_requests" (waiting now for a batch), "batch_fill"
            (mean frames per batch / max_batch_frames), "latency_s" (mean time from request to result), "busy_s"
            (time in the function) and "frames_per_s" (frames / busy_s).
        """
        waiting = (self._queue.qsize() if self._queue else 0) + (self._held_back is not None)
        return {
            "batches": float(self._batches),
            "requests": float(self._requests),
            "frames": float(self._frames),
            "failed_batches": float(self._failures),
            "queue_requests": float(waiting),
            "batch_fill": self._frames / max(1, self._batches) / self.config.max_batch_frames,
            "latency_s": self._latency_s / max(1, self._requests),
            "busy_s": self._busy_s,
            "frames_per_s": self._frames / self._busy_s if self._busy_s > 0 else 0.0,
        }

    async def _work(self, queue: asyncio.Queue[_Waiting]) -> None:
        while True:
            await self._run(await self._gather(queue))

    async def _gather(self, queue: asyncio.Queue[_Waiting]) -> list[_Waiting]:
        """Collects one batch; the request that would make it too large opens the next one."""
        first = self._held_back or await queue.get()
        self._held_back = None
        batch, frames = [first], first.num_frames
        deadline = time.monotonic() + self.config.max_wait_s
        while frames < self.config.max_batch_frames:
            item = await self._next_before(queue, deadline)
            if item is None:
                break
            if frames + item.num_frames > self.config.max_batch_frames:
                self._held_back = item
                break
            batch.append(item)
            frames += item.num_frames
        return batch

    @staticmethod
    async def _next_before(queue: asyncio.Queue[_Waiting], deadline: float) -> _Waiting | None:
        if not queue.empty():
            return queue.get_nowait()
        try:
            return await asyncio.wait_for(queue.get(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            return None

    async def _run(self, batch: list[_Waiting]) -> None:
        """Runs the function; after an error once more for each request alone, so that it goes to the one that caused it."""
        requests = [item.request for item in batch]
        start = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._function, requests
            )
            if len(results) != len(requests):
                raise RuntimeError(
                    f"the batch function returned {len(results)} results for {len(requests)} requests"
                )
        except Exception as error:
            self._failures += 1
            if len(batch) > 1:
                for item in batch:
                    await self._run([item])
                return
            self._count(batch, start)
            if not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        self._count(batch, start)
        for item, result in zip(batch, results):
            if not item.result.done():
                item.result.set_result(result)

    def _count(self, batch: list[_Waiting], start: float) -> None:
        now = time.monotonic()
        self._batches += 1
        self._requests += len(batch)
        self._frames += sum(item.num_frames for item in batch)
        self._busy_s += now - start
        self._latency_s += sum(now - item.since_s for item in batch)
