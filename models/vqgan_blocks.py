"""Encoders and decoders of the image codec: the official VQ-GAN stack and a small one for CPUs.

Parameter names of the official stack equal those of the Diffusion Reward code base, so that its
checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn
from torch.nn import functional as F

NORM_GROUPS = 32
NORM_EPS = 1e-6


class GroupNorm(nn.Module):
    """Group normalisation over 32 groups, kept one level down (`gn`) for the official names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gn(x)


class ResidualBlock(nn.Module):
    """x + two pre-activated 3x3 convolutions; a 1x1 convolution when the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            GroupNorm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        if in_channels != out_channels:
            self.channel_up = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.channel_up(x) if hasattr(self, "channel_up") else x
        return shortcut + self.block(x)


class Attention(nn.Module):
    """Single-head self attention over all places.

    `proj_out` has parameters and no use: the official code never applies it, and its checkpoints hold it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.gn(x)
        q, k, v = (
            rearrange(layer(normed), "batch channel height width -> batch 1 (height width) channel")
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + rearrange(
            attended,
            "batch 1 (height width) channel -> batch channel height width",
            height=x.shape[2],
            width=x.shape[3],
        )


class Downsample(nn.Module):
    """Halves the resolution by a strided 3x3 convolution, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stack(nn.Module):
    """A sequence of layers under the name `model`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def official_encoder(
    image_channels: int,
    latent_dim: int,
    channels: Sequence[int],
    residual_blocks: int,
    resolution_px: int,
    attention_resolutions: Sequence[int],
) -> Stack:
    """Encoder of VQGAN (arXiv 2012.09841) as sized by Diffusion Reward (arXiv 2312.14134).

    Args:
        image_channels: Channels of the picture.
        latent_dim: Channels of the output.
        channels: Width of the stem and of each level; every level ends in a halving of the resolution.
        residual_blocks: Residual blocks a level.
        resolution_px: Side of the picture.
        attention_resolutions: Sides of the feature map at which every residual block is followed by attention.

    Returns:
        (N, image_channels, H, W) -> (N, latent_dim, H / 2^levels, W / 2^levels).
    """
    layers: list[nn.Module] = [nn.Conv2d(image_channels, channels[0], 3, padding=1)]
    width, side = channels[0], resolution_px
    for level_width in channels[1:]:
        for _ in range(residual_blocks):
            layers.append(ResidualBlock(width, level_width))
            width = level_width
            if side in attention_resolutions:
                layers.append(Attention(width))
        layers.append(Downsample(width))
        side //= 2
    layers += [ResidualBlock(width, width), Attention(width), ResidualBlock(width, width)]
    layers += [GroupNorm(width), nn.SiLU(), nn.Conv2d(width, latent_dim, 3, padding=1)]
    return Stack(layers)


def official_decoder(
    image_channels: int,
    latent_dim: int,
    channels: Sequence[int],
    residual_blocks: int,
    latent_size: int,
    attention_resolutions: Sequence[int],
) -> Stack:
    """Decoder of VQGAN; the mirror of `official_encoder`, with one level more at the smallest side."""
    width, side = channels[-1], latent_size
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, width, 3, padding=1)]
    layers += [ResidualBlock(width, width), Attention(width), ResidualBlock(width, width)]
    for level, level_width in enumerate(reversed(channels)):
        if level > 0:
            layers.append(Upsample(width))
            side *= 2
        for _ in range(residual_blocks):
            layers.append(ResidualBlock(width, level_width))
            width = level_width
            if side in attention_resolutions:
                layers.append(Attention(width))
    layers += [GroupNorm(width), nn.SiLU(), nn.Conv2d(width, image_channels, 3, padding=1)]
    return Stack(layers)


class PositionBias(nn.Module):
    """Adds a learned vector per place.

    The camera of a robot scene does not move: with the place known, codes are spent on what moves there.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


class PlainResidual(nn.Module):
    """x + two 3x3 convolutions without normalisation, which costs a third of the time on small maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity: trains without normalisation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def compact_encoder(
    image_channels: int,
    latent_dim: int,
    channels: Sequence[int],
    residual_blocks: int,
    resolution_px: int,
    latent_size: int,
) -> Stack:
    """A small encoder for CPUs: patches become channels first, so that no layer runs at full resolution.

    Args:
        image_channels: Channels of the picture.
        latent_dim: Channels of the output.
        channels: Width of each level; the resolution halves between levels.
        residual_blocks: Residual blocks a level.
        resolution_px: Side of the picture.
        latent_size: Side of the output.

    Returns:
        (N, image_channels, H, W) -> (N, latent_dim, latent_size, latent_size).
    """
    patch = resolution_px // (latent_size * 2 ** (len(channels) - 1))
    side = resolution_px // patch
    layers: list[nn.Module] = [
        Rearrange("b c (h ph) (w pw) -> b (c ph pw) h w", ph=patch, pw=patch),
        nn.Conv2d(image_channels * patch**2, channels[0], 3, padding=1),
        PositionBias(channels[0], side),
    ]
    for level, width in enumerate(channels):
        if level > 0:
            layers.append(nn.Conv2d(channels[level - 1], width, 4, stride=2, padding=1))
            side //= 2
        layers += [PlainResidual(width) for _ in range(residual_blocks)]
    layers += [nn.SiLU(), nn.Conv2d(channels[-1], latent_dim, 1)]
    return Stack(layers)


def compact_decoder(
    image_channels: int,
    latent_dim: int,
    channels: Sequence[int],
    residual_blocks: int,
    resolution_px: int,
    latent_size: int,
) -> Stack:
    """The mirror of `compact_encoder`; channels become patches last."""
    patch = resolution_px // (latent_size * 2 ** (len(channels) - 1))
    side = latent_size
    layers: list[nn.Module] = [
        nn.Conv2d(latent_dim, channels[-1], 3, padding=1),
        PositionBias(channels[-1], side),
    ]
    for level in range(len(channels) - 1, -1, -1):
        layers += [PlainResidual(channels[level]) for _ in range(residual_blocks)]
        if level > 0:
            layers.append(nn.Conv2d(channels[level], 4 * channels[level - 1], 3, padding=1))
            layers.append(Rearrange("b (c ph pw) h w -> b c (h ph) (w pw)", ph=2, pw=2))
            side *= 2
            layers.append(PositionBias(channels[level - 1], side))
    layers.append(nn.SiLU())
    layers.append(nn.Conv2d(channels[0], image_channels * patch**2, 3, padding=1))
    layers.append(Rearrange("b (c ph pw) h w -> b c (h ph) (w pw)", ph=patch, pw=patch))
    return Stack(layers)
