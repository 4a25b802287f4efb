"""Estimators against direct sums over distributions, and the sources of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.vqdiffusion.frozen import FrozenDenoiser
from models.vqdiffusion.posterior import StepFactors, StepPosterior
from reward_service.estimators import Chain, chain_reward, chain_steps, one_forward_reward
from reward_service.noise import GivenUniform, MostProbable, SeededNoise
from tests.models.dense import paper_schedule, token_posterior
from tests.reward_service.support import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(latent_size=2, num_diffusion_steps=20)


@pytest.fixture(scope="module")
def denoiser(model):
    return FrozenDenoiser(model)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(16, (3, 8), generator=torch.Generator().manual_seed(5))


def predicted(model, tokens):
    """p(x0 | all mask, history) as (rows, tokens, codes) float64."""
    step = torch.full((3,), model.num_steps - 1)
    with torch.inference_mode():
        log_probs = model.predict_log_x0(model.all_mask(3), step, model.condition(tokens))
    return log_probs.double().exp().permute(0, 2, 1).numpy()


def test_one_forward_entropy_is_minus_the_entropy_summed_over_tokens(model, denoiser, tokens):
    with torch.inference_mode():
        reward = one_forward_reward(denoiser, denoiser.history(tokens), None)
    probs = predicted(model, tokens)
    expected = [sum(float((p * np.log(p)).sum()) for p in row) for row in probs]
    np.testing.assert_allclose(reward, expected, rtol=1e-5)
    assert (reward < 0).all() and reward.std() > 1e-3


def test_one_forward_likelihood_is_the_log_probability_summed_over_tokens(model, denoiser, tokens):
    observed = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [15, 15, 0, 9]])
    with torch.inference_mode():
        reward = one_forward_reward(denoiser, denoiser.history(tokens), observed)
    probs = predicted(model, tokens)
    expected = [sum(np.log(probs[r, i, observed[r, i]]) for i in range(4)) for r in range(3)]
    np.testing.assert_allclose(reward, expected, rtol=1e-5)


def test_exact_chain_is_a_lower_bound_that_brute_force_reproduces(model, denoiser, tokens):
    """Every KL of the exact chain equals the one over dense distributions."""
    observed = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [15, 15, 0, 9]])
    steps = chain_steps(20, 6, "exact")
    noise = SeededNoise([3], [7], 1, len(steps), 4)
    with torch.inference_mode():
        schedule = model.schedule
        chain = Chain(denoiser, schedule, steps)
        history, condition = denoiser.history(tokens), model.condition(tokens)
        terms = chain.terms(history, lambda p, step: noise.choose(p, slice(0, 3), 0, step), observed)
        for kl, state, step in zip(terms.kl, terms.tokens, steps):
            t, s = torch.full((3,), step.source), torch.full((3,), step.target)
            q = token_posterior(schedule, observed, state, t, s).double()
            log_x0 = model.predict_log_x0(state, torch.full((3,), step.network), condition)
            p = schedule.posterior(log_x0, state, t, s).double()
            np.testing.assert_allclose(kl, (q.exp() * (q - p)).sum(1), rtol=1e-4, atol=1e-5)
    assert (terms.final < 16).all(), "a clean frame holds no mask"
    assert (terms.kl > -1e-5).all()
    assert (terms.tokens[1] != terms.tokens[0]).any(), "the jump unmasks tokens"


def test_entropy_sums_and_likelihood_averages_over_the_steps(model, denoiser, tokens):
    steps = chain_steps(20, 6, "official")
    with torch.inference_mode():
        terms = Chain(denoiser, model.schedule, steps).terms(
            denoiser.history(tokens), lambda p, step: MostProbable().choose(p, slice(0, 3), 0, step), None
        )
    total = chain_reward(terms, "entropy")
    np.testing.assert_allclose(total, terms.log_likelihood.sum(1) - terms.kl.sum((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(chain_reward(terms, "likelihood"), total / len(steps), rtol=1e-6)


def posterior_of(probs, x_t=None, mask=0.0):
    """A posterior that equals `probs` (rows, tokens, codes), beside a mask of some probability."""
    shape = probs.shape[:2]
    x_t = torch.full(shape, probs.shape[-1]) if x_t is None else x_t
    zero, one = torch.zeros(shape), torch.ones(shape)
    return StepPosterior(probs, x_t, one, zero, zero, zero + mask)


def test_seeded_noise_draws_classes_with_their_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.2])
    noise = SeededNoise([4000], [3], 1, 1, 5)
    chosen = noise.choose(posterior_of(probs.expand(4000, 5, 3), mask=0.3), slice(0, 4000), 0, 0)
    frequency = torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()
    assert frequency[1] == 0
    np.testing.assert_allclose(frequency, [0.5, 0.0, 0.2, 0.3], atol=0.02)


def test_seeded_noise_depends_on_seed_and_place_only():
    posterior = posterior_of(torch.full((2, 6, 1024), 1 / 1025), mask=1 / 1025)
    alone = SeededNoise([9], [42], 2, 3, 6).choose(posterior, slice(5, 7), 1, 2)
    among = SeededNoise([4, 7, 2], [1, 42, 8], 2, 3, 6).choose(posterior, slice(9, 11), 1, 2)
    other = SeededNoise([9], [43], 2, 3, 6).choose(posterior, slice(5, 7), 1, 2)
    assert torch.equal(alone, among)
    assert not torch.equal(alone, other)


def test_given_uniform_is_the_gumbel_trick():
    uniform = torch.full((1, 1, 4, 1), 0.5)
    uniform[0, 0, 2] = 0.999
    posterior = posterior_of(torch.tensor([[[0.5, 0.3, 0.2]]]))
    assert GivenUniform(uniform).choose(posterior, slice(0, 1), 0, 0).item() == 2
    assert MostProbable().choose(posterior, slice(0, 1), 0, 0).item() == 0


@pytest.mark.parametrize(
    ("t", "s"), [(99, None), (90, None), (37, None), (1, None), (0, None), (99, 89), (9, 0)]
)
def test_step_posterior_equals_the_dense_one(t, s):
    """All classes, likelihoods, KL and samples, of masked tokens, codes and codes that equal x0."""
    generator = torch.Generator().manual_seed(t)
    schedule = paper_schedule(100, 12)
    logits = 8 * torch.randn(40, 5, 12, generator=generator)
    probs = logits.softmax(-1)
    x_t = torch.randint(13, (40, 5), generator=generator)
    x0 = torch.where(torch.rand(40, 5, generator=generator) < 0.3, x_t.clamp_max(11), torch.tensor(4))
    now = torch.full((40,), t)
    then = None if s is None else torch.full((40,), s)
    dense = schedule.posterior(probs.log().transpose(1, 2), x_t, now, then)
    posterior = StepPosterior.of(probs, x_t, StepFactors.of(schedule, t, s))
    np.testing.assert_allclose(posterior.log_probs().transpose(1, 2), dense, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        posterior.log_prob(x0), dense.gather(1, x0[:, None])[:, 0], rtol=2e-5, atol=2e-5
    )
    if t > 0:
        q = schedule.token_posterior(x0, x_t, now, then)
        expected = schedule.posterior_kl(x0, x_t, dense, now, then)
        np.testing.assert_allclose(posterior.kl(x0, q), expected, rtol=1e-4, atol=2e-5)
    uniform = torch.rand(40, 5, generator=generator)
    cumulative = dense.double().exp().cumsum(1)
    wanted = (cumulative <= uniform[:, None].double() * cumulative[:, -1:]).sum(1)
    # at t = 0 the mask has no mass but rounding
    wanted = wanted.clamp_max(11) if t == 0 else wanted
    assert torch.equal(posterior.sample(uniform), wanted)
    assert torch.equal(posterior.sample(uniform, fixed_shapes=True), wanted), "as a GPU does it"


def test_samples_of_a_step_posterior_have_its_probabilities():
    schedule = paper_schedule(100, 6)
    probs = torch.tensor([0.4, 0.1, 0.1, 0.2, 0.15, 0.05]).expand(1, 30000, 6)
    for x_t in (6, 2):
        posterior = StepPosterior.of(probs, torch.full((1, 30000), x_t), StepFactors.of(schedule, 60, 40))
        chosen = posterior.sample(torch.rand(1, 30000, generator=torch.Generator().manual_seed(x_t)))
        frequency = torch.bincount(chosen.flatten(), minlength=7) / 30000
        np.testing.assert_allclose(frequency, posterior.log_probs()[0, 0].exp(), atol=0.01)
