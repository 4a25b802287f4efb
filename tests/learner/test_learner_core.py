"""The learner: reproducible, resumable, and fed from several shards as from one."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.batch import Batch, TensorBatch
from learner.bonus import BonusConfig, RunningStd, make_bonus
from learner.drqv2_config import DrQV2Config
from learner.learner_actor import LearnerActor
from learner.learner_core import Learner, LearnerConfig, load_actor_weights
from learner.policy import build_policy
from learner.replay import ReplayConfig
from learner.replay_actor import ReplayShard
from learner.rnd_bonus import RNDBonusConfig
from learner.sharding import SampleRequest, ShardSampler, ShardSize
from learner.weights_actor import WeightStore
from models.rnd import RNDConfig
from tests.learner.helpers import ACTION_DIM, RESOLUTION_PX, make_episode, noise_episode

AGENT = DrQV2Config(batch_size=6, encoder_strides=(2, 2, 2), encoder_channels=8, hidden_dim=16)
BONUS = RNDBonusConfig(
    norm="running_std", train_every_updates=2, rnd=RNDConfig(channels=(4, 4, 4), feature_dim=8)
)


class LocalShards:
    """Two shards in this process, with the methods that the learner calls."""

    def __init__(self, folder) -> None:
        torch.set_num_threads(1)
        self.shards = []
        for index in range(2):
            shard = ReplayShard(
                folder / str(index), ReplayConfig(capacity_transitions=50), RESOLUTION_PX, ACTION_DIM
            )
            shard.insert("b", [noise_episode(index)])
            self.shards.append(shard)

    def sample(self, requests):
        return [self.shards[r.shard].sample(r.batch_size, r.seed, r.success_share) for r in requests]

    def sizes(self):
        return [shard.snapshot(None)[0] for shard in self.shards]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return LocalShards(tmp_path_factory.mktemp("shards"))


def make_learner(
    shards, bonus=BONUS, prefetch_batches=3, seed=5, second_thread=False, agent=AGENT
) -> Learner:
    sampler = ShardSampler(shards.sample, shards.sizes, AGENT.batch_size, seed)
    sampler.refresh()
    config = LearnerConfig(
        prefetch_batches=prefetch_batches, metrics_every_updates=1, second_thread=second_thread
    )
    return Learner(RESOLUTION_PX, ACTION_DIM, agent, bonus, sampler, config, seed)


def assert_same_weights(first: Learner, second: Learner) -> None:
    (version, weights), (other_version, other) = first.weights(), second.weights()
    assert version == other_version
    for name in weights:
        np.testing.assert_array_equal(weights[name], other[name], err_msg=name)


def test_two_runs_are_identical_bit_for_bit(shards):
    first, second = make_learner(shards), make_learner(shards, prefetch_batches=0)
    assert first.run_updates(7, agent_steps=100) == second.run_updates(7, agent_steps=100)
    assert_same_weights(first, second)
    other = make_learner(shards, seed=6)
    other.run_updates(7, agent_steps=100)
    assert not np.array_equal(
        other.weights()[1]["actor.trunk.0.weight"], first.weights()[1]["actor.trunk.0.weight"]
    )


def test_a_second_thread_gives_the_same_numbers(shards):
    inline, beside = make_learner(shards), make_learner(shards, second_thread=True)
    for updates in (5, 4):
        assert inline.run_updates(updates, agent_steps=100) == beside.run_updates(updates, agent_steps=100)
    assert_same_weights(inline, beside)
    beside.close()


@pytest.mark.parametrize("second_thread", [False, True])
def test_a_failed_batch_is_asked_for_again_and_the_bonus_has_not_gone_on(shards, second_thread):
    straight = make_learner(shards)
    stumbling = make_learner(shards, second_thread=second_thread)
    preparation, failures = stumbling._preparation, [3]
    fetch = preparation._fetch_batch

    def fail_once(index):
        if index in failures:
            failures.remove(index)
            raise ConnectionError("the replay shard is away")
        return fetch(index)

    preparation._fetch_batch = fail_once
    with pytest.raises(ConnectionError, match="away"):
        stumbling.run_updates(6, agent_steps=100)
    assert stumbling.updates == 3
    stumbling.run_updates(3, agent_steps=100)
    straight.run_updates(6, agent_steps=100)
    assert_same_weights(straight, stumbling)
    stumbling.close()


@pytest.mark.parametrize("second_thread", [False, True])
def test_a_failure_after_a_batch_was_shown_to_the_bonus_needs_a_checkpoint(shards, tmp_path, second_thread):
    learner = make_learner(shards, second_thread=second_thread)
    learner.run_updates(2, agent_steps=100)
    learner.save(tmp_path)
    update = learner.agent.update
    learner.agent.update = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        learner.run_updates(2, agent_steps=100)
    learner.agent.update = update
    assert learner.needs_load
    with pytest.raises(RuntimeError, match="load the last checkpoint"):
        learner.run_updates(2, agent_steps=100)
    learner.load(tmp_path)
    assert not learner.needs_load
    learner.run_updates(2, agent_steps=100)
    learner.close()


def test_an_agent_that_diverges_stops_the_run(shards):
    learner = make_learner(shards)
    fetch = learner._preparation._fetch_batch
    learner._preparation._fetch_batch = lambda index: fetch(index)._replace(
        reward=np.full((AGENT.batch_size, 1), np.nan, np.float32)
    )
    with pytest.raises(FloatingPointError, match=r"the agent has diverged .* up to 2: .*critic_loss is nan"):
        learner.run_updates(2, agent_steps=100)
    learner.close()


@pytest.mark.parametrize("second_thread", [False, True])
def test_save_and_load_continue_identically(shards, tmp_path, second_thread):
    straight = make_learner(shards, second_thread=second_thread)
    straight.run_updates(5, agent_steps=100)
    straight.save(tmp_path)
    rest = straight.run_updates(4, agent_steps=200)
    resumed = make_learner(shards, second_thread=second_thread)
    resumed.load(tmp_path)
    assert resumed.updates == 5
    assert resumed.run_updates(4, agent_steps=200) == rest
    assert_same_weights(straight, resumed)
    with pytest.raises(FileExistsError, match=r"learner\.pt exists already"):
        straight.save(tmp_path)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_checkpoint_alone_has_the_weights_that_rollouts_get(shards, tmp_path, decay):
    learner = make_learner(shards, agent=replace(AGENT, acting_ema_decay=decay))
    learner.run_updates(3, agent_steps=100)
    learner.save(tmp_path)
    version, weights = learner.weights()
    assert version == 3
    found_version, found = load_actor_weights(tmp_path)
    assert (found_version, found.keys()) == (version, weights.keys())
    for name in weights:
        np.testing.assert_array_equal(found[name], weights[name], err_msg=name)
    averaged = "actor.trunk.0.weight"
    moved = np.abs(weights[averaged] - learner.agent.actor.state_dict()["trunk.0.weight"].numpy()).max()
    assert (moved > 0) == (decay > 0)


def test_checkpoint_of_other_settings_is_refused_by_name(shards, tmp_path):
    make_learner(shards).save(tmp_path)
    other = make_learner(shards, bonus=BonusConfig(name="none"), seed=6)
    with pytest.raises(
        ValueError, match=r"seed is 5 there and 6 here; bonus\.name is 'rnd' there and 'none' here"
    ):
        other.load(tmp_path)


def test_prefetch_stays_within_the_call_and_in_order():
    asked, lock = [], threading.Lock()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, RESOLUTION_PX, RESOLUTION_PX, 3), dtype=np.uint8)
    scalars = np.ones((6, 1), np.float32)

    def fetch(update_index):

        with lock:
            asked.append(update_index)
        return Batch(frames, np.zeros((6, ACTION_DIM), np.float32), scalars * update_index, scalars, frames)

    config = LearnerConfig(prefetch_batches=4, metrics_every_updates=1)
    learner = Learner(RESOLUTION_PX, ACTION_DIM, AGENT, BonusConfig(name="none"), fetch, config)
    assert learner.run_updates(3, agent_steps=0)["batch_reward"] == pytest.approx((0 + 1 + 2) / 3)
    assert sorted(asked) == [0, 1, 2]
    assert learner.run_updates(2, agent_steps=0)["batch_reward"] == pytest.approx((3 + 4) / 2)
    assert sorted(asked) == [0, 1, 2, 3, 4]
    assert learner.run_updates(0, agent_steps=0) == {}
    learner.close()


def test_policy_equals_the_learners_actor(shards):
    learner = make_learner(shards)
    learner.run_updates(3, agent_steps=0)
    policy = build_policy(learner.agent.policy_config())
    policy.load(learner.weights()[1])
    frames = noise_episode(9).frames
    with torch.no_grad():
        expected = learner.agent.actor(learner.agent.encoder(torch.from_numpy(frames))).numpy()
    np.testing.assert_array_equal(policy.act(frames, None), expected)


def test_published_weights_do_not_change_with_later_updates(shards):
    learner = make_learner(shards)
    _, weights = learner.weights()
    before = weights["encoder.convnet.0.weight"].copy()
    learner.run_updates(2, agent_steps=0)
    np.testing.assert_array_equal(weights["encoder.convnet.0.weight"], before)


def test_batches_are_uniform_over_the_transitions_of_all_shards():
    sampler = ShardSampler(lambda requests: [], lambda: [ShardSize(n) for n in (30, 0, 10)], 100, seed=1)
    with pytest.raises(RuntimeError, match="0 replay shards"):
        sampler.requests(0)
    sampler.refresh()
    counts = np.zeros(3)
    for update_index in range(200):
        for request in sampler.requests(update_index):
            counts[request.shard] += request.batch_size
    assert counts[1] == 0 and counts.sum() == 20_000
    assert counts[0] / 20_000 == pytest.approx(0.75, abs=0.01)
    assert sampler.requests(3) == sampler.requests(3) != sampler.requests(4)
    assert isinstance(sampler.requests(3)[0], SampleRequest)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_how_often_a_success_is_drawn_does_not_depend_on_the_number_of_shards(tmp_path, shards):
    """20 episodes of 5 steps, numbers 0, 1 and 4 are successes: half of every batch, at most 3 times their 15 %, is theirs."""
    config = ReplayConfig(capacity_transitions=100, episode_steps=5, success_share=0.5, success_factor=3.0)
    stores = [ReplayShard(tmp_path / str(k), config, 4, 2) for k in range(shards)]
    for number in range(20):
        episode = replace(make_episode(number, 5), successes=np.full(5, number in (0, 1, 4)))
        stores[number % shards].insert(f"b{number}", [episode])
    sampler = ShardSampler(
        lambda requests: [stores[r.shard].sample(r.batch_size, r.seed, r.success_share) for r in requests],
        *(lambda: [store.snapshot(None)[0] for store in stores], 500, 3),
        *(config.success_share, config.success_factor),
    )
    sampler.refresh()
    drawn = np.concatenate([sampler(update).obs[:, 0, 0, 0] for update in range(20)]) // 10
    for number in (0, 1, 4):
        assert np.mean(drawn == number) == pytest.approx(0.45 / 3 + 0.55 / 20, abs=0.015)
    assert np.mean(drawn == 7) == pytest.approx(0.55 / 20, abs=0.01)
    for store in stores:
        store.close()


def test_running_std_equals_numpy():
    values = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    running = RunningStd(torch.device("cpu"))
    for row in values:
        running.add(torch.from_numpy(row))
    assert float(running.std()) == pytest.approx(values.std(), rel=1e-5)


def test_unknown_bonus_names_the_known_ones():
    with pytest.raises(ValueError, match=r"bonus\.name='rdn'.*'none'.*'rnd'"):
        make_bonus(BonusConfig(name="rdn"), 64, torch.device("cpu"), 0)


class LocalWeightStore(WeightStore):
    """Remembers the versions that were published."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[int] = []
        self.arrived = 0

    def publish(self, version, weights):
        self.versions.append(version)
        return super().publish(version, weights)

    def settle(self):
        self.arrived = len(self.versions)


def test_actor_publishes_saves_and_reports_its_state(shards, tmp_path):
    def make_actor(store):
        agent = {"batch_size": 6, "encoder_strides": [2, 2, 2], "encoder_channels": 8, "hidden_dim": 16}
        learner = {"publish_every_updates": 2, "num_threads": 1}
        return LearnerActor(RESOLUTION_PX, ACTION_DIM, agent, {"name": "none"}, learner, shards, store)

    store = LocalWeightStore()
    actor = make_actor(store)
    assert actor.ping()["state"] == "fresh"
    assert actor.run_updates(5, agent_steps=10)["updates"] == 5
    assert store.versions == [2, 4] and store.arrived == 2 and actor.ping()["state"] == "ready"
    actor.save(tmp_path)
    restarted = make_actor(store)
    assert restarted.ping()["state"] == "fresh"
    with pytest.raises(RuntimeError, match=r"has done 0 updates, the caller expects 5"):
        restarted.run_updates(1, agent_steps=10, expected_updates=5)
    with pytest.raises(RuntimeError, match="load the last checkpoint"):
        restarted.save(tmp_path, expected_updates=5)
    assert restarted.ping()["state"] == "fresh"
    assert restarted.load(tmp_path) == 5 and restarted.ping()["state"] == "ready"
    assert store.versions == [2, 4, 5] and store.arrived == 3


def test_weight_store_answers_only_with_news():
    store = WeightStore()
    assert store.newer_than(-1) is None
    weights = {"w": np.ones(2, np.float32)}
    store.publish(10, weights)
    assert store.newer_than(10) is None
    version, received = store.newer_than(4)
    assert version == 10 and received is weights
    store.publish(6, weights)  # a learner that went back to a checkpoint
    assert store.newer_than(10)[0] == 6


def test_rnd_bonus_is_the_error_at_the_next_frame_and_trains_when_due():
    torch.manual_seed(0)
    frames = torch.from_numpy(noise_episode(1).frames[:4])
    zeros = torch.zeros(4, 1)
    batch = TensorBatch(torch.zeros_like(frames), zeros, zeros, zeros, frames)
    bonus = make_bonus(
        RNDBonusConfig(train_every_updates=2, rnd=BONUS.rnd), RESOLUTION_PX, torch.device("cpu"), 0
    )
    losses = []
    for _ in range(4):
        expected = bonus.rnd.bonus(frames)
        value = bonus.bonus(batch)
        torch.testing.assert_close(value, expected)
        assert not value.requires_grad
        losses.append(float(bonus.update(batch)["bonus_loss"]))
    assert losses[0] == losses[1] != losses[2] == losses[3]  # trained at calls 0 and 2
    assert bonus.bonus(batch).sum() < value.sum() + 1e-6 and bonus.weight == 0.95
