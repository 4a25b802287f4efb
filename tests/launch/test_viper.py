"""VIPER as a user trains and uses it: stage=videogpt, its statistics, reward=viper and reward=viper_std."""

from __future__ import annotations

import json

import pytest

from launch.cli import build, compose, group_options
from launch.settings import train_settings
from models.videogpt import VideoGPTConfig
from models.videogpt_training import VideoGPTTrainingConfig
from models.vqgan import VQGANConfig
from reward_service.viper_reward import ViperRewardConfig
from tests.launch.conftest import run_here, run_verb


@pytest.mark.parametrize("preset", group_options("preset"))
def test_presets_fit_their_codec(preset):
    config = compose("pretrain", [f"preset={preset}", "stage=videogpt"])
    codec, model = build(VQGANConfig, config.codec), build(VideoGPTConfig, config.videogpt)
    for key in ("num_codes", "latent_size", "latent_dim"):
        assert getattr(model, key) == getattr(codec, key), key
    build(VideoGPTTrainingConfig, {**config.videogpt_training, "seed": 0})


def test_paper_preset_is_the_published_baseline():
    config = compose("pretrain", ["preset=paper", "stage=videogpt"])
    assert build(VideoGPTConfig, config.videogpt) == VideoGPTConfig()
    training = build(VideoGPTTrainingConfig, {**config.videogpt_training, "seed": 0})
    assert training == VideoGPTTrainingConfig()
    viper = train_settings(compose("train", ["preset=paper", "reward=viper"]))
    assert viper.frame_reward == ViperRewardConfig()
    assert (viper.reward.alpha, viper.bonus.name) == (0.5, "rnd")
    std = train_settings(compose("train", ["preset=paper", "reward=viper_std"]))
    assert std.frame_reward == ViperRewardConfig(mode="entropy")


def test_videogpt_is_trained_with_the_statistics_of_both_modes_and_scores_videos(tiny, tmp_path):
    run_verb(
        "pretrain",
        *("stage=videogpt", "task=door-close", f"data={tiny}/data/expert", f"codec_checkpoint={tiny}/codec"),
        *("videogpt.num_layers=1", "videogpt.width=32", "videogpt.num_heads=2", "device=cpu", "threads=1"),
        *("videogpt_training.train_steps=40", "videogpt_training.validate_every_steps=40"),
        *("videogpt_training.learning_rate=1e-2", "videogpt_training.warmup_steps=5"),
        *("videogpt_training.batch_windows=8", "videogpt_training.validation_windows=16"),
        f"out={tmp_path}/gpt",
    )
    statistics = json.loads((tmp_path / "gpt" / "statistics.json").read_text())
    assert set(statistics) == {"likelihood/last_frame", "entropy/last_frame"}
    assert all(set(tasks) == {"door-close", "domain"} for tasks in statistics.values())
    for reward in ("viper", "viper_std"):
        run_here(
            "score",
            *(f"reward={reward}", f"checkpoint={tmp_path}/gpt", f"videos={tiny}/data/expert"),
            *("split=validation", f"against=[{tiny}/data/random]", f"out={tmp_path}/{reward}"),
        )
        (against,) = json.loads((tmp_path / reward / "summary.json").read_text())["against"]
        assert 0.0 <= against["auc_per_episode"] <= 1.0
    means = [json.loads((tmp_path / r / "summary.json").read_text()) for r in ("viper", "viper_std")]
    assert means[0] != means[1]
