"""One training in several processes ("workers"): each holds the whole model and works on its own rows of every batch.

Whoever starts the processes sets up torch.distributed (gloo on CPUs, nccl on GPUs); without it everything here does
nothing, so that a training is written once. Its rules: every worker draws the same random numbers for the whole batch
and keeps its rows (`own_rows`); whatever is a mean, a sum or a list over the batch is exchanged (`average`, `add_up`,
`all_rows`); so all workers hold equal weights at every step, and only the first one validates and writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

Rows = TypeVar("Rows", Tensor, np.ndarray)


class WorkerLostError(RuntimeError):
    """An exchange failed because another worker is gone; the training goes on from its last saved state."""


def num_workers() -> int:
    """Processes that train together; 1 without torch.distributed."""
    return distributed.get_world_size() if _is_on() else 1


def worker_number() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if _is_on() else 0


def is_first_worker() -> bool:
    """Whether this process validates and writes the files."""
    return worker_number() == 0


def _is_on() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def require_shares(rows: int, what: str, workers: int) -> None:
    """Refuses a number of rows that the workers cannot share equally.

    Args:
        rows: Of one step, over all workers.
        what: Names the number, for the message.
        workers: Processes that train together.

    Raises:
        ValueError: naming the number and the next ones that would do.
    """
    if rows % workers:
        below, above = rows - rows % workers, rows - rows % workers + workers
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{what} is {rows}, which {workers} workers cannot share equally: it counts the rows of one step over all "
            f"workers. Use a multiple of {workers}, such as {near}, or another number of workers"
        )


def own_rows(rows: Rows) -> Rows:
    """This worker's rows of a batch that all of them hold: every n-th one of n workers."""
    return rows[worker_number() :: num_workers()]


def all_rows(rows: Tensor) -> Tensor:
    """The inverse of `own_rows`: the rows of all workers, in the order of the whole batch; without gradient.

    Args:
        rows: (N, ...), of one shape in all workers.

    Returns:
        (workers * N, ...).
    """
    if num_workers() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_workers())]
    with _exchange():
        distributed.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all workers in one exchange, without gradient; equal to the last bit in all of them.

    Args:
        tensors: Of the same shapes in every worker, and of one dtype.
    """
    if num_workers() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with _exchange():
        distributed.all_reduce(flat)
    sums = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(sums, tensors)]


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """As `add_up`, means in place of sums."""
    return [total / num_workers() for total in add_up(tensors)] if num_workers() > 1 else list(tensors)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], values: Sequence[Tensor] = ()) -> list[Tensor]:
    """Replaces gradients by their means over the workers: those of the whole batch, if losses are means of equal shares.

    Args:
        parameters: Those without a gradient are left out; they must be the same in every worker.
        values: Further tensors, float32, for the same exchange.

    Returns:
        The means of `values`.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = average([*gradients, *values])
    for gradient, mean in zip(gradients, means):
        if mean is not gradient:
            gradient.copy_(mean)
    return means[len(gradients) :]


class _MeanOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return average([value])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return average(gradients)[0]


def mean_over_workers(value: Tensor) -> Tensor:
    """Mean over the workers, through which gradients flow to all of them."""
    return _MeanOverWorkers.apply(value) if num_workers() > 1 else value


def same_weights(module: nn.Module) -> None:
    """Gives all workers the first one's weights and buffers, whatever their own hardware made of the seed."""
    if num_workers() > 1:
        with _exchange():
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)


def require_same_step(step: int) -> None:
    """Refuses to go on where workers have read different saved states.

    Raises:
        RuntimeError: naming the steps.
    """
    if num_workers() == 1:
        return
    on_gpu = distributed.get_backend() == "nccl"
    steps = all_rows(torch.tensor([step], device="cuda" if on_gpu else "cpu")).tolist()
    if len(set(steps)) > 1:
        raise RuntimeError(
            f"the workers read saved states of different steps ({steps}): the output folder must be one that all "
            "nodes share and see alike"
        )


def draw_apart() -> None:
    """From here on each worker draws random numbers of its own, as dropout should; one process just goes on.

    To be called with torch's generator freshly seeded, and equally in all workers.
    """
    if num_workers() > 1:
        torch.manual_seed(torch.initial_seed() ^ (1 + worker_number()))


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().splitlines()
        raise WorkerLostError(f"another worker is gone ({text[0] if text else error!r})") from error
