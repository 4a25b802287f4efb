"""Rewards from a video diffusion model: the denoising chain, and one forward pass at the all-mask state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from models.vqdiffusion.denoiser import Condition
from models.vqdiffusion.diffusion import VQDiffusion

Choose = Callable[
    [Tensor, int], Tensor
]  # (log-probabilities (B, C, L), network step number) -> tokens (B, L)


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


def chain_terms(
    model: VQDiffusion,
    condition: Condition,
    steps: list[ChainStep],
    choose: Choose,
    observed: Tensor | None,
) -> ChainTerms:
    """Denoises from the all-mask state and scores every step.

    Args:
        model: Video model.
        condition: Histories of B rows.
        steps: See `chain_steps`.
        choose: Picks the tokens of the next state.
        observed: (B, L) int64 tokens to score, or None to score the chain's own result (entropy).

    Returns:
        The terms of each token.
    """
    schedule, rows = model.schedule, condition.batch_size
    state = model.all_mask(rows)
    states, posteriors = [], []
    for number, step in enumerate(steps):
        log_x0 = model.predict_log_x0(state, _filled(state, step.network), condition)
        source, target = _transition(state, step)
        states.append(state)
        posteriors.append(schedule.posterior(log_x0, state, source, target))
        state = choose(posteriors[-1], number)
    scored = state if observed is None else observed
    kl = [
        schedule.posterior_kl(scored, x_t, log_model, *_transition(x_t, step))
        for x_t, log_model, step in zip(states[:-1], posteriors[:-1], steps[:-1])
    ]
    log_likelihood = posteriors[-1].gather(1, scored[:, None])[:, 0]
    kl_terms = torch.stack(kl) if kl else log_likelihood.new_zeros(0, *log_likelihood.shape)
    return ChainTerms(kl_terms, log_likelihood, torch.stack(states), state)


def chain_reward(terms: ChainTerms, mode: str) -> Tensor:
    """Reward of each row, (B,) float32.

    Args:
        terms: Of one chain.
        mode: "entropy" sums the terms; "likelihood" takes their mean over the steps, as published.
    """
    total = reduce(terms.log_likelihood, "b l -> b", "sum") - reduce(terms.kl, "step b l -> b", "sum")
    return total if mode == "entropy" else total / (len(terms.kl) + 1)


def one_forward_reward(model: VQDiffusion, condition: Condition, observed: Tensor | None) -> Tensor:
    """Reward from the frame predicted in one step from the all-mask state.

    Args:
        model: Video model.
        condition: Histories of B rows.
        observed: (B, L) int64 tokens for their log-probability, or None for the negative entropy.

    Returns:
        (B,) float32: sum over tokens of log p(observed | history), or of sum_k p_k log p_k.
    """
    state = model.all_mask(condition.batch_size)
    log_x0 = model.predict_log_x0(state, _filled(state, model.num_steps - 1), condition)
    if observed is not None:
        return reduce(log_x0.gather(1, observed[:, None]), "b 1 l -> b", "sum")
    return reduce(log_x0.exp() * log_x0, "b code l -> b", "sum")


def _filled(state: Tensor, value: int) -> Tensor:
    return torch.full((len(state),), value, device=state.device)


def _transition(state: Tensor, step: ChainStep) -> tuple[Tensor, Tensor | None]:
    """Arguments t and s of the schedule; a single step is given as None, which uses the stored one-step tables."""
    single = step.target == step.source - 1
    return _filled(state, step.source), None if single else _filled(state, step.target)
