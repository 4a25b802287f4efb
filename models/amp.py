"""Adversarial motion priors from pictures (AMP, arXiv 2104.02180): a discriminator of expert frames gives the reward.

Sizes and details are those of the AMP baseline of Diffusion Reward (arXiv 2312.14134): single frames, least squares,
a gradient penalty at mixtures of expert and policy frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from torch import nn

PENALTIES = ("per_pixel", "per_picture")


@dataclass(frozen=True)
class AMPConfig:
    """Sizes of the discriminator and how it is trained; the defaults are the official ones.

    Attributes:
        lr: Learning rate of Adam, above 0.
        channels: Output channels of the three 3x3 convolutions.
        strides: Their strides.
        hidden_dim: Width of the two hidden layers on top, at least 1. The default is the width of the paper's
            policy and critic.
        batch_size: Policy frames and expert frames of one update, at least 1. The first ones of the learner's
            batch are taken, which is in random order.
        penalty: Norm in the gradient penalty (|dD/dx| - 1)^2: "per_pixel" (official: over the three channels of
            each pixel, where the norm is so small that the term is nearly constant), or "per_picture" (over the
            whole picture, as in WGAN-GP, arXiv 1704.00028).
        penalty_weight: Factor of the gradient penalty, at least 0.
    """

    lr: float = 1e-4
    channels: tuple[int, int, int] = (32, 32, 32)
    strides: tuple[int, int, int] = (2, 1, 1)
    hidden_dim: int = 1024
    batch_size: int = 32
    penalty: str = "per_pixel"
    penalty_weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"amp.lr={self.lr!r} is not allowed: expected a number above 0")
        for name in ("channels", "strides"):
            values = tuple(int(value) for value in getattr(self, name))
            if len(values) != 3 or min(values) < 1:
                raise ValueError(
                    f"amp.{name}={values!r} is not allowed: expected three whole numbers of at least 1"
                )
            object.__setattr__(self, name, values)
        for name in ("hidden_dim", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"amp.{name}={getattr(self, name)!r} is not allowed: expected a whole number of at least 1"
                )
        if self.penalty not in PENALTIES:
            raise ValueError(f"amp.penalty={self.penalty!r} is not allowed: expected one of {PENALTIES}")
        if not 0 <= self.penalty_weight < float("inf"):
            raise ValueError(
                f"amp.penalty_weight={self.penalty_weight!r} is not allowed: expected a number of at least 0"
            )


class AMPDiscriminator(nn.Module):
    """One number for a picture: trained towards +1 for expert frames and -1 for the policy's.

    Args:
        config: Sizes.
        resolution_px: Height and width of the frames.

    Raises:
        ValueError: if the frames are too small for the convolutions.
    """

    def __init__(self, config: AMPConfig, resolution_px: int = 64) -> None:
        super().__init__()
        size_px, width = resolution_px, 3
        layers: list[nn.Module] = []
        for channels, stride in zip(config.channels, config.strides):
            layers += [nn.Conv2d(width, channels, 3, stride=stride), nn.ReLU()]
            size_px, width = (size_px - 3) // stride + 1, channels
        if size_px < 1:
            raise ValueError(
                f"the AMP discriminator shrinks frames of {resolution_px} px to nothing with "
                f"amp.strides={config.strides}; render larger frames or use smaller strides"
            )
        self.convnet = nn.Sequential(*layers)
        self.trunk = nn.Sequential(
            nn.Linear(width * size_px * size_px, config.hidden_dim),
            nn.Tanh(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.Tanh(),
            nn.Linear(config.hidden_dim, 1),
        )
        self.apply(_initialise)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores pictures, (B, 3, H, W) float32 [-1, 1] -> (B, 1) float32."""
        features = self.convnet(pixels)
        return self.trunk(rearrange(features, "batch channel height width -> batch (channel height width)"))


class AMP(nn.Module):
    """The discriminator, its optimiser, and the reward made from it.

    Args:
        config: Sizes and training.
        resolution_px: Height and width of the frames.
    """

    def __init__(self, config: AMPConfig, resolution_px: int = 64) -> None:
        super().__init__()
        self.config = config
        self.disc = AMPDiscriminator(config, resolution_px)
        self.optimiser = torch.optim.Adam(self.disc.parameters(), lr=config.lr, fused=True)

    @torch.no_grad()
    def reward(self, frames: torch.Tensor) -> torch.Tensor:
        """max(0, 1 - (D(s) - 1)^2 / 4) (arXiv 2104.02180, equation 7, on single frames).

        Args:
            frames: (B, H, W, 3) uint8 [0, 255].

        Returns:
            (B, 1) float32 in [0, 1]; 1 where the discriminator is sure of an expert frame.
        """
        return (1 - (self.disc(to_pixels(frames)) - 1).square() / 4).clamp_min(0)

    def update(
        self, policy_frames: torch.Tensor, expert_frames: torch.Tensor, mixup: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One Adam step on least squares (arXiv 2104.02180, equation 6) plus the gradient penalty.

        Args:
            policy_frames: (B, H, W, 3) uint8 [0, 255].
            expert_frames: (B, H, W, 3) uint8 [0, 255].
            mixup: (B,) float32 [0, 1], share of the expert frame in each mixture that the penalty looks at.

        Returns:
            Scalars before the step: `amp_expert_loss`, `amp_policy_loss`, `amp_penalty` (weight included),
            `amp_expert_score`, `amp_policy_score`.
        """
        policy, expert = to_pixels(policy_frames), to_pixels(expert_frames)
        scores = self.disc(torch.cat([expert, policy]))
        expert_score, policy_score = scores[: len(expert)], scores[len(expert) :]
        expert_loss, policy_loss = (expert_score - 1).square().mean(), (policy_score + 1).square().mean()
        penalty = self.config.penalty_weight * self._penalty(policy, expert, mixup)
        self.optimiser.zero_grad(set_to_none=True)
        (expert_loss + policy_loss + penalty).backward()
        self.optimiser.step()
        metrics = {
            "amp_expert_loss": expert_loss,
            "amp_policy_loss": policy_loss,
            "amp_penalty": penalty,
            "amp_expert_score": expert_score.mean(),
            "amp_policy_score": policy_score.mean(),
        }
        return {name: value.detach() for name, value in metrics.items()}

    def _penalty(self, policy: torch.Tensor, expert: torch.Tensor, mixup: torch.Tensor) -> torch.Tensor:
        """Mean of (|dD/dx| - 1)^2 at mixtures of expert and policy pictures."""
        share = rearrange(mixup, "batch -> batch 1 1 1")
        mixed = (share * expert + (1 - share) * policy).requires_grad_()
        (slope,) = torch.autograd.grad(self.disc(mixed).sum(), mixed, create_graph=True)
        over = {
            "per_pixel": "batch channel height width -> batch height width",
            "per_picture": "batch channel height width -> batch",
        }[self.config.penalty]
        # The square root has no derivative at 0, which a dead ReLU can reach.
        norm = reduce(slope.square(), over, "sum").clamp_min(1e-24).sqrt()
        return (norm - 1).square().mean()

    def training_state(self) -> dict[str, Any]:
        """Weights and optimiser, for an identical continuation."""
        return {"networks": self.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores `training_state()`."""
        self.load_state_dict(state["networks"])
        self.optimiser.load_state_dict(state["optimiser"])


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 [0, 255] -> (B, 3, H, W) float32 [-1, 1]."""
    pixels = rearrange(frames, "batch height width channel -> batch channel height width")
    return pixels.float().div(127.5).sub_(1.0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        gain = 2**0.5 if isinstance(module, nn.Conv2d) else 1.0  # as DrQ-v2 (arXiv 2107.09645) does
        nn.init.orthogonal_(module.weight, gain)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
