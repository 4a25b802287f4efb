"""Codec training: it learns, resumes exactly where it was cut off, and refuses what would spoil a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import codec_losses
from models.checkpoints import load_weights
from models.codec_losses import motion_weights
from models.codec_training import CodecTrainingConfig, code_use, train_codec
from models.discriminator import adaptive_weight
from models.files import LOCK_FILE
from models.frames import FrameSplits, images_to_tensor
from models.vqgan import VQGANConfig, load_codec

ROOT = Path(__file__).resolve().parents[2]
TINY = VQGANConfig(
    architecture="compact",
    resolution_px=16,
    latent_size=4,
    latent_dim=8,
    num_codes=16,
    channels=(16, 16),
    residual_blocks=1,
    codebook="ema",
    beta_weighs="commitment",
)
SHORT = CodecTrainingConfig(
    train_steps=12,
    batch_frames=8,
    learning_rate=2e-3,
    disc_filters=4,
    disc_layers=2,
    disc_start_step=5,
    motion_weight=2.0,
    revive_every_steps=3,
    log_every_steps=2,
    validate_every_steps=4,
    save_every_steps=4,
)


def moving_square(videos: int = 5, frames: int = 12) -> FrameSplits:
    """A bright square that wanders over a grey gradient, the same for the same arguments."""
    made = []
    for number in range(videos):
        video = np.empty((frames, 16, 16, 3), np.uint8)
        video[:] = np.linspace(40, 120, 16, dtype=np.uint8)[:, None, None]
        for t in range(frames):
            video[t, (number * 3) % 12 : (number * 3) % 12 + 4, t : t + 4] = (220, 40, 40)
        made.append(video)
    return FrameSplits(train=tuple(made[:-1]), validation=tuple(made[-1:]))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stop(Exception):
    """Raised out of the progress callback in place of a kill."""


def stop_at(step: int):
    def progress(now: int, total: int, metrics: dict) -> None:
        if now >= step:
            raise Stop

    return progress


def test_it_learns_and_leaves_a_loadable_codec(tmp_path):
    splits = moving_square()
    config = replace(SHORT, train_steps=150, disc_weight=0.0, validate_every_steps=50, log_every_steps=50)
    seen = []
    summary = train_codec(config, TINY, splits, tmp_path / "c", progress=lambda *args: seen.append(args))
    held_out = images_to_tensor(splits.validation[0])
    codec = load_codec(tmp_path / "c")
    l1 = (codec.decode_tokens(codec.encode_tokens(held_out)) - held_out).abs().mean().item()
    assert l1 == pytest.approx(summary["best_validation_l1"], abs=1e-5)
    assert l1 < 0.08  # the mean picture of the video scores 0.12
    assert [step for step, total, _ in seen if total == 150] == [0, 50, 50, 100, 100, 150, 150]
    start = lines(tmp_path / "c")[0]
    assert start["perceptual_loss"] == "off (use_lpips=False)" and start["adversarial_loss"] == "off"
    train = [line for line in lines(tmp_path / "c") if line["phase"] == "train"]
    assert {"l1", "q_loss", "perplexity", "codes_used", "loss", "wall_s"} <= train[-1].keys()


def test_adversarial_phase_starts_on_time(tmp_path):
    config = replace(SHORT, train_steps=8, log_every_steps=1)
    train_codec(config, TINY, moving_square(), tmp_path / "c")
    train = [line for line in lines(tmp_path / "c") if line["phase"] == "train"]
    # Step number s of the loop (from 0) is logged as s + 1; disc_start_step is 5.
    assert [line["step"] for line in train if "disc_loss" in line] == [6, 7, 8]
    assert all(line["adaptive_weight"] > 0 for line in train if "disc_loss" in line)


@pytest.mark.parametrize("stop_step", [2, 6, 10])
def test_resumed_training_equals_uninterrupted_training(tmp_path, stop_step):
    splits = moving_square()
    train_codec(SHORT, TINY, splits, tmp_path / "whole")
    with pytest.raises(Stop):
        train_codec(SHORT, TINY, splits, tmp_path / "cut", progress=stop_at(stop_step))
    assert not (tmp_path / "cut" / "summary.json").exists()
    train_codec(SHORT, TINY, splits, tmp_path / "cut")
    whole, cut = (load_weights(tmp_path / name / "weights.pt") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

    def logged(name: str) -> list[tuple]:
        return [
            (line["step"], line["phase"], line.get("l1"), line.get("validation_l1"))
            for line in lines(tmp_path / name)
        ]

    assert logged("whole") == logged("cut")


def test_killed_training_goes_on(tmp_path):
    script = """
        import sys, torch
        torch.set_num_threads(1)
        sys.path.insert(0, sys.argv[1])
        from tests.models.test_codec_training import SHORT, TINY, moving_square
        from models.codec_training import train_codec
        train_codec(SHORT, TINY, moving_square(), sys.argv[2],
                    progress=lambda step, total, metrics: print(step, metrics["phase"], flush=True))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(ROOT), str(tmp_path / "c")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in process.stdout:
        if line.split() == ["6", "train"]:
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "c" / ".training_state.pt.cut").write_bytes(b"what a kill in the middle of a save leaves")
    seen = []
    train_codec(SHORT, TINY, moving_square(), tmp_path / "c", progress=lambda *args: seen.append(args[0]))
    assert seen[0] == 6 and seen[-1] == 12  # the state of step 4 was kept, steps 5 and 6 are done again
    load_codec(tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir() if path.name.startswith(".")] == [LOCK_FILE]


def test_resume_refuses_another_configuration_and_a_finished_folder(tmp_path):
    splits = moving_square()
    with pytest.raises(Stop):
        train_codec(SHORT, TINY, splits, tmp_path / "c", progress=stop_at(6))
    with pytest.raises(ValueError, match=r"training\.batch_frames: 8 there, 4 asked for"):
        train_codec(replace(SHORT, batch_frames=4), TINY, splits, tmp_path / "c")
    with pytest.raises(ValueError, match=r"model\.num_codes: 16 there, 32 asked for"):
        train_codec(SHORT, replace(TINY, num_codes=32), splits, tmp_path / "c")
    with pytest.raises(ValueError, match=r"data\.train_videos: 4 there, 6 asked for"):
        train_codec(SHORT, TINY, moving_square(videos=7), tmp_path / "c")
    with pytest.raises(FileExistsError, match="unfinished training"):
        train_codec(SHORT, TINY, splits, tmp_path / "c", resume=False)
    train_codec(SHORT, TINY, splits, tmp_path / "c")
    with pytest.raises(FileExistsError, match="already holds a finished codec"):
        train_codec(SHORT, TINY, splits, tmp_path / "c")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        train_codec(SHORT, TINY, moving_square(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_frames_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"frames are \(16, 16, 3\), the codec takes \(64, 64, 3\)"):
        train_codec(SHORT, VQGANConfig(), moving_square(), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_diverged_training_says_what_to_do(tmp_path):
    config = replace(SHORT, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"at step \d+.*learning_rate below 1e\+30"):
        train_codec(config, TINY, moving_square(), tmp_path / "c")
    assert not (tmp_path / "c" / "summary.json").exists()


def test_missing_lpips_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lpips\]' -c constraints\.txt"):
        codec_losses.load_lpips()


def test_paper_budget_is_derived_from_epochs():
    paper = CodecTrainingConfig()
    assert paper.steps_for(num_frames=320) == 200 * 10
    assert paper.steps_for(num_frames=321) == 200 * 11
    assert replace(paper, train_steps=7).steps_for(num_frames=321) == 7


def test_motion_weights_by_hand():
    images, stills = torch.full((1, 3, 1, 2), -1.0), torch.full((1, 3, 1, 2), -1.0)
    images[0, 1, 0, 1] = 1.0  # one channel of the second pixel is a full scale away
    assert motion_weights(images, stills, 20.0).flatten().tolist() == [1.0, 21.0]


def test_adaptive_weight_by_hand():
    last = torch.nn.Parameter(torch.ones(4))
    weight = adaptive_weight(3.0 * last.sum(), 1.5 * last.sum(), last)
    assert weight.item() == pytest.approx(0.8 * 6.0 / (3.0 + 1e-4))
    assert adaptive_weight(1e9 * last.sum(), 0.0 * last.sum(), last).item() == pytest.approx(0.8 * 1e4)


def test_code_use_by_hand():
    assert code_use(torch.tensor([4, 4, 0, 0])) == {"codes_used": 2, "perplexity": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_steps": 0}, "train_steps=0"),
        ({"batch_frames": 0}, "batch_frames=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"adam_beta1": 1.0}, "adam_beta1=1.0"),
        ({"learning_rate_decay": "linear"}, "'linear' is unknown; use 'none' or 'cosine'"),
        ({"still_of": "none"}, "'none' is unknown; use 'video' or 'all'"),
        ({"disc_weight": -0.1}, "disc_weight=-0.1"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        CodecTrainingConfig(**changes)
