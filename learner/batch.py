"""The batch: what one gradient step is made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """B n-step transitions as numpy arrays, the form in which they travel between processes.

    Attributes:
        obs: (B, H, W, 3) uint8 [0, 255], frame s_t.
        action: (B, A) float32 [-1, 1], the action taken at s_t.
        reward: (B, 1) float32, discounted n-step sum of the weighted rewards.
        discount: (B, 1) float32 [0, 1], product of gamma and the episode's discounts over the n steps.
        next_obs: (B, H, W, 3) uint8 [0, 255], frame s_{t+n}.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    next_obs: np.ndarray


class TensorBatch(NamedTuple):
    """A `Batch` as torch tensors on the learner's device, same shapes and dtypes."""

    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    next_obs: torch.Tensor


def to_tensors(batch: Batch, device: torch.device) -> TensorBatch:
    """Moves a batch to a device.

    Arrays that came out of a shared object store are read-only; those are copied, because torch
    assumes that it may write. For CUDA the copy goes through pinned memory and does not block.
    """

    def convert(array: np.ndarray) -> torch.Tensor:
        writable = array if array.flags.writeable else array.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(writable))
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return TensorBatch(*(convert(array) for array in batch))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Joins batches along the first axis, in the order given."""
    if len(batches) == 1:
        return batches[0]
    return Batch(*(np.concatenate(arrays, axis=0) for arrays in zip(*batches)))
