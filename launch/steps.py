"""Runs other verbs as commands, one after the other, as a person would type them."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One command and how long it took."""

    name: str
    seconds: float


def run_step(name: str, arguments: list[str]) -> Step:
    """Runs `python launch/<verb>.py ...` and shows the command. After Ctrl-C or SIGTERM it waits for the command to end well.

    Args:
        name: Shown above the command.
        arguments: The verb, then its overrides.

    Raises:
        RuntimeError: naming the step that failed.
        SystemExit: after Ctrl-C or SIGTERM; steps after this one must not begin.
    """
    command = [f"launch/{arguments[0]}.py", *arguments[1:]]
    print(f"\n=== {name}\n$ python {shlex.join(command)}", flush=True)
    start_s = time.monotonic()
    with subprocess.Popen([sys.executable, *command], cwd=ROOT) as process, _stopped_with(process) as signals:
        code = process.wait()
    if signals:
        raise SystemExit(f"stopped by {signals[0]} within '{name}'")
    if code != 0:
        raise RuntimeError(f"step '{name}' failed with exit code {code}; the message above says why")
    return Step(name, time.monotonic() - start_s)


@contextmanager
def _stopped_with(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Leaves Ctrl-C to the process, which a terminal tells too, and passes SIGTERM on; yields what came."""
    came: list[str] = []

    def note(number: int, _frame: object) -> None:
        came.append(signal.Signals(number).name)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
