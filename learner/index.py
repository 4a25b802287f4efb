"""Which episodes of a replay store can be sampled, in arrays that grow at one end and shrink at the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.nstep import count_starts

_LEAST_CAPACITY = 64


class EpisodeIndex:
    """Live episodes, oldest first, and the draw of start rows over all of them.

    Episodes carry numbers that go up by one for ever: the oldest live one has the number `evicted`. Adding and
    dropping an episode costs the same however many there are (the arrays are moved once per doubling).

    Args:
        n_step: Length of the return in steps.
        start_rows: Row of frame 0 of each episode, not yet taken modulo the ring or already, as stored.
        steps: Number of agent steps of each episode.
        evicted: Number of episodes evicted before.
        succeeded: Whether each episode was a success; nothing: none was.
    """

    def __init__(
        self,
        n_step: int,
        start_rows: Sequence[int] | np.ndarray = (),
        steps: Sequence[int] | np.ndarray = (),
        evicted: int = 0,
        succeeded: Sequence[bool] | np.ndarray = (),
    ) -> None:
        self.n_step, self.evicted = n_step, evicted
        self._start_rows = np.array(start_rows, dtype=np.int64)
        self._steps = np.array(steps, dtype=np.int64)
        self._succeeded = np.zeros(len(self._steps), dtype=np.bool_)
        self._succeeded[: len(succeeded)] = succeeded
        self._ends = np.cumsum(count_starts(self._steps, n_step))  # start rows up to and with this episode
        self._first, self._end = 0, len(self._steps)
        self._starts_dropped = 0
        self.size_transitions = int(self._steps.sum())

    def __len__(self) -> int:
        """Number of live episodes."""
        return self._end - self._first

    @property
    def start_rows(self) -> np.ndarray:
        """(E,) int64, row of frame 0 of each live episode."""
        return self._start_rows[self._first : self._end]

    @property
    def steps(self) -> np.ndarray:
        """(E,) int64, agent steps of each live episode."""
        return self._steps[self._first : self._end]

    @property
    def succeeded(self) -> np.ndarray:
        """(E,) bool, whether each live episode was a success."""
        return self._succeeded[self._first : self._end]

    @property
    def size_starts(self) -> int:
        """Number of different n-step transitions that can be drawn."""
        return int(self._ends[self._end - 1]) - self._starts_dropped if len(self) else 0

    @property
    def size_success_starts(self) -> int:
        """Number of those that start in an episode with a success."""
        return int(count_starts(self.steps, self.n_step)[self.succeeded].sum())

    def append(self, start_row: int, steps: int, succeeded: bool = False) -> None:
        """Adds the newest episode."""
        if self._end == len(self._steps):
            self._move()
        before = int(self._ends[self._end - 1]) if len(self) else self._starts_dropped
        self._start_rows[self._end] = start_row
        self._steps[self._end] = steps
        self._succeeded[self._end] = succeeded
        self._ends[self._end] = before + int(count_starts(steps, self.n_step))
        self._end += 1
        self.size_transitions += steps

    def _move(self) -> None:
        """Moves the live episodes to the front of arrays with as much room again."""
        live, count = slice(self._first, self._end), len(self)
        for name in ("_start_rows", "_steps", "_ends", "_succeeded"):
            values = getattr(self, name)
            moved = np.zeros(max(_LEAST_CAPACITY, 2 * count), dtype=values.dtype)
            moved[:count] = values[live]
            setattr(self, name, moved)
        self._first, self._end = 0, count

    def drop_first(self, count: int) -> None:
        """Forgets the `count` oldest episodes."""
        if count == 0:
            return
        self.size_transitions -= int(self.steps[:count].sum())
        self._starts_dropped = int(self._ends[self._first + count - 1])
        self._first += count
        self.evicted += count

    def draw(
        self,
        batch_size: int,
        rng: np.random.Generator,
        success_share: float = 0.0,
    ) -> tuple[np.ndarray, int]:
        """Draws start rows with replacement; there must be at least one.

        Args:
            batch_size: Number B of rows.
            rng: Source of the draw.
            success_share: Probability with which a row is drawn from the successful episodes alone, once there are any;
                otherwise it is drawn from all.

        Returns:
            (B,) int64 start rows, not taken modulo the ring, and the number of the oldest episode among them.
        """
        ends = self._ends[self._first : self._end]
        start = self._starts_dropped + rng.integers(self.size_starts, size=batch_size)
        if success_share > 0:
            start = self._move_to_successes(start, ends, rng, success_share)
        episode = np.searchsorted(ends, start, side="right")
        starts = count_starts(self.steps[episode], self.n_step)
        rows = self.start_rows[episode] + start - (ends[episode] - starts)
        return rows, self.evicted + int(episode.min())

    def _move_to_successes(
        self, start: np.ndarray, ends: np.ndarray, rng: np.random.Generator, share: float
    ) -> np.ndarray:
        """Puts a share of drawn starts, in place, onto starts of successful episodes, uniformly over all of theirs."""
        counts = count_starts(self.steps, self.n_step)
        good = np.flatnonzero(self.succeeded & (counts > 0))
        if not len(good):
            return start
        good_ends = np.cumsum(counts[good])
        moved = np.flatnonzero(rng.random(len(start)) < share)
        place = rng.integers(good_ends[-1], size=len(moved))
        which = np.searchsorted(good_ends, place, side="right")
        # Counted from the end of the episode, in both numberings.
        start[moved] = ends[good[which]] - (good_ends[which] - place)
        return start


def bounded_share(share: float, factor: float | None, success_starts: int, starts: int) -> float:
    """Share of draws that come from episodes with a success alone.

    Args:
        share: What is wanted, in [0, 1).
        factor: At most so many times the share of start rows that are theirs; None: no bound.
        success_starts: Start rows in such episodes.
        starts: All start rows.
    """
    if success_starts == 0:
        return 0.0
    return share if factor is None else min(share, factor * success_starts / starts)
