"""The denoiser with frozen weights, arranged for speed: what scoring runs, thousands of times per episode.

Exactly the function of `Denoiser`, with everything precomputed that does not depend on the input: scales and shifts
of every diffusion step, keys and values of every code, joined projections, transformed convolutions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import PRECISIONS
from models.products import linear
from models.vqdiffusion.denoiser import AdaptiveLayerNorm, Attention, Block, ConvMLP
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.schedule import LOG_PROB_MIN
from models.winograd import TILE, WinogradGrid

GELU_SCALE = 1.702
GRAPHS = 64  # that one process may compile: a dozen batch sizes times models, with room


class History(NamedTuple):
    """Keys and values of every layer's cross-attention, computed once for all denoising steps.

    Attributes:
        keys: Per layer (B, heads, S, width/heads).
        values: The same shapes.
        batch_size: Rows asked for; a compiled network works on B >= batch_size, so that few shapes occur.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    batch_size: int


@dataclass(frozen=True)
class _Affine:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, layers: Sequence[nn.Linear], dtype: torch.dtype) -> _Affine:
        """Several linear layers of one input as one."""
        weight = torch.cat([layer.weight.detach() for layer in layers])
        return cls(weight.to(dtype), torch.cat([layer.bias.detach() for layer in layers]).to(dtype))


class _Layer(NamedTuple):
    """What one block needs; norms of a step are rows of (T, width) tables."""

    norm1: _Affine
    queries_keys_values: _Affine
    project1: _Affine
    norm2: _Affine
    queries: _Affine
    project2: _Affine
    norm3: _Affine
    mlp: Callable[[Tensor], Tensor]


class FrozenDenoiser:
    """Predicts the clean frame with a snapshot of a model's weights, inference only.

    In float32 on a CPU the convolutions run by Winograd's method with positions as the first axis; elsewhere directly,
    channels last. In bfloat16 the residual stream, the norms and the last projection stay float32.

    Args:
        model: In eval mode; its weights are copied, later changes are not seen.
        precision: "float32" or "bfloat16".
        compiled: Whether torch.compile fuses the network; batches are then padded to powers of two.

    Raises:
        ValueError: for another precision.
    """

    @torch.no_grad()
    def __init__(self, model: VQDiffusion, precision: str = "float32", compiled: bool = False) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, expected one of {PRECISIONS}")
        self.config, self.device = model.config, model.device
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        is_winograd = (
            precision == "float32"
            and self.device.type == "cpu"
            and self.config.mlp_type == "conv"
            and self.config.latent_size % TILE == 0
        )
        self._positions_first = is_winograd
        self._compiled = _compile(self._network) if compiled else None
        self._layers = [self._layer(cast(Block, block)) for block in model.transformer.blocks]
        embedding = model.transformer.content_emb
        place = (embedding.height_emb.weight[:, None] + embedding.width_emb.weight[None]).flatten(0, 1)
        self._content = embedding.emb.weight.detach().clone()
        self._place = place[:, None] if self._positions_first else place
        norm, last = list(model.transformer.to_logits)
        assert isinstance(norm, nn.LayerNorm)
        self._last_norm = _Affine(norm.weight.detach().clone(), norm.bias.detach().clone())
        self._last = _Affine.of([cast(nn.Linear, last)], torch.float32)
        self._code_tables, self._position_tables = self._history_tables(model)

    def _layer(self, block: Block) -> _Layer:
        first, second = block.attn1, block.attn2
        return _Layer(
            norm1=_step_norms(block.ln1),
            queries_keys_values=self._affine(first.query, first.key, first.value),
            project1=self._affine(first.proj),
            norm2=_step_norms(block.ln1_1),
            queries=self._affine(second.query),
            project2=self._affine(second.proj),
            norm3=_Affine(block.ln2.weight.detach().clone(), block.ln2.bias.detach().clone()),
            mlp=self._mlp(block.mlp),
        )

    def _affine(self, *layers: nn.Linear) -> _Affine:
        return _Affine.of(layers, self._dtype)

    def _mlp(self, mlp: nn.Module) -> Callable[[Tensor], Tensor]:
        """x * sigmoid(1.702 x) = silu(1.702 x) / 1.702: both factors move into the weights."""
        grow: Callable[[Tensor], Tensor]
        shrink: Callable[[Tensor], Tensor]
        if isinstance(mlp, ConvMLP):
            grow = self._conv(mlp.conv1, GELU_SCALE, GELU_SCALE)
            shrink = self._conv(mlp.conv2, 1 / GELU_SCALE)
        else:
            layers = cast(nn.Sequential, mlp)
            grow = self._affine(_scaled(layers[0], GELU_SCALE, GELU_SCALE))
            shrink = self._affine(_scaled(layers[2], 1 / GELU_SCALE))
        return lambda x: shrink(F.silu(grow(x), inplace=True))

    def _conv(self, conv: nn.Conv2d, weight: float, bias: float = 1.0) -> Callable[[Tensor], Tensor]:
        scaled = _scaled(conv, weight, bias)
        if self._positions_first:
            return WinogradGrid(scaled, self.config.latent_size)
        return _GridConv(scaled.to(self._dtype), self.config.latent_size)

    def _history_tables(self, model: VQDiffusion) -> tuple[list[Tensor], list[Tensor] | None]:
        """Keys and values of every code, and of every position, per layer: (K or S, 2*width)."""
        embedding = model.condition_emb
        attentions = model.transformer.cross_attentions()
        codes = [_keys_and_values(a, embedding.emb.weight).to(self._dtype) for a in attentions]
        if not embedding.has_position:
            return codes, None
        position = embedding.position()
        # the bias is already in the table of codes
        places = [
            _keys_and_values(a, position) - _keys_and_values(a, torch.zeros_like(position[:1]))
            for a in attentions
        ]
        return codes, [table.to(self._dtype) for table in places]

    def history(self, tokens: Tensor) -> History:
        """Looks up what the cross-attentions see of history frames.

        Args:
            tokens: (B, F*L) int64, oldest frame first, checked by the caller.
        """
        rows = len(tokens)
        if self._compiled is not None:
            tokens = F.pad(tokens, (0, 0, 0, _power_of_two(rows) - rows))
        keys, values = [], []
        for layer, table in enumerate(self._code_tables):
            both = F.embedding(tokens, table)
            if self._position_tables is not None:
                both = both + self._position_tables[layer][-tokens.shape[1] :]
            both = both.unflatten(-1, (2, self.config.num_heads, -1)).permute(2, 0, 3, 1, 4)
            keys.append(both[0].contiguous())
            values.append(both[1].contiguous())
        return History(keys, values, rows)

    def logits(self, tokens: Tensor, step: int, history: History) -> Tensor:
        """Logits of the clean tokens.

        Args:
            tokens: (B, L) int64 noisy tokens, K where masked; or (1, L) where all rows are equal: then what does not
                depend on the history is computed once.
            step: Diffusion step, 0 to T-1.
            history: Of B rows.

        Returns:
            (B, L, K) float32.
        """
        if self._compiled is None:
            return self._network(tokens, step, history.keys, history.values)
        rows = len(history.keys[0])
        padded = F.pad(tokens, (0, 0, 0, rows - len(tokens))) if len(tokens) > 1 else tokens.expand(rows, -1)
        # a tensor, since a plain number would be compiled into the network; contiguous, since strides would be as well
        number = torch.tensor([step], device=self.device)
        logits = self._compiled(padded.contiguous(), number, history.keys, history.values)
        return logits[: history.batch_size]

    def _network(
        self, tokens: Tensor, step: int | Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> Tensor:
        x = F.embedding(tokens.t() if self._positions_first else tokens, self._content) + self._place
        for layer, layer_keys, layer_values in zip(self._layers, keys, values):
            x = self._block(layer, x, step, layer_keys, layer_values)
        logits = self._last(self._normed(x, self._last_norm))
        return logits.transpose(0, 1) if self._positions_first else logits

    def probabilities(self, tokens: Tensor, step: int, history: History) -> Tensor:
        """p(x0 | x_t, history) over codes, not less than e^-70; arguments and shape as in `logits`."""
        # float32 is enough: what is divided later by small transition probabilities keeps its relative precision
        return torch.softmax(self.logits(tokens, step, history), -1).clamp_min_(math.exp(LOG_PROB_MIN))

    def log_probabilities(self, tokens: Tensor, step: int, history: History) -> Tensor:
        """log p(x0 | x_t, history) over codes, at least -70; arguments and shape as in `logits`."""
        return F.log_softmax(self.logits(tokens, step, history), -1).clamp_min_(LOG_PROB_MIN)

    def _block(self, layer: _Layer, x: Tensor, step: int | Tensor, keys: Tensor, values: Tensor) -> Tensor:
        normed = self._normed(x, layer.norm1, step)
        queries, own_keys, own_values = layer.queries_keys_values(normed).chunk(3, -1)
        attended = F.scaled_dot_product_attention(
            self._split(queries), self._split(own_keys), self._split(own_values)
        )
        x = x + layer.project1(self._merge(attended))
        queries = self._split(layer.queries(self._normed(x, layer.norm2, step)))
        attended = F.scaled_dot_product_attention(queries.expand(len(keys), -1, -1, -1), keys, values)
        x = x + layer.project2(self._merge(attended))
        return x + layer.mlp(self._normed(x, layer.norm3))

    def _normed(self, x: Tensor, norm: _Affine, step: int | Tensor | None = None) -> Tensor:
        weight, bias = norm.weight, norm.bias
        if isinstance(step, Tensor):  # not as an index, whose value would be compiled into the network
            weight, bias = weight.index_select(0, step)[0], bias.index_select(0, step)[0]
        elif step is not None:
            weight, bias = weight[step], bias[step]
        y = F.layer_norm(x, x.shape[-1:], weight, bias)
        return y if norm is self._last_norm else y.to(self._dtype)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, width) or (L, B, width) -> (B, heads, L, width/heads)."""
        heads = x.unflatten(-1, (self.config.num_heads, -1))
        return heads.permute(1, 2, 0, 3) if self._positions_first else heads.transpose(1, 2)

    def _merge(self, heads: Tensor) -> Tensor:
        """The inverse of `_split`."""
        return (heads.permute(2, 0, 1, 3) if self._positions_first else heads.transpose(1, 2)).flatten(2)


def _compile(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A network that is compiled anew for every shape.

    Dynamo counts all graphs of a function together, whatever model they belong to: a dozen batch sizes, expert and base.
    Beyond its limit, 8, it goes on uncompiled.
    """
    compiled = torch.compile(network, dynamic=False)
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, GRAPHS)  # alias: recompile_limit
    return compiled


def _power_of_two(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


class _GridConv:
    """A frozen convolution over a token grid, rows first."""

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        self._conv, self._side = conv, side
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolves (B, side*side, in) into (B, side*side, out)."""
        # channels are the last axis in memory, which convolutions prefer
        grid = x.unflatten(1, (self._side, self._side)).permute(0, 3, 1, 2)
        return self._conv(grid).permute(0, 2, 3, 1).flatten(1, 2)


def _step_norms(norm: AdaptiveLayerNorm) -> _Affine:
    """Weight and bias of every diffusion step, (T, width) each."""
    scale, shift = norm.linear(F.silu(norm.emb.weight)).chunk(2, -1)
    return _Affine((1 + scale).contiguous(), shift.contiguous())


def _keys_and_values(attention: Attention, source: Tensor) -> Tensor:
    return torch.cat(attention.project(source), -1)


def _scaled(layer: nn.Module, weight: float, bias: float = 1.0) -> Any:
    """A frozen copy with weight and bias multiplied."""
    copied = copy.deepcopy(layer).requires_grad_(False)
    cast(nn.Linear, copied).weight.mul_(weight)
    cast(nn.Linear, copied).bias.mul_(bias)
    return copied
