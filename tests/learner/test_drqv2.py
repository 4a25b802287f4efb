"""DrQ-v2 against the golden tensors, and the acting policy against the agent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from learner.batch import TensorBatch
from learner.drqv2 import DrQV2Agent
from learner.drqv2_config import DrQV2Config
from learner.networks import noisy_action, random_shift
from learner.policy import build_policy
from tests.learner.helpers import make_tensor_batch

NETWORKS = ("encoder", "actor", "critic", "critic_target")


@pytest.fixture(scope="module")
def data(golden):
    torch.set_num_threads(1)
    folder = golden("drqv2")
    return {
        "state": dict(np.load(folder / "initial_state.npz")),
        "io": dict(np.load(folder / "io.npz")),
        "config": json.loads((folder / "config.json").read_text()),
    }


def golden_agent(data) -> DrQV2Agent:
    agent = DrQV2Agent(64, 4, DrQV2Config(feature_dim=16, hidden_dim=64))
    for prefix in NETWORKS:
        state = {
            name.removeprefix(f"{prefix}."): torch.from_numpy(value)
            for name, value in data["state"].items()
            if name.startswith(f"{prefix}.")
        }
        getattr(agent, prefix).load_state_dict(state)
    return agent


def golden_batch(io) -> TensorBatch:
    frames = {
        name: torch.from_numpy(io[name].transpose(0, 2, 3, 1).copy()) for name in ("obs_u8", "next_obs_u8")
    }
    values = (torch.from_numpy(io[name]) for name in ("action", "reward", "discount"))
    return TensorBatch(frames["obs_u8"], *values, frames["next_obs_u8"])


def golden_shifts(io, update: int) -> tuple[torch.Tensor, torch.Tensor]:
    obs, next_obs = torch.from_numpy(io["shifts"][update].reshape(2, 8, 2).astype(np.int64))
    return obs, next_obs


def run_update(agent, data, update: int, bonus=None, weight=1.0) -> dict[str, float]:
    io = data["io"]
    noise = tuple(torch.from_numpy(io["eps"][update]))
    steps = data["config"]["steps"][update]
    metrics = agent.update(golden_batch(io), steps, bonus, weight, golden_shifts(io, update), noise)
    return {name: float(value) for name, value in metrics.items()}


def expected_tensor(data, key: str, name: str) -> np.ndarray | None:
    """The golden value of a parameter, whichever way it is stored; None if only samples are."""
    io = data["io"]
    if f"{key}/{name}" in io:
        return io[f"{key}/{name}"]
    if f"{key}/{name}@delta_f16" in io:
        return data["state"][name] + io[f"{key}/{name}@delta_f16"].astype(np.float32)
    return None


def check_parameters(agent, data, key: str) -> None:
    for prefix in NETWORKS:
        for name, value in getattr(agent, prefix).state_dict().items():
            name, value = f"{prefix}.{name}", value.numpy()
            expected = expected_tensor(data, key, name)
            if expected is None:
                expected, value = data["io"][f"{key}/{name}@flat_every_17"], value.flatten()[::17]
            np.testing.assert_allclose(value, expected, atol=5e-5, rtol=0, err_msg=f"{key}/{name}")


@pytest.mark.parametrize("update", range(3))
def test_shift_is_the_integer_crop_of_the_padded_image(data, update):
    io = data["io"]
    for images, shifts, name in zip(
        golden_batch(io)[::4], golden_shifts(io, update), ("obs", "next_obs"), strict=True
    ):
        expected = io[f"aug/{name}_update{update + 1}_rounded_u8"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(random_shift(images, shifts, 4).numpy(), expected)


def test_three_updates_match_in_metrics_and_all_networks(data):
    agent = golden_agent(data)
    for update in range(3):
        metrics = run_update(agent, data, update)
        expected = data["config"]["metrics_per_update"][update]
        assert metrics == pytest.approx(metrics | expected, abs=5e-5) and expected.keys() <= metrics.keys()
        if update == 0:
            check_gradients(agent, data["io"])
            check_parameters(agent, data, "after_update1")
    check_parameters(agent, data, "after_update3")


def check_gradients(agent, io) -> None:
    for prefix in ("encoder", "critic", "actor"):
        for name, parameter in getattr(agent, prefix).named_parameters():
            key = f"grad_update1/{prefix}.{name}"
            value, sampled = parameter.grad.numpy(), f"{key}@flat_every_17" in io
            value, expected = (
                (value.flatten()[::17], io[f"{key}@flat_every_17"]) if sampled else (value, io[key])
            )
            np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-4, err_msg=key)


def test_bonus_is_added_once_to_the_n_step_reward(data):
    bonus = torch.from_numpy(data["io"]["variant_expl_reward"]) / 0.95  # stored with its weight
    metrics = run_update(golden_agent(data), data, 0, bonus, weight=0.95)
    expected = data["config"]["metrics_first_update_with_expl_reward"]
    assert metrics == pytest.approx(metrics | expected, abs=5e-5) and expected.keys() <= metrics.keys()


def small_agent(**settings) -> DrQV2Agent:
    """An agent for the batches of `make_tensor_batch`."""
    return DrQV2Agent(
        64, 2, DrQV2Config(encoder_channels=4, feature_dim=8, hidden_dim=16, **settings), seed=3
    )


def constant_rewards(reward: float, discount: float) -> TensorBatch:
    batch = make_tensor_batch(0)
    return batch._replace(
        reward=torch.full_like(batch.reward, reward), discount=torch.full_like(batch.discount, discount)
    )


def test_centred_values_start_at_the_value_of_the_mean_reward():
    batch = constant_rewards(-3.0, 0.97)
    plain = small_agent().update(batch, 0)
    centred = small_agent(centre_values=True).update(
        batch, 0, bonus=torch.full((6, 1), 50.0), bonus_weight=0.0
    )
    assert float(centred["critic_q1"] - plain["critic_q1"]) == pytest.approx(
        -100.0, abs=1e-3
    )  # -3 / (1 - 0.97)
    assert float(plain["critic_loss"]) > 10 > 2 > float(centred["critic_loss"])
    assert float(centred["batch_reward"]) == -3.0


def test_the_centre_is_that_of_the_first_batch_and_survives_a_checkpoint():
    agent = small_agent(centre_values=True)
    agent.update(constant_rewards(2.0, 0.5), 0)
    again = small_agent(centre_values=True)
    again.load_state_dict(agent.state_dict())
    other = constant_rewards(-7.0, 0.9)
    assert agent.update(other, 1)["critic_q1"] == again.update(other, 1)["critic_q1"]
    assert float(agent.value_offset) == float(again.value_offset) == 4.0
    older = {
        key: value for key, value in agent.state_dict().items() if key not in ("value_offset", "centred")
    }
    again.load_state_dict(older)
    again.update(other, 2)
    assert float(again.value_offset) == 0.0


def test_without_discounting_there_is_no_centre():
    agent = small_agent(centre_values=True)
    agent.update(constant_rewards(2.0, 1.0), 0)
    assert float(agent.value_offset) == 0.0


def test_scaled_values_are_those_of_critics_with_larger_outputs():
    batch = make_tensor_batch(1)
    plain, scaled = (small_agent(value_scale=scale).update(batch, 0) for scale in (1.0, 10.0))
    assert float(scaled["critic_q1"]) == pytest.approx(10 * float(plain["critic_q1"]), rel=1e-4)


def test_the_policy_acts_with_a_moving_average_that_survives_a_checkpoint():
    agent, last = small_agent(acting_ema_decay=0.75), small_agent()
    name = "actor.trunk.0.weight"
    expected = start = last.actor_weights()[name]
    for step in range(2):
        agent.update(make_tensor_batch(step), step)
        last.update(make_tensor_batch(step), step)
        expected = 0.75 * expected + 0.25 * last.actor_weights()[name]
    assert np.abs(expected - start).max() > 1e-5
    np.testing.assert_allclose(agent.actor_weights()[name], expected, atol=1e-7)
    again = small_agent(acting_ema_decay=0.75)
    again.load_state_dict(agent.state_dict())
    np.testing.assert_array_equal(again.actor_weights()[name], agent.actor_weights()[name])
    again.load_state_dict(last.state_dict())  # of a run without an average
    np.testing.assert_array_equal(again.actor_weights()[name], last.actor_weights()[name])


@pytest.mark.parametrize(("weight", "comes_back"), [(0.0, False), (1.0, True)])
def test_a_saturated_actor_comes_back_only_by_its_penalty(weight, comes_back):
    agent = small_agent(saturation_weight=weight, lr=1e-2)
    with torch.no_grad():
        agent.actor.policy[-1].bias.fill_(12.0)
    saturation = [float(agent.update(make_tensor_batch(2), 0)["actor_saturation"]) for _ in range(60)]
    assert saturation[0] == 1.0
    pre_tanh = agent.actor.pre_tanh(agent.encoder(make_tensor_batch(2).obs)).detach()
    assert bool((pre_tanh < 3.0).all()) is comes_back
    assert bool((pre_tanh > 9.0).all()) is not comes_back


def test_stddev_schedule(data):
    schedule = data["config"]["schedule"]
    values = [DrQV2Config().stddev(steps) for steps in schedule["steps"]]
    assert values == pytest.approx(schedule["linear(1.0,0.1,3000000)"])


def test_noise_is_clipped_and_the_action_stays_inside(data):
    io = data["io"]
    mean, noise = torch.from_numpy(io["truncnormal/mu"]), torch.from_numpy(io["eps"][0, 0])
    for clip, name in ((0.3, "sample_clip0.3"), (None, "sample_noclip")):
        np.testing.assert_allclose(
            noisy_action(mean, 0.55, noise, clip), io[f"truncnormal/{name}"], atol=1e-6
        )


def test_policy_acts_like_the_golden_agent(data):
    agent, io = golden_agent(data), data["io"]
    policy = build_policy(agent.policy_config())
    policy.load(agent.actor_weights())
    frames = io["obs_u8"][:1].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(policy.act(frames, None)[0], io["act/eval_action"], atol=5e-5)
    stddev = data["config"]["stddev"][0]
    np.testing.assert_allclose(
        policy.act(frames, stddev, io["act/eps"])[0], io["act/train_action"], atol=5e-5
    )


def test_normals_become_uniform_actions_on_request():
    policy = build_policy(DrQV2Agent(64, 3, DrQV2Config(hidden_dim=16)).policy_config())
    frames = np.zeros((50, 64, 64, 3), np.uint8)
    frames.flags.writeable = False
    noise = np.random.default_rng(7).standard_normal((50, 3), dtype=np.float32)
    noise[0] = (0.0, -0.67449, 1.95996)  # median, first quartile, 97.5 %
    actions = policy.act(frames, 0.5, noise)
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    uniform = policy.act(frames, 0.5, noise, uniform=True)
    np.testing.assert_allclose(uniform[0], (0.0, -0.5, 0.95), atol=1e-4)
    assert uniform.shape == (50, 3) and uniform.min() < -0.8 and uniform.max() > 0.8


def test_policy_refuses_weights_of_another_network():
    agent = DrQV2Agent(64, 3, DrQV2Config(hidden_dim=16))
    policy = build_policy({**agent.policy_config(), "hidden_dim": 32})
    with pytest.raises(RuntimeError, match=r"policy\.0\.weight"):
        policy.load(agent.actor_weights())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0),
        ("critic_target_tau", 1.5),
        ("encoder_strides", ()),
        ("batch_size", 0),
        ("value_scale", 0),
        ("acting_ema_decay", 1),
    ],
)
def test_bad_settings_are_named(key, value):
    with pytest.raises(ValueError, match=rf"agent\.{key}="):
        DrQV2Config(**{key: value})
