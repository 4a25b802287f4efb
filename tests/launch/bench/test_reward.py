"""The reward race: its reference computes the published reward, and estimators are judged on real folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from launch.bench import estimators, reward
from launch.bench.reference_reward import ReferenceReward
from launch.bench.settings import BenchSettings
from models.episode import Episode
from models.videos import write_videos
from models.vqdiffusion.config import VQDiffusionConfig
from reward_service.config import DiffusionRewardConfig
from reward_service.diffusion_reward import DiffusionReward
from tests.reward_service.support import (
    META,
    RENDER,
    random_video,
    tensors,
    tiny_codec,
    tiny_model,
    write_tiny_folder,
)
from tests.reward_service.test_golden import close, networks  # noqa: F401


def bench_settings(**changes) -> BenchSettings:
    values = {"rounds": 1, "threads": 1, "device": "cpu", "smoke": True, "against": None, "seed": 0}
    return BenchSettings(**{**values, "report": lambda line: None, **changes})


def test_the_reference_equals_the_published_values(golden, networks):  # noqa: F811
    io = tensors(golden("diffusion_reward") / "io.npz")
    values = ReferenceReward(*networks).score_tokens(io["entropy/condition_tokens"], io["uniform"])
    close(values, io["entropy_noise1/raw_reward"])


def test_checks_compare_both_sides_and_refuse_a_difference(tmp_path):
    model, codec = tiny_model(), tiny_codec()
    rewards = {
        precision: DiffusionReward(model, codec, META, DiffusionRewardConfig(precision=precision), tmp_path)
        for precision in ("float32", "bfloat16")
    }
    frames = random_video(0, 4)
    found = reward._checks(rewards, ReferenceReward(model, codec), frames)
    assert found["max_relative_difference_float32"] < 5e-5
    assert found["max_relative_difference_bfloat16"] > found["max_relative_difference_float32"]
    other = tiny_model()
    other.transformer.to_logits[1].bias.data[3] += 1.0
    with pytest.raises(RuntimeError, match="different rewards"):
        reward._checks(rewards, ReferenceReward(other, codec), frames)


def test_flops_of_a_denoiser_pass():
    config = VQDiffusionConfig(
        num_layers=1, width=2, num_heads=1, num_codes=3, latent_size=1, num_history_frames=1
    )
    # per token: mlp 2 * 2*4 * 9, projections 6 * 4, attention 2 * 2 * (1 + 1), logits 2 * 3
    assert reward.denoiser_flops(config) == 2 * (144 + 24 + 8 + 6)
    assert reward.denoiser_flops(VQDiffusionConfig()) * 11 == pytest.approx(17e9, rel=0.05)


def test_moving_pictures_move():
    frames = reward.moving_pictures(5, 0)
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[1][:, :-1], frames[0][:, 1:])
    assert frames.std() > 20


def test_estimators_are_judged_on_held_out_videos(tmp_path):
    checkpoint = write_tiny_folder(tmp_path / "model")
    for number, kind in enumerate(("expert", "random", "noisy")):
        episodes = [episode(f"{kind}{i}", 10 * number + i) for i in range(4)]
        write_videos(
            tmp_path / "data" / kind,
            episodes,
            task="door-close",
            domain="metaworld",
            mode=kind,
            render=RENDER,
            action_repeat=3,
            validation_every=2,
        )
    rows = estimators.measure(bench_settings(checkpoint=checkpoint, data=tmp_path / "data", episodes=2))
    by_case = {row.case: row.values for row in rows}
    assert len(by_case) == 2 * len(estimators.ESTIMATORS)
    first = by_case["entropy, chain"]
    assert first["spearman"] == pytest.approx(1) and first["frames_per_s"] > 0
    assert by_case["entropy, chain-other-noise"]["spearman"] < 1
    assert by_case["likelihood, one-forward-bfloat16"]["spearman"] == pytest.approx(
        by_case["likelihood, one-forward"]["spearman"], abs=0.1
    )
    some = bench_settings(checkpoint=checkpoint, data=tmp_path / "data", episodes=1, against=("one-forward",))
    assert [row.case for row in estimators.measure(some)][:2] == ["entropy, chain", "entropy, one-forward"]
    with pytest.raises(RuntimeError, match="has 2 held-out videos, episodes=3 are wanted"):
        estimators.measure(bench_settings(checkpoint=checkpoint, data=tmp_path / "data", episodes=3))


def episode(name: str, seed: int, steps: int = 5) -> Episode:
    zeros = np.zeros(steps, np.float32)
    return Episode(
        frames=random_video(seed, steps + 1),
        actions=np.zeros((steps, 4), np.float32),
        env_rewards=zeros,
        discounts=zeros + 1,
        successes=zeros > 0,
        task="door-close",
        episode_id=name,
    )


def test_seeds_of_the_race_do_not_touch_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    reward.moving_pictures(2, 1)
    assert torch.equal(before, torch.get_rng_state())
