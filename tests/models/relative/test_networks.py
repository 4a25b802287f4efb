"""Reward networks: the paper's sizes, one number per sample from that sample alone, and gradients of gradients."""

from __future__ import annotations

import pytest
import torch

from models.diffuser.temporal_unet import mish
from models.relative.config import RelativeRewardConfig, RelativeTrainingConfig, SteeringConfig
from models.relative.matching import gradient_matching_loss
from models.relative.networks import HalfTemporalUNet, HalfUNet2D, WindowedMLP, trajectory_network

NETWORKS = {
    "mlp": (WindowedMLP(6, window_steps=3, hidden=(16, 8), activation="silu"), (8, 6)),
    "half_temporal": (HalfTemporalUNet(8, 6, (16, 64)), (8, 6)),
    "half_temporal of horizon 4": (HalfTemporalUNet(4, 23, (64, 64, 128, 128)), (4, 23)),
    "half_2d": (HalfUNet2D(4, 8, (1, 2, 4, 8)), (4, 8, 8)),
    "half_2d on odd sides": (HalfUNet2D(3, 8, (1, 2)), (3, 5, 7)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_reward_per_sample(name):
    network, shape = NETWORKS[name]
    x, t = torch.randn(4, *shape), torch.tensor([0, 1, 5, 9])
    rewards = network(x, t)
    assert rewards.shape == (4,)
    torch.testing.assert_close(network(x[2:3], t[2:3]), rewards[2:3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(x, t + 1), rewards, atol=1e-6)
    gradient_matching_loss(network, x, t, torch.ones_like(x)).backward()
    trained = [p.grad is not None and bool(p.grad.any()) for p in network.parameters() if p.dim() > 1]
    assert all(trained)


def test_a_piecewise_linear_reward_cannot_learn_its_time():
    """Why there is silu: between the kinks of a leaky ReLU, the gradient does not depend on biases or on the step."""
    x, t = torch.randn(16, 8, 6), torch.arange(16)
    for activation, learns in (("leaky_relu", False), ("silu", True)):
        network = WindowedMLP(6, window_steps=3, hidden=(16, 8), activation=activation)
        gradient_matching_loss(network, x, t, torch.ones_like(x)).backward()
        assert network.from_window.weight.grad.any()
        moved = [p.grad is not None and bool(p.grad.any()) for p in network.time.parameters()]
        assert all(moved) == learns and any(moved) == learns


def test_windowed_mlp_is_an_mlp_on_windows():
    torch.manual_seed(0)
    network = WindowedMLP(2, window_steps=3, hidden=(8, 4), time_dim=4, stride=2)
    x, t = torch.randn(1, 8, 2), torch.tensor([3])
    weight = network.from_window.weight.flatten(1)  # hidden x (D h), time last
    rewards = []
    for start in (0, 2, 4):
        window = x[0, start : start + 3].T.flatten()
        hidden = weight @ window + network.from_window.bias + network.from_time(network.time(t))[0]
        rewards.append(network.layers(hidden))
    torch.testing.assert_close(network(x, t), torch.stack(rewards).mean().view(1))


def test_paper_sizes_of_the_half_temporal_unet():
    network = trajectory_network(RelativeRewardConfig(network="half_temporal"), 32, 14)
    assert isinstance(network, HalfTemporalUNet)
    widths = [level.shrink.out_channels for level in network.levels]
    assert widths == [64, 64, 128, 128, 64, 32]
    assert [len(level.blocks) for level in network.levels] == [2, 2, 2, 2, 1, 1]
    assert [(layer.in_features, layer.out_features) for layer in network.head[::2]] == [(36, 16), (16, 1)]
    mlp = trajectory_network(RelativeRewardConfig(), 256, 6)
    assert isinstance(mlp, WindowedMLP) and mlp.from_window.weight.shape == (128, 6, 64)
    assert mlp.from_time.in_features == 32


def test_conditions_of_the_2d_unet():
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 2])
    vector, image = torch.randn(3, 5), torch.randn(3, 2, 8, 8)
    for network, condition in (
        (HalfUNet2D(4, 8, (1, 2), condition_dim=5), vector),
        (HalfUNet2D(4, 8, (1, 2), condition_channels=2), image),
    ):
        assert network(x, t, condition).shape == (3,)
        assert not torch.allclose(network(x, t, condition), network(x, t, condition + 1))
        with pytest.raises(ValueError, match="condition has shape None, expected"):
            network(x, t)
    with pytest.raises(ValueError, match="built without a condition"):
        HalfUNet2D(4, 8, (1, 2))(x, t, vector)


def test_bad_windows():
    with pytest.raises(ValueError, match="window_steps=64: expected at most the horizon, 32"):
        trajectory_network(RelativeRewardConfig(), 32, 6)
    with pytest.raises(ValueError, match="'half_2d' is for images"):
        trajectory_network(RelativeRewardConfig(network="half_2d"), 32, 6)
    with pytest.raises(ValueError, match="2 steps are shorter than the reward's windows of 3"):
        NETWORKS["mlp"][0](torch.randn(1, 2, 6), torch.tensor([0]))
    with pytest.raises(ValueError, match="windows have 4 steps, the reward was built for 8"):
        NETWORKS["half_temporal"][0](torch.randn(1, 4, 6), torch.tensor([0]))


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (RelativeRewardConfig, {"network": "cnn"}, "network='cnn': expected one of"),
        (RelativeRewardConfig, {"channels": (64, 24)}, "channels=.* the last a multiple of 64"),
        (RelativeRewardConfig, {"activation": "relu"}, "activation='relu': expected one of"),
        (RelativeRewardConfig, {"time_dim": 5}, "time_dim=5: expected an even number"),
        (RelativeTrainingConfig, {"form": "score"}, "form='score': expected one of"),
        (RelativeTrainingConfig, {"given": "last"}, "given='last': expected one of"),
        (RelativeTrainingConfig, {"expert_share": 1.5}, r"expert_share=1.5: expected a number in \[0, 1\]"),
        (
            RelativeTrainingConfig,
            {"objective": "discriminator", "expert_share": 0.0},
            "expert_share=0.0: .* for a discriminator",
        ),
        (
            RelativeTrainingConfig,
            {"clip_grad_value": -1.0},
            "clip_grad_value=-1.0: expected null or a positive",
        ),
        (SteeringConfig, {"units": "x0"}, "units='x0': expected one of"),
        (SteeringConfig, {"stop_steps": -1}, "stop_steps=-1: expected a whole number of at least 0"),
    ],
)
def test_bad_settings(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**changes)


def test_mish_and_its_second_derivative_everywhere():
    x = torch.tensor([-200.0, -1.0, 0.0, 1.0, 89.0, 1000.0], requires_grad=True)
    value = mish(x)
    torch.testing.assert_close(value, torch.nn.functional.mish(x))
    gradient = torch.autograd.grad(value.sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(gradient.square().sum(), x)[0]
    # torch's own mish has NaN at the last two; there the function is the identity, with gradient 1.
    assert second.isfinite().all()
    assert gradient[-2:].tolist() == [1.0, 1.0] and second[-2:].tolist() == [0.0, 0.0]


def test_gradient_matching_of_large_features_stays_finite():
    network = HalfTemporalUNet(8, 3, (16, 64))
    x = 1e4 * torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
    gradient_matching_loss(network, x, torch.arange(4), torch.zeros_like(x)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
