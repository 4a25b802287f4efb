"""DiffusionReward from a checkpoint folder: batching, standardisation, clipping, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.files import write_json
from models.videos import RenderSettings
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import episode_seed, reward_class, reward_names
from reward_service.diffusion_reward import DiffusionReward
from reward_service.statistics import fingerprint
from tests.reward_service.support import META, RENDER, random_video, write_tiny_folder

CONFIGS = [
    DiffusionRewardConfig(),
    DiffusionRewardConfig(posterior="exact", skip_step=24, num_samples=2),
    DiffusionRewardConfig(mode="likelihood", likelihood_leak=True, skip_step=32),
    DiffusionRewardConfig(mode="likelihood", posterior="exact", skip_step=32),
    DiffusionRewardConfig(estimator="one_forward"),
    DiffusionRewardConfig(mode="likelihood", estimator="one_forward"),
]
FORWARD = CONFIGS[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture()
def own_folder(tmp_path):
    return write_tiny_folder(tmp_path / "model")


def put_statistics(folder, config, **tasks):
    entries = {
        task: {"mean": mean, "std": std, "frames": 10, "split": "train", "weights": fingerprint(folder)}
        for task, (mean, std) in tasks.items()
    }
    write_json(folder / "statistics.json", {config.signature(): entries})


@pytest.mark.parametrize("config", CONFIGS, ids=DiffusionRewardConfig.signature)
def test_a_reward_does_not_depend_on_the_batch_it_is_in(folder, config):
    reward = DiffusionReward.from_checkpoint(folder, replace(config, batch_rows=4, batch_frames=3))
    videos = [random_video(i, length) for i, length in enumerate((5, 1, 8))]
    together = reward.raw(videos, [10, 11, 12])
    wide = DiffusionReward.from_checkpoint(folder, replace(config, batch_rows=64))
    for i, video in enumerate(videos):
        assert together[i].shape == (len(video),) and together[i].dtype == np.float32
        np.testing.assert_allclose(wide.raw([video], [10 + i])[0], together[i], rtol=1e-5)
    backwards = wide.raw(videos[::-1], [12, 11, 10])
    np.testing.assert_allclose(np.concatenate(backwards[::-1]), np.concatenate(together), rtol=1e-5)


def test_float32_means_float32_in_convolutions_too(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    DiffusionReward.from_checkpoint(folder, FORWARD)
    assert not torch.backends.cudnn.allow_tf32


def test_rewards_do_not_depend_on_later_frames(folder):
    reward = DiffusionReward.from_checkpoint(folder, CONFIGS[0])
    video = random_video(0, 8)
    np.testing.assert_allclose(reward.raw([video[:5]], [3])[0], reward.raw([video], [3])[0][:5], rtol=1e-5)


def test_noise_comes_from_the_seed_alone(folder):
    reward = DiffusionReward.from_checkpoint(folder, CONFIGS[0])
    video = random_video(0, 6)
    first, again, other = (reward.raw([video], [seed])[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    quiet = DiffusionReward.from_checkpoint(folder, replace(CONFIGS[0], noise=False))
    np.testing.assert_array_equal(quiet.raw([video], [1])[0], quiet.raw([video], [2])[0])


def test_num_samples_averages_over_independent_chains(folder):
    many = DiffusionReward.from_checkpoint(folder, DiffusionRewardConfig(skip_step=49, num_samples=40))
    one = DiffusionReward.from_checkpoint(folder, DiffusionRewardConfig(skip_step=49))
    videos, seeds = [random_video(0, 2)] * 20, range(20)
    assert np.std(many.raw(videos, seeds), axis=0).max() < 0.5 * np.std(one.raw(videos, seeds), axis=0).min()


def test_row_t_of_entropy_reacts_to_frame_t_and_of_likelihood_to_the_frames_before(folder):
    video = random_video(0, 6)
    changed = video.copy()
    changed[3] = 255 - changed[3]
    expected = {"entropy": [3, 4], "likelihood": [3, 4, 5]}
    for mode, rows in expected.items():
        reward = DiffusionReward.from_checkpoint(folder, replace(FORWARD, mode=mode))
        before, after = reward.raw([video, changed], [0, 0])
        assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == rows


def test_frame_skip_of_the_model_is_honoured(tmp_path):
    folder = write_tiny_folder(tmp_path / "skip", frame_skip=3)
    video = random_video(0, 8)
    changed = video.copy()
    changed[3] = 255 - changed[3]
    reward = DiffusionReward.from_checkpoint(folder, FORWARD)
    before, after = reward.raw([video, changed], [0, 0])
    assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == [3, 6]


def test_scores_are_standardised_with_the_statistics_of_each_episodes_task(own_folder):
    put_statistics(own_folder, FORWARD, **{"door-close": (-10.0, 2.0), "reach": (-50.0, 4.0)})
    reward = DiffusionReward.from_checkpoint(own_folder, FORWARD)
    video = random_video(0, 4)
    (raw,) = reward.raw([video], [0])
    door, reach = reward.score([video, video], ["door-close", "reach"], [0, 0])
    assert door.dtype == np.float32
    np.testing.assert_allclose(door, (raw + 10) / 2, rtol=1e-4)
    np.testing.assert_allclose(reach, (raw + 50) / 4, rtol=1e-4)
    borrowed = DiffusionReward.from_checkpoint(own_folder, replace(FORWARD, statistics_task="reach"))
    np.testing.assert_allclose(borrowed.score([video], ["hammer"], [0])[0], reach)


def test_clipping_bounds_the_standardised_reward(own_folder):
    video = random_video(0, 6)
    (raw,) = DiffusionReward.from_checkpoint(own_folder, FORWARD).raw([video], [0])
    put_statistics(own_folder, FORWARD, **{"door-close": (float(np.median(raw)), 0.01)})
    clipped = DiffusionReward.from_checkpoint(own_folder, replace(FORWARD, clip_low=-3.0, clip_high=2.0))
    (both,) = clipped.score([video], ["door-close"], [0])
    assert both.min() == -3 and both.max() == 2
    low_only = DiffusionReward.from_checkpoint(own_folder, replace(FORWARD, clip_low=-3.0))
    (low,) = low_only.score([video], ["door-close"], [0])
    assert low.min() == -3 and low.max() > 2


def test_missing_statistics_say_what_there_is_and_what_to_run(own_folder):
    reward = DiffusionReward.from_checkpoint(own_folder, FORWARD)
    with pytest.raises(ValueError, match=r"no reward statistics of task 'door-close'.*Available: none"):
        reward.score([random_video(0, 2)], ["door-close"], [0])
    put_statistics(own_folder, FORWARD, reach=(0.0, 1.0))
    reward.reload_statistics()
    with pytest.raises(
        ValueError, match=r"entropy/one_forward: \['reach'\].*launch/pretrain\.py stage=statistics"
    ):
        reward.score([random_video(0, 2)], ["door-close"], [0])
    other = DiffusionReward.from_checkpoint(own_folder, CONFIGS[0])
    with pytest.raises(ValueError, match="entropy/chain-official/skip9/samples1"):
        other.scale("reach")


def test_statistics_of_other_weights_are_refused(own_folder):
    put_statistics(own_folder, FORWARD, **{"door-close": (0.0, 1.0)})
    weights = torch.load(own_folder / "weights.pt", weights_only=True)
    weights["transformer.to_logits.1.bias"] += 1
    torch.save(weights, own_folder / "weights.pt")
    reward = DiffusionReward.from_checkpoint(own_folder, FORWARD)
    with pytest.raises(ValueError, match="computed with other weights"):
        reward.scale("door-close")


def test_a_reward_that_is_not_finite_names_episode_and_frame(folder, monkeypatch):
    reward = DiffusionReward.from_checkpoint(folder, FORWARD)
    scored = reward._score_rows
    bad = torch.tensor([7])
    monkeypatch.setattr(reward, "_score_rows", lambda *a: scored(*a).index_fill(0, bad, float("nan")))
    with pytest.raises(ValueError, match="episode run-7, frame 4: the raw reward is nan"):
        reward.raw([random_video(1, 3), random_video(0, 5)], [0, 0], ["run-6", "run-7"])


def test_a_device_with_too_little_memory_says_what_to_lower(folder, monkeypatch):
    reward = DiffusionReward.from_checkpoint(folder, replace(FORWARD, batch_rows=4096))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.00 GiB")

    monkeypatch.setattr(reward, "_score_rows", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"frame_reward\.batch_rows=4096.* lower.* 10\.00 GiB"):
        reward.raw([random_video(0, 2)], [0])


def test_a_chain_scores_fewer_rows_at_a_time_on_a_gpu(folder):
    rewards = [
        DiffusionReward.from_checkpoint(folder, config) for config in (DiffusionRewardConfig(), FORWARD)
    ]
    assert [reward.batch_rows(torch.device("cuda")) for reward in rewards] == [512, 2048]
    assert [reward.batch_rows(torch.device("cpu")) for reward in rewards] == [32, 32]


def test_frames_that_do_not_fit_are_refused(folder):
    reward = DiffusionReward.from_checkpoint(folder, FORWARD)
    with pytest.raises(ValueError, match=r"episode e1: .*\(T, 64, 64, 3\) uint8.*got \(2, 32, 32, 3\)"):
        reward.raw([np.zeros((2, 32, 32, 3), np.uint8)], [0], ["e1"])
    with pytest.raises(ValueError, match="float32"):
        reward.raw([np.zeros((2, 64, 64, 3), np.float32)], [0])
    with pytest.raises(ValueError, match="expected one of each per episode, got 1 frames, 2 seeds"):
        reward.raw([random_video(0, 2)], [0, 1])
    assert reward.raw([], []) == []


def test_environments_that_do_not_fit_are_refused(own_folder):
    put_statistics(own_folder, FORWARD, **{"door-close": (0.0, 1.0)})
    reward = DiffusionReward.from_checkpoint(own_folder, FORWARD)
    assert (reward.tasks, reward.render, reward.action_repeat) == (("door-close",), RENDER, 3)
    reward.check_environment(RENDER, 3, "door-close", "metaworld")
    with pytest.raises(ValueError, match="quality: 'fast' against 'full'"):
        reward.check_environment(RenderSettings(quality="full"), 3, "door-close", "metaworld")
    with pytest.raises(ValueError, match="action_repeat 3, but the environment has 2"):
        reward.check_environment(RENDER, 2, "door-close", "metaworld")
    with pytest.raises(ValueError, match="no reward statistics of task 'hammer'"):
        reward.check_environment(RENDER, 3, "hammer", "metaworld")


def test_incomplete_and_foreign_folders_are_refused(own_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusionReward.from_checkpoint(tmp_path / "nowhere", FORWARD)
    with pytest.raises(ValueError, match="'vqgan' model, expected 'vqdiffusion'"):
        DiffusionReward.from_checkpoint(own_folder / "codec", FORWARD)
    config = json.loads((own_folder / "config.json").read_text())
    write_json(own_folder / "config.json", {k: v for k, v in config.items() if k != "render"})
    with pytest.raises(ValueError, match="has no 'render'"):
        DiffusionReward.from_checkpoint(own_folder, FORWARD)
    (own_folder / "weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        DiffusionReward.from_checkpoint(own_folder, FORWARD)


def test_options_that_the_model_cannot_do_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="skip_step is 100, expected 0 to 99"):
        DiffusionReward.from_checkpoint(folder, {"skip_step": 100})
    ordered = write_tiny_folder(tmp_path / "ordered", condition_position="learned")
    with pytest.raises(ValueError, match="use likelihood_leak=False"):
        DiffusionReward.from_checkpoint(ordered, CONFIGS[2])
    first = write_tiny_folder(tmp_path / "first", history="first", num_history_frames=1)
    with pytest.raises(
        ValueError, match="the entropy would not depend on what the policy does: use reward=diff"
    ):
        DiffusionReward.from_checkpoint(first, FORWARD)


def test_a_chain_is_refused_where_the_model_knows_fully_masked_frames_only(tmp_path):
    folder = write_tiny_folder(tmp_path / "one", meta={**META, "all_mask_fraction": 1.0})
    with pytest.raises(ValueError, match=r"estimator='chain'.*use frame_reward\.estimator=one_forward"):
        DiffusionReward.from_checkpoint(folder, DiffusionRewardConfig())
    DiffusionReward.from_checkpoint(folder, FORWARD)
    half = write_tiny_folder(tmp_path / "half", meta={**META, "all_mask_fraction": 0.5})
    DiffusionReward.from_checkpoint(half, DiffusionRewardConfig())


def test_a_model_of_first_frames_knows_no_other_history(tmp_path):
    folder = write_tiny_folder(tmp_path / "first", history="first", num_history_frames=1)
    reward = DiffusionReward.from_checkpoint(folder, replace(FORWARD, mode="likelihood"))
    video = random_video(0, 6)
    changed = video.copy()
    changed[2] = 255 - changed[2]
    before, after = reward.raw([video, changed], [0, 0])
    assert np.flatnonzero(np.abs(before - after) > 1e-4).tolist() == [2]
    changed[0] = 255 - changed[0]
    (after,) = reward.raw([changed], [0])
    assert (np.abs(before - after) > 1e-4).sum() == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "surprise"}, r"mode is 'surprise', expected one of \('entropy', 'likelihood'\)"),
        ({"estimator": "jump"}, "estimator is 'jump'"),
        ({"posterior": "true"}, "posterior is 'true'"),
        ({"num_samples": 0}, "num_samples is 0, expected 1 or more"),
        ({"clip_low": 2.0, "clip_high": -1.0}, r"clip_low is 2\.0, expected less than clip_high"),
        ({"likelihood_leak": True}, "allowed only with mode='likelihood'"),
        ({"skipstep": 9}, "unknown key 'skipstep'.*did you mean 'skip_step'"),
    ],
)
def test_bad_configs_name_key_value_and_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        DiffusionRewardConfig.from_dict(values)


def test_signatures_differ_exactly_where_raw_rewards_do():
    base = DiffusionRewardConfig()
    assert base.signature() == "entropy/chain-official/skip9/samples1"
    same = [replace(base, clip_low=-3.0), replace(base, batch_rows=1), replace(base, statistics_task="reach")]
    assert {c.signature() for c in same} == {base.signature()}
    assert len({c.signature() for c in [*CONFIGS, replace(base, noise=False)]}) == len(CONFIGS) + 1


def test_rewards_are_found_by_name():
    assert "diffusion" in reward_names()
    assert reward_class("diffusion") is DiffusionReward
    with pytest.raises(ValueError, match="unknown frozen reward 'difusion'; did you mean 'diffusion'"):
        reward_class("difusion")


def test_episode_seeds_are_the_same_on_every_machine():
    assert episode_seed("episode-1", 0) == 7003677596196218529
    assert len({episode_seed(f"e{i}", seed) for i in range(50) for seed in range(4)}) == 200
    assert all(0 <= episode_seed(f"e{i}", 0) < 2**63 for i in range(50))
