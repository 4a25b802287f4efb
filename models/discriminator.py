"""Patch discriminator and the adversarial losses of the image codec (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.distributed import average, mean_over_workers, num_workers

MAX_ADAPTIVE_WEIGHT = 1e4
ADAPTIVE_EPS = 1e-4


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the whole batch, also where workers share it; torch's own for one process."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float32 -> the same shape."""
        if num_workers() == 1 or not self.training:
            return super().forward(images)
        mean = mean_over_workers(images.mean((0, 2, 3)))
        centred = images - mean[:, None, None]
        variance = mean_over_workers(centred.square().mean((0, 2, 3)))
        self._remember(mean, variance, num_workers() * images.numel() // images.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Running statistics as torch keeps them, the variance unbiased."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked += 1


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of a picture: convolutions of 4x4, batch norm, leaky ReLU.

    Args:
        filters: Width of the first layer; doubles per layer, at most eight-fold.
        layers: Strided layers, at least 1.
        image_channels: Channels of the picture.
    """

    def __init__(self, filters: int = 64, layers: int = 3, image_channels: int = 3) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(image_channels, filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = filters
        for number in range(1, layers + 1):
            wider = filters * min(2**number, 8)
            stride = 2 if number < layers else 1
            modules += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                BatchNorm(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.model = nn.Sequential(*modules, nn.Conv2d(width, 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float32 [-1, 1] -> (N, 1, h, w) float32, positive for "real"."""
        return self.model(images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def hinge_losses(real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hinge losses of the discriminator on real and on reconstructed pictures, two scalars (unweighted)."""
    return F.relu(1.0 - real).mean(), F.relu(1.0 + fake).mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    generator_loss: torch.Tensor,
    last_layer: torch.Tensor,
    scale: float = 0.8,
) -> torch.Tensor:
    """How much the generator loss may count: VQGAN (arXiv 2012.09841), equation 7.

    Args:
        reconstruction_loss: Scalar.
        generator_loss: Scalar, -mean D(reconstruction).
        last_layer: Weight of the decoder's last layer.
        scale: Factor on the ratio of the two gradient norms.

    Returns:
        Scalar without gradient: scale * clamp(|grad rec| / (|grad g| + 1e-4), 0, 1e4).
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (of_generator,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    of_reconstruction, of_generator = average([of_reconstruction, of_generator])
    ratio = of_reconstruction.norm() / (of_generator.norm() + ADAPTIVE_EPS)
    return scale * ratio.clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()
