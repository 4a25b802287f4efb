"""Settings that every part of the benchmark reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
    """

    rounds: int
    threads: int
    device: str
    smoke: bool
    against: tuple[str, ...] | None
    seed: int
    report: Callable[[str], None]

    def wants(self, peer: str) -> bool:
        """Whether a peer was asked for."""
        return self.against is None or peer in self.against
