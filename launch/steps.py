"""Runs other verbs as commands, one after the other, as a person would type them."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One command and how long it took."""

    name: str
    seconds: float


def run_step(name: str, arguments: list[str]) -> Step:
    """Runs `python launch/<verb>.py ...` and shows the command.

    Args:
        name: Shown above the command.
        arguments: The verb, then its overrides.

    Raises:
        RuntimeError: naming the step that failed.
    """
    command = [f"launch/{arguments[0]}.py", *arguments[1:]]
    print(f"\n=== {name}\n$ python {' '.join(command)}", flush=True)
    start_s = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code != 0:
        raise RuntimeError(f"step '{name}' failed with exit code {code}; the message above says why")
    return Step(name, time.monotonic() - start_s)
