"""What the trainings of both video models on tokens have in common: which folders they go on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from models.video_training import train_video_model
from models.videogpt import VideoGPTConfig
from models.videogpt_training import VideoGPTTrainingConfig, train_videogpt
from models.vqgan import VQGAN, save_codec
from tests.models.toy_videos import CODEC, MODEL, TRAINING, Killed


@dataclass(frozen=True)
class Training:
    """A training function with toy sizes, and what its messages call the model and the training."""

    train: Callable[..., dict[str, Any]]
    config: Any
    model: Any
    model_is_called: str
    training_is_called: str

    def run(self, videos, codec_folder, out, changes=None, **options) -> dict[str, Any]:
        """Trains with changed settings."""
        config = replace(self.config, **(changes or {}))
        return self.train(config, self.model, videos, codec_folder, out, **options)


VQDIFFUSION = Training(
    train_video_model,
    TRAINING,
    MODEL,
    "video model",
    "video training",
)
VIDEOGPT = Training(
    train_videogpt,
    VideoGPTTrainingConfig(
        train_steps=12,
        batch_windows=8,
        learning_rate=3e-3,
        warmup_steps=2,
        log_every_steps=4,
        validate_every_steps=4,
        save_every_steps=4,
    ),
    VideoGPTConfig(num_codes=8, latent_size=4, latent_dim=4, num_layers=1, width=16, num_heads=2),
    "VideoGPT",
    "VideoGPT training",
)


@pytest.fixture(params=[VQDIFFUSION, VIDEOGPT], ids=["vqdiffusion", "videogpt"])
def training(request) -> Training:
    return request.param


def test_finished_and_foreign_folders_are_left_alone(tmp_path, codec_folder, videos, training):
    out = tmp_path / "out"
    training.run(videos, codec_folder, out)
    with pytest.raises(FileExistsError, match=f"finished {training.model_is_called}"):
        training.run(videos, codec_folder, out)
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"training\.learning_rate: 0\.003 there, 0\.1 asked for"):
        training.run(videos, codec_folder, out, {"learning_rate": 0.1})
    with pytest.raises(FileExistsError, match="unfinished"):
        training.run(videos, codec_folder, out, resume=False)
    with pytest.raises(FileExistsError, match=f"no {training.training_is_called}"):
        training.run(videos, codec_folder, codec_folder)


def test_an_unfinished_training_goes_on_with_its_own_codec_only(tmp_path, codec_folder, videos, training):
    def kill_at_the_first_state(step, total, metrics):
        if step == 8:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        training.run(videos, codec_folder, out, progress=kill_at_the_first_state)
    save_codec(tmp_path / "other", VQGAN(CODEC))
    with pytest.raises(ValueError, match=r"codec\.weights: '[0-9a-f]{8}' there, '[0-9a-f]{8}' asked for"):
        training.run(videos, tmp_path / "other", out)
    settings = json.loads((out / "training.json").read_text())
    del settings["codec"]  # as folders were before the codec was remembered
    (out / "training.json").write_text(json.dumps(settings))
    assert training.run(videos, codec_folder, out)["steps"] == 12


def test_a_diverged_training_stops_with_an_error(tmp_path, codec_folder, videos, training):
    changes = {"learning_rate": 1e30, "warmup_steps": 0, "train_steps": 40}
    with pytest.raises(FloatingPointError, match="learning_rate below 1e\\+30"):
        training.run(videos, codec_folder, tmp_path / "out", changes)
