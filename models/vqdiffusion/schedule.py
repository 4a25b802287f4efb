"""The forward process of VQ-Diffusion and its posteriors, in closed form for one-hot tokens.

A token x0 keeps its code with probability a, becomes the mask with probability c, and becomes each of the K
codes with probability b, where a + K b + c = 1 (VQ-Diffusion, arXiv 2111.14822, equations 7 and 8). Tables of
cumulative values have T + 1 entries; entry T is the clean state, which the index -1 (before the first step) wraps to.

All probabilities are handled as logarithms, because b falls to 1e-10. One-hot vectors have log(1e-30) for zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_ZERO = float(np.log(1e-30))
LOG_PROB_MIN = -70.0
KEEP_FIRST, KEEP_LAST = 0.99999, 0.000009
MASK_FIRST, MASK_LAST = 0.000009, 0.99999


def alpha1_probabilities(num_steps: int, num_codes: int) -> dict[str, np.ndarray]:
    """The "alpha1" schedule: cumulative keep and mask probabilities are linear in the step.

    Args:
        num_steps: T.
        num_codes: K.

    Returns:
        float64 arrays: one-step `at`, `bt`, `ct` (T,); cumulative `att`, `btt`, `ctt` (T+1,), entry T clean.
    """
    keep = np.concatenate([[1.0], np.linspace(KEEP_FIRST, KEEP_LAST, num_steps)])
    mask = np.concatenate([[0.0], np.linspace(MASK_FIRST, MASK_LAST, num_steps)])
    at = keep[1:] / keep[:-1]
    ct = 1.0 - (1.0 - mask[1:]) / (1.0 - mask[:-1])
    att, ctt = np.roll(keep, -1), np.roll(mask, -1)
    btt = (1.0 - att - ctt) / num_codes
    btt[-1] = 0.0
    return {"at": at, "bt": (1.0 - at - ct) / num_codes, "ct": ct, "att": att, "btt": btt, "ctt": ctt}


def log_tables(num_steps: int, num_codes: int) -> dict[str, Tensor]:
    """The float32 log tables under their official buffer names (`log_at` ... `log_1_min_cumprod_ct`)."""
    p = alpha1_probabilities(num_steps, num_codes)
    with np.errstate(divide="ignore"):
        logs = {
            "log_at": np.log(p["at"]),
            "log_bt": np.log(p["bt"]),
            "log_ct": np.log(p["ct"]),
            "log_cumprod_at": np.log(p["att"]),
            "log_cumprod_bt": np.log(p["btt"]),
            "log_cumprod_ct": np.log(p["ctt"]),
            "log_1_min_ct": np.log1p(-p["ct"]),
            "log_1_min_cumprod_ct": np.log1p(-p["ctt"]),
        }
    return {name: torch.from_numpy(value).float() for name, value in logs.items()}


class Transition(NamedTuple):
    """Log coefficients of one transition, each (B, 1, 1) float32: keep a, any code b, mask c, no mask 1 - c."""

    a: Tensor
    b: Tensor
    c: Tensor
    not_c: Tensor

    def of_token(self) -> Transition:
        """The same coefficients as (B, 1), for arrays without a class axis."""
        return Transition(*(value[:, :, 0] for value in self))


class TokenPosterior(NamedTuple):
    """q(x_s | x_t, x0) of one-hot tokens: its only four different values, each (B, L) float32 log-probability.

    Where x0 and x_t are the same code, `at_x0` is the value of that code. Where x_t is the mask, `at_xt` is the
    value of a code that is not x0, and equals `elsewhere`.
    """

    at_x0: Tensor
    at_xt: Tensor
    elsewhere: Tensor
    at_mask: Tensor


@dataclass(frozen=True)
class Schedule:
    """Log tables of the forward process and every posterior that training and rewards need.

    Attributes:
        log_at, log_bt, log_ct, log_1_min_ct: (T,) float32, one step.
        log_cumprod_at, log_cumprod_bt, log_cumprod_ct, log_1_min_cumprod_ct: (T+1,) float32.
        keep, mask: (T+1,) float64 cumulative probabilities, for jumps over several steps.
        num_codes: K; the mask token is class K.
    """

    log_at: Tensor
    log_bt: Tensor
    log_ct: Tensor
    log_1_min_ct: Tensor
    log_cumprod_at: Tensor
    log_cumprod_bt: Tensor
    log_cumprod_ct: Tensor
    log_1_min_cumprod_ct: Tensor
    keep: Tensor
    mask: Tensor
    num_codes: int

    @classmethod
    def from_tables(cls, tables: Mapping[str, Tensor], num_codes: int) -> Schedule:
        """Builds it from tensors named like the fields."""
        names = [f.name for f in fields(cls) if f.name != "num_codes"]
        return cls(**{name: tables[name] for name in names}, num_codes=num_codes)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.log_at)

    def step(self, t: Tensor) -> Transition:
        """Coefficients of the single step t - 1 -> t. Args: t (B,) int64 in [0, T)."""
        tables = (self.log_at, self.log_bt, self.log_ct, self.log_1_min_ct)
        return Transition(*(table[t][:, None, None] for table in tables))

    def cumulative(self, t: Tensor) -> Transition:
        """Coefficients of x0 -> x_t. Args: t (B,) int64 in [-1, T); -1 is the clean state."""
        index = t % (self.num_steps + 1)
        tables = (
            self.log_cumprod_at,
            self.log_cumprod_bt,
            self.log_cumprod_ct,
            self.log_1_min_cumprod_ct,
        )
        return Transition(*(table[index][:, None, None] for table in tables))

    def jump(self, t: Tensor, s: Tensor) -> Transition:
        """Coefficients of x_s -> x_t over several steps, from cumulative values in float64.

        Args:
            t: (B,) int64 in [0, T).
            s: (B,) int64 in [-1, t).
        """
        count = self.num_steps + 1
        keep = self.keep[t % count] / self.keep[s % count]
        not_mask = (1 - self.mask[t % count]) / (1 - self.mask[s % count])
        any_code = (not_mask - keep).clamp_min(0) / self.num_codes
        values = (keep, any_code, 1 - not_mask, not_mask)
        return Transition(*(value.log().float()[:, None, None] for value in values))

    def noisy_tokens(self, x0: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples x_t ~ q(x_t | x0).

        Args:
            x0: (B, L) int64 codes.
            t: (B,) int64 in [0, T).
            generator: Source of randomness on the device of `x0`.

        Returns:
            (B, L) int64, K where masked.
        """
        at = self.cumulative(t).of_token()
        u = torch.rand(x0.shape, generator=generator, device=x0.device)
        code = torch.randint(self.num_codes, x0.shape, generator=generator, device=x0.device)
        kept = torch.where(u < at.a.exp(), x0, code)
        return torch.where(u >= at.not_c.exp(), self.num_codes, kept)

    def posterior(self, log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """log p(x_s | x_t) = log sum_x0 p(x0 | x_t) q(x_s | x_t, x0) (arXiv 2111.14822, equations 5 and 11).

        Args:
            log_x0: (B, K, L) predicted log p(x0 | x_t) over codes.
            x_t: (B, L) int64, K where masked.
            t: (B,) int64 in [0, T).
            s: (B,) int64 in [-1, t), the step to jump to; None is the official single step s = t - 1.

        Returns:
            (B, K+1, L) float32 log-probabilities, clamped to [-70, 0]; the last row is the mask.
        """
        now, then, move = self._transitions(t, s)
        masked = (x_t == self.num_codes)[:, None]
        code = x_t.clamp_max(self.num_codes - 1)[:, None]
        hit = torch.zeros(log_x0.shape, dtype=torch.bool, device=x_t.device).scatter_(1, code, ~masked)
        log_q_t = torch.where(hit, torch.logaddexp(now.a, now.b), torch.where(masked, now.c, now.b))
        ratio = log_x0 - log_q_t
        total = ratio.logsumexp(1, keepdim=True)
        log_move = torch.where(hit, torch.logaddexp(move.a, move.b), torch.where(masked, move.c, move.b))
        codes = torch.logaddexp(ratio + then.a, total + then.b) + log_move
        mask = torch.logaddexp(LOG_ZERO + then.not_c, total + then.c)
        mask = torch.where(masked, mask, mask + LOG_ZERO)
        return torch.cat([codes, mask], 1).clamp(LOG_PROB_MIN, 0.0)

    def token_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> TokenPosterior:
        """log q(x_s | x_t, x0) for known tokens, as its four different values.

        Args:
            x0: (B, L) int64 codes.
            x_t: (B, L) int64, K where masked.
            t: (B,) int64 in [0, T).
            s: (B,) int64 in [-1, t), or None for t - 1.

        Returns:
            Values clamped to [-70, 0].
        """
        now, then, move = (transition.of_token() for transition in self._transitions(t, s))
        masked, same = x_t == self.num_codes, x_t == x0
        hit_now, hit_move = torch.logaddexp(now.a, now.b), torch.logaddexp(move.a, move.b)
        # log 1 / q(x_t | x0): the weight of x0 after normalisation by the forward process
        total = -torch.where(same, hit_now, torch.where(masked, now.c, now.b))
        zero_at_xt = LOG_ZERO - torch.where(masked, now.c, hit_now)
        zero_elsewhere = LOG_ZERO - torch.where(masked, now.c, now.b)
        move_away = torch.where(masked, move.c, move.b)

        at_x0 = torch.logaddexp(total + then.a, total + then.b) + torch.where(same, hit_move, move_away)
        elsewhere = torch.logaddexp(zero_elsewhere + then.a, total + then.b) + move_away
        at_xt = torch.logaddexp(zero_at_xt + then.a, total + then.b) + torch.where(
            masked, move_away, hit_move
        )
        at_mask = torch.logaddexp(LOG_ZERO + then.not_c, total + then.c)
        at_mask = torch.where(masked, at_mask, at_mask + LOG_ZERO)
        return TokenPosterior(*(v.clamp(LOG_PROB_MIN, 0.0) for v in (at_x0, at_xt, elsewhere, at_mask)))

    def posterior_kl(
        self, x0: Tensor, x_t: Tensor, log_model: Tensor, t: Tensor, s: Tensor | None = None
    ) -> Tensor:
        """KL(q(x_s | x_t, x0) || p(x_s | x_t)) of each token, without a dense array for q.

        Args:
            x0: (B, L) int64 codes (sampled or observed).
            x_t: (B, L) int64, K where masked.
            log_model: (B, K+1, L) result of `posterior` for the same x_t, t and s.
            t: (B,) int64.
            s: (B,) int64, or None for t - 1.

        Returns:
            (B, L) float32, in nats.
        """
        q = self.token_posterior(x0, x_t, t, s)
        code = x_t.clamp_max(self.num_codes - 1)
        third = (x_t != self.num_codes) & (x_t != x0)
        at_x0 = log_model.gather(1, x0[:, None])[:, 0]
        at_xt = log_model.gather(1, code[:, None])[:, 0]
        return kl_of_values(
            q, third, self.num_codes, at_x0, at_xt, log_model[:, -1], log_model[:, :-1].sum(1)
        )

    def _transitions(self, t: Tensor, s: Tensor | None) -> tuple[Transition, Transition, Transition]:
        """x0 -> x_t, x0 -> x_s, x_s -> x_t."""
        if s is None:
            return self.cumulative(t), self.cumulative(t - 1), self.step(t)
        return self.cumulative(t), self.cumulative(s), self.jump(t, s)


def kl_of_values(
    q: TokenPosterior,
    third: Tensor,
    num_codes: int,
    at_x0: Tensor,
    at_xt: Tensor,
    at_mask: Tensor,
    all_codes: Tensor,
) -> Tensor:
    """KL(q || p) of tokens from the few log-probabilities of p that differ, all (B, L) float32.

    Args:
        q: The four values of the known posterior.
        third: Bool, whether x_t is a code of its own, neither x0 nor the mask.
        num_codes: K.
        at_x0: log p of x0.
        at_xt: log p of x_t; read only where `third`.
        at_mask: log p of the mask.
        all_codes: Sum of log p over all codes.

    Returns:
        (B, L) float32, in nats.
    """
    rest_sum = all_codes - at_x0 - torch.where(third, at_xt, 0.0)
    rest_count = num_codes - 1 - third.to(all_codes.dtype)
    return (
        q.at_x0.exp() * (q.at_x0 - at_x0)
        + torch.where(third, q.at_xt.exp() * (q.at_xt - at_xt), 0.0)
        + q.at_mask.exp() * (q.at_mask - at_mask)
        + q.elsewhere.exp() * (rest_count * q.elsewhere - rest_sum)
    )


def sample_tokens(
    log_probs: Tensor,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: bool = True,
) -> Tensor:
    """Samples one class of each token by the Gumbel-max trick.

    Args:
        log_probs: (B, C, L) log-probabilities.
        uniform: (B, C, L) uniform numbers in [0, 1), or None to draw them.
        generator: Source of randomness when `uniform` is None.
        noise: False takes the most probable class.

    Returns:
        (B, L) int64.
    """
    if not noise:
        return log_probs.argmax(1)
    if uniform is None:
        uniform = torch.empty_like(log_probs).uniform_(generator=generator)
    gumbel = -torch.log(-torch.log(uniform + 1e-30) + 1e-30)
    return (log_probs + gumbel).argmax(1)


def importance_distribution(loss_history: Tensor, loss_count: Tensor) -> Tensor:
    """Probability of each diffusion step in training, proportional to the root mean square of its loss.

    Args:
        loss_history: (T,) float32 running mean of the squared loss.
        loss_count: (T,) float32 times each step was trained; all must exceed 10, else the result is uniform.

    Returns:
        (T,) float32 probabilities (improved DDPM, arXiv 2102.09672, equation 18; step 0 is given the value of step 1).
    """
    weight = torch.sqrt(loss_history + 1e-10) + 1e-4
    weight[0] = weight[1]
    is_known = (loss_count > 10).all()  # stays on the device: nothing waits for it
    return torch.where(is_known, weight / weight.sum(), 1.0 / len(weight))
