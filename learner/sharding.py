"""Draws each batch from all replay shards as if they were one store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from learner.batch import Batch, concatenate
from learner.index import bounded_share


class ShardSize(NamedTuple):
    """What can be drawn from one shard.

    Attributes:
        starts: Start rows.
        success_starts: Those of them in episodes with a success.
    """

    starts: int
    success_starts: int = 0


class SampleRequest(NamedTuple):
    """A part of a batch to be drawn from one shard.

    Attributes:
        shard: Index of the shard.
        batch_size: Number of transitions, at least 1.
        seed: Seed of the draw.
        success_share: Share of them that is drawn from episodes with a success alone.
    """

    shard: int
    batch_size: int
    seed: int
    success_share: float = 0.0


class ShardSampler:
    """Batches by update index: a pure function of (seed, update index, contents of the shards).

    How many of a batch's transitions come from each shard is drawn from a multinomial distribution
    weighted by the shards' sizes, which makes the batch uniform over the transitions of all shards. A share that comes from
    episodes with a success is uniform over all of these, wherever they are.

    Args:
        sample: Answers several requests, in order; may work on them at the same time.
        sizes: Returns the numbers of start rows of every shard.
        batch_size: Transitions per batch.
        seed: Seed of all draws.
        success_share: See `ReplayConfig`.
        success_factor: See `ReplayConfig`.
    """

    def __init__(
        self,
        sample: Callable[[Sequence[SampleRequest]], Sequence[Batch]],
        sizes: Callable[[], Sequence[ShardSize]],
        batch_size: int,
        seed: int,
        success_share: float = 0.0,
        success_factor: float | None = None,
    ) -> None:
        self._sample, self._fetch_sizes = sample, sizes
        self.batch_size, self.seed = batch_size, seed
        self._success_share, self._success_factor = success_share, success_factor
        self._sizes: list[ShardSize] = []

    def refresh(self) -> None:
        """Asks the shards for their sizes; called before a series of updates, not for each of them."""
        self._sizes = list(self._fetch_sizes())

    def requests(self, update_index: int) -> list[SampleRequest]:
        """What the batch of an update asks of each shard.

        Raises:
            RuntimeError: if the shards are empty.
        """
        starts = np.array([size.starts for size in self._sizes])
        successes = np.array([size.success_starts for size in self._sizes])
        if starts.sum() == 0:
            raise RuntimeError(
                f"none of the {len(self._sizes)} replay shards holds an episode long enough to sample from; "
                "insert episodes (and call refresh) before updating"
            )
        share = bounded_share(
            self._success_share, self._success_factor, int(successes.sum()), int(starts.sum())
        )
        of_successes = share * successes / max(1, successes.sum())
        weights = of_successes + (1 - share) * starts / starts.sum()
        rng = np.random.default_rng([self.seed, update_index])
        counts = rng.multinomial(self.batch_size, weights)
        seeds = rng.integers(2**63, size=len(self._sizes))
        return [
            SampleRequest(shard, int(count), int(seed), float(of_successes[shard] / weights[shard]))
            for shard, (count, seed) in enumerate(zip(counts, seeds))
            if count
        ]

    def __call__(self, update_index: int) -> Batch:
        """The batch of an update, parts in the order of the shards."""
        return concatenate(list(self._sample(self.requests(update_index))))
