"""The schedule's literal values, and every conversion against autograd and against Gaussian conditioning."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffuser.schedule import GaussianSchedule, at
from models.relative.mixtures import GaussianMixture

STEPS = 20


def two_mixtures() -> tuple[GaussianMixture, GaussianMixture]:
    """Base and expert of three Gaussians in two dimensions, in float64."""
    schedule = GaussianSchedule(STEPS).double()
    centres = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [0.2, -1.0]])
    weights = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.7, 0.2, 0.1])
    base, expert = (GaussianMixture(centres, w, 0.3, schedule).double() for w in weights)
    return base, expert


def points() -> tuple[torch.Tensor, torch.Tensor]:
    """Two random points at every diffusion step."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(STEPS).repeat(2)
    return torch.randn(len(t), 2, generator=generator, dtype=torch.float64), t


def score(model: GaussianMixture, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Gradient of the log density by autograd."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model.log_density(x, t).sum(), x)[0]


def test_cosine_schedule():
    schedule = GaussianSchedule(100)
    assert schedule.beta[-1] == pytest.approx(0.999)
    level = [math.cos((n / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(101)]
    for t in (0, 1, 50, 98):
        assert schedule.abar[t].item() == pytest.approx(level[t + 1] / level[0], rel=1e-5)
    assert schedule.abar_previous[0] == 1 and schedule.posterior_std[0] == 0


def test_how_a_clean_prediction_moves_the_mean():
    c1 = GaussianSchedule(100).mean_x0_factor
    assert c1[0].item() == pytest.approx(1.0, abs=1e-6)
    assert c1[1].item() == pytest.approx(0.64, abs=0.005)
    assert c1[99].item() == pytest.approx(0.016, abs=0.0005)


@pytest.mark.parametrize("t", [0, 1, 7, STEPS - 1])
def test_posterior_is_gaussian_conditioning(t):
    schedule = GaussianSchedule(STEPS).double()
    x0, x_t = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    # x_{t-1} = sqrt(abar_{t-1}) x0 + noise of variance v; x_t = sqrt(alpha) x_{t-1} + noise of variance beta
    prior, v = schedule.abar_previous[t].sqrt() * x0, 1 - schedule.abar_previous[t]
    alpha, beta = schedule.alpha[t], schedule.beta[t]
    gain = alpha.sqrt() * v / (alpha * v + beta)
    mean, variance = prior + gain * (x_t - alpha.sqrt() * prior), v - gain * alpha.sqrt() * v
    step = torch.tensor([t])
    torch.testing.assert_close(schedule.mean_from_x0(x0, x_t, step), mean, atol=1e-6, rtol=1e-5)
    assert schedule.posterior_std[t].item() ** 2 == pytest.approx(variance.item(), abs=1e-6)


def test_predictions_are_one_another_in_disguise():
    base, _ = two_mixtures()
    schedule = base.schedule
    x, t = points()
    x0 = base.predict_x0(x, t)
    epsilon = schedule.epsilon_from_x0(x0, x, t)
    of_noise = -epsilon / at(schedule.noise, t, x)
    torch.testing.assert_close(of_noise, score(base, x, t), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(schedule.add_noise(x0, t, epsilon), x)


def test_differences_of_two_models():
    """d_mu = beta / sqrt(alpha) d_s = c1 d_x0, and eps_base - eps_expert = sqrt(1 - abar) d_s."""
    base, expert = two_mixtures()
    schedule = base.schedule
    x, t = points()
    x0 = [model.predict_x0(x, t) for model in (base, expert)]
    means = [schedule.mean_from_x0(p, x, t) for p in x0]
    noises = [schedule.epsilon_from_x0(p, x, t) for p in x0]
    d_score = score(expert, x, t) - score(base, x, t)
    close = {"atol": 2e-5, "rtol": 1e-4}
    d_mean = means[1] - means[0]
    torch.testing.assert_close((schedule.beta / schedule.alpha.sqrt())[t][:, None] * d_score, d_mean, **close)
    torch.testing.assert_close(
        (1 - schedule.abar).sqrt()[t][:, None] * d_score, noises[0] - noises[1], **close
    )
    differences = {"mean": d_mean, "x0": x0[1] - x0[0], "score": d_score, "epsilon": noises[0] - noises[1]}
    for form, difference in differences.items():
        torch.testing.assert_close(schedule.mean_difference(difference, t, form), d_mean, **close)


def test_bad_input():
    with pytest.raises(ValueError, match="num_steps=0"):
        GaussianSchedule(0)
    with pytest.raises(ValueError, match="unknown form 'velocity'"):
        GaussianSchedule(5).mean_difference_factor("velocity")
