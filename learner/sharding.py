"""Draws each batch from all replay shards as if they were one store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from learner.batch import Batch, concatenate


class SampleRequest(NamedTuple):
    """A part of a batch to be drawn from one shard.

    Attributes:
        shard: Index of the shard.
        batch_size: Number of transitions, at least 1.
        seed: Seed of the draw.
    """

    shard: int
    batch_size: int
    seed: int


class ShardSampler:
    """Batches by update index: a pure function of (seed, update index, contents of the shards).

    How many of a batch's transitions come from each shard is drawn from a multinomial distribution
    weighted by the shards' sizes, which makes the batch uniform over the transitions of all shards.

    Args:
        sample: Answers several requests, in order; may work on them at the same time.
        sizes: Returns the number of start rows of every shard.
        batch_size: Transitions per batch.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        sample: Callable[[Sequence[SampleRequest]], Sequence[Batch]],
        sizes: Callable[[], Sequence[int]],
        batch_size: int,
        seed: int,
    ) -> None:
        self._sample, self._fetch_sizes = sample, sizes
        self.batch_size, self.seed = batch_size, seed
        self._sizes: list[int] = []

    def refresh(self) -> None:
        """Asks the shards for their sizes; called before a series of updates, not for each of them."""
        self._sizes = list(self._fetch_sizes())

    def requests(self, update_index: int) -> list[SampleRequest]:
        """What the batch of an update asks of each shard.

        Raises:
            RuntimeError: if the shards are empty.
        """
        total = sum(self._sizes)
        if total == 0:
            raise RuntimeError(
                f"none of the {len(self._sizes)} replay shards holds an episode long enough to sample from; "
                "insert episodes (and call refresh) before updating"
            )
        rng = np.random.default_rng([self.seed, update_index])
        counts = rng.multinomial(self.batch_size, np.asarray(self._sizes) / total)
        seeds = rng.integers(2**63, size=len(self._sizes))
        return [
            SampleRequest(shard, int(count), int(seed))
            for shard, (count, seed) in enumerate(zip(counts, seeds))
            if count
        ]

    def __call__(self, update_index: int) -> Batch:
        """The batch of an update, parts in the order of the shards."""
        return concatenate(list(self._sample(self.requests(update_index))))
