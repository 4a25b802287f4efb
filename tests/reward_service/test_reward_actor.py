"""The RewardActor's class without Ray."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from models.episode import Episode
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import episode_seed
from reward_service.diffusion_reward import DiffusionReward
from reward_service.reward_actor import RewardActor, choose_device
from tests.reward_service.support import random_video, write_tiny_folder
from tests.reward_service.test_diffusion_reward import put_statistics

CONFIG = {"skip_step": 49}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("actor") / "model")
    put_statistics(folder, DiffusionRewardConfig.from_dict(CONFIG), **{"door-close": (-100.0, 20.0)})
    return folder


def episode(name, steps, task="door-close"):
    zeros = np.zeros(steps, np.float32)
    frames = random_video(len(name), steps + 1)
    frames.setflags(write=False)  # as they arrive from the object store
    return Episode(name, task, frames, zeros[:, None], zeros, zeros, zeros > 0)


def actor(folder, **changes):
    return RewardActor(str(folder), CONFIG, device="cpu", seed=5, **changes)


def test_blocks_of_several_callers_are_scored_together_and_returned_to_each(folder):
    blocks = [[episode("a", 3), episode("bb", 5)], [episode("ccc", 4)], []]

    async def main():
        scorer = actor(folder, batching={"max_batch_frames": 15, "max_wait_s": 30.0})
        return await asyncio.gather(*map(scorer.score, blocks)), await scorer.stats(), await scorer.ping()

    scored, stats, device = asyncio.run(main())
    reward = DiffusionReward.from_checkpoint(folder, CONFIG)
    for block, rewards in zip(blocks, scored):
        assert len(rewards) == len(block)
        for one, values in zip(block, rewards):
            (expected,) = reward.score([one.frames], ["door-close"], [episode_seed(one.episode_id, 5)])
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
            assert len(one.with_learned_rewards(values).learned_rewards) == len(one)
    assert (stats["batches"], stats["requests"], stats["frames"]) == (1, 2, 15)
    assert device == "cpu"


def test_a_restarted_actor_gives_the_same_rewards(folder):
    block = [episode("a", 3)]
    first, second = (asyncio.run(actor(folder).score(block)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])


def test_an_episode_without_statistics_is_refused_and_the_actor_goes_on(folder):
    async def main():
        scorer = actor(folder)
        with pytest.raises(ValueError, match="no reward statistics of task 'hammer'"):
            await scorer.score([episode("a", 2, task="hammer")])
        return await scorer.score([episode("a", 2)])

    assert asyncio.run(main())[0].shape == (3,)


def test_bad_arguments_are_refused_at_the_start(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown frozen reward 'difusion'"):
        actor(folder, kind="difusion")
    with pytest.raises(ValueError, match="num_threads is 0"):
        actor(folder, num_threads=0)
    with pytest.raises(FileNotFoundError, match="absent"):
        actor(tmp_path / "absent")
    with pytest.raises(ValueError, match="device is 'tpu', expected 'auto', 'cpu'"):
        choose_device("tpu")


def test_cuda_must_be_there_when_asked_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no CUDA device is visible"):
        choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
