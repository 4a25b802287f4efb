"""The diffusion reward with the cost structure of the published implementation, as a peer to race against.

Written from the papers' formulas (VQ-Diffusion, arXiv 2111.14822, equations 5 to 11; Diffusion Reward, arXiv
2312.14134): one episode at a time, keys and values of the history projected again in every step, states as dense
log one-hot arrays over all K + 1 classes, softmax in float64, Gumbel noise for every class. It reads its weights
from the production modules, so both compute the same function.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.vqdiffusion.denoiser import Attention, Block, ConvMLP
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqdiffusion.schedule import LOG_PROB_MIN, LOG_ZERO
from models.vqgan import VQGAN


class ReferenceReward:
    """Entropy reward by the denoising chain.

    Args:
        model: Video model without condition positions and with the convolutional MLP, as published.
        codec: Its codec.
        skip_step: Diffusion steps left out between two network steps.
    """

    def __init__(self, model: VQDiffusion, codec: VQGAN, skip_step: int = 9) -> None:
        self.model, self.codec = model, codec
        self.num_classes = model.num_codes + 1
        network = list(range(model.num_steps - 1, -1, -1 - skip_step))
        self.network_steps = network if network[-1] == 0 else [*network, 0]
        self.posterior_steps = [t - skip_step if t > skip_step else t for t in self.network_steps]

    @torch.no_grad()
    def score(self, frames: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Raw rewards of one episode.

        Args:
            frames: (T, 3, H, W) float32 [-1, 1].
            uniform: (steps, T, K+1, L) uniform numbers of the Gumbel noise, or None to draw them.

        Returns:
            (T,) float32.
        """
        tokens = self.codec.encode_tokens(frames)
        previous = torch.cat([tokens[:1], tokens[:-1]])
        return self.score_tokens(torch.cat([previous, tokens], 1), uniform)

    @torch.no_grad()
    def score_tokens(self, history: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Raw rewards of rows of history tokens (T, 2L) int64, see `score`."""
        rows, length = len(history), self.model.config.content_len
        state = torch.full((rows, self.num_classes, length), -torch.inf, device=history.device)
        state[:, -1] = 0.0
        states, predictions = [], []
        for number, (network, posterior) in enumerate(zip(self.network_steps, self.posterior_steps)):
            log_x0 = self._predict_start(state, network, history)
            states.append(state)
            predictions.append(self._posterior(log_x0, state, posterior))
            noise = torch.rand_like(log_x0) if uniform is None else uniform[number]
            gumbel = -torch.log(-torch.log(noise + 1e-30) + 1e-30)
            state = self._one_hot((predictions[-1] + gumbel).argmax(1))
        reward = torch.zeros(rows, device=history.device)
        steps = list(zip(states, predictions, self.posterior_steps))
        for x_t, predicted, t in steps[:-1]:
            true = self._posterior(state, x_t, t)
            reward -= (true.exp() * (true - predicted)).sum((1, 2))
        return reward + (state.exp() * steps[-1][1]).sum((1, 2))

    def _one_hot(self, tokens: Tensor) -> Tensor:
        dense = F.one_hot(tokens, self.num_classes).permute(0, 2, 1)
        return torch.log(dense.float().clamp(min=1e-30))

    def _predict_start(self, state: Tensor, t: int, history: Tensor) -> Tensor:
        """log p(x0 | x_t) over all classes; the mask's row is the smallest log-probability."""
        logits = self._network(state.argmax(1), torch.full((len(state),), t, device=state.device), history)
        log_x0 = F.log_softmax(logits.permute(0, 2, 1).double(), dim=1).float()
        mask = torch.full_like(log_x0[:, :1], LOG_PROB_MIN)
        return torch.cat([log_x0, mask], 1).clamp(LOG_PROB_MIN, 0.0)

    def _network(self, tokens: Tensor, t: Tensor, history: Tensor) -> Tensor:
        denoiser = self.model.transformer
        condition = self.model.condition_emb.emb(history)
        x = denoiser.content_emb(tokens)
        for module in denoiser.blocks:
            block = cast(Block, module)
            normed = block.ln1(x, t)
            x = x + self._attend(block.attn1, normed, normed)
            x = x + self._attend(block.attn2, block.ln1_1(x, t), condition)
            x = x + self._mlp(cast(ConvMLP, block.mlp), block.ln2(x))
        return denoiser.to_logits(x)

    @staticmethod
    def _attend(attention: Attention, x: Tensor, source: Tensor) -> Tensor:
        heads = attention.num_heads

        def split(y: Tensor) -> Tensor:
            return y.view(len(y), y.shape[1], heads, -1).transpose(1, 2)

        keys, values = split(attention.key(source)), split(attention.value(source))
        queries = split(attention.query(x))
        weights = (queries @ keys.transpose(-2, -1) * keys.shape[-1] ** -0.5).softmax(-1)
        merged = (weights @ values).transpose(1, 2).reshape(x.shape)
        return attention.proj(merged)

    @staticmethod
    def _mlp(mlp: ConvMLP, x: Tensor) -> Tensor:
        side = mlp.latent_size
        grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
        grid = mlp.conv1(grid)
        grid = mlp.conv2(grid * torch.sigmoid(1.702 * grid))
        return grid.flatten(2).transpose(1, 2)

    def _posterior(self, log_x0: Tensor, log_x_t: Tensor, t: int) -> Tensor:
        """log p(x_{t-1} | x_t) from log p(x0), all as dense arrays of (T, K+1, L)."""
        tables = self.model
        masked = (log_x_t.argmax(1) == self.num_classes - 1)[:, None]
        zero = torch.full_like(log_x_t[:, :1], LOG_ZERO)

        log_q = self._apply(log_x_t, t, cumulative=True)[:, :-1]
        log_q = torch.where(masked, cast(Any, tables).log_cumprod_ct[t], log_q)
        move = torch.cat([self._apply(log_x_t, t, cumulative=False)[:, :-1], zero], 1)
        mask_move = torch.full_like(log_x_t[:, :-1], float(cast(Any, tables).log_ct[t]))
        move = torch.where(masked, torch.cat([mask_move, torch.zeros_like(zero)], 1), move)

        ratio = torch.cat([log_x0[:, :-1] - log_q, zero], 1)
        total = ratio.logsumexp(1, keepdim=True)
        back = self._apply(ratio - total, t - 1, cumulative=True)
        return (back + move + total).clamp(LOG_PROB_MIN, 0.0)

    def _apply(self, log_x: Tensor, t: int, *, cumulative: bool) -> Tensor:
        """One transition of the forward process; t = -1 is the clean state."""
        kind = "cumprod_" if cumulative else ""
        a, b, c, not_c = (
            getattr(self.model, f"log_{name}")[t]
            for name in (f"{kind}at", f"{kind}bt", f"{kind}ct", f"1_min_{kind}ct")
        )
        codes = torch.logaddexp(log_x[:, :-1] + a, b)
        return torch.cat([codes, torch.logaddexp(log_x[:, -1:] + not_c, c)], 1)
