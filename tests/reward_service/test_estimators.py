"""Estimators against direct sums over distributions, and the sources of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_service.estimators import chain_reward, chain_steps, chain_terms, one_forward_reward
from reward_service.noise import GivenUniform, MostProbable, SeededNoise
from tests.reward_service.support import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(latent_size=2, num_diffusion_steps=20)


@pytest.fixture(scope="module")
def condition(model):
    with torch.inference_mode():
        return model.condition(torch.randint(16, (3, 8), generator=torch.Generator().manual_seed(5)))


def predicted(model, condition):
    """p(x0 | all mask, history) as (rows, tokens, codes) float64."""
    step = torch.full((3,), model.num_steps - 1)
    with torch.inference_mode():
        log_probs = model.predict_log_x0(model.all_mask(3), step, condition)
    return log_probs.double().exp().permute(0, 2, 1).numpy()


def test_one_forward_entropy_is_minus_the_entropy_summed_over_tokens(model, condition):
    with torch.inference_mode():
        reward = one_forward_reward(model, condition, None)
    probs = predicted(model, condition)
    expected = [sum(float((p * np.log(p)).sum()) for p in row) for row in probs]
    np.testing.assert_allclose(reward, expected, rtol=1e-5)
    assert (reward < 0).all() and reward.std() > 1e-3


def test_one_forward_likelihood_is_the_log_probability_summed_over_tokens(model, condition):
    observed = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [15, 15, 0, 9]])
    with torch.inference_mode():
        reward = one_forward_reward(model, condition, observed)
    probs = predicted(model, condition)
    expected = [sum(np.log(probs[r, i, observed[r, i]]) for i in range(4)) for r in range(3)]
    np.testing.assert_allclose(reward, expected, rtol=1e-5)


def test_exact_chain_is_a_lower_bound_that_brute_force_reproduces(model, condition):
    """Every KL of the exact chain equals the one over dense distributions."""
    observed = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [15, 15, 0, 9]])
    steps = chain_steps(20, 6, "exact")
    noise = SeededNoise([3], [7], 1, len(steps), 4)
    with torch.inference_mode():
        terms = chain_terms(
            model, condition, steps, lambda p, step: noise.choose(p, slice(0, 3), 0, step), observed
        )
        schedule = model.schedule
        for kl, tokens, step in zip(terms.kl, terms.tokens, steps):
            t, s = torch.full((3,), step.source), torch.full((3,), step.target)
            q = schedule.token_posterior_dense(observed, tokens, t, s).double()
            log_x0 = model.predict_log_x0(tokens, torch.full((3,), step.network), condition)
            p = schedule.posterior(log_x0, tokens, t, s).double()
            np.testing.assert_allclose(kl, (q.exp() * (q - p)).sum(1), rtol=1e-4, atol=1e-5)
    assert (terms.final < 16).all(), "a clean frame holds no mask"
    assert (terms.kl > -1e-5).all()
    assert (terms.tokens[1] != terms.tokens[0]).any(), "the jump unmasks tokens"


def test_entropy_sums_and_likelihood_averages_over_the_steps(model, condition):
    steps = chain_steps(20, 6, "official")
    with torch.inference_mode():
        terms = chain_terms(
            model, condition, steps, lambda p, step: MostProbable().choose(p, slice(0, 3), 0, step), None
        )
    total = chain_reward(terms, "entropy")
    np.testing.assert_allclose(total, terms.log_likelihood.sum(1) - terms.kl.sum((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(chain_reward(terms, "likelihood"), total / len(steps), rtol=1e-6)


def test_seeded_noise_draws_classes_with_their_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3])
    noise = SeededNoise([4000], [3], 1, 1, 5)
    log_probs = probs.log().reshape(1, 4, 1).expand(4000, 4, 5)
    chosen = noise.choose(log_probs, slice(0, 4000), 0, 0)
    frequency = torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()
    assert frequency[1] == 0
    np.testing.assert_allclose(frequency, probs, atol=0.02)


def test_seeded_noise_depends_on_seed_and_place_only():
    log_probs = torch.full((2, 1025, 6), 1 / 1025).log()
    alone = SeededNoise([9], [42], 2, 3, 6).choose(log_probs, slice(5, 7), 1, 2)
    among = SeededNoise([4, 7, 2], [1, 42, 8], 2, 3, 6).choose(log_probs, slice(9, 11), 1, 2)
    other = SeededNoise([9], [43], 2, 3, 6).choose(log_probs, slice(5, 7), 1, 2)
    assert torch.equal(alone, among)
    assert not torch.equal(alone, other)


def test_given_uniform_is_the_gumbel_trick():
    uniform = torch.full((1, 1, 3, 1), 0.5)
    uniform[0, 0, 2] = 0.999
    log_probs = torch.tensor([0.5, 0.3, 0.2]).log().reshape(1, 3, 1)
    assert GivenUniform(uniform).choose(log_probs, slice(0, 1), 0, 0).item() == 2
    assert MostProbable().choose(log_probs, slice(0, 1), 0, 0).item() == 0
