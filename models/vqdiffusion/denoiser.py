"""The denoising transformer: content tokens attend to themselves and to the tokens of the history frames.

Parameter names are those of the official implementation, so that its checkpoints load.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.products import Linear, linear
from models.vqdiffusion.config import VQDiffusionConfig


class Condition(NamedTuple):
    """Keys and values of every cross-attention for a batch of histories, computed once for all denoising steps.

    Attributes:
        keys: (layers, B, heads, S, width/heads) float32; S is the number of condition tokens.
        values: The same shape.
    """

    keys: Tensor
    values: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return self.keys.shape[1]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ContentEmbedding(nn.Module):
    """Embedding of codes and mask plus row and column embeddings."""

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.num_codes + 1, config.width)
        self.height_emb = nn.Embedding(config.latent_size, config.width)
        self.width_emb = nn.Embedding(config.latent_size, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds (B, L) int64 tokens as (B, L, width) float32."""
        place = rearrange(self.height_emb.weight, "h c -> h 1 c") + rearrange(
            self.width_emb.weight, "w c -> 1 w c"
        )
        return self.emb(tokens) + rearrange(place, "h w c -> (h w) c")


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and shift depend on the diffusion step."""

    def __init__(self, width: int, num_steps: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(num_steps, width)
        self.linear = Linear(width, 2 * width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Normalises x (B, L, width) given t (B,) int64."""
        scale, shift = self.linear(F.silu(self.emb(t)))[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention. Keys and values may come from elsewhere, already projected."""

    def __init__(self, width: int, source_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.key = Linear(source_width, width)
        self.query = Linear(width, width)
        self.value = Linear(source_width, width)
        self.proj = Linear(width, width)
        self.num_heads = num_heads
        self.dropout = dropout

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of (..., source_width), both (..., width)."""
        return self.key(source), self.value(source)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, heads, L, width/heads)."""
        return rearrange(x, "b l (h d) -> b h l d", h=self.num_heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends from x (B or 1, L, width) to keys and values (B, heads, S, width/heads)."""
        queries = self.split_heads(self.query(x)).expand(len(keys), -1, -1, -1)
        heads = F.scaled_dot_product_attention(queries, keys, values)
        y = self.proj(rearrange(heads, "b h l d -> b l (h d)"))
        return F.dropout(y, self.dropout, self.training)


class ConvMLP(nn.Module):
    """Two 3x3 convolutions over the token grid."""

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.conv1 = nn.Conv2d(config.width, hidden, 3, padding=1)
        self.act = QuickGELU()
        self.conv2 = nn.Conv2d(hidden, config.width, 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.latent_size = config.latent_size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, width) to (B, L, width)."""
        grid = rearrange(x, "b (h w) c -> b c h w", h=self.latent_size)
        grid = self.conv2(self.act(self.conv1(grid)))
        return self.dropout(rearrange(grid, "b c h w -> b (h w) c"))


class Block(nn.Module):
    """Self attention, cross attention to the history, MLP; residual, normalised before each part."""

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.ln1 = AdaptiveLayerNorm(width, config.num_diffusion_steps)
        self.attn1 = Attention(width, width, heads, config.dropout)
        self.ln1_1 = AdaptiveLayerNorm(width, config.num_diffusion_steps)
        self.attn2 = Attention(width, config.condition_dim, heads, config.dropout)
        # never used; official checkpoints hold it
        length = config.content_len
        self.attn2.register_buffer("mask", torch.ones(length, length).tril()[None, None])
        self.ln2 = nn.LayerNorm(width)
        self.mlp = ConvMLP(config) if config.mlp_type == "conv" else _linear_mlp(config)

    def forward(self, x: Tensor, t: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Maps x (B, L, width) given t (B,) and projected history keys and values."""
        normed = self.ln1(x, t)
        own_keys, own_values = self.attn1.project(normed)
        x = x + self.attn1(normed, self.attn1.split_heads(own_keys), self.attn1.split_heads(own_values))
        x = x + self.attn2(self.ln1_1(x, t), keys, values)
        return x + self.mlp(self.ln2(x))


def _linear_mlp(config: VQDiffusionConfig) -> nn.Sequential:
    hidden = config.mlp_ratio * config.width
    return nn.Sequential(
        Linear(config.width, hidden),
        QuickGELU(),
        Linear(hidden, config.width),
        nn.Dropout(config.dropout),
    )


class Denoiser(nn.Module):
    """Predicts logits over the codes of the clean frame from its noisy tokens (arXiv 2111.14822, section 4.2)."""

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        self.content_emb = ContentEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.to_logits = nn.Sequential(nn.LayerNorm(config.width), Linear(config.width, config.num_codes))
        self.apply(_initialise)

    def cross_attentions(self) -> list[Attention]:
        """The attention to the history of every layer."""
        return [cast(Block, block).attn2 for block in self.blocks]

    def project(self, source: Tensor) -> Tensor:
        """Keys and values of all layers. Args: (N, condition_dim). Returns: (N, layers * 2 * width)."""
        layers = self.cross_attentions()
        weight = torch.cat([w for a in layers for w in (a.key.weight, a.value.weight)])
        bias = torch.cat([b for a in layers for b in (a.key.bias, a.value.bias)])
        return linear(source, weight, bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Logits of the clean tokens.

        Args:
            x_t: (B, L) int64 noisy tokens, or (1, L) where all rows are equal: then what does not depend on the
                condition (the first self attention) is computed once.
            t: (B,) or (1,) int64.
            condition: Of B rows.

        Returns:
            (B, L, K) float32.
        """
        x = self.content_emb(x_t)
        for block, keys, values in zip(self.blocks, condition.keys, condition.values):
            x = block(x, t, keys, values)
        return self.to_logits(x)


def _initialise(module: nn.Module) -> None:
    """Official initialisation: normal of deviation 0.02 for linear layers and embeddings, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class HistoryEmbedding(nn.Module):
    """Condition embedding of one code, with optional embeddings of frame and place.

    Frames are numbered by age: entry 0 of `frame_emb` belongs to the last history frame, so that a shorter
    history keeps the meaning of each frame.
    """

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.num_codes, config.condition_dim)
        self.emb.weight.requires_grad_(config.train_condition_embedding)
        self.num_frames, self.content_len = config.num_history_frames, config.content_len
        self.has_position = config.condition_position == "learned"
        if self.has_position:
            self.frame_emb = nn.Embedding(config.num_history_frames, config.condition_dim)
            self.place_emb = nn.Embedding(config.content_len, config.condition_dim)
            for table in (self.frame_emb, self.place_emb):
                nn.init.normal_(table.weight, std=1 / math.sqrt(2))

    def position(self) -> Tensor:
        """Embeddings of all positions, oldest frame first: (frames * L, condition_dim)."""
        frames = rearrange(self.frame_emb.weight.flip(0), "f c -> f 1 c")
        places = rearrange(self.place_emb.weight, "l c -> 1 l c")
        return rearrange(frames + places, "f l c -> (f l) c")
