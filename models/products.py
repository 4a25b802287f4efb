"""Products of float32 matrices on CPUs, by whichever of torch's two libraries is faster on the processor.

torch multiplies float32 matrices with MKL and convolves with oneDNN. On processors that are not Intel's, MKL keeps to narrower
instructions: on an AMD EPYC 106 GFLOP/s a core where oneDNN has 237. Elsewhere and in other formats everything here is
torch's own function. Measured: docs/performance.md.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST = 2**21  # multiplications of a product that is worth oneDNN's longer way of being called


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL here: an x86 processor of another maker than Intel.

    Decided by the maker, not by a measurement, so that a run computes the same numbers each time.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    facts = Path("/proc/cpuinfo")
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not facts.exists():
        return False
    makers = [line for line in facts.read_text().splitlines() if line.startswith("vendor_id")]
    return bool(makers) and "GenuineIntel" not in makers[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: (..., K), (N, K) and (N,) into (..., N); differentiable once."""
    if not _goes_to_onednn(x, weight, x.numel() * len(weight)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return cast(Tensor, _Linear.apply(x, weight, bias))
    return _onednn(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`: (M, K) and (K, N) into (M, N)."""
    return linear(a, b.t())


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """`torch.bmm`: (P, M, K) and (P, K, N) into (P, M, N); for few large products."""
    if not _goes_to_onednn(a, b, a[0].numel() * b.shape[-1]):
        return torch.bmm(a, b)
    return torch.stack([product(left, right) for left, right in zip(a.unbind(), b.unbind(), strict=True)])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _onednn(gradient, weight.t()) if wants_x else None,
            _onednn(rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _goes_to_onednn(a: Tensor, b: Tensor, multiplications: int) -> bool:
    return (
        not torch.compiler.is_compiling()  # asked first: what decides the rest is nothing that Dynamo can trace
        and multiplications >= SMALLEST
        and onednn_is_faster()
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
