"""The causal transformer over video tokens.

Parameter names are those of the official implementation. Its causal masks, stored there as buffers, are not kept
here: attention is causal by construction (`models/videogpt/checkpoint.py` converts official weights).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.products import Linear
from models.videogpt.config import VideoGPTConfig


class KeysValues(NamedTuple):
    """Keys and values of one block for the tokens read so far, both (B, heads, S, width/heads)."""

    keys: Tensor
    values: Tensor


class CausalSelfAttention(nn.Module):
    """Multi-head attention to a token itself and the tokens before it."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        self.key = Linear(config.width, config.width)
        self.query = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.proj = Linear(config.width, config.width)
        self.num_heads = config.num_heads
        self.dropout = config.dropout

    def forward(self, x: Tensor, last: int, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Attention output of the last tokens.

        Args:
            x: (B, S, width) float32.
            last: Number of tokens at the end whose output is wanted, 1 to S.
            past: Keys and values of earlier tokens, or None.

        Returns:
            (B, last, width) float32, and keys and values with the new tokens appended.
        """
        keys, values = self._heads(self.key(x)), self._heads(self.value(x))
        if past is not None:
            keys, values = torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2)
        queries = self._heads(self.query(x[:, -last:]))
        seen = keys.shape[2]
        if last == seen:
            y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:
            mask = torch.ones(last, seen, dtype=torch.bool, device=x.device).tril(seen - last)
            y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        y = self.proj(rearrange(y, "b heads s dim -> b s (heads dim)"))
        return F.dropout(y, self.dropout, self.training), KeysValues(keys, values)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b s (heads dim) -> b heads s dim", heads=self.num_heads)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.attn = CausalSelfAttention(config)
        self.mlp = nn.Sequential(
            Linear(config.width, hidden),
            nn.GELU(),
            Linear(hidden, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, last: int, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """As `CausalSelfAttention.forward`, for the whole block."""
        y, now = self.attn(self.ln1(x), last, past)
        x = x[:, -last:] + y
        return x + self.mlp(self.ln2(x)), now


class GPT(nn.Module):
    """Transformer from code vectors to logits of the next code (GPT-2 layout, as in VideoGPT, arXiv 2104.10157)."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = Linear(config.latent_dim, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = Linear(config.width, config.num_codes, bias=False)
        self.apply(_initialise)
        # Officially zero. Then the start vector stays exactly zero through all layers, every layer norm multiplies its
        # gradient by 300, and with 8 layers of width 512 the first step's gradient is infinite.
        nn.init.normal_(self.pos_emb, std=0.02)

    def forward(
        self, inputs: Tensor, table: Tensor, last: int, past: list[KeysValues] | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Logits of the code that follows each of the last inputs.

        Args:
            inputs: (B, S) int64 rows of `table`.
            table: (R, latent_dim) float32 code vectors.
            last: Number of inputs at the end whose logits are wanted, 1 to S.
            past: Keys and values of each block for the inputs before, or None.

        Returns:
            (B, last, num_codes) float32, and the keys and values of every block with the new inputs appended.
        """
        start = past[0].keys.shape[2] if past else 0
        # Embedding the few codes and looking rows up is the same as embedding the vector of every token.
        x = F.embedding(inputs, self.tok_emb(table)) + self.pos_emb[:, start : start + inputs.shape[1]]
        x = F.dropout(x, self.config.dropout, self.training)
        caches = []
        for i, block in enumerate(self.blocks):
            # Only the last block may leave tokens out: its keys and values are the last that others attend to.
            wanted = last if i == len(self.blocks) - 1 else inputs.shape[1]
            x, cache = block(x, wanted, past[i] if past else None)
            caches.append(cache)
        return self.head(self.ln_f(x)), caches


class VideoGPT(nn.Module):
    """Autoregressive model of a window of frames, token by token.

    The input is a zero start vector followed by the latents of all tokens but the last one, so that the logits at a
    place predict the token at this place from the tokens before it.

    Args:
        config: Sizes.
        codes: (num_codes, latent_dim) float32 code vectors of the codec. Not trained, and not part of the state
            dict: they are saved with the codec.

    Raises:
        ValueError: if `codes` has another shape.
    """

    codes: Tensor

    def __init__(self, config: VideoGPTConfig, codes: Tensor) -> None:
        super().__init__()
        if codes.shape != (config.num_codes, config.latent_dim):
            raise ValueError(
                f"codes are {tuple(codes.shape)}, but num_codes={config.num_codes} and latent_dim="
                f"{config.latent_dim}: use the values of the codec"
            )
        self.config = config
        self.transformer = GPT(config)
        self.register_buffer("codes", codes.detach().clone(), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codes.device

    def logits(self, tokens: Tensor, last: int | None = None, keep: Tensor | None = None) -> Tensor:
        """Logits of the last tokens, each given all tokens before it.

        Args:
            tokens: (B, S) int64 in [0, num_codes), S at most `config.block_size`.
            last: Number of tokens at the end whose logits are wanted; None for all.
            keep: (B, S) bool; the latents of other tokens are replaced by zeros where they are input. None keeps all.

        Returns:
            (B, last, num_codes) float32.

        Raises:
            ValueError: if the sequence is longer than the model's window.
        """
        length = tokens.shape[1]
        if length > self.config.block_size:
            raise ValueError(
                f"{length} tokens are more than a window of {self.config.block_size}: give at most "
                f"{self.config.num_history_frames + 1} frames of {self.config.content_len} tokens"
            )
        zero = self.config.num_codes
        kept = tokens if keep is None else torch.where(keep, tokens, zero)
        inputs = F.pad(kept[:, :-1], (1, 0), value=zero)
        return self.transformer(inputs, self._table(), length if last is None else last)[0]

    def log_probs(self, tokens: Tensor, last: int | None = None) -> Tensor:
        """Log-probability of each of the last tokens given all tokens before it: (B, last) float32, in nats."""
        logits = self.logits(tokens, last)
        wanted = tokens[:, -logits.shape[1] :]
        return -F.cross_entropy(rearrange(logits, "b s code -> b code s"), wanted, reduction="none")

    def token_entropy(self, tokens: Tensor, last: int | None = None) -> Tensor:
        """Entropy of the prediction of each of the last tokens: (B, last) float32, in nats."""
        log_probs = self.logits(tokens, last).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def training_loss(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean cross entropy of all tokens, in nats per token (arXiv 2104.10157).

        Args:
            tokens: (B, S) int64.
            keep: As in `logits`; None draws it with `keep_prob` in training, and keeps all in evaluation.

        Returns:
            Scalar.
        """
        if keep is None:
            keep = self.draw_kept(tokens)
        logits = self.logits(tokens, keep=keep)
        return F.cross_entropy(rearrange(logits, "b s code -> (b s) code").float(), tokens.flatten())

    def draw_kept(self, tokens: Tensor) -> Tensor | None:
        """Which tokens (B, S) are seen as input: drawn with `keep_prob` in training, None (all) in evaluation."""
        if not self.training or self.config.keep_prob == 1:
            return None
        return torch.rand(tokens.shape, device=tokens.device) < self.config.keep_prob

    @torch.no_grad()
    def sample_frame(self, history: Tensor) -> Tensor:
        """Draws the frame that follows a history, with torch's global random numbers.

        Args:
            history: (B, F * content_len) int64, at most `num_history_frames` frames.

        Returns:
            (B, content_len) int64.
        """
        table = self._table()
        inputs = F.pad(history, (1, 0), value=self.config.num_codes)
        drawn, past = [], None
        for _ in range(self.config.content_len):
            logits, past = self.transformer(inputs, table, 1, past)
            inputs = torch.multinomial(logits[:, -1].float().softmax(-1), 1)
            drawn.append(inputs)
        return torch.cat(drawn, 1)

    def _table(self) -> Tensor:
        """(num_codes + 1, latent_dim): the code vectors, and zeros for the start and for dropped tokens."""
        return F.pad(self.codes, (0, 0, 0, 1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
