"""Training of VideoGPT: learns, resumes exactly, keeps the best, refuses what does not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import models.videogpt_training as videogpt_training
from models.videogpt import VideoGPTConfig
from models.videogpt.checkpoint import load_videogpt
from models.videogpt_training import VideoGPTTrainingConfig, train_videogpt
from models.videos import RenderSettings
from tests.models.toy_videos import CODEC, RENDER, Killed, metric_lines, video_set

MODEL = VideoGPTConfig(num_codes=8, latent_size=4, latent_dim=4, num_layers=1, width=16, num_heads=2)
TRAINING = VideoGPTTrainingConfig(
    train_steps=12,
    batch_windows=8,
    learning_rate=3e-3,
    warmup_steps=2,
    log_every_steps=4,
    validate_every_steps=4,
    validation_windows=32,
    save_every_steps=4,
)


@pytest.mark.parametrize(
    ("changes", "schedule"), [({}, "constant"), ({"dropout": 0.1, "frame_skip": 3}, "cosine")]
)
def test_a_killed_training_goes_on_exactly(tmp_path, codec_folder, videos, changes, schedule):
    config = replace(TRAINING, learning_rate_schedule=schedule, clip_grad_norm=1.0)
    model = replace(MODEL, **changes)

    def kill_at_8(step, total, metrics):
        if step == 8 and metrics["phase"] == "validation":
            raise Killed

    whole = train_videogpt(config, model, videos, codec_folder, tmp_path / "whole")
    with pytest.raises(Killed):
        train_videogpt(config, model, videos, codec_folder, tmp_path / "cut", progress=kill_at_8)
    resumed = train_videogpt(config, model, videos, codec_folder, tmp_path / "cut")

    assert {**whole, "wall_s": 0} == {**resumed, "wall_s": 0}
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "cut")
    first, second = (load_videogpt(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_learns_and_the_folder_explains_itself(tmp_path, codec_folder, videos):
    config = replace(TRAINING, train_steps=60, validate_every_steps=20)
    seen = []
    summary = train_videogpt(
        config,
        MODEL,
        videos,
        codec_folder,
        tmp_path / "out",
        progress=lambda step, total, m: seen.append((step, total)),
        extra={"note": "mine"},
    )
    lines = metric_lines(tmp_path / "out")
    losses = [line["validation_loss"] for line in lines if line.get("phase") == "validation"]
    assert losses[-1] < 0.8 * math.log(8) and losses[-1] < losses[0]
    assert summary["best_validation_loss"] == min(losses) and summary["steps"] == 60
    assert seen[0] == (0, 60) and seen[-1] == (60, 60)

    model, codec, meta = load_videogpt(tmp_path / "out")
    assert model.config == MODEL and codec.config == CODEC
    assert meta["tasks"] == ["bar"] and meta["domain"] == "toy" and meta["action_repeat"] == 2
    assert RenderSettings(**meta["render"]) == RENDER and meta["note"] == "mine"
    assert json.loads((tmp_path / "out" / "codec" / "config.json").read_text())["note"] == "toy"


def test_the_best_weights_are_kept(tmp_path, codec_folder, videos, monkeypatch):
    scripted = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(videogpt_training._VideoGPTRun, "_mean_loss", lambda *_: next(scripted))
    summary = train_videogpt(TRAINING, MODEL, videos, codec_folder, tmp_path / "out")
    assert summary["best_step"] == 8 and summary["best_validation_loss"] == 1.0
    assert load_videogpt(tmp_path / "out")[2]["trained_steps"] == 8


@pytest.mark.parametrize(("padding", "per_video"), [("current", 10 - 2 * 3), ("first", 10 - 3)])
def test_padding_decides_which_windows_are_trained(tmp_path, codec_folder, videos, padding, per_video):
    model = replace(MODEL, frame_skip=3, history_padding=padding)
    train_videogpt(replace(TRAINING, train_steps=1), model, videos, codec_folder, tmp_path / "out")
    start = metric_lines(tmp_path / "out")[0]
    assert (start["train_windows"], start["validation_windows"]) == (4 * per_video, per_video)


def test_videos_too_short_for_a_window_say_what_to_do(tmp_path, codec_folder, videos):
    with pytest.raises(ValueError, match="longest train video has 10 frames, a window needs 11"):
        train_videogpt(TRAINING, replace(MODEL, frame_skip=5), videos, codec_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="longest train video has 10 frames, a window needs 11"):
        padded = replace(MODEL, frame_skip=10, history_padding="first")
        train_videogpt(TRAINING, padded, videos, codec_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_weights_of_linear_layers_decay(tmp_path, codec_folder, videos):
    config = replace(TRAINING, train_steps=1, weight_decay=0.1)
    train_videogpt(config, MODEL, videos, codec_folder, tmp_path / "out")
    state = torch.load(tmp_path / "out" / "training_state.pt", weights_only=True)["optimiser"]
    groups = [(g["weight_decay"], len(g["params"])) for g in state["param_groups"]]
    # tok_emb, key, query, value, proj, two of the MLP, head; their seven biases, three norms of two, positions
    assert groups == [(0.1, 8), (0.0, 7 + 6 + 1)]


def test_what_does_not_fit_is_refused(tmp_path, codec_folder, videos):
    with pytest.raises(ValueError, match="latent_dim=5 does not fit the codec's latent_dim=4"):
        train_videogpt(TRAINING, replace(MODEL, latent_dim=5), videos, codec_folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="stage=codec"):
        train_videogpt(TRAINING, MODEL, videos, tmp_path / "absent", tmp_path / "out")
    both = [*videos, video_set(tmp_path, "rod", action_repeat=3)]
    with pytest.raises(ValueError, match="action_repeat=3"):
        train_videogpt(TRAINING, MODEL, both, codec_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_windows", 0),
        ("learning_rate_schedule", "plateau"),
        ("precision", "fp8"),
        ("clip_grad_norm", 0.0),
    ],
)
def test_bad_training_config_names_key_and_value(key, value):
    with pytest.raises(ValueError, match=key) as error:
        VideoGPTTrainingConfig(**{key: value})
    assert repr(value) in str(error.value)


def test_schedules_and_steps():
    assert VideoGPTTrainingConfig(epochs=3, batch_windows=4).steps_for(10) == 9
    assert VideoGPTTrainingConfig(train_steps=7).steps_for(10) == 7
    config = VideoGPTTrainingConfig(learning_rate=2.0, warmup_steps=4)
    assert [config.learning_rate_at(step, 24) for step in (0, 3, 4, 23)] == [0.5, 2.0, 2.0, 2.0]
    cosine = replace(config, learning_rate_schedule="cosine")
    assert cosine.learning_rate_at(4, 24) == 2.0 and math.isclose(cosine.learning_rate_at(14, 24), 1.0)
    assert cosine.learning_rate_at(24, 24) < 1e-9
