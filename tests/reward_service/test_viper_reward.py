"""VIPER: golden rewards, which frames a row sees, batching, standardisation, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.files import write_json
from models.videogpt import VideoGPT, VideoGPTConfig
from models.videogpt.checkpoint import from_official, save_videogpt
from models.vqgan import VQGAN, VQGANConfig
from reward_service.contract import reward_class, reward_names
from reward_service.statistics import MeanStd, fingerprint
from reward_service.viper_reward import ViperReward, ViperRewardConfig
from tests.reward_service.support import META, random_video, tensors, tiny_codec, write_tiny_folder

RUNS = {
    "likelihood/last_frame": ViperRewardConfig(batch_rows=5),
    "likelihood/joint": ViperRewardConfig(batch_rows=5, joint=True),
    "entropy/last_frame": ViperRewardConfig(batch_rows=5, mode="entropy"),
}
CONFIGS = [*RUNS.values(), ViperRewardConfig(mode="entropy", joint=True)]
LIKELIHOOD = ViperRewardConfig()


@pytest.fixture(scope="module")
def networks(golden):
    codec = VQGAN(VQGANConfig(num_codes=64, latent_dim=16, channels=(32, 32, 64, 64)))
    codec.load_state_dict(tensors(golden("vqgan") / "vqgan_state.npz"))
    config = VideoGPTConfig(num_codes=64, latent_dim=16, num_layers=2, width=32, num_heads=4)
    model = VideoGPT(config, codec.codebook.embedding.weight)
    model.load_state_dict(from_official(tensors(golden("viper") / "videogpt_state.npz"), config, "golden"))
    return model.eval(), codec.eval()


def tiny_folder(folder, **changes):
    """A complete folder whose weights are large enough that predictions differ between histories."""
    codec = tiny_codec()
    torch.manual_seed(2)
    sizes = {"num_codes": 16, "latent_dim": 4, "num_layers": 2, "width": 16, "num_heads": 2}
    model = VideoGPT(VideoGPTConfig(**{**sizes, **changes}), codec.codebook.embedding.weight)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.transformer.tok_emb.weight.mul_(50)  # untrained codes are short vectors
    save_videogpt(folder, model, codec, META)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("viper") / "model")


def close(actual, expected, tolerance=5e-5):
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    assert (np.abs(a - b) / np.maximum(1, np.abs(b))).max() < tolerance


def reacting_rows(reward, length=8, place=4):
    """Rows whose reward changes with frame `place`."""
    video = random_video(0, length)
    changed = video.copy()
    changed[place] = 255 - changed[place]
    before, after = reward.raw([video, changed], [0, 0])
    return np.flatnonzero(np.abs(before - after) > 1e-3).tolist()


@pytest.mark.parametrize("run", RUNS)
def test_golden_rewards(networks, golden, tmp_path, run):
    io = tensors(golden("viper") / "io.npz")
    facts = json.loads((golden("viper") / "config.json").read_text())
    reward = ViperReward(*networks, META, RUNS[run], tmp_path)
    (raw,) = reward.raw([io["frames_u8"].numpy()], [0])
    assert raw.shape == (12,) and raw.dtype == np.float32 and reward.config.signature() == run
    close(raw, io[f"{run}_raw_reward"].reshape(12))
    scale = MeanStd(facts["stat_mean"], facts["stat_std"])
    final = (1 - facts["expl_scale"]) * reward._standardise(raw, scale)
    close(final, io[f"{run}_final_reward"].reshape(12))


@pytest.mark.parametrize("mode", ["likelihood", "entropy"])
def test_golden_windows(networks, golden, tmp_path, mode):
    io = tensors(golden("viper") / "io.npz")
    reward = ViperReward(*networks, META, ViperRewardConfig(mode=mode), tmp_path)
    tokens = reward.encode(reward.codec, [io["frames_u8"].numpy()])
    np.testing.assert_array_equal(tokens[reward._windows([12])].flatten(1), io[f"{mode}/batch_indices"])


def test_windows_of_a_short_episode(folder, tmp_path):
    """Literal tables: the last column is the scored frame."""
    official = ViperReward.from_checkpoint(folder)
    assert official._windows([4, 1]).tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4]]
    skipping = ViperReward.from_checkpoint(tiny_folder(tmp_path / "skip", frame_skip=2))
    assert skipping._windows([5]).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [0, 2, 4]]
    padded = tiny_folder(tmp_path / "padded", frame_skip=2, history_padding="first")
    likelihood = ViperReward.from_checkpoint(padded)
    assert likelihood._windows([5]).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4]]
    entropy = ViperReward.from_checkpoint(padded, {"mode": "entropy"})
    assert entropy._windows([5]).tolist() == [[0, 0], [0, 1], [0, 2], [1, 3], [2, 4]]


def test_a_frame_changes_its_own_row_and_those_that_have_it_as_history(folder):
    assert reacting_rows(ViperReward.from_checkpoint(folder)) == [4, 5, 6]
    assert reacting_rows(ViperReward.from_checkpoint(folder, {"mode": "entropy"})) == [4, 5]


@pytest.mark.parametrize("config", CONFIGS, ids=ViperRewardConfig.signature)
def test_a_reward_does_not_depend_on_the_batch_it_is_in(folder, config):
    reward = ViperReward.from_checkpoint(folder, replace(config, batch_rows=4, batch_frames=3))
    wide = ViperReward.from_checkpoint(folder, replace(config, batch_rows=64))
    videos = [random_video(i, length) for i, length in enumerate((5, 1, 8))]
    together = reward.raw(videos, [0, 0, 0])
    for i, video in enumerate(videos):
        assert together[i].shape == (len(video),) and together[i].dtype == np.float32
        np.testing.assert_allclose(wide.raw([video], [7])[0], together[i], rtol=1e-5)
    backwards = wide.raw(videos[::-1], [0, 0, 0])
    np.testing.assert_allclose(np.concatenate(backwards[::-1]), np.concatenate(together), rtol=1e-5)


def test_rewards_do_not_depend_on_later_frames(folder):
    reward, video = ViperReward.from_checkpoint(folder), random_video(0, 8)
    np.testing.assert_allclose(reward.raw([video[:5]], [0])[0], reward.raw([video], [0])[0][:5], rtol=1e-5)


def test_scores_are_standardised_and_clipped_with_the_statistics_of_the_mode(tmp_path):
    own = tiny_folder(tmp_path / "model")
    video = random_video(0, 6)
    (raw,) = ViperReward.from_checkpoint(own).raw([video], [0])
    mean = float(np.median(raw))
    entry = {"mean": mean, "std": 2.0, "frames": 6, "split": "train", "weights": fingerprint(own)}
    write_json(own / "statistics.json", {"likelihood/last_frame": {"door-close": entry}})
    (score,) = ViperReward.from_checkpoint(own).score([video], ["door-close"], [0])
    np.testing.assert_allclose(score, (raw - mean) / 2, rtol=1e-4, atol=1e-5)
    clipped = ViperReward.from_checkpoint(own, {"clip_low": -0.1, "clip_high": 0.1})
    np.testing.assert_allclose(
        clipped.score([video], ["door-close"], [0])[0], np.clip(score, -0.1, 0.1), atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"no reward statistics of task 'door-close' for 'entropy/last_frame'"
    ):
        ViperReward.from_checkpoint(own, {"mode": "entropy"}).scale("door-close")


def test_signatures_and_siblings():
    assert len({config.signature() for config in CONFIGS}) == 4
    assert replace(LIKELIHOOD, clip_low=-3.0, batch_rows=1).signature() == LIKELIHOOD.signature()
    siblings = ViperRewardConfig(mode="entropy", joint=True, clip_low=-1.0).cheap_siblings()
    assert {s.signature() for s in siblings} == {"entropy/joint", "likelihood/joint"}
    assert all(s.clip_low == -1.0 for s in siblings)


def test_it_is_found_by_name_and_refuses_other_models(folder, tmp_path):
    assert "viper" in reward_names() and reward_class("viper") is ViperReward
    with pytest.raises(ValueError, match="'vqdiffusion' model, expected 'videogpt'"):
        ViperReward.from_checkpoint(write_tiny_folder(tmp_path / "diffusion"))
    with pytest.raises(ValueError, match="mode is 'surprise'"):
        ViperReward.from_checkpoint(folder, {"mode": "surprise"})
    with pytest.raises(ValueError, match="unknown key 'compute_joint'"):
        ViperReward.from_checkpoint(folder, {"compute_joint": True})
