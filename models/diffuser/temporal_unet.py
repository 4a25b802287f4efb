"""The temporal U-Net of Diffuser (arXiv 2205.09991): convolutions over the steps of a window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 5
GROUPS = 8
ATTENTION_HEADS = 4
ATTENTION_HEAD_DIM = 32


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)), elementwise (arXiv 1908.08681), which can be differentiated twice everywhere.

    The gradient of torch's own has NaN as its gradient above 88, where an exponential of float32 overflows, and rewards are
    trained through it (gradient matching).
    """
    return x * torch.tanh(functional.softplus(x)) if torch.is_grad_enabled() else functional.mish(x)


class Mish(nn.Module):
    """`mish` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return mish(x)


class TimeEmbedding(nn.Module):
    """Sines of the diffusion step, then two layers: t (B,) int64 -> (B, dim).

    Args:
        dim: Length of the embedding, an even number of at least 4.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"a time embedding needs an even length of at least 4, got {dim}")
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), Mish(), nn.Linear(4 * dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) steps to (B, dim)."""
        angles = t[:, None].to(self.frequencies.dtype) * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish: (B, C, H) -> (B, C', H).

    Args:
        inputs: C.
        outputs: C', a multiple of 8.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H) to (B, C', H)."""
        return mish(self.norm(self.convolution(x)))


class ResidualBlock(nn.Module):
    """Two convolution blocks with the time embedding added in between: (B, C, H) -> (B, C', H).

    Args:
        inputs: C.
        outputs: C'.
        time_dim: Length of the time embedding.
    """

    def __init__(self, inputs: int, outputs: int, time_dim: int) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs)
        self.second = ConvBlock(outputs, outputs)
        self.time = nn.Linear(time_dim, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H) and the activated embedding (B, time_dim) to (B, C', H)."""
        return self.second(self.first(x) + self.time(time)[:, :, None]) + self.skip(x)


class LinearAttention(nn.Module):
    """Residual attention over the steps of a window at linear cost (arXiv 1812.01243): (B, C, H) -> (B, C, H).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = ATTENTION_HEADS * ATTENTION_HEAD_DIM
        self.norm = nn.GroupNorm(1, channels)
        self.to_qkv = nn.Conv1d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H) to the same shape."""
        qkv = rearrange(self.to_qkv(self.norm(x)), "b (n g c) h -> n b g c h", n=3, g=ATTENTION_HEADS)
        query, key, value = qkv[0] * ATTENTION_HEAD_DIM**-0.5, qkv[1].softmax(dim=-1), qkv[2]
        context = torch.einsum("bgch,bgeh->bgce", key, value)
        out = torch.einsum("bgce,bgch->bgeh", context, query)
        return x + self.to_out(rearrange(out, "b g e h -> b (g e) h"))


class Level(nn.Module):
    """Two residual blocks and, if asked for, attention.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        time_dim: Length of the time embedding.
        attention: Whether there is linear attention.
    """

    def __init__(self, inputs: int, outputs: int, time_dim: int, attention: bool) -> None:
        super().__init__()
        self.first = ResidualBlock(inputs, outputs, time_dim)
        self.second = ResidualBlock(outputs, outputs, time_dim)
        self.attention = LinearAttention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, inputs, H) to (B, outputs, H)."""
        return self.attention(self.second(self.first(x, time), time))


class TemporalUNet(nn.Module):
    """Windows (B, H, D) and diffusion steps (B,) to windows (B, H, D).

    Args:
        transition_dim: D.
        width: Channels of the first level, a multiple of 8.
        multipliers: Channels of each level over `width`; every level but the last halves the window.
        attention: Whether each level has linear attention.
    """

    def __init__(
        self,
        transition_dim: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 4, 8),
        attention: bool = False,
    ) -> None:
        super().__init__()
        channels = [transition_dim, *[width * m for m in multipliers]]
        self.unit = 2 ** (len(multipliers) - 1)
        self.time = TimeEmbedding(width)
        self.down = nn.ModuleList(Level(a, b, width, attention) for a, b in itertools.pairwise(channels))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[1:-1])
        self.middle = Level(channels[-1], channels[-1], width, attention)
        steps_up = list(itertools.pairwise(channels[1:]))[::-1]
        self.up = nn.ModuleList(Level(2 * b, a, width, attention) for a, b in steps_up)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in steps_up)
        self.out = nn.Sequential(
            ConvBlock(channels[1], channels[1]), nn.Conv1d(channels[1], transition_dim, 1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicts the clean windows.

        Args:
            x: (B, H, D) noised windows; H must be a multiple of 2 ** (levels - 1).
            t: (B,) int64 diffusion steps.

        Raises:
            ValueError: if H does not fit.
        """
        if x.shape[1] % self.unit:
            raise ValueError(
                f"windows of {x.shape[1]} steps do not fit a U-Net that needs multiples of {self.unit}"
            )
        time = mish(self.time(t))
        x = rearrange(x, "b h d -> b d h")
        skips = []
        for number, level in enumerate(self.down):
            x = level(x, time)
            if number > 0:  # as in Diffuser, the first level has no skip connection
                skips.append(x)
            if number < len(self.shrink):
                x = self.shrink[number](x)
        x = self.middle(x, time)
        for level, grow in zip(self.up, self.grow):
            x = grow(level(torch.cat([x, skips.pop()], dim=1), time))
        return rearrange(self.out(x), "b d h -> b h d")
