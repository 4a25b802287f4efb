"""Ctrl-C and SIGTERM ask for a clean stop; a second Ctrl-C stops at once; workers end with who started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType


class StopFlag:
    """Set by SIGINT or SIGTERM; read by loops at a safe place."""

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.reason is not None


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone; `initializer` of a `ProcessPoolExecutor`.

    Where that one is killed, its workers would finish what they were given, and then wait for more for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
