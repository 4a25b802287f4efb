"""Networks of relative rewards: noised samples and diffusion steps to one number each (arXiv 2306.01804, appendix)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from models.diffuser.temporal_unet import GROUPS, Mish, ResidualBlock, TimeEmbedding, mish
from models.relative.config import RelativeRewardConfig


class WindowedMLP(nn.Module):
    """An MLP on every window of a few steps, averaged over the windows: (B, H, D), (B,) -> (B,).

    The first layer is computed as a convolution over the steps, which is the same as an MLP on cut-out windows.

    Args:
        transition_dim: D.
        window_steps: Steps of a window; H must be at least that.
        hidden: Widths of the hidden layers.
        time_dim: Length of the time embedding, an input beside each window.
        stride: Steps between the starts of two windows.
        activation: "leaky_relu" or "silu".
    """

    def __init__(
        self,
        transition_dim: int,
        window_steps: int = 64,
        hidden: Sequence[int] = (128, 64, 32),
        time_dim: int = 32,
        stride: int = 1,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        self.window_steps = window_steps
        self.time = TimeEmbedding(time_dim)
        self.from_window = nn.Conv1d(transition_dim, hidden[0], window_steps, stride=stride)
        self.from_time = nn.Linear(time_dim, hidden[0], bias=False)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([*hidden, 1]):
            layers += [nn.SiLU() if activation == "silu" else nn.LeakyReLU(), nn.Linear(inputs, outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Rewards.

        Args:
            x: (B, H, D).
            t: (B,) int64 diffusion steps.

        Raises:
            ValueError: if H is shorter than a window.
        """
        if x.shape[1] < self.window_steps:
            raise ValueError(
                f"{x.shape[1]} steps are shorter than the reward's windows of {self.window_steps}: choose a "
                "smaller relative_reward.window_steps or a longer horizon"
            )
        hidden = rearrange(self.from_window(rearrange(x, "b h d -> b d h")), "b c w -> b w c")
        hidden = hidden + self.from_time(self.time(t))[:, None, :]
        return self.layers(hidden).mean(dim=(1, 2))


class HalvingLevel(nn.Module):
    """Residual blocks, then a convolution that halves the steps, rounded up: (B, C, H) -> (B, C', H / 2).

    Args:
        inputs: C.
        outputs: C'.
        blocks: How many residual blocks.
        time_dim: Length of the time embedding.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, time_dim: int) -> None:
        super().__init__()
        sizes = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, time_dim) for a, b in itertools.pairwise(sizes))
        self.shrink = nn.Conv1d(outputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H) and the activated embedding (B, time_dim) to (B, C', H / 2)."""
        for block in self.blocks:
            x = block(x, time)
        return self.shrink(x)


class HalfTemporalUNet(nn.Module):
    """The way down of a temporal U-Net, then a linear head: (B, H, D), (B,) -> (B,).

    Two residual blocks and a halving per level, then two levels of one block each that halve channels and steps.

    Args:
        horizon: H.
        transition_dim: D.
        channels: Of each level.
        time_dim: Length of the time embedding.
    """

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        channels: Sequence[int] = (64, 64, 128, 128),
        time_dim: int = 4,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.time = TimeEmbedding(time_dim)
        last = channels[-1]
        pairs = [(a, b, 2) for a, b in itertools.pairwise([transition_dim, *channels])]
        pairs += [(last, last // 2, 1), (last // 2, last // 4, 1)]
        self.levels = nn.ModuleList(HalvingLevel(a, b, blocks, time_dim) for a, b, blocks in pairs)
        steps = horizon
        for _ in pairs:
            steps = (steps + 1) // 2
        features = last // 4 * steps
        self.head = nn.Sequential(
            nn.Linear(features + time_dim, features // 2), Mish(), nn.Linear(features // 2, 1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Rewards of windows x (B, H, D) at diffusion steps t (B,) int64.

        Raises:
            ValueError: if H is not the horizon the network was built for.
        """
        if x.shape[1] != self.horizon:
            raise ValueError(f"windows have {x.shape[1]} steps, the reward was built for {self.horizon}")
        time = self.time(t)
        activated = mish(time)
        x = rearrange(x, "b h d -> b d h")
        for level in self.levels:
            x = level(x, activated)
        return self.head(torch.cat([x.flatten(1), time], dim=1)).squeeze(1)


class ResidualBlock2D(nn.Module):
    """Two convolutions with group norm, a vector added in between: (B, C, H, W) -> (B, C', H, W).

    Args:
        inputs: C.
        outputs: C', a multiple of 8.
        vector_dim: Length of the vector.
    """

    def __init__(self, inputs: int, outputs: int, vector_dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()
        )
        self.vector = nn.Linear(vector_dim, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, C, H, W) and (B, vector_dim) to (B, C', H, W)."""
        return self.second(self.first(x) + self.vector(vector)[:, :, None, None]) + self.skip(x)


class HalfUNet2D(nn.Module):
    """The way down of a 2-D U-Net, then a linear head: images or latents (B, C, H, W), (B,) -> (B,).

    Halves the image between levels while both sides are above 1, so that 8 x 8 latents are fine.

    Args:
        channels: C.
        width: Channels of the first level, a multiple of 8.
        multipliers: Channels of each level over `width`.
        time_dim: Length of the time embedding.
        condition_dim: Length of a vector that the reward may depend on beside the image; 0 for none.
        condition_channels: Channels of an image that it may depend on, of the same size; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        time_dim: int = 32,
        condition_dim: int = 0,
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        self.condition_dim, self.condition_channels = condition_dim, condition_channels
        self.time = TimeEmbedding(time_dim)
        self.from_condition = nn.Linear(condition_dim, time_dim) if condition_dim else None
        sizes = [width * m for m in multipliers]
        self.first = nn.Conv2d(channels + condition_channels, width, 3, padding=1)
        pairs = list(itertools.pairwise([width, *sizes]))
        self.enter = nn.ModuleList(ResidualBlock2D(a, b, time_dim) for a, b in pairs)
        self.refine = nn.ModuleList(ResidualBlock2D(b, b, time_dim) for _, b in pairs)
        self.shrink = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in sizes[:-1])
        self.head = nn.Sequential(nn.Linear(sizes[-1] + time_dim, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Rewards.

        Args:
            x: (B, C, H, W).
            t: (B,) int64 diffusion steps.
            condition: (B, condition_dim) or (B, condition_channels, H, W), as the network was built for; else None.

        Raises:
            ValueError: if the condition is missing, of another shape, or not expected.
        """
        vector = self.time(t)
        if self.condition_dim or self.condition_channels:
            x, vector = self._with_condition(x, vector, condition)
        elif condition is not None:
            raise ValueError("this reward was built without a condition, but one was given")
        activated = functional.silu(vector)
        x = self.first(x)
        for number, (enter, refine) in enumerate(zip(self.enter, self.refine)):
            x = refine(enter(x, activated), activated)
            if number < len(self.shrink) and min(x.shape[-2:]) > 1:
                x = self.shrink[number](x)
        pooled = reduce(x, "b c h w -> b c", "mean")
        return self.head(torch.cat([pooled, vector], dim=1)).squeeze(1)

    def _with_condition(self, x: Tensor, vector: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        wanted = (len(x), self.condition_dim)
        if self.condition_channels:
            wanted = (len(x), self.condition_channels, *x.shape[2:])
        if condition is None or tuple(condition.shape) != wanted:
            got = None if condition is None else tuple(condition.shape)
            raise ValueError(f"the reward's condition has shape {got}, expected {wanted}")
        if self.condition_channels:
            return torch.cat([x, condition], dim=1), vector
        assert self.from_condition is not None
        return x, vector + self.from_condition(condition)


def trajectory_network(config: RelativeRewardConfig, horizon: int, transition_dim: int) -> nn.Module:
    """The network of a reward on windows of trajectories.

    Args:
        config: Which one, and its sizes.
        horizon: H of the windows.
        transition_dim: D of their vectors.

    Raises:
        ValueError: if it is one for images, or its windows are longer than the horizon.
    """
    if config.network == "half_temporal":
        return HalfTemporalUNet(horizon, transition_dim, config.channels, config.temporal_time_dim)
    if config.network == "mlp":
        if config.window_steps > horizon:
            raise ValueError(
                f"relative reward window_steps={config.window_steps}: expected at most the horizon, {horizon}"
            )
        return WindowedMLP(
            transition_dim,
            config.window_steps,
            config.hidden,
            config.time_dim,
            config.window_stride,
            config.activation,
        )
    raise ValueError(
        f"relative reward network={config.network!r} is for images; trajectories take 'mlp' or 'half_temporal'"
    )
