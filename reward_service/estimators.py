"""Rewards from a video diffusion model: the denoising chain, and one forward pass at the all-mask state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from models.vqdiffusion.frozen import FrozenDenoiser, History
from models.vqdiffusion.posterior import StepFactors, StepPosterior
from models.vqdiffusion.schedule import Schedule

Choose = Callable[[StepPosterior, int], Tensor]  # (posterior, network step number) -> tokens (B, L)


class ChainStep(NamedTuple):
    """One step of the denoising chain.

    Attributes:
        network: Diffusion step that the network is told.
        source: Diffusion step t of the posterior q(x_s | x_t, x0).
        target: Its s; -1 is the clean frame.
    """

    network: int
    source: int
    target: int


class ChainTerms(NamedTuple):
    """What a denoising chain tells about each token; their sum is the reward (Diffusion Reward, arXiv 2312.14134).

    Attributes:
        kl: (N-1, B, L) float32, KL(q(x_s | x_t, x0) || p(x_s | x_t, history)) of all steps but the last.
        log_likelihood: (B, L) float32, log p(x0 | x_t, history) in the last step.
        tokens: (N, B, L) int64, x_t before each of the N steps.
        final: (B, L) int64, the denoised frame.
    """

    kl: Tensor
    log_likelihood: Tensor
    tokens: Tensor
    final: Tensor


def chain_steps(num_diffusion_steps: int, skip_step: int, posterior: str) -> list[ChainStep]:
    """The steps of a chain from the all-mask state to the clean frame.

    Args:
        num_diffusion_steps: T.
        skip_step: Diffusion steps left out between two network steps; 9 of 100 gives 99, 89, ..., 9, 0.
        posterior: "official" uses the one-step posterior at t - skip_step (at t itself from skip_step down);
            "exact" jumps to the next network step.

    Returns:
        The steps; the last one ends at -1.

    Raises:
        ValueError: if `skip_step` leaves no chain.
    """
    if not 0 <= skip_step < num_diffusion_steps:
        raise ValueError(
            f"skip_step is {skip_step}, expected 0 to {num_diffusion_steps - 1} with {num_diffusion_steps} diffusion steps"
        )
    network = list(range(num_diffusion_steps - 1, -1, -1 - skip_step))
    if network[-1] != 0:
        network.append(0)
    if posterior == "exact":
        return [ChainStep(t, t, s) for t, s in zip(network, [*network[1:], -1])]
    sources = [t - skip_step if t > skip_step else t for t in network]
    return [ChainStep(t, source, source - 1) for t, source in zip(network, sources)]


class Chain:
    """Denoises from the all-mask state and scores every step.

    Args:
        denoiser: Predicts the clean frame.
        schedule: Forward process of its model.
        steps: See `chain_steps`.
    """

    def __init__(self, denoiser: FrozenDenoiser, schedule: Schedule, steps: Sequence[ChainStep]) -> None:
        self.denoiser, self.schedule, self.steps = denoiser, schedule, tuple(steps)
        # a single step uses the stored one-step tables
        self._targets = [None if step.target == step.source - 1 else step.target for step in steps]
        self._factors = [
            StepFactors.of(schedule, step.source, target) for step, target in zip(steps, self._targets)
        ]

    def terms(self, history: History, choose: Choose, observed: Tensor | None) -> ChainTerms:
        """Runs one chain per row.

        Args:
            history: Of B rows.
            choose: Picks the tokens of the next state.
            observed: (B, L) int64 tokens to score, or None to score the chain's own result (entropy).

        Returns:
            The terms of each token.
        """
        config = self.denoiser.config
        state = torch.full((1, config.content_len), config.num_codes, device=self.denoiser.device)
        posteriors: list[StepPosterior] = []
        for number, (step, factors) in enumerate(zip(self.steps, self._factors)):
            probs = self.denoiser.probabilities(state, step.network, history)
            posteriors.append(StepPosterior.of(probs, state, factors))
            state = choose(posteriors[-1], number)
        scored = state if observed is None else observed
        kl = [self._kl(number, posterior, scored) for number, posterior in enumerate(posteriors[:-1])]
        log_likelihood = posteriors[-1].log_prob(scored)
        kl_terms = torch.stack(kl) if kl else log_likelihood.new_zeros(0, *log_likelihood.shape)
        return ChainTerms(kl_terms, log_likelihood, torch.stack([p.x_t for p in posteriors]), state)

    def _kl(self, number: int, posterior: StepPosterior, scored: Tensor) -> Tensor:
        step, target = self.steps[number], self._targets[number]
        t = torch.full((1,), step.source, device=scored.device)
        s = None if target is None else torch.full_like(t, target)
        return posterior.kl(scored, self.schedule.token_posterior(scored, posterior.x_t, t, s))


def chain_reward(terms: ChainTerms, mode: str) -> Tensor:
    """Reward of each row, (B,) float32.

    Args:
        terms: Of one chain.
        mode: "entropy" sums the terms; "likelihood" takes their mean over the steps, as published.
    """
    total = reduce(terms.log_likelihood, "b l -> b", "sum") - reduce(terms.kl, "step b l -> b", "sum")
    return total if mode == "entropy" else total / (len(terms.kl) + 1)


def one_forward_reward(denoiser: FrozenDenoiser, history: History, observed: Tensor | None) -> Tensor:
    """Reward from the frame predicted in one step from the all-mask state.

    Args:
        denoiser: Predicts the clean frame.
        history: Of B rows.
        observed: (B, L) int64 tokens for their log-probability, or None for the negative entropy.

    Returns:
        (B,) float32: sum over tokens of log p(observed | history), or of sum_k p_k log p_k.
    """
    config = denoiser.config
    state = torch.full((1, config.content_len), config.num_codes, device=denoiser.device)
    log_x0 = denoiser.log_probabilities(state, config.num_diffusion_steps - 1, history)
    if observed is not None:
        return reduce(log_x0.gather(-1, observed[..., None]), "b l 1 -> b", "sum")
    return reduce(log_x0.exp() * log_x0, "b l code -> b", "sum")
