"""n-step returns against the golden sampler, and at episode ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.nstep import count_starts, n_step_return
from learner.replay import EpisodeStore, ReplayConfig
from models.episode import Episode
from tests.learner.helpers import make_episode


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("name", ["no_terminal", "terminal_discount0"])
def test_every_start_matches_the_official_sampler(golden, tmp_path, name, n_step):
    data = np.load(golden("drqv2") / "nstep.npz")
    rewards, discounts = (data[f"{name}/episode_{key}"][1:, 0] for key in ("reward", "discount"))
    steps = len(rewards)
    rows = np.arange(steps + 1, dtype=np.uint8)
    episode = Episode(
        episode_id="golden",
        task="door-close",
        frames=np.broadcast_to(rows[:, None, None, None], (steps + 1, 4, 4, 3)).copy(),
        actions=rows[1:, None].astype(np.float32),  # the official row of the action taken at frame k is k + 1
        env_rewards=rewards,
        discounts=discounts,
        successes=np.zeros(steps, bool),
    )
    store = EpisodeStore(tmp_path, ReplayConfig(capacity_transitions=20, n_step=n_step), 4, 1)
    store.insert(episode)
    batch = store.transitions(np.arange(store.size_starts))
    expected = {
        key: data[f"{name}/nstep{n_step}/{key}"] for key in ("obs_index", "action_index", "next_obs_index")
    }
    np.testing.assert_array_equal(batch.obs[:, 0, 0, 0], expected["obs_index"])
    np.testing.assert_array_equal(batch.action[:, 0], expected["action_index"])
    np.testing.assert_array_equal(batch.next_obs[:, 0, 0, 0], expected["next_obs_index"])
    np.testing.assert_array_equal(batch.reward[:, 0], data[f"{name}/nstep{n_step}/reward"])
    np.testing.assert_array_equal(batch.discount[:, 0], data[f"{name}/nstep{n_step}/discount"])
    store.close()


def test_return_by_hand():
    reward, discount = n_step_return(
        np.array([[1, 2, 4], [1, 2, 4]], np.float32), np.array([[1, 1, 1], [1, 0, 1]], np.float32), 0.5
    )
    assert reward.tolist() == [1 + 1 + 1, 1 + 1 + 0]
    assert discount.tolist() == [0.125, 0]


def test_episodes_shorter_than_n_offer_no_start():
    assert count_starts(np.array([1, 2, 3, 4]), 3).tolist() == [0, 0, 1, 2]


def test_samples_never_cross_an_episode_and_reach_every_start(tmp_path):
    store = EpisodeStore(tmp_path, ReplayConfig(capacity_transitions=30, episode_steps=4), 4, 2)
    for number, steps in ((1, 5), (2, 2), (3, 4)):
        store.insert(make_episode(number, steps))
    batch = store.sample(500, np.random.default_rng(0))
    pairs = set(zip(batch.obs[:, 0, 0, 0].tolist(), batch.next_obs[:, 0, 0, 0].tolist()))
    assert pairs == {(10, 13), (11, 14), (12, 15), (30, 33), (31, 34)}
    store.close()


def test_an_absorbing_end_goes_on_for_ever(tmp_path):
    """Of two episodes the first terminates; a reward of 0.5 * 102 for ever is worth 510 at a discount of 0.9."""
    config = ReplayConfig(
        capacity_transitions=9,
        n_step=2,
        discount=0.9,
        env_weight=0.0,
        learned_weight=0.5,
        absorbing_ends=True,
    )
    store = EpisodeStore(tmp_path, config, 4, 2)
    store.insert(replace(make_episode(1, 3), discounts=np.array([1, 1, 0], np.float32)))
    store.insert(make_episode(2, 3))
    batch = store.transitions(np.array([0, 1, 4, 5]))
    expected = [50 + 0.9 * 50.5, 50.5 + 0.9 * 510, 50 + 0.9 * 50.5, 50.5 + 0.9 * 51]
    np.testing.assert_allclose(batch.reward[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(batch.discount[:, 0], [0.81, 0.0, 0.81, 0.81], rtol=1e-6)
    assert batch.reward.dtype == np.float32
    store.close()
    with pytest.raises(ValueError, match=r"replay.discount=1 is not allowed with env.success_hold_steps"):
        replace(config, discount=1.0)


def test_reward_weights_apply_to_both_parts(tmp_path):
    config = ReplayConfig(capacity_transitions=9, n_step=1, env_weight=2.0, learned_weight=0.5)
    store = EpisodeStore(tmp_path, config, 4, 2)
    store.insert(make_episode(1, 3))
    batch = store.transitions(np.arange(3))
    np.testing.assert_allclose(batch.reward[:, 0], [2 * 1.0 + 50, 2 * 1.1 + 50.5, 2 * 1.2 + 51], rtol=1e-6)
    store.close()
    store = EpisodeStore(tmp_path, ReplayConfig(capacity_transitions=9, n_step=1, learned_weight=0.0), 4, 2)
    np.testing.assert_allclose(store.transitions(np.arange(3)).reward[:, 0], [1.0, 1.1, 1.2], rtol=1e-6)
    store.close()
