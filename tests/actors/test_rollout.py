"""Blocks of training episodes: what is recorded, exploration, fresh weights, and making a lost block again."""

from __future__ import annotations

import numpy as np
import pytest

from actors import rollout as rollout_module
from actors.envs.registry import EnvConfig
from actors.policy import resolve_factory
from actors.rollout import Rollout, RolloutConfig
from models.videos import RenderSettings
from tests.actors.fakes import FakeEnv, FakePolicy


def store(version=0):
    """A weight store that publishes nothing new."""
    return lambda known: (version, {"value": np.array(0.25)}) if known < version else None


@pytest.fixture
def fake_rollout(monkeypatch):
    def build(pull=None, rewards=(0, 0, 3), **config):
        envs = []

        def make_env(_):
            envs.append(FakeEnv(rewards))
            return envs[-1]

        monkeypatch.setattr(rollout_module, "make_env", make_env)
        policy = FakePolicy()
        rollout = Rollout(EnvConfig("reach"), RolloutConfig(**config), policy, pull or store())
        return rollout, policy, envs

    return build


def test_what_a_block_holds(fake_rollout):
    rollout, _, _ = fake_rollout(num_envs=2, num_expl_steps=0)
    episodes, meta = rollout.collect("b0000007", 3, global_agent_steps=100)
    assert [e.episode_id for e in episodes] == ["b0000007-0", "b0000007-1", "b0000007-2"]
    for episode in episodes:
        assert episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert episode.env_rewards.tolist() == [0, 0, 3] and episode.env_rewards.dtype == np.float32
        assert episode.successes.tolist() == [False, False, True]
        assert episode.discounts.tolist() == [1, 1, 1]
        assert episode.actions.shape == (3, 4)
    assert (meta["block_id"], meta["agent_steps"], meta["weight_version"]) == ("b0000007", 9, 0)
    first = meta["episodes"][0]
    assert (first["episode_id"], first["length_steps"], first["env_return"]) == ("b0000007-0", 3, 3.0)
    assert (first["success"], first["dense_return"], first["weight_version"]) == (True, 1.5, 0)


def test_queries_are_batched_over_environments_in_waves(fake_rollout):
    rollout, policy, _ = fake_rollout(num_envs=2)
    rollout.collect("b", 3, 0)
    assert [call[0] for call in policy.calls] == [2, 2, 2, 1, 1, 1]


def test_exploration_counts_global_agent_steps(fake_rollout):
    rollout, policy, _ = fake_rollout(
        num_envs=2, num_expl_steps=14, stddev_start=1.0, stddev_end=0.0, stddev_duration_steps=20
    )
    rollout.collect("b", 4, global_agent_steps=10)
    assert [(stddev, uniform) for _, stddev, uniform, _ in policy.calls] == [
        (0.5, True),
        (0.4, True),
        (0.3, False),
        (0.2, False),
        (0.1, False),
        (0.0, False),
    ]


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_is_correlated_within_an_episode_only(fake_rollout, correlation):
    rollout, _, _ = fake_rollout(
        rewards=[0] * 250, num_envs=2, num_expl_steps=9999, noise_correlation=correlation
    )
    episodes, _ = rollout.collect("b", 4, 0)
    noise = np.arctanh(
        np.stack([e.actions for e in episodes]).astype(np.float64)
    )  # of FakePolicy, (4, 250, A)
    before, after = noise[:, :-1].flatten(), noise[:, 1:].flatten()
    assert np.corrcoef(before, after)[0, 1] == pytest.approx(correlation, abs=0.05)
    assert noise.std() == pytest.approx(1.0, abs=0.15)
    last, first = noise[:2, -1].flatten(), noise[2:, 0].flatten()
    assert np.abs(last - first).max() > 1.0  # 0.9 would leave changes of 0.4
    assert np.abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.3


def test_excursions_hold_an_action_and_end(fake_rollout):
    def actions(prob, num_expl_steps=0):
        rollout, _, _ = fake_rollout(
            rewards=[0] * 250,
            num_envs=2,
            num_expl_steps=num_expl_steps,
            stddev_start=0.0,
            stddev_end=0.0,
            excursion_prob=prob,
        )
        episodes, _ = rollout.collect("b", 40, 0)
        return np.stack([e.actions for e in episodes])  # (40, 250, A)

    calm, found = actions(0.0), actions(0.05)
    assert (calm == calm[0, 0]).all()
    away = (found != calm).any(-1)
    lengths = []
    for episode, is_away in zip(found, away):
        edges = np.flatnonzero(np.abs(np.diff(episode, axis=0)).any(-1)) + 1  # where an action is replaced
        parts = np.split(np.arange(len(episode)), edges)
        lengths += [len(part) for part in parts if is_away[part[0]]]
    # Of zeta(2)-distributed lengths 61 % are one step, 10 % are six or more; begun at each twentieth other step.
    assert np.mean(np.array(lengths) == 1) == pytest.approx(0.61, abs=0.08)
    assert np.mean(np.array(lengths) >= 6) == pytest.approx(0.11, abs=0.05)
    assert len(lengths) == pytest.approx(0.05 * (~away).sum(), rel=0.2)
    assert np.abs(found[away]).max() <= 1.0 and not np.array_equal(found[0], found[1])
    # Where all actions are random anyway, nothing is held.
    np.testing.assert_array_equal(actions(0.5, 10**6), actions(0.0, 10**6))


@pytest.mark.parametrize(
    ("steps", "stddev"), [(0, 1.0), (1_500_000, 0.55), (3_000_000, 0.1), (9_000_000, 0.1), (1_033_333, 0.69)]
)
def test_schedule_of_the_paper(steps, stddev):
    assert RolloutConfig().stddev(steps) == pytest.approx(stddev, abs=1e-6)


def test_newer_weights_are_used_within_a_block(fake_rollout):
    asked = []

    def pull(known):
        asked.append(known)
        return known + 1, {"value": np.array(float(known + 1) / 10)}

    rollout, policy, _ = fake_rollout(pull, rewards=[0] * 5, num_expl_steps=0, weight_refresh_steps=2)
    _, meta = rollout.collect("b", 2, 0)
    assert asked == [-1, 0, 1, 2, 3]
    assert [round(call[3] * 10) for call in policy.calls] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [e["weight_version"] for e in meta["episodes"]] == [2, 4]


def test_no_weights_after_exploration_is_an_error(fake_rollout):
    rollout, _, _ = fake_rollout(lambda known: None, num_expl_steps=2)
    with pytest.raises(RuntimeError, match="no policy weights at agent step 2"):
        rollout.collect("b", 1, 0)


def test_a_lost_block_is_made_again_exactly():
    config = EnvConfig("door-close", episode_steps=6, render=RenderSettings(height_px=32, width_px=32))

    def block(seed, block_id, before=()):
        rollout = Rollout(
            config, RolloutConfig(seed=seed, num_envs=2, num_expl_steps=6), FakePolicy(), store()
        )
        for earlier in before:
            rollout.collect(earlier, 1, 0)
        episodes, meta = rollout.collect(block_id, 2, 0)
        return np.stack([e.frames for e in episodes]), np.stack([e.actions for e in episodes]), meta

    frames, actions, meta = block(0, "b1")
    again_frames, again_actions, again_meta = block(0, "b1", before=["b0"])
    np.testing.assert_array_equal(frames, again_frames)
    np.testing.assert_array_equal(actions, again_actions)
    assert meta["episodes"] == again_meta["episodes"]
    for seed, block_id in ((1, "b1"), (0, "b2")):
        other_frames, other_actions, _ = block(seed, block_id)
        assert not np.array_equal(actions, other_actions)
        assert not np.array_equal(frames[:, 0], other_frames[:, 0])  # other scenes, too
    assert not np.array_equal(frames[0, 0], frames[1, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"num_envs": 0},
        {"stddev_end": -0.1},
        {"weight_refresh_steps": 0},
        {"seed": -1},
        {"noise_correlation": 1.0},
        {"excursion_prob": -0.1},
    ],
)
def test_bad_config_names_the_key(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RolloutConfig(**change)


def test_policy_factory_by_name():
    assert resolve_factory("tests.actors.fakes:FakePolicy") is FakePolicy
    assert resolve_factory(FakePolicy) is FakePolicy
    with pytest.raises(ValueError, match="module:function"):
        resolve_factory("tests.actors.fakes")
