"""Settings that every part of the benchmark reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchSettings:
    """How parts measure.

    Attributes:
        rounds: Measured turns of each contender, 1 or more.
        threads: Threads of torch and OpenMP, the same for all contenders, 1 or more.
        device: "cpu" or "cuda".
        smoke: Small amounts of work: minutes for everything, for a regression check.
        against: Names of the peers wanted, None for all.
        seed: Seed of weights and inputs.
        report: Called with lines of progress.
        checkpoint: Trained video model, for the part that judges videos; None where none is given.
        data: Folder with its videos.
        episodes: Held-out videos of each kind to judge, 1 or more.
        minutes: How long the part that kills processes trains, above 0.
        kill_every_s: Mean time between two kills; 0 for none.
    """

    rounds: int
    threads: int
    device: str
    smoke: bool
    against: tuple[str, ...] | None
    seed: int
    report: Callable[[str], None]
    checkpoint: Path | None = None
    data: Path | None = None
    episodes: int = 4
    minutes: float = 10.0
    kill_every_s: float = 20.0

    def wants(self, peer: str) -> bool:
        """Whether a peer was asked for."""
        return self.against is None or peer in self.against
