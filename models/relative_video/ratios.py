"""Relative rewards from the predictions of two video models for the same masked frame (no training needed).

With exact models the reward whose gradient is the difference of two scores is the logarithm of the ratio of the two
densities, up to a constant (relative reward functions, Nuti, Franzmeyer, Henriques, NeurIPS 2023). A masked-token model
gives that ratio token by token.
"""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor


def masked_log_ratio(
    log_expert: Tensor,
    log_base: Tensor,
    tokens: Tensor,
    masked: Tensor,
    smoothing: float = 0.01,
    clip: float = 5.0,
    lowest: int | None = None,
) -> Tensor:
    """R1: mean over masked tokens of clip(log p~_expert - log p~_base, +-clip), p~ = (1 - e) p + e / K.

    Smoothing and clipping keep the ratio of two tiny probabilities from deciding the reward. With `lowest` only the
    tokens count that speak most against the expert: an arm of many tokens does not outvote a handle of three.

    Args:
        log_expert: (B, L, K) log-probabilities of the clean tokens under the expert model.
        log_base: (B, L, K), the same under the base model, for the same masked frame and history.
        tokens: (B, L) int64 observed tokens.
        masked: (B, L) or (1, L) bool, tokens that both models had to predict; at least one in each row.
        smoothing: e, in [0, 1].
        clip: Largest size of one token's log-ratio in nats, > 0.
        lowest: How many of a row's masked tokens, those with the lowest ratios, the mean is taken over, at least 1 (all of
            them where there are fewer); None for all.

    Returns:
        (B,) float32, nats per token: positive where the expert model expected the frame more.
    """
    ratio = _smooth_log(log_expert, tokens, smoothing) - _smooth_log(log_base, tokens, smoothing)
    kept = ratio.clamp(-clip, clip)
    if lowest is None:
        return (kept * masked).sum(1) / masked.sum(1)
    others = torch.full_like(kept, torch.inf)
    found = torch.where(masked, kept, others).topk(min(lowest, kept.shape[1]), dim=1, largest=False).values
    counted = found.isfinite()
    return torch.where(counted, found, 0.0).sum(1) / counted.sum(1)


def embedding_contrast(expert: Tensor, base: Tensor, observed: Tensor, masked: Tensor) -> Tensor:
    """R2: sum over masked tokens of (e_expert - e_base) . (e(z) - (e_expert + e_base) / 2).

    Half the difference of the squared distances of the observed code from what each model expects.

    Args:
        expert: (B, L, D) expected codes under the expert model.
        base: (B, L, D) expected codes under the base model.
        observed: (B, L, D) codes of the observed tokens.
        masked: (B, L) or (1, L) bool.

    Returns:
        (B,) float32: positive where the frame is nearer to what the expert model expects.
    """
    nearer = einsum(expert - base, observed - (expert + base) / 2, "b l d, b l d -> b l")
    return (nearer * masked).sum(1)


def expected_codes(log_probs: Tensor, codes: Tensor) -> Tensor:
    """Mean code vector of each token's predicted distribution.

    Args:
        log_probs: (B, L, K).
        codes: (K, D).

    Returns:
        (B, L, D) float32.
    """
    return log_probs.exp() @ codes


def standard_codes(codebook: Tensor) -> Tensor:
    """The codebook moved and scaled to mean zero and mean square one, so that rewards do not depend on its units.

    Args:
        codebook: (K, D).

    Returns:
        (K, D) float32.
    """
    centred = codebook.float() - codebook.float().mean(0)
    return centred / centred.square().mean().sqrt()


def _smooth_log(log_probs: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
    """log((1 - e) p + e / K) of each token: (B, L, K), (B, L) -> (B, L)."""
    p = log_probs.gather(-1, tokens[..., None])[..., 0].exp()
    return torch.log((1 - smoothing) * p + smoothing / log_probs.shape[-1])
