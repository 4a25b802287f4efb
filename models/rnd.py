"""Random network distillation (Burda et al., arXiv 1810.12894): novelty as a prediction error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.products import Linear


@dataclass(frozen=True)
class RNDConfig:
    """Sizes of the two networks; the defaults are the official ones.

    Attributes:
        lr: Learning rate of Adam, above 0.
        channels: Output channels of the three convolutions (6x6 stride 3, 4x4 stride 2, 3x3).
        feature_dim: Width of the hidden layers and of the predicted features, at least 1.
    """

    lr: float = 1e-4
    channels: tuple[int, int, int] = (32, 64, 64)
    feature_dim: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(int(width) for width in self.channels))
        if not self.lr > 0:
            raise ValueError(f"rnd.lr={self.lr!r} is not allowed: expected a number above 0")
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise ValueError(
                f"rnd.channels={self.channels!r} is not allowed: expected three whole numbers of at least 1"
            )
        if self.feature_dim < 1:
            raise ValueError(
                f"rnd.feature_dim={self.feature_dim!r} is not allowed: expected a whole number of at least 1"
            )


class RND(nn.Module):
    """A fixed random target network and a predictor trained to imitate it on visited frames.

    Args:
        config: Sizes.
        resolution_px: Height and width of the frames.
    """

    def __init__(self, config: RNDConfig, resolution_px: int = 64) -> None:
        super().__init__()
        self.config = config
        size_px = resolution_px
        for kernel, stride in ((6, 3), (4, 2), (3, 1)):
            size_px = (size_px - kernel) // stride + 1
        if size_px < 1:
            raise ValueError(
                f"RND needs frames of at least 27 px, got resolution_px={resolution_px}; render larger frames"
            )
        flat_dim, width = config.channels[-1] * size_px * size_px, config.feature_dim
        self.target = nn.Sequential(*_convolutions(config.channels), Linear(flat_dim, width))
        self.predictor = nn.Sequential(
            *_convolutions(config.channels),
            Linear(flat_dim, width),
            nn.ReLU(),
            Linear(width, width),
            nn.ReLU(),
            Linear(width, width),
        )
        self.apply(_initialise)
        self.target.requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.predictor.parameters(), lr=config.lr, fused=True)

    def features(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, 3) uint8 -> predicted and target features, (B, feature_dim) float32 each."""
        pixels = rearrange(frames, "batch height width channel -> batch channel height width")
        pixels = pixels.float().div(255.0).sub_(0.5)
        with torch.no_grad():
            target = self.target(pixels)
        return self.predictor(pixels), target

    @torch.no_grad()
    def bonus(self, frames: torch.Tensor) -> torch.Tensor:
        """Half the summed squared prediction error of each frame (arXiv 1810.12894, section 2.2).

        Args:
            frames: (B, H, W, 3) uint8 [0, 255].

        Returns:
            (B, 1) float32, at least 0.
        """
        return novelty(*self.features(frames))

    def update(self, frames: torch.Tensor) -> torch.Tensor:
        """One Adam step of the predictor on the mean squared error.

        Args:
            frames: (B, H, W, 3) uint8 [0, 255].

        Returns:
            Scalar loss before the step.
        """
        return self.step(*self.features(frames))

    def step(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The Adam step of `update`, from features that were computed with gradients.

        Args:
            predicted: (B, feature_dim) float32.
            target: (B, feature_dim) float32.

        Returns:
            Scalar loss before the step.
        """
        loss = F.mse_loss(predicted, target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def training_state(self) -> dict[str, Any]:
        """Weights and optimiser, for an identical continuation."""
        return {"networks": self.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores `training_state()`."""
        self.load_state_dict(state["networks"])
        self.optimiser.load_state_dict(state["optimiser"])


def novelty(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the summed squared error: (B, feature_dim) twice -> (B, 1) float32, at least 0."""
    return (target - predicted).square().sum(dim=1, keepdim=True) / 2


def _convolutions(channels: tuple[int, int, int]) -> list[nn.Module]:
    first, second, third = channels
    return [
        nn.Conv2d(3, first, 6, stride=3),
        nn.LeakyReLU(),
        nn.Conv2d(first, second, 4, stride=2),
        nn.LeakyReLU(),
        nn.Conv2d(second, third, 3),
        nn.LeakyReLU(),
        nn.Flatten(),
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(module.weight, 2**0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
