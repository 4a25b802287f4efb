"""A second thread for work that does not depend on what the first one is doing."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


class Task(Generic[Result]):
    """Work that was handed to a `SecondThread`."""

    def __init__(self, function: Callable[[], Result], future: Future[Result] | None) -> None:
        self._function, self._future = function, future

    def result(self) -> Result:
        """What the function returns; it runs here unless the second thread has begun it.

        So a second thread that finds no core costs nothing, and a busy machine shares the work as its cores allow.
        """
        if self._future is None or self._future.cancel():
            return self._function()
        return self._future.result()


class SecondThread:
    """Runs functions beside the caller, one at a time and in their order, or in the caller where it is not wanted.

    The numbers are those of the caller alone: a function is run once, as it is, with as many threads of torch as
    the caller has. Functions set their own gradient mode and autocast, which torch keeps per thread.

    Args:
        enabled: Whether there is a second thread.
    """

    def __init__(self, enabled: bool) -> None:
        # torch's number of threads holds for the thread that set it.
        self._pool = (
            ThreadPoolExecutor(1, "second", torch.set_num_threads, (torch.get_num_threads(),))
            if enabled
            else None
        )

    def start(self, function: Callable[[], Result]) -> Task[Result]:
        """Hands a function over; `Task.result` must be called once for it to be sure to run."""
        return Task(function, None if self._pool is None else self._pool.submit(function))

    def close(self) -> None:
        """Ends the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def has_free_core(device: torch.device) -> bool:
    """Whether a second thread would find a core: torch's own threads leave one, and the agent is on the CPU."""
    return device.type == "cpu" and torch.get_num_threads() < (os.cpu_count() or 1)
