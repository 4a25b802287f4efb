"""The image codec: pictures to a grid of code numbers and back (VQGAN, arXiv 2012.09841).

Sizes of `architecture="official"` are those of Diffusion Reward (arXiv 2312.14134): 64x64 pictures, 8x8
tokens, 1024 codes of 64 dimensions.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models import vqgan_blocks as blocks
from models.checkpoints import (
    WEIGHTS_FILE,
    apply_weights,
    load_checkpoint_config,
    load_weights,
    save_checkpoint,
)
from models.distributed import add_up
from models.frames import images_to_tensor, tensor_to_images
from models.winograd import TILE, WinogradConv2d, can_use_winograd

__all__ = [
    "VQGAN",
    "Codebook",
    "VQGANConfig",
    "images_to_tensor",
    "load_codec",
    "save_codec",
    "tensor_to_images",
]

KIND = "vqgan"
MIN_CHANNELS = 32  # of a convolution for which transforms pay


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of the codec; defaults are the paper's.

    Attributes:
        architecture: "official" (the paper's; its checkpoints load) or "compact" (for CPUs: patches become
            channels first, a learned vector per place, no attention, no normalisation).
        resolution_px: Side of the square picture in pixels.
        latent_size: Side of the token grid; resolution_px / latent_size is 2^(len(channels) - 1) for
            "official", and a multiple of it for "compact" (the rest is the patch).
        image_channels: Channels of the picture.
        latent_dim: Dimension of a code.
        num_codes: Number of codes.
        channels: Width of each level, from the finest; multiples of 32 for "official".
        residual_blocks: Residual blocks a level.
        attention_resolutions: Sides of feature maps with attention ("official" only).
        codebook: "gradient" (codes learn by the loss) or "ema" (codes follow the mean of their vectors,
            VQ-VAE, arXiv 1711.00937, appendix A).
        beta: Weight of one term of the codebook loss, > 0.
        beta_weighs: Which term: "codebook" as in the official code, or "commitment" as in VQ-VAE.
        ema_decay: Decay of the "ema" codebook, in (0, 1).
        upside_down: Whether the weights know upside-down pictures only, as official ones of Adroit probably do.
            Pictures are then turned over before encoding and after decoding.
    """

    architecture: str = "official"
    resolution_px: int = 64
    latent_size: int = 8
    image_channels: int = 3
    latent_dim: int = 64
    num_codes: int = 1024
    channels: tuple[int, ...] = (128, 128, 256, 256)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    codebook: str = "gradient"
    beta: float = 0.25
    beta_weighs: str = "codebook"
    ema_decay: float = 0.99
    upside_down: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        for name, allowed in (
            ("architecture", ("official", "compact")),
            ("codebook", ("gradient", "ema")),
            ("beta_weighs", ("codebook", "commitment")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"codec {name}={getattr(self, name)!r} is unknown; use one of {allowed}")
        for name in ("resolution_px", "latent_size", "image_channels", "latent_dim", "residual_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"codec {name}={getattr(self, name)} must be at least 1")
        if self.num_codes < 2:
            raise ValueError(f"codec num_codes={self.num_codes} must be at least 2")
        if not self.beta > 0 or not 0 < self.ema_decay < 1:
            raise ValueError(
                f"codec beta={self.beta} must be positive and ema_decay={self.ema_decay} between 0 and 1"
            )
        self._check_levels()

    def _check_levels(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"codec channels={self.channels} must hold at least one positive width")
        if self.architecture == "official" and any(width % blocks.NORM_GROUPS for width in self.channels):
            raise ValueError(
                f"codec channels={self.channels} must be multiples of {blocks.NORM_GROUPS} for the official stack"
            )
        smallest = self.latent_size * 2 ** (len(self.channels) - 1)
        if self.architecture == "official" and smallest != self.resolution_px:
            raise ValueError(
                f"codec channels={self.channels} take latent_size={self.latent_size} to {smallest} pixels, but "
                f"resolution_px={self.resolution_px}; use log2(resolution_px / latent_size) + 1 channels"
            )
        if self.architecture == "compact" and self.resolution_px % smallest:
            raise ValueError(
                f"codec resolution_px={self.resolution_px} must be a multiple of latent_size * "
                f"2^(len(channels) - 1) = {smallest}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        return self.latent_size**2


class Codebook(nn.Module):
    """Nearest-code quantisation with a straight-through gradient (VQ-VAE, arXiv 1711.00937, equation 3)."""

    ema_counts: torch.Tensor
    ema_sums: torch.Tensor

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_codes, config.latent_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / config.num_codes, 1.0 / config.num_codes)
        if config.codebook == "ema":
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("ema_counts", torch.ones(config.num_codes))
            self.register_buffer("ema_sums", self.embedding.weight.detach().clone())

    @torch.no_grad()
    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Number of the nearest code of each vector, (M, latent_dim) float32 -> (M,) int64."""
        codes = self.embedding.weight
        # |v - c|^2 without |v|^2, which is the same for every code.
        return torch.addmm(codes.square().sum(1), vectors, codes.t(), alpha=-2).argmin(1)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantises a grid of latents.

        Args:
            latents: (N, latent_dim, h, w) float32, output of the encoder.

        Returns:
            (N, latent_dim, h, w) quantised latents whose gradient passes straight to `latents`,
            (N, h*w) int64 tokens, and the scalar codebook loss.
        """
        batch, _, height, width = latents.shape
        places = rearrange(latents, "batch dim height width -> batch height width dim")
        tokens = self.nearest(rearrange(places, "batch height width dim -> (batch height width) dim"))
        quantised = self.embedding(tokens).view_as(places)
        q_loss = self._loss(places, quantised)
        straight = places + (quantised - places).detach()
        return (
            rearrange(straight, "batch height width dim -> batch dim height width"),
            tokens.view(batch, height * width),
            q_loss,
        )

    def _loss(self, latents: torch.Tensor, quantised: torch.Tensor) -> torch.Tensor:
        """Codebook and commitment terms; the official code weighs the codebook term with beta."""
        commitment = F.mse_loss(latents, quantised.detach())
        commitment_weight = self.config.beta if self.config.beta_weighs == "commitment" else 1.0
        if self.config.codebook == "ema":
            return commitment_weight * commitment
        codebook = F.mse_loss(quantised, latents.detach())
        codebook_weight = self.config.beta if self.config.beta_weighs == "codebook" else 1.0
        return commitment_weight * commitment + codebook_weight * codebook

    @torch.no_grad()
    def ema_update(self, vectors: torch.Tensor, tokens: torch.Tensor) -> None:
        """Moves every code towards the mean of its vectors (arXiv 1711.00937, equations 6 to 8), those of all workers.

        Args:
            vectors: (M, latent_dim) float32 encoder outputs of this worker.
            tokens: (M,) int64 their codes.
        """
        decay, codes = self.config.ema_decay, self.config.num_codes
        counts = torch.bincount(tokens, minlength=codes).to(vectors.dtype)
        sums = torch.zeros_like(self.ema_sums).index_add_(0, tokens, vectors)
        counts, sums = add_up([counts, sums])
        self.ema_counts.lerp_(counts, 1.0 - decay)
        self.ema_sums.lerp_(sums, 1.0 - decay)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + 1e-5) / (total + codes * 1e-5) * total  # no division by zero
        self.embedding.weight.copy_(self.ema_sums / smoothed[:, None])

    @torch.no_grad()
    def set_codes(self, rows: torch.Tensor, vectors: torch.Tensor) -> None:
        """Replaces some codes.

        Args:
            rows: (K,) int64 codes to replace.
            vectors: (K, latent_dim) float32 their new values.
        """
        self.embedding.weight[rows] = vectors
        if self.config.codebook == "ema":
            self.ema_counts[rows] = 1.0
            self.ema_sums[rows] = vectors


class VQGAN(nn.Module):
    """The codec: `encode_tokens` and `decode_tokens` are all that other parts need."""

    def __init__(self, config: VQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VQGANConfig()
        sizes = (config.image_channels, config.latent_dim, config.channels, config.residual_blocks)
        if config.architecture == "official":
            attention = config.attention_resolutions
            self.encoder = blocks.official_encoder(*sizes, config.resolution_px, attention)
            self.decoder = blocks.official_decoder(*sizes, config.latent_size, attention)
        else:
            self.encoder = blocks.compact_encoder(*sizes, config.resolution_px, config.latent_size)
            self.decoder = blocks.compact_decoder(*sizes, config.resolution_px, config.latent_size)
        self.codebook = Codebook(config)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents before quantisation, (N, C, H, W) float32 [-1, 1] -> (N, latent_dim, h, w) float32.

        Raises:
            ValueError: if the pictures have another size than `config.resolution_px`.
        """
        side, channels = self.config.resolution_px, self.config.image_channels
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side):
            raise ValueError(
                f"this codec takes pictures of (N, {channels}, {side}, {side}), got {tuple(images.shape)}; "
                "render at the codec's resolution, or train a codec at yours"
            )
        if self.config.upside_down:
            images = images.flip(2)
        return self.quant_conv(self.encoder(images))

    def decode(self, quantised: torch.Tensor) -> torch.Tensor:
        """Pictures of quantised latents, (N, latent_dim, h, w) -> (N, C, H, W) float32, about [-1, 1]."""
        pictures = self.decoder(self.post_quant_conv(quantised))
        return pictures.flip(2) if self.config.upside_down else pictures

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstructs pictures, with gradients.

        Args:
            images: (N, C, H, W) float32 [-1, 1].

        Returns:
            (N, C, H, W) float32 reconstruction, about [-1, 1]; (N, L) int64 tokens; scalar codebook loss.
        """
        quantised, tokens, q_loss = self.codebook(self.encode(images))
        return self.decode(quantised), tokens, q_loss

    @torch.no_grad()
    def encode_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens of pictures.

        Args:
            images: (N, C, H, W) float32 [-1, 1].

        Returns:
            (N, L) int64 in [0, num_codes), L = latent_size^2, row by row.
        """
        latents = self.encode(images)
        vectors = rearrange(latents, "batch dim height width -> (batch height width) dim")
        return self.codebook.nearest(vectors).view(len(images), self.config.num_tokens)

    @torch.no_grad()
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures of tokens.

        Args:
            tokens: (N, L) int64 in [0, num_codes).

        Returns:
            (N, C, H, W) float32, clipped to [-1, 1].
        """
        side = self.config.latent_size
        grid = rearrange(tokens, "batch (height width) -> batch height width", height=side, width=side)
        vectors = rearrange(self.codebook.embedding(grid), "batch height width dim -> batch dim height width")
        return self.decode(vectors).clamp(-1.0, 1.0)

    def for_encoding(self, precision: str = "float32") -> VQGAN:
        """A copy that encodes faster, for inference: the same function but for rounding.

        Args:
            precision: "bfloat16" for an encoder in bfloat16 (codes are still searched in float32), or "float32":
                on a CPU the convolutions of the official stack then run by Winograd's method (those of the compact
                one are too small to profit).
        """
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        for parameter in copied.parameters():
            if (
                parameter.ndim == 4
            ):  # convolutions of few channels run up to twice as fast in this layout on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if precision == "bfloat16":
            copied.encoder = _InBfloat16(copied.encoder)  # type: ignore[assignment]
        elif (
            self.config.architecture == "official"
            and self.config.latent_size % TILE == 0
            and copied.last_layer.device.type == "cpu"
        ):
            _use_winograd(copied.encoder)
        return copied

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the decoder's last convolution, at which the adaptive weight of the GAN is measured."""
        convolutions = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].weight


def _use_winograd(network: nn.Module) -> None:
    """Replaces the convolutions that profit: the sides of their pictures are multiples of 4 down to 8x8 tokens."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and can_use_winograd(child) and child.in_channels >= MIN_CHANNELS:
            setattr(network, name, WinogradConv2d(child))
        else:
            _use_winograd(child)


class _InBfloat16(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.bfloat16()).float()


def save_codec(
    folder: str | Path, model: VQGAN, extra: dict[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Writes a codec folder: `config.json` and `weights.pt`.

    Args:
        folder: Made if missing.
        model: The codec.
        extra: More facts for `config.json` (tasks, training budget, validation loss).
        overwrite: Whether a codec already in the folder may be replaced.

    Raises:
        FileExistsError: if the folder holds a checkpoint and `overwrite` is off.
    """
    config = {"kind": KIND, "model": asdict(model.config), **(extra or {})}
    save_checkpoint(folder, model, config, overwrite=overwrite)


def load_codec(folder: str | Path, device: str | torch.device = "cpu") -> VQGAN:
    """Reads a codec folder.

    Args:
        folder: Written by `save_codec`.
        device: Where the model goes.

    Returns:
        The codec in evaluation mode, its parameters frozen.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if the folder holds another kind of model, or weights that do not fit its config.
    """
    config = load_checkpoint_config(folder, KIND)
    model = VQGAN(VQGANConfig(**config["model"]))
    path = Path(folder) / WEIGHTS_FILE
    apply_weights(model, load_weights(path), path)
    return model.to(device).eval().requires_grad_(False)
