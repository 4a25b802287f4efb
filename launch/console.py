"""What a person sees while training: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


def format_value(value: float | int | str) -> str:
    """Numbers with four significant digits, integers with separators."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else value


class TrainingView:
    """Shows counters, metrics and the last events.

    Args:
        title: First line.
        style: "auto" (live table on a terminal, else lines), "live", "lines" or "off".
    """

    def __init__(self, title: str, style: str = "auto") -> None:
        self._title = title
        self._style = ("live" if sys.stdout.isatty() else "lines") if style == "auto" else style
        self._events: deque[str] = deque(maxlen=5)
        self._values: Mapping[str, float | int | str] = {}
        self._progress = 0.0
        self._live: Live | None = None
        if self._style == "live":
            self._live = Live(console=Console(), refresh_per_second=2)
            self._live.start()
        elif self._style == "lines":
            print(title, flush=True)

    def update(self, values: Mapping[str, float | int | str], progress: float) -> None:
        """Shows the newest values; `progress` is in [0, 1]."""
        if self._style == "lines":
            text = "  ".join(f"{name} {format_value(value)}" for name, value in values.items())
            print(f"[{progress:4.0%}] {text}", flush=True)
        self._values, self._progress = values, progress
        self._draw()

    def event(self, text: str) -> None:
        """Shows something that happened: a checkpoint, an evaluation, a recovery."""
        stamped = f"{time.strftime('%H:%M:%S')} {text}"
        self._events.append(stamped)
        if self._style == "lines":
            print(stamped, flush=True)
        self._draw()

    def _draw(self) -> None:
        if self._live is None:
            return
        table = Table(title=f"{self._title}  {self._progress:.0%}", title_justify="left", show_header=False)
        for name, value in self._values.items():
            table.add_row(name, format_value(value))
        for event in self._events:
            table.add_row("event", Text(event))  # Brackets in a string would be markup.
        self._live.update(table)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._live is not None:
            self._live.stop()
