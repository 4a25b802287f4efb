"""The relative video reward as a user makes and uses it: base, expert, statistics, score; its configuration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from launch.cli import build, compose, group_options
from launch.pretrain_relative import train_relative, with_few_experts
from launch.settings import train_settings
from models.relative_video.config import RewardNetworkConfig
from models.videos import read_videos
from reward_service.relative_reward import RelativeRewardConfig
from tests.launch.conftest import TINY, refused, run_here, run_verb
from tests.models.toy_videos import video_set


@pytest.mark.parametrize("preset", group_options("preset"))
def test_every_preset_composes(preset):
    chosen = [f"preset={preset}", "reward=relative"]
    settings = train_settings(compose("train", chosen))
    assert (settings.reward.frozen, settings.bonus.name) == ("relative", "rnd")
    assert (settings.frame_reward.clip_low, settings.frame_reward.clip_high) == (-2.0, 2.0)
    config = compose("pretrain", [*chosen, "stage=relative"])
    build(RewardNetworkConfig, {**config.reward_network, "seed": 0})
    # a pair trained on full masks alone can only be scored at them
    if config.video_training.all_mask_fraction == 1.0:
        assert settings.frame_reward.masks == "all"


def test_paper_preset_is_the_masked_log_ratio_over_eight_steps():
    settings = train_settings(compose("train", ["preset=paper", "reward=relative"]))
    assert settings.frame_reward == RelativeRewardConfig()
    assert settings.frame_reward.steps == (6, 18, 30, 42, 54, 66, 78, 90)
    assert (settings.reward.alpha, settings.reward.learned_scale) == (0.95, 1.0)


def test_a_network_without_held_out_videos_of_others_is_refused_before_the_expert_is_trained(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    config = compose(
        "pretrain",
        ["stage=relative", "reward=relative", "frame_reward.form=r3", f"base={tmp_path}/base"],
    )
    videos = [video_set(tmp_path), video_set(tmp_path, mode="random")]
    videos[1] = replace(videos[1], records=({"split": "train"},) * 5)
    with pytest.raises(ValueError, match="no validation videos of others"):
        train_relative(config, videos, "door-close", tmp_path / "out", torch.device("cpu"), print)
    assert not (tmp_path / "out").exists()


def test_a_base_and_an_expert_become_a_reward(tiny, tmp_path):
    data, base, out = (
        f"data=[{tiny}/data/expert,{tiny}/data/random]",
        tmp_path / "base",
        tmp_path / "relative",
    )
    run_verb("collect", "task=door-close", "env.episode_steps=20", "behaviour=random", "episodes=4", "workers=1",
             "validation_every=2", "seed=9", f"out={tmp_path}/random")  # fmt: skip
    data = f"data=[{tiny}/data/expert,{tmp_path}/random]"
    common = [o for o in TINY if not o.startswith(("env", "codec"))] + [data, "device=cpu", "threads=1"]
    done = run_verb("pretrain", *common, "stage=video", "expert_videos=5", f"codec_checkpoint={tiny}/codec",
                    f"out={base}")  # fmt: skip
    assert "4 train, 1 validation expert videos" in done.stdout
    assert json.loads((base / "training.json").read_text())["data"]["train_videos"] == 6
    network = ["frame_reward.form=r3", "reward_network.train_steps=20", "reward_network.validate_every_steps=20",
               "reward_network.batch_windows=16", "reward_network.ema_every_steps=1", "reward_network.validation_windows=8"]  # fmt: skip
    lenient = ["video_training.learning_rate=1e-2", "video_training.warmup_steps=5"]
    run_verb("pretrain", *common, *network, *lenient, "stage=relative", f"base={base}", f"out={out}")
    statistics = json.loads((out / "statistics.json").read_text())
    assert {signature.partition("/")[0] for signature in statistics} == {"r1", "r2", "r3"}
    for entries in statistics.values():
        entry = entries["door-close"]
        assert entry["mean_expert"] > entry["mean_others"] and entry["std"] > 0
    for form in ("r1", "r3"):
        run_here("score", "reward=relative", f"frame_reward.form={form}", f"checkpoint={out}",
                 f"videos={tiny}/data/expert", "split=validation", f"against=[{tmp_path}/random,frozen]",
                 f"out={tmp_path}/{form}")  # fmt: skip
        against = json.loads((tmp_path / form / "summary.json").read_text())["against"]
        assert [row["name"] for row in against] == ["random", "frozen"]
    again = refused("pretrain", *common, *network, *lenient, "stage=relative", f"base={base}", f"out={out}")
    assert "finished reward network" in again


def test_few_experts_leaves_other_videos_alone(tiny):
    expert, random = (read_videos(tiny / "data" / mode) for mode in ("expert", "random"))
    few = with_few_experts([expert, random], 3)
    assert [len(v.episodes) for v in few] == [3, 2] and few[0].records == expert.records[:3]
    assert with_few_experts([expert], None) == [expert]
    with pytest.raises(ValueError, match="expert_videos is 0"):
        with_few_experts([expert], 0)


def test_a_missing_base_is_refused_before_any_work(tiny, tmp_path):
    without = ("stage=relative", f"data={tiny}/data", f"base={tmp_path}/none", f"out={tmp_path}/out")
    assert "train one on diverse videos" in refused("pretrain", *without)
    without = ("reward=relative", f"reward.checkpoint={tiny}/video", f"out={tmp_path}/run")
    assert "without a base model" in refused("train", *without)
