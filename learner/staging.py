"""Brings batches to the learner's device while it is busy with earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from learner.batch import Batch, TensorBatch


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


class StagedBatch(NamedTuple):
    """A batch on its way.

    Attributes:
        tensors: On the device; their contents may still be arriving.
        arrived: Event after the copy, None on the CPU.
    """

    tensors: TensorBatch
    arrived: torch.cuda.Event | None


class Staging:
    """Copies batches through pinned memory in a stream of their own; on the CPU it only wraps them.

    Args:
        device: Torch device of the learner.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> StagedBatch:
        """Starts the copy; may be called from several threads."""
        if self._stream is None:
            return StagedBatch(to_tensors(batch, self.device), None)
        with torch.cuda.stream(self._stream):
            tensors = to_tensors(batch, self.device)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return StagedBatch(tensors, arrived)

    def receive(self, staged: StagedBatch) -> TensorBatch:
        """The batch, for work queued on the current stream from now on; the caller does not wait."""
        if staged.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.arrived)
            for tensor in staged.tensors:
                # Its memory was allocated for the copying stream and must not be reused before this one is done.
                tensor.record_stream(stream)
        return staged.tensors
