"""Corrupted videos made from expert frames alone: a good reward scores them lower, whatever the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def frozen(frames: np.ndarray) -> np.ndarray:
    """The first frame repeated: nothing happens, which an easily predicted future must not make look good.

    Args:
        frames: (T, H, W, C) uint8.

    Returns:
        (T, H, W, C) uint8.
    """
    return np.repeat(frames[:1], len(frames), axis=0)


def backwards(frames: np.ndarray) -> np.ndarray:
    """The video from its end to its beginning: every picture familiar, the order wrong.

    Args:
        frames: (T, H, W, C) uint8.

    Returns:
        (T, H, W, C) uint8.
    """
    return np.ascontiguousarray(frames[::-1])


CORRUPTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"frozen": frozen, "reversed": backwards}
