"""The losses of codec training: reconstruction, codebook and adversarial part (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import nn

from models.codec_config import CodecTrainingConfig
from models.discriminator import PatchDiscriminator, adaptive_weight, hinge_losses
from models.vqgan import VQGAN


class CodecLosses:
    """Computes the gradients of one training step of codec and discriminator.

    Args:
        model: The codec.
        config: Weights and switches.
    """

    def __init__(self, model: VQGAN, config: CodecTrainingConfig) -> None:
        self.model, self.config = model, config
        self.discriminator: PatchDiscriminator | None = None
        if config.disc_weight > 0:
            self.discriminator = PatchDiscriminator(
                config.disc_filters, config.disc_layers, model.config.image_channels
            )
        self.lpips = load_lpips() if config.use_lpips and config.perceptual_weight > 0 else None

    def to(self, device: torch.device) -> CodecLosses:
        """Moves the networks of the losses."""
        for module in (self.discriminator, self.lpips):
            if module is not None:
                module.to(device)
        return self

    def uses_discriminator(self, step: int) -> bool:
        """Whether the adversarial loss counts in this step."""
        return self.discriminator is not None and step >= self.config.disc_start_step

    def backward(
        self, images: torch.Tensor, stills: torch.Tensor | None, step: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Sets the gradients of codec and discriminator, replacing old ones.

        Args:
            images: (N, C, H, W) float32 [-1, 1].
            stills: What each image is compared with (`CodecTrainingConfig.still_of`), the same shape; only for
                `motion_weight` > 0.
            step: Number of this step, from 0.

        Returns:
            Metrics (scalars, and "tokens"); (M, latent_dim) encoder outputs without gradient; (M,) their codes.
        """
        latents = self.model.encode(images)
        quantised, tokens, q_loss = self.model.codebook(latents)
        reconstruction = self.model.decode(quantised)
        l1 = (images - reconstruction).abs()
        metrics = {"l1": l1.mean(), "q_loss": q_loss, "tokens": tokens.flatten()}
        rec_loss = self._reconstruction_loss(l1, images, reconstruction, stills)
        loss = rec_loss + q_loss
        self.model.zero_grad(set_to_none=True)
        if self.uses_discriminator(step):
            loss = self._adversarial_backward(images, reconstruction, rec_loss, loss, metrics)
        else:
            loss.backward()
        metrics["loss"] = loss
        vectors = rearrange(latents.detach(), "batch dim height width -> (batch height width) dim")
        return {name: value.detach() for name, value in metrics.items()}, vectors, tokens.flatten()

    def _reconstruction_loss(
        self,
        l1: torch.Tensor,
        images: torch.Tensor,
        reconstruction: torch.Tensor,
        stills: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean absolute error, weighted by the difference from the stills, plus LPIPS where it is on."""
        if stills is not None:
            l1 = l1 * motion_weights(images, stills, self.config.motion_weight)
        loss = self.config.reconstruction_weight * l1.mean()
        if self.lpips is not None:
            loss = loss + self.config.perceptual_weight * self.lpips(images, reconstruction).mean()
        return loss

    def _adversarial_backward(
        self,
        images: torch.Tensor,
        reconstruction: torch.Tensor,
        rec_loss: torch.Tensor,
        loss: torch.Tensor,
        metrics: dict[str, Any],
    ) -> torch.Tensor:
        """Back-propagates codec and discriminator losses through one pass of the discriminator."""
        assert self.discriminator is not None
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        weight = self.config.disc_weight
        generator_loss = -fake.mean()
        scale = self.config.disc_adaptive_scale
        adaptive = adaptive_weight(rec_loss, generator_loss, self.model.last_layer, scale)
        loss = loss + weight * adaptive * generator_loss
        loss.backward(retain_graph=True)
        self.discriminator.zero_grad(set_to_none=True)
        loss_real, loss_fake = hinge_losses(real, fake)
        disc_loss = weight * 0.5 * (loss_real + loss_fake)
        if self.config.detach_discriminator:
            disc_loss.backward(inputs=list(self.discriminator.parameters()))
        else:
            disc_loss.backward()
        metrics |= {"generator_loss": generator_loss, "adaptive_weight": adaptive, "disc_loss": disc_loss}
        metrics |= {"disc_loss_real": loss_real, "disc_loss_fake": loss_fake}
        return loss


def motion_weights(images: torch.Tensor, stills: torch.Tensor, motion_weight: float) -> torch.Tensor:
    """Weight of each pixel's error: 1 + motion_weight * |image - still| / 2, so 1 where both agree.

    Args:
        images: (N, C, H, W) float32 [-1, 1].
        stills: (N, C, H, W) float32 [-1, 1], what each image is compared with (`FrameSampler.stills`).
        motion_weight: >= 0.

    Returns:
        (N, 1, H, W) float32; the difference is the largest over the channels.
    """
    return 1.0 + motion_weight * 0.5 * (images - stills).abs().amax(dim=1, keepdim=True)


def load_lpips() -> nn.Module:
    """The VGG perceptual loss (arXiv 1801.03924).

    Raises:
        ImportError: naming the extra to install, if it is missing.
    """
    try:
        import lpips
    except ImportError as error:
        raise ImportError(
            "use_lpips=True needs the perceptual loss: `pip install -e '.[lpips]' -c constraints.txt` "
            "(it downloads VGG weights at first use), or set use_lpips=False"
        ) from error
    return lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False).eval()
