"""Seeds of episodes: one range of numbers for each purpose, so that no scene of one purpose is met in another.

    seed = purpose * 2**48 + value        (below 2**52, exact in JSON)

- video 1: value = base * 2**24 + attempt. All behaviours share it: the same base gives the same scenes to expert and
  random videos, which can then be compared step by step.
- training 2: value = a hash of (run seed, block id, episode number).
- evaluation 3: value = base * 2**24 + episode number.
"""

from __future__ import annotations

import hashlib

import numpy as np

PURPOSES = {"video": 1, "training": 2, "evaluation": 3}
VALUE_BITS = 48
INDEX_BITS = 24


def indexed_seed(purpose: str, base: int, index: int) -> int:
    """Seed of the `index`-th episode of a series.

    Args:
        purpose: "video" or "evaluation".
        base: Seed of the series, 0 to 2**24 - 1.
        index: Number of the episode, 0 to 2**24 - 1.

    Raises:
        ValueError: if a number is out of range.
    """
    for key, value in (("seed", base), ("episode number", index)):
        if not 0 <= value < 2**INDEX_BITS:
            raise ValueError(f"{key} is {value}, expected 0 to {2**INDEX_BITS - 1}")
    return (PURPOSES[purpose] << VALUE_BITS) + (base << INDEX_BITS) + index


def training_seed(run_seed: int, block_id: str, index: int) -> int:
    """Seed of an episode of a rollout block; the same block, sent again, meets the same scenes."""
    digest = _digest(f"{run_seed}/{block_id}/{index}")
    return (PURPOSES["training"] << VALUE_BITS) + digest % 2**VALUE_BITS


def block_generator(run_seed: int, block_id: str) -> np.random.Generator:
    """Random numbers of a rollout block (exploration noise), fixed by run seed and block id."""
    return np.random.default_rng(_digest(f"{run_seed}/{block_id}"))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
