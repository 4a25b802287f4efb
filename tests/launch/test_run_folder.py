"""The run folder: nothing overwritten, atomic checkpoints, resume refuses another configuration."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from launch.cli import UsageError
from launch.run_folder import RunFolder

CONFIG = {"env": {"task": "door-close"}, "agent": {"lr": 1e-3}, "total_agent_steps": 10, "seed": 0}


def make(tmp_path):
    return RunFolder.create(tmp_path / "run", OmegaConf.create(CONFIG))


def save(folder, step, keep=2):
    return folder.save_checkpoint(
        step, lambda p: (p / "learner.pt").write_text(str(step)), {"agent_steps": step}, keep
    )


def test_an_existing_folder_is_refused(tmp_path):
    folder = make(tmp_path)
    with pytest.raises(UsageError, match=r"already exists.*resume="):
        RunFolder.create(folder.path, OmegaConf.create(CONFIG))


def test_a_foreign_folder_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_resume_names_the_keys_that_differ(tmp_path):
    folder = make(tmp_path)
    changed = OmegaConf.merge(OmegaConf.create(CONFIG), {"agent": {"lr": 2e-3}, "total_agent_steps": 99})
    with pytest.raises(UsageError) as caught:
        folder.require_same_config(changed)
    assert "agent.lr: run has 0.001, given 0.002" in str(caught.value)
    assert "total_agent_steps" not in str(caught.value)
    folder.require_same_config(OmegaConf.merge(OmegaConf.create(CONFIG), {"total_agent_steps": 99}))


def test_latest_points_at_the_newest_whole_checkpoint_and_old_ones_go(tmp_path):
    folder = make(tmp_path)
    assert folder.latest_checkpoint() is None
    for step in (100, 200, 300):
        save(folder, step)
    assert folder.latest_checkpoint().name == "step_000000300"
    names = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert names == ["LATEST", "step_000000200", "step_000000300"]
    assert folder.counters(folder.latest_checkpoint())["agent_steps"] == 300


def test_a_checkpoint_that_fails_half_way_leaves_the_former_one(tmp_path):
    folder = make(tmp_path)
    save(folder, 100)

    def fail(path):
        (path / "learner.pt").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder.save_checkpoint(200, fail, {}, keep=2)
    assert folder.latest_checkpoint().name == "step_000000100"


def test_the_same_step_twice_keeps_the_newer_state(tmp_path):
    folder = make(tmp_path)
    save(folder, 100)
    folder.save_checkpoint(100, lambda p: (p / "learner.pt").write_text("new"), {"agent_steps": 100}, keep=2)
    assert (folder.latest_checkpoint() / "learner.pt").read_text() == "new"


def test_a_cut_last_metrics_line_is_left_out(tmp_path):
    folder = make(tmp_path)
    (folder.path / "metrics.jsonl").write_text('{"phase": "train", "wall_s": 1}\n{"phase": "tr')
    assert list(folder.metric_lines()) == [{"phase": "train", "wall_s": 1}]
