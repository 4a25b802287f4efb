"""Training in several processes: two workers make the codec and the video models of one, and go on for one another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch import distributed

from models.checkpoints import load_tensors, load_weights
from models.codec_training import train_codec
from models.distributed import all_rows, own_rows
from models.video_training import train_video_model
from models.videogpt_training import train_videogpt
from models.vqgan import VQGAN, save_codec
from tests.models import test_codec_training as codec_tests
from tests.models import test_video_training as video_tests
from tests.models import test_videogpt_training as videogpt_tests

# Everything about a codec that is not a mean over the batch: the "ema" codebook, its revival, motion weights, and a
# discriminator with batch norm and the adaptive weight.
CODEC = replace(codec_tests.SHORT, log_every_steps=1)
# Half of the windows by the variational loss, whose importance distribution remembers losses row by row; the learning
# rate follows the mean loss.
VIDEO = replace(
    video_tests.TRAINING,
    all_mask_fraction=0.5,
    condition_corruption_prob=0.5,
    learning_rate_schedule="plateau",
    plateau_patience_steps=2,
    plateau_threshold=0.9,
    log_every_steps=1,
)
VIDEOGPT = replace(videogpt_tests.TRAINING, log_every_steps=1)
CUT_STEP = 6  # the state of step 4 is the last one saved there

Train = Callable[..., None]


def codec(folder: Path, out: Path, progress: Any = None, config: Any = CODEC) -> None:
    train_codec(config, codec_tests.TINY, codec_tests.moving_square(), out, progress=progress)


def video(folder: Path, out: Path, progress: Any = None, config: Any = VIDEO) -> None:
    videos = [video_tests.video_set(folder)]
    train_video_model(config, video_tests.MODEL, videos, folder / "tokens", out, progress=progress)


def videogpt(folder: Path, out: Path, progress: Any = None, config: Any = VIDEOGPT) -> None:
    videos = [video_tests.video_set(folder)]
    train_videogpt(config, videogpt_tests.MODEL, videos, folder / "tokens", out, progress=progress)


TRAININGS: dict[str, tuple[Train, tuple[str, ...]]] = {
    "codec": (codec, ("model", "discriminator")),
    "video": (video, ("model", "average")),
    "videogpt": (videogpt, ("model",)),
}


def train_whole(train: Train, folder: Path, out: Path) -> None:
    """Trains to the end; `<out>_cut` is what a kill at `CUT_STEP` would have left."""

    def progress(step: int, total_steps: int, metrics: dict[str, Any]) -> None:
        if step == CUT_STEP:
            shutil.copytree(out, f"{out}_cut")

    train(folder, out, progress)


def work(number: int, workers: int, folder: Path) -> None:
    """One of several workers, in a process of its own."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = (
        "lo"  # As on one machine outside of tests; not what the host's name resolves to.
    )
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=number, world_size=workers)
    for name, (train, _) in TRAININGS.items():
        train_whole(train, folder, folder / name / "two")
        train(folder, folder / name / "one_cut")
    rows = torch.arange(12).view(6, 2)
    assert own_rows(rows).tolist() == rows[number::workers].tolist()
    assert torch.equal(all_rows(own_rows(rows)), rows)
    uneven = (
        replace(CODEC, batch_frames=7),
        replace(VIDEO, batch_windows=6),
        replace(VIDEOGPT, batch_windows=9),
    )
    for (train, _), config in zip(TRAININGS.values(), uneven):
        with pytest.raises(ValueError, match="2 workers cannot share equally"):
            train(folder, folder / "none", config=config)
    assert not (folder / "none").exists()
    distributed.barrier()  # Nobody leaves while another is still reading.
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per training: "one" and "two" (workers), "one_cut" finished by two, "two_cut" finished by one."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    save_codec(folder / "tokens", VQGAN(video_tests.CODEC), {"note": "toy"})
    for name, (train, _) in TRAININGS.items():
        train_whole(train, folder, folder / name / "one")
    processes.spawn(work, (2, folder), nprocs=2)
    for name, (train, _) in TRAININGS.items():
        train(folder, folder / name / "two_cut")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "wall_s"} for line in read]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not isinstance(value, str)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "events" not in path.name)


@pytest.mark.parametrize("other", ["two", "one_cut", "two_cut"])
@pytest.mark.parametrize("name", TRAININGS)
def test_any_number_of_workers_trains_what_one_does(trained, name, other):
    one, two = trained / name / "one", trained / name / other
    assert files(one) == files(two)
    for a, b in zip(lines(one), lines(two), strict=True):
        assert numbers(b) == pytest.approx(numbers(a), rel=1e-4, abs=1e-6), f"step {a['step']}"
    a, b = (load_tensors(folder / "training_state.pt") for folder in (one, two))
    assert a["step"] == b["step"] and a["best_step"] == b["best_step"]
    for part in TRAININGS[name][1]:
        for key, value in a[part].items():
            torch.testing.assert_close(
                value, b[part][key], rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )
    kept = [load_weights(folder / "weights.pt").keys() for folder in (one, two)]
    assert kept[0] == kept[1]
