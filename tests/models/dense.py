"""The forward process and its posterior as full arrays over all classes: what the shorter ways of the package are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from models.vqdiffusion.schedule import LOG_ZERO, Schedule, Transition, alpha1_probabilities, log_tables


def paper_schedule(num_steps: int, num_codes: int) -> Schedule:
    """The schedule of the paper, as a model has it."""
    p = alpha1_probabilities(num_steps, num_codes)
    exact = {"keep": torch.from_numpy(p["att"]), "mask": torch.from_numpy(p["ctt"])}
    return Schedule.from_tables({**log_tables(num_steps, num_codes), **exact}, num_codes)


def one_hot_log(tokens: Tensor, num_classes: int) -> Tensor:
    """Log of one-hot vectors with log(1e-30) for zero. Args: (B, L) int64. Returns: (B, num_classes, L)."""
    dense = torch.full((len(tokens), num_classes, tokens.shape[1]), LOG_ZERO)
    return dense.scatter_(1, tokens[:, None], 0.0)


def moved(transition: Transition, log_x: Tensor) -> Tensor:
    """log q of the state after a transition, given log-probabilities (B, K+1, L) of the state before (arXiv 2111.14822, eq. 8)."""
    codes = torch.logaddexp(log_x[:, :-1] + transition.a, transition.b)
    mask = torch.logaddexp(log_x[:, -1:] + transition.not_c, transition.c)
    return torch.cat([codes, mask], 1)


def token_posterior(
    schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None
) -> Tensor:
    """`Schedule.token_posterior` as a full (B, K+1, L) array of log-probabilities."""
    values = schedule.token_posterior(x0, x_t, t, s)
    dense = values.elsewhere[:, None].repeat(1, schedule.num_codes + 1, 1)
    dense.scatter_(1, x_t[:, None], values.at_xt[:, None])
    dense.scatter_(1, x0[:, None], values.at_x0[:, None])
    dense[:, -1] = values.at_mask
    return dense
