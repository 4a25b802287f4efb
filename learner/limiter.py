"""Update-ratio limiter: ties gradient updates to agent steps, in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

FINEST = 1_000_000  # Largest denominator of a ratio.


@dataclass(frozen=True)
class UpdateRatioLimiter:
    """Keeps `updates = updates_per_step * (agent_steps - min_steps)` within a band.

    The learner is never ahead of the ratio; the rollouts are never more than `tolerance_steps` ahead
    of the learner. Both answers are pure functions of the counters, so there is nothing that a
    restart could lose.

    Attributes:
        updates_per_step: Updates per agent step, at least 1 / FINEST (DrQ-v2, arXiv 2107.09645: 0.5).
        min_steps: Agent steps before the first update, at least 0 (seed steps).
        tolerance_steps: Agent steps that may be started before the learner has caught up, at least
            one update's worth (1 / updates_per_step). Blocks of several steps need `least_tolerance_steps`.
    """

    updates_per_step: float = 0.5
    min_steps: int = 2000
    tolerance_steps: int = 1000

    def __post_init__(self) -> None:
        if not 1 / FINEST <= self.updates_per_step < math.inf:
            raise ValueError(
                f"limiter.updates_per_step={self.updates_per_step!r} is not allowed: expected a number above 0, of at "
                f"least {1 / FINEST:g}"
            )
        if self.min_steps < 0:
            raise ValueError(
                f"limiter.min_steps={self.min_steps!r} is not allowed: expected a whole number of at least 0"
            )
        least = math.ceil(1 / self._ratio)
        if self.tolerance_steps < least:
            raise ValueError(
                f"limiter.tolerance_steps={self.tolerance_steps!r} is not allowed: expected at least {least}, "
                f"one update at updates_per_step={self.updates_per_step}; less would stop rollouts and learner for ever"
            )

    @property
    def _ratio(self) -> Fraction:
        # Exact arithmetic: in floating point 100 steps at 0.29 would be 28 updates.
        return Fraction(self.updates_per_step).limit_denominator(FINEST)

    def least_tolerance_steps(self, block_steps: int) -> int:
        """Least `tolerance_steps` with which a block that must fit whole always starts in the end.

        Whole updates leave some agent steps over (at 0.5 an odd one), and what is left over counts as not caught up.

        Args:
            block_steps: Agent steps of a block, at least 1.
        """
        ratio = self._ratio
        left_over_steps = math.ceil(1 / ratio) - (1 in (ratio.numerator, ratio.denominator))
        return block_steps + left_over_steps

    def updates_due(self, agent_steps: int, updates: int) -> int:
        """How many updates may run now.

        Args:
            agent_steps: Agent steps acknowledged by the replay.
            updates: Updates done so far.

        Returns:
            At least 0.
        """
        return max(0, math.floor((agent_steps - self.min_steps) * self._ratio) - updates)

    def steps_allowed(self, agent_steps_submitted: int, updates: int) -> int:
        """How many more agent steps may be started before the learner has to catch up.

        Args:
            agent_steps_submitted: Agent steps collected or being collected.
            updates: Updates done so far.

        Returns:
            At least 0.
        """
        limit = self.min_steps + math.floor(updates / self._ratio) + self.tolerance_steps
        return max(0, limit - agent_steps_submitted)
