"""Training of the video model: learns, resumes exactly, keeps the best, refuses what does not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import models.video_training as video_training
from models import checkpoints
from models.files import write_json
from models.video_training import VideoTrainingConfig, train_video_model
from models.video_training_config import LearningRate
from models.videos import RenderSettings
from models.vqdiffusion import VQDiffusion
from models.vqdiffusion.checkpoint import load_video_model, save_video_model
from models.vqdiffusion.sampling import generate_tokens
from models.vqgan import VQGAN, save_codec
from tests.models.toy_videos import CODEC, MODEL, RENDER, TRAINING, Killed, metric_lines, video_set


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize("fraction, dropout", [(0.0, 0.1), (0.5, 0.0), (1.0, 0.0)])
def test_a_killed_training_goes_on_exactly(tmp_path, codec_folder, videos, fraction, dropout):
    config = replace(TRAINING, all_mask_fraction=fraction, condition_corruption_prob=0.5)
    model = replace(MODEL, dropout=dropout, condition_position="learned")

    def kill_at_8(step, total, metrics):
        if step == 8 and metrics["phase"] == "validation":
            raise Killed

    whole = train_video_model(config, model, videos, codec_folder, tmp_path / "whole")
    with pytest.raises(Killed):
        train_video_model(config, model, videos, codec_folder, tmp_path / "cut", progress=kill_at_8)
    resumed = train_video_model(config, model, videos, codec_folder, tmp_path / "cut")

    assert {k: v for k, v in whole.items() if k != "wall_s"} == {
        k: v for k, v in resumed.items() if k != "wall_s"
    }
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "cut")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name


def test_float32_means_float32_in_convolutions_too(tmp_path, codec_folder, videos, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    train_video_model(replace(TRAINING, train_steps=1), MODEL, videos, codec_folder, tmp_path / "out")
    assert not torch.backends.cudnn.allow_tf32


def test_training_learns_and_the_folder_explains_itself(tmp_path, codec_folder, videos):
    config = replace(TRAINING, train_steps=60, validate_every_steps=20, all_mask_fraction=1.0)
    seen = []
    summary = train_video_model(
        config,
        MODEL,
        videos,
        codec_folder,
        tmp_path / "out",
        progress=lambda step, total, m: seen.append((step, total)),
        extra={"note": "mine"},
    )
    losses = [
        line["validation_loss"]
        for line in metric_lines(tmp_path / "out")
        if line.get("phase") == "validation"
    ]
    assert losses[-1] < 0.8 * math.log(8) and losses[-1] < losses[0]
    assert summary["best_validation_loss"] == min(losses) and summary["steps"] == 60
    assert seen[0] == (0, 60) and seen[-1] == (60, 60)

    model, codec, meta = load_video_model(tmp_path / "out")
    assert model.config == MODEL and codec.config == CODEC and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert meta["tasks"] == ["bar"] and meta["domain"] == "toy" and meta["action_repeat"] == 2
    assert RenderSettings(**meta["render"]) == RENDER and meta["note"] == "mine"
    assert json.loads((tmp_path / "out" / "codec" / "config.json").read_text())["note"] == "toy"
    tokens = generate_tokens(model, model.condition(torch.zeros(3, 32, dtype=torch.int64)), 5)
    assert tokens.shape == (3, 16) and int(tokens.max()) < 8


def test_the_best_weights_are_kept(tmp_path, codec_folder, videos, monkeypatch):
    scripted = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(video_training._VideoRun, "_mean_loss", lambda *_: next(scripted))
    summary = train_video_model(TRAINING, MODEL, videos, codec_folder, tmp_path / "out")
    assert summary["best_step"] == 8 and summary["best_validation_loss"] == 1.0
    assert load_video_model(tmp_path / "out")[2]["trained_steps"] == 8


def test_several_tasks_train_together(tmp_path, codec_folder):
    both = [video_set(tmp_path, "bar"), video_set(tmp_path, "rod")]
    train_video_model(TRAINING, MODEL, both, codec_folder, tmp_path / "out")
    assert load_video_model(tmp_path / "out")[2]["tasks"] == ["bar", "rod"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"render": replace(RENDER, quality="full")}, "quality: 'fast' against 'full'"),
        ({"action_repeat": 3}, "action_repeat=3"),
        ({"domain": "other"}, "domain='other'"),
    ],
)
def test_videos_that_do_not_belong_together_are_refused(tmp_path, codec_folder, changes, message):
    both = [video_set(tmp_path, "bar"), video_set(tmp_path, "rod", **changes)]
    with pytest.raises(ValueError, match=message):
        train_video_model(TRAINING, MODEL, both, codec_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_videos_too_short_for_a_window_are_refused_before_a_folder_is_made(tmp_path, codec_folder, videos):
    with pytest.raises(
        ValueError, match=r"longest train video has 10 frames, a window needs 11 \(frame_skip=10\)"
    ):
        train_video_model(TRAINING, replace(MODEL, frame_skip=10), videos, codec_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_held_frames_are_refused_before_a_folder_is_made_where_the_model_sees_recent_frames(
    tmp_path, codec_folder, videos
):
    with pytest.raises(
        ValueError, match=r"history='recent': .* would teach stillness\. Leave it out, or set"
    ):
        train_video_model(replace(TRAINING, hold_frames=9), MODEL, videos, codec_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    first = replace(MODEL, history="first", num_history_frames=1)
    train_video_model(replace(TRAINING, hold_frames=9), first, videos, codec_folder, tmp_path / "out")
    assert load_video_model(tmp_path / "out")[0].config.history == "first"


def test_a_codec_that_does_not_fit_is_refused(tmp_path, codec_folder, videos):
    with pytest.raises(ValueError, match="num_codes=9 does not fit the codec's num_codes=8"):
        train_video_model(TRAINING, replace(MODEL, num_codes=9), videos, codec_folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="stage=codec"):
        train_video_model(TRAINING, MODEL, videos, tmp_path / "absent", tmp_path / "out")
    larger = [video_set(tmp_path, render=replace(RENDER, height_px=32))]
    with pytest.raises(ValueError, match="32x16 pixels, the codec takes 16x16"):
        train_video_model(TRAINING, MODEL, larger, codec_folder, tmp_path / "out")
    save_codec(
        tmp_path / "other", VQGAN(CODEC), {"render": {"quality": "full", "height_px": 16, "width_px": 16}}
    )
    with pytest.raises(ValueError, match="quality: 'full' against 'fast'"):
        train_video_model(TRAINING, MODEL, videos, tmp_path / "other", tmp_path / "out")


def test_a_kill_between_the_files_of_the_codec_is_gone_on_from(tmp_path, codec_folder, videos, monkeypatch):
    def kill_before_the_config(path, value):
        if path.parent.name == "codec":
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "write_json", kill_before_the_config)
        train_video_model(TRAINING, MODEL, videos, codec_folder, tmp_path / "out")
    assert (tmp_path / "out/codec/weights.pt").exists() and not (tmp_path / "out/codec/config.json").exists()
    train_video_model(TRAINING, MODEL, videos, codec_folder, tmp_path / "out")
    load_video_model(tmp_path / "out")


def test_saved_weights_of_another_model_are_refused(tmp_path, codec_folder):
    folder = tmp_path / "model"
    save_video_model(folder, VQDiffusion(MODEL), VQGAN(CODEC), {})
    with pytest.raises(FileExistsError):
        save_video_model(folder, VQDiffusion(MODEL), VQGAN(CODEC), {})
    config = json.loads((folder / "config.json").read_text())
    config["model"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit VQDiffusion"):
        load_video_model(folder)
    config["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown model keys \\['depth'\\]"):
        load_video_model(folder)


def test_plateau_schedule_warms_up_and_halves():
    config = VideoTrainingConfig(learning_rate=1.0, warmup_steps=4, plateau_patience_steps=10)
    rate = LearningRate(config, total_steps=100)
    assert [rate.at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    rate.observe(3, 0.1)  # during warm-up nothing counts
    for step, loss in ((10, 5.0), (15, 4.0), (20, 3.9), (24, 3.8)):
        rate.observe(step, loss)
    assert rate.at(25) == 1.0
    rate.observe(25, 3.7)
    assert rate.at(25) == 0.5
    rate.observe(34, 3.7)
    assert rate.at(35) == 0.5
    rate.observe(35, 3.7)
    assert rate.at(36) == 0.25


def test_cosine_schedule_ends_at_zero():
    config = VideoTrainingConfig(learning_rate=2.0, warmup_steps=10, learning_rate_schedule="cosine")
    rate = LearningRate(config, total_steps=30)
    assert rate.at(10) == 2.0 and math.isclose(rate.at(20), 1.0) and rate.at(30) < 1e-9


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch_windows", 0),
        ("all_mask_fraction", 1.5),
        ("learning_rate_schedule", "linear"),
        ("precision", "fp8"),
    ],
)
def test_bad_training_config_names_key_and_value(key, value):
    with pytest.raises(ValueError, match=key) as error:
        VideoTrainingConfig(**{key: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("batch", "fraction", "windows", "smallest"),
    [(4, 0.1, 0, 6), (4, 0.95, 4, 11), (4, 0.9, 4, 5), (1, 0.5, 0, 2), (2, 0.25, 0, 3)],
)
def test_a_batch_too_small_for_the_share_of_masked_windows_is_refused(batch, fraction, windows, smallest):
    message = f"batch_windows={batch} is {windows} windows: .* a batch of at least {smallest}$"
    with pytest.raises(ValueError, match=message):
        VideoTrainingConfig(batch_windows=batch, all_mask_fraction=fraction)
    for size in range(2, smallest):
        with pytest.raises(ValueError, match=f"at least {smallest}$"):
            VideoTrainingConfig(batch_windows=size, all_mask_fraction=fraction)
    config = VideoTrainingConfig(batch_windows=smallest, all_mask_fraction=fraction)
    assert 0 < config.all_mask_windows < smallest


def test_steps_come_from_epochs_or_a_budget():
    assert VideoTrainingConfig(epochs=3, batch_windows=4).steps_for(10) == 9
    assert VideoTrainingConfig(train_steps=7).steps_for(10) == 7
