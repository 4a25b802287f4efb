"""Ctrl-C and SIGTERM ask for a clean stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
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
