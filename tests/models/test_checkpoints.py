"""Checkpoint folders: safe loading, errors that say what is wrong, atomic files, the training log."""

from __future__ import annotations

import errno
import json
import os
import resource

import numpy as np
import pytest
import torch
from torch import nn

from models.checkpoints import (
    apply_weights,
    load_checkpoint_config,
    load_tensors,
    load_weights,
    require_same_config,
    save_checkpoint,
    save_tensors,
)
from models.files import read_json, write_atomic, write_json
from models.training_log import TrainingLog


class RunsCode:
    """What a hostile pickle looks like: unpickling it would make a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_disk_that_takes_only_a_part_is_told_and_the_former_file_stays(tmp_path):
    path = tmp_path / "weights.pt"
    save_tensors(path, {"weight": torch.ones(1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*weights\.pt") as error:
            save_tensors(path, {str(i): torch.zeros(300_000) for i in range(8)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert load_tensors(path)["weight"].item() == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_pickled_code_is_refused_and_not_run(tmp_path):
    target = tmp_path / "made_by_pickle"
    torch.save({"weight": RunsCode(str(target))}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt is not a readable file of tensors"):
        load_weights(tmp_path / "weights.pt")
    assert not target.exists()


def test_unreadable_and_foreign_files_are_named(tmp_path):
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"half\.pt is not a readable"):
        load_tensors(tmp_path / "half.pt")
    with pytest.raises(FileNotFoundError, match="train that model first"):
        load_weights(tmp_path / "absent.pt")
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"not a state dict.*found \['model'\]"):
        load_weights(tmp_path / "nested.pt")


def test_weights_that_do_not_fit_are_listed():
    module = nn.Linear(2, 3)
    weights = {"weight": torch.zeros(5, 2), "extra": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        apply_weights(module, weights, "here/weights.pt")
    text = str(error.value)
    assert "here/weights.pt do not fit Linear" in text
    assert "1 missing: bias" in text
    assert "1 unexpected: extra" in text
    assert "weight (5, 2) instead of (3, 2)" in text


def test_checkpoint_folder_is_not_overwritten_and_its_kind_is_checked(tmp_path):
    module = nn.Linear(2, 3)
    folder = tmp_path / "model"
    save_checkpoint(folder, module, {"kind": "vqgan", "tasks": ["door-close"]})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.pt"]
    assert load_checkpoint_config(folder, "vqgan")["tasks"] == ["door-close"]
    other = nn.Linear(2, 3)
    apply_weights(other, load_weights(folder / "weights.pt"), folder)
    assert torch.equal(other.weight, module.weight)
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_checkpoint(folder, module, {"kind": "vqgan"})
    with pytest.raises(ValueError, match="describes a 'vqgan' model, expected 'vqdiffusion'"):
        load_checkpoint_config(folder, "vqdiffusion")
    write_json(folder / "config.json", {"format": 99, "kind": "vqgan"})
    with pytest.raises(ValueError, match="format 99, expected 1"):
        load_checkpoint_config(folder, "vqgan")


def test_config_differences_are_named_with_both_values():
    saved = {"training": {"seed": 0, "steps": 10}, "channels": [1, 2]}
    require_same_config(saved, {"training": {"seed": 0, "steps": 10}, "channels": (1, 2)}, "run")
    with pytest.raises(ValueError, match="run was started") as error:
        require_same_config(saved, {"training": {"seed": 3}, "channels": (1, 2)}, "run")
    assert "training.seed: 0 there, 3 asked for" in str(error.value)
    assert "training.steps: 10 there, '(absent)' asked for" in str(error.value)
    assert "channels" not in str(error.value)


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_json_refuses_nan_and_names_damaged_files(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert not (tmp_path / "value.json").exists()
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"cut\.json is not valid JSON"):
        read_json(tmp_path / "cut.json")


def test_training_log_lines_progress_and_resume(tmp_path):
    seen = []
    with TrainingLog(tmp_path, lambda *args: seen.append(args), total_steps=9, tensorboard=False) as log:
        log.scalars(2, {"phase": "train", "l1": torch.tensor(0.5), "bad": float("nan")})
        log.scalars(4, {"l1": np.float32(0.25)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "l1"')  # cut off by a kill
    assert [(step, total) for step, total, _ in seen] == [(2, 9), (4, 9)]
    with TrainingLog(tmp_path, resume_step=2, tensorboard=False) as log:
        log.scalars(4, {"l1": 0.125})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["l1"]) for line in lines] == [(2, 0.5), (4, 0.125)]
    assert lines[0]["phase"] == "train" and lines[0]["bad"] is None
    assert lines[1]["wall_s"] >= lines[0]["wall_s"]


def test_training_log_writes_tensorboard_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path) as log:
        log.scalars(3, {"l1": 0.5, "phase": "train"})
        log.images(3, "reconstructions", np.zeros((2, 8, 16, 3), np.uint8))
        with pytest.raises(ValueError, match="uint8"):
            log.images(3, "reconstructions", np.zeros((2, 8, 16, 3), np.float32))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("l1")] == [(3, 0.5)]
    assert events.Tags()["images"] == ["reconstructions"]
