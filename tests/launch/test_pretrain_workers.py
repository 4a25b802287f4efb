"""`pretrain.py workers=2`: a killed worker, the same model as by one process, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from launch.cli import compose
from launch.pretrain_stages import read_videos_of, train_stage
from models.checkpoints import load_weights
from tests.launch.conftest import ROOT, TINY

pytestmark = pytest.mark.ray

STEPS, KILL_STEP, SAVE_STEPS = 200, 60, 25


def overrides(tiny: Path, out: Path) -> list[str]:
    given = [
        o for o in TINY if not o.startswith(("env", "codec", "video_training.t", "video_training.validate"))
    ]
    training = {"train_steps": STEPS, "validate_every_steps": 100, "save_every_steps": SAVE_STEPS}
    given += [f"video_training.{key}={value}" for key, value in training.items()]
    given += [
        f"data={tiny}/data/expert",
        f"codec_checkpoint={tiny}/codec",
        "device=cpu",
        "video_training.log_every_steps=10",
    ]
    return [*given, "stage=video", f"out={out}"]


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    text = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("}")]


def start(*given: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "launch/pretrain.py", *given],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "RayTrainWorker" in "".join(child.cmdline())]


def wait_for(condition: Any, what: str, process: subprocess.Popen, timeout_s: float = 240.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > end_s:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"no {what}:\n{out[-3000:]}\n{err[-3000:]}")
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_the_model_is_that_of_one_process(tiny, tmp_path):
    process = start(*overrides(tiny, tmp_path / "two"), "workers=2")
    wait_for(
        lambda: lines(tmp_path / "two")[-1:] and lines(tmp_path / "two")[-1]["step"] >= KILL_STEP,
        "step",
        process,
    )
    killed = workers_of(process)
    assert len(killed) == 2
    killed[-1].kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "a worker died; all go on from the last saved state" in out
    assert "100%" in out and "Traceback" not in out + err

    config = compose("pretrain", ["reward=diffusion", *overrides(tiny, tmp_path / "one")])
    summary = train_stage(
        config, read_videos_of(config), tmp_path / "one", torch.device("cpu"), lambda *_: None
    )
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two):
        for name in {"loss", "validation_loss"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=5e-3), f"{name} of step {a['step']}"
    kept = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert kept["best_validation_loss"] == pytest.approx(summary["best_validation_loss"], rel=5e-3)
    weights = [load_weights(tmp_path / name / "weights.pt") for name in ("one", "two")]
    assert {k: v.shape for k, v in weights[0].items()} == {k: v.shape for k, v in weights[1].items()}
    made = {path.name for path in (tmp_path / "two").iterdir()}
    statistics = {"statistics.json", ".statistics.json.lock"}
    assert made == {path.name for path in (tmp_path / "one").iterdir()} | statistics


def test_what_a_worker_refuses_is_one_line(tiny, tmp_path):
    process = start(*overrides(tiny, tiny / "video"), "workers=2")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "already holds a finished video model" in errors[0]
    assert "Traceback" not in out + err and "died" not in out
