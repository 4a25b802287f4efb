"""AMP as a bonus: expert videos are checked, it learns to prefer them, and it resumes exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.amp_bonus import AMPBonus, AMPBonusConfig
from learner.batch import TensorBatch
from learner.bonus import make_bonus
from models.amp import AMPConfig
from models.episode import Episode
from models.videos import RenderSettings, write_videos

SMALL = AMPConfig(channels=(4, 4, 4), strides=(2, 2, 2), hidden_dim=8, batch_size=6, lr=1e-3)
CPU = torch.device("cpu")
ENVIRONMENT = {
    "render": RenderSettings(),
    "action_repeat": 3,
    "task": "door-close",
    "domain": "metaworld",
}


def write_expert(folder, brightness: int = 200, count: int = 2, resolution_px: int = 64):
    """Bright videos of door-close, two steps each."""
    rng = np.random.default_rng(brightness)
    episodes = [
        Episode(
            episode_id=f"e{number}",
            task="door-close",
            frames=rng.integers(brightness, 255, (3, resolution_px, resolution_px, 3), dtype=np.uint8),
            actions=np.zeros((2, 4), np.float32),
            env_rewards=np.zeros(2, np.float32),
            discounts=np.ones(2, np.float32),
            successes=np.ones(2, bool),
        )
        for number in range(count)
    ]
    facts = {"task": "door-close", "domain": "metaworld", "mode": "expert", "action_repeat": 3}
    write_videos(folder, episodes, render=RenderSettings(), **facts)
    return str(folder)


def make_batch(seed: int, rows: int = 8) -> TensorBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 120, (2, rows, 64, 64, 3), generator=generator, dtype=torch.uint8)
    zeros = torch.zeros(rows, 1)
    return TensorBatch(frames[0], torch.zeros(rows, 2), zeros, zeros, frames[1])


@pytest.fixture
def config(tmp_path):
    torch.set_num_threads(1)
    return AMPBonusConfig(videos=write_expert(tmp_path / "expert"), train_every_updates=2, amp=SMALL)


def run(bonus: AMPBonus, updates: range) -> list[torch.Tensor]:
    values = []
    for index in updates:
        values.append(bonus.bonus(make_batch(index)))
        bonus.update(make_batch(index))
    return values


def test_frames_of_the_policy_earn_less_than_the_expert_s(config):
    bonus = make_bonus(replace(config, train_every_updates=1), 64, CPU, seed=0)
    run(bonus, range(40))
    assert float(bonus.bonus(make_batch(99)).max()) < 0.2
    assert float(bonus.amp.reward(bonus.expert_frames).min()) > 0.8


def test_it_rewards_the_frame_that_was_asked_for(config):
    batch = make_batch(3)
    for reward_on in ("obs", "next_obs"):
        bonus = make_bonus(replace(config, reward_on=reward_on), 64, CPU, seed=0)
        torch.testing.assert_close(bonus.bonus(batch), bonus.amp.reward(getattr(batch, reward_on)))


def test_it_trains_when_due(config):
    bonus = make_bonus(config, 64, CPU, seed=0)
    weight, changes, metrics = bonus.amp.disc.trunk[0].weight, [], []
    for index in range(4):
        before = weight.detach().clone()
        bonus.bonus(make_batch(index))
        metrics.append(bonus.update(make_batch(index)))
        changes.append(not torch.equal(weight, before))
    assert changes == [True, False, True, False]
    assert metrics[1] is metrics[0]  # Shown until there are newer ones.


@pytest.mark.parametrize("norm", ["none", "running_std"])
def test_resumed_training_is_identical(config, norm, tmp_path):
    whole = make_bonus(replace(config, norm=norm), 64, CPU, seed=0)
    first = make_bonus(replace(config, norm=norm), 64, CPU, seed=0)
    expected = run(whole, range(7))
    run(first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = make_bonus(replace(config, norm=norm), 64, CPU, seed=1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for mine, theirs in zip(run(resumed, range(3, 7)), expected[3:]):
        assert torch.equal(mine, theirs)


def test_changed_expert_videos_are_refused(config, tmp_path):
    state = make_bonus(config, 64, CPU, seed=0).state_dict()
    other = replace(config, videos=write_expert(tmp_path / "other", brightness=150))
    with pytest.raises(ValueError, match="changed since the checkpoint"):
        make_bonus(other, 64, CPU, seed=0).load_state_dict(state)


def test_several_folders_are_joined(config, tmp_path):
    folders = (config.videos, write_expert(tmp_path / "more", count=3))
    bonus = make_bonus(replace(config, videos=folders), 64, CPU, seed=0)
    assert bonus.expert_frames.shape == (15, 64, 64, 3)


def test_held_out_videos_stay_held_out(config, tmp_path):
    videos = replace(config, videos=write_expert(tmp_path / "five", count=5))  # The fifth is for validation.
    assert len(make_bonus(videos, 64, CPU, seed=0).expert_frames) == 4 * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "reach"}, "task='door-close', this run has task='reach'"),
        ({"domain": "adroit"}, "domain='metaworld'"),
        ({"action_repeat": 2}, "action_repeat=3, this run has action_repeat=2"),
        ({"render": RenderSettings(quality="full")}, "quality: 'fast' against 'full'"),
    ],
)
def test_videos_that_do_not_fit_are_refused(config, changed, message):
    config.check_environment(**ENVIRONMENT)
    with pytest.raises(ValueError) as caught:
        config.check_environment(**{**ENVIRONMENT, **changed})
    assert message in str(caught.value)


def test_missing_videos_and_bad_values_are_refused(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"collect\.py"):
        replace(config, videos=str(tmp_path / "nothing")).check_environment(**ENVIRONMENT)
    with pytest.raises(ValueError, match=r"bonus\.videos=None"):
        AMPBonusConfig()
    with pytest.raises(ValueError, match=r"bonus\.reward_on='both'"):
        replace(config, reward_on="both")
    small = write_expert(tmp_path / "small", resolution_px=32)
    with pytest.raises(ValueError, match="32x32 pixels"):
        make_bonus(replace(config, videos=small), 64, CPU, seed=0)
