"""The Gaussian noise schedule and the exact conversions between what a diffusion model may predict.

DDPM (arXiv 2006.11239) with the cosine schedule of arXiv 2102.09672. Notation: `abar_t` is the product of
`alpha_t = 1 - beta_t`, and `abar_{-1} = 1`; step 0 is the least noisy one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

COSINE_OFFSET = 0.008
MAX_BETA = 0.999
FORMS = ("mean", "x0", "epsilon", "score")


class GaussianSchedule(nn.Module):
    """Coefficients of `num_steps` diffusion steps, computed in float64 and kept in float32.

    Args:
        num_steps: T, at least 1.

    Attributes:
        beta, alpha, abar, abar_previous: (T,) each.
        mean_x0_factor, mean_x_factor: (T,) c1 and c2 of the posterior mean `c1 x0 + c2 x_t`.
        posterior_std: (T,) standard deviation of x_{t-1} given x_t and x0; 0 at step 0.
    """

    beta: Tensor
    alpha: Tensor
    abar: Tensor
    abar_previous: Tensor
    mean_x0_factor: Tensor
    mean_x_factor: Tensor
    posterior_std: Tensor
    signal: Tensor
    noise: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"a schedule needs at least 1 diffusion step, got num_steps={num_steps}")
        self.num_steps = num_steps
        beta = cosine_beta(num_steps)
        abar = np.cumprod(1 - beta)
        previous = np.concatenate([[1.0], abar[:-1]])
        values = {
            "beta": beta,
            "alpha": 1 - beta,
            "abar": abar,
            "abar_previous": previous,
            "mean_x0_factor": beta * np.sqrt(previous) / (1 - abar),
            "mean_x_factor": (1 - previous) * np.sqrt(1 - beta) / (1 - abar),
            "posterior_std": np.sqrt(beta * (1 - previous) / (1 - abar)),
            "signal": np.sqrt(abar),
            "noise": np.sqrt(1 - abar),
        }
        for name, value in values.items():  # not part of a checkpoint: they follow from T
            self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, for t (B,) int64."""
        return at(self.signal, t, x0) * x0 + at(self.noise, t, x0) * noise

    def mean_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Posterior mean of x_{t-1} given x_t and the clean (or predicted clean) x0."""
        return at(self.mean_x0_factor, t, x_t) * x0 + at(self.mean_x_factor, t, x_t) * x_t

    def epsilon_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that turns x0 into x_t."""
        return (x_t - at(self.signal, t, x_t) * x0) / at(self.noise, t, x_t)

    def mean_difference_factor(self, form: str) -> Tensor:
        """What turns a difference of two models, expert - base, into the difference of their posterior means.

        `d_mean = c1 d_x0 = beta / sqrt(alpha) d_score = beta / (sqrt(alpha) sqrt(1 - abar)) (eps_base - eps_expert)`.

        Args:
            form: What the difference is of: "mean", "x0", "score", or "epsilon" (base - expert there).

        Returns:
            (T,) factors, one per diffusion step.

        Raises:
            ValueError: for another form.
        """
        if form == "mean":
            return torch.ones_like(self.beta)
        if form == "x0":
            return self.mean_x0_factor
        if form == "score":
            return self.beta / self.alpha.sqrt()
        if form == "epsilon":
            return self.beta / (self.alpha.sqrt() * self.noise)
        raise ValueError(f"unknown form {form!r}; expected one of {FORMS}")

    def mean_difference(self, difference: Tensor, t: Tensor, form: str) -> Tensor:
        """`difference` in units of the posterior mean; see `mean_difference_factor`."""
        return at(self.mean_difference_factor(form), t, difference) * difference


def cosine_beta(num_steps: int) -> np.ndarray:
    """(T,) float64 noise rates of the cosine schedule: s = 0.008, beta at most 0.999 (arXiv 2102.09672, eq. 17)."""
    time = np.linspace(0, 1, num_steps + 1)
    abar = np.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], 0, MAX_BETA)


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """`values[t]` (B,) with as many trailing axes of length 1 as `like` (B, ...) has."""
    return values[t].view(-1, *[1] * (like.dim() - 1))
