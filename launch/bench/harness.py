"""Side-by-side timing: contenders take turns in one process, and a ratio is formed in each round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Contender(NamedTuple):
    """One implementation in a race.

    Attributes:
        name: Shown in tables.
        run: Does a fixed piece of work and returns how much it was, in the race's unit. It must have finished the
            work when it returns (a GPU synchronised).
    """

    name: str
    run: Callable[[], float]


class Spread(NamedTuple):
    """Median and quartiles of some samples."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Result of a race between ours and one peer.

    Attributes:
        part: What was measured, for example "reward".
        case: Which sizes and settings.
        unit: What the rates count, for example "frames/s".
        ours: Name of our contender.
        peer: Name of the other one.
        ours_rate: Units per second.
        peer_rate: Units per second.
        ratio: ours / peer, formed within each round.
        rounds: Number of rounds.
        target: The ratio that this project promises, or None where it promises nothing.
        checks: How equal the outputs were, and anything else worth keeping; plain values.
    """

    part: str
    case: str
    unit: str
    ours: str
    peer: str
    ours_rate: Spread
    peer_rate: Spread
    ratio: Spread
    rounds: int
    target: float | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What identifies the comparison in a recorded file."""
        return f"{self.part} | {self.case} | {self.peer}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        spreads = {name: getattr(self, name)._asdict() for name in ("ours_rate", "peer_rate", "ratio")}
        return {**plain, **spreads, "checks": dict(self.checks)}


@dataclass(frozen=True)
class Curve:
    """A cost against a size.

    Attributes:
        part: What was measured, for example "replay".
        x: What grows, with its unit.
        points: One mapping per size: the value of `x` and every measured cost, units in the names.
        note: What the curve shows, in a sentence.
    """

    part: str
    x: str
    points: Sequence[Mapping[str, float]]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"part": self.part, "x": self.x, "points": [dict(p) for p in self.points], "note": self.note}


class Row(NamedTuple):
    """One line of a measurement that is no race, for example an estimator's quality beside its speed."""

    part: str
    case: str
    values: Mapping[str, Any]


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


def race(
    contenders: Sequence[Contender],
    rounds: int,
    warmup_rounds: int = 1,
    report: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Lets contenders take turns, so that a busy machine slows all of them alike.

    Args:
        contenders: At least one; every second round runs them in reverse order.
        rounds: Measured turns of each, 1 or more.
        warmup_rounds: Turns before that which are not measured.
        report: Called with a line per round.

    Returns:
        Name -> units per second of each round.

    Raises:
        ValueError: for no rounds, or two contenders of one name.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected 1 or more")
    if len({contender.name for contender in contenders}) != len(contenders):
        raise ValueError(f"contenders need different names, got {[c.name for c in contenders]}")
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-warmup_rounds, rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            gc.collect()
            start = time.perf_counter()
            amount = contender.run()
            elapsed_s = time.perf_counter() - start
            if number >= 0:
                rates[contender.name].append(amount / elapsed_s)
        if report is not None:
            shown = "  ".join(f"{name} {values[-1]:.4g}" for name, values in rates.items() if values)
            report(f"round {number + 1}/{rounds}: {shown}" if number >= 0 else "warmed up")
    return rates


def compare(
    rates: Mapping[str, Sequence[float]],
    ours: str,
    peer: str,
    *,
    part: str,
    case: str,
    unit: str,
    target: float | None = None,
    checks: Mapping[str, Any] | None = None,
) -> Comparison:
    """Forms the ratio of two contenders of a race, round by round.

    Args:
        rates: Result of `race`.
        ours: Name of our contender.
        peer: Name of the other one.
        part: See `Comparison`, as the rest.
    """
    ratios = [a / b for a, b in zip(rates[ours], rates[peer])]
    return Comparison(
        part=part,
        case=case,
        unit=unit,
        ours=ours,
        peer=peer,
        ours_rate=spread(list(rates[ours])),
        peer_rate=spread(list(rates[peer])),
        ratio=spread(ratios),
        rounds=len(ratios),
        target=target,
        checks=dict(checks or {}),
    )
