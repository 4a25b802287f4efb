"""Every task, reward, preset and cluster composes into valid settings."""

from __future__ import annotations

import re

import pytest

from actors.envs.registry import task_names
from launch.cli import UsageError, build, compose, group_options
from launch.settings import train_settings
from learner.bonus import BonusConfig
from models.codec_training import CodecTrainingConfig
from models.video_training import VideoTrainingConfig
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqgan import VQGANConfig
from reward_service.config import DiffusionRewardConfig
from reward_service.statistics import Statistics


def test_every_task_has_a_config():
    assert set(group_options("task")) == set(task_names())


@pytest.mark.parametrize("task", group_options("task"))
def test_every_pair_of_a_task_a_reward_and_a_preset(task):
    """No file belongs to all three at once, so pairs are enough; each preset meets every task and every reward."""
    presets, first = group_options("preset"), group_options("task").index(task)
    for number, reward in enumerate(group_options("reward")):
        preset = presets[(first + number) % len(presets)]
        config = compose("train", [f"task={task}", f"preset={preset}", f"reward={reward}"])
        settings = train_settings(config)
        assert (settings.env.task, settings.reward.name) == (task, reward)


@pytest.mark.parametrize("preset", group_options("preset"))
@pytest.mark.parametrize("reward", ["diffusion", "diffusion_likelihood", "viper", "viper_std", "relative"])
def test_the_command_that_missing_statistics_advise_computes_them(tmp_path, preset, reward):
    wanted = train_settings(compose("train", [f"preset={preset}", f"reward={reward}"])).frame_reward
    with pytest.raises(ValueError, match="no reward statistics of task 'door-close'") as error:
        Statistics.read(tmp_path).lookup(wanted, "door-close")
    (command,) = re.findall("`python launch/pretrain.py (.*?)`", str(error.value))
    filled_in = command.replace("<that of the training>", preset).replace("<their folder>", "videos")
    config = compose("pretrain", filled_in.split())
    computed = build(type(wanted), config.frame_reward).cheap_siblings()
    assert wanted.signature() in [settings.signature() for settings in computed]
    assert (config.stage, config.out) == ("statistics", str(tmp_path))


@pytest.mark.parametrize("cluster", group_options("cluster"))
def test_clusters(cluster):
    assert train_settings(compose("train", [f"cluster={cluster}"])).cluster.sync == (cluster == "sync")


@pytest.mark.parametrize("preset", group_options("preset"))
def test_pretraining_presets(preset):
    config = compose("pretrain", [f"preset={preset}"])
    codec = build(VQGANConfig, config.codec)
    video = build(VQDiffusionConfig, config.video)
    build(CodecTrainingConfig, config.codec_training)
    build(VideoTrainingConfig, config.video_training)
    assert (video.num_codes, video.latent_size) == (codec.num_codes, codec.latent_size)


def test_paper_preset_is_the_paper():
    settings = train_settings(compose("train", ["preset=paper", "reward=diffusion"]))
    agent = settings.agent
    assert (agent.batch_size, agent.hidden_dim, agent.feature_dim, agent.lr) == (256, 1024, 50, 1e-4)
    assert (settings.reward.alpha, settings.limiter.updates_per_step) == (0.95, 0.5)
    assert settings.frame_reward == DiffusionRewardConfig()  # mode=entropy, the 11-step chain, no clipping
    assert (settings.env.action_repeat, settings.env.render.quality) == (3, "full")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.alpha=1.5", "alpha must be in [0, 1], got 1.5"),
        ("limiter.tolerance_steps=5", "smaller than one block"),
        ("seed=16000000", "seed must be in [0, 15777216), got 16000000"),
        ("rollout.num_actors=0", "num_actors must be at least 1"),
        ("eval_videos=99", "eval_videos must be in"),
        ("rollout.num_actors=many", "num_actors must be a whole number or auto, got 'many'"),
        ("reward.num_actors=0", "num_actors must be at least 1"),
        ("replay.num_shards=0", "num_shards must be at least 1"),
        ("env.success_hold_steps=2", "success_hold_steps=2 needs success_is_final=true"),
        ("env.success_hold_steps=0", "success_hold_steps is 0, expected 1 or more, or null"),
        ("updates_per_call=0", "updates_per_call must be at least 1, got 0"),
        ("checkpoint_every_s=-1", "checkpoint_every_s must not be negative, got -1"),
        ("agent.batch_size=null", "agent.batch_size must not be null; expected int"),
        ("agent.batch_size=many", "agent.batch_size must be int, got 'many'"),
    ],
)
def test_bad_values_are_refused(override, message):
    with pytest.raises(UsageError) as caught:
        train_settings(compose("train", [override]))
    assert message in str(caught.value)


def test_a_held_success_is_long_enough_to_be_learned_from():
    held = ["env.success_is_final=true", "env.success_hold_steps=2"]
    assert train_settings(compose("train", held)).replay_config.absorbing_ends
    assert not train_settings(compose("train", held[:1])).replay_config.absorbing_ends
    with pytest.raises(UsageError, match=r"too short for replay\.n_step=5: .* give at least 4"):
        train_settings(compose("train", [*held, "replay.n_step=5"]))


def test_a_reward_brings_its_own_keys():
    diffusion = train_settings(compose("train", ["reward=diffusion_likelihood", "frame_reward.skip_step=4"]))
    assert (diffusion.frame_reward.mode, diffusion.frame_reward.skip_step) == ("likelihood", 4)
    with pytest.raises(UsageError, match=r"unknown key 'frame_reward\.skip_step'"):
        compose("train", ["reward=sparse", "frame_reward.skip_step=4"])
    assert train_settings(compose("train", ["reward=sparse"])).bonus.name == "none"
    with pytest.raises(UsageError, match=r"unknown key 'bonus\.rnd\.lr'"):
        compose("train", ["reward=sparse", "bonus.rnd.lr=0.1"])


def test_the_bonus_can_be_left_out():
    settings = train_settings(compose("train", ["reward=diffusion_likelihood", "bonus.name=none"]))
    assert settings.bonus == BonusConfig(norm="running_std", train_every_updates=4)
    with pytest.raises(ValueError, match="did you mean 'rnd'"):
        compose("train", ["bonus.name=rdn"])
