"""A training that was killed goes on from its store, in another folder, with and without its replay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.storage import StoredRun
from tests.launch.conftest import refused, run_verb
from tests.launch.test_training import SMALL, rows, start, stored_ids, wait_until

pytestmark = pytest.mark.ray


def test_a_killed_training_goes_on_from_its_store(tmp_path):
    store = f"file://{tmp_path}/store"
    first = start(
        *SMALL,
        *("reward=sparse", "total_agent_steps=100000", "storage_replay=true"),
        *(f"storage={store}", f"out={tmp_path}/one"),
    )
    stored = StoredRun(f"{store}/one")

    def has_trained() -> bool:
        newest = next(iter(stored.checkpoints()), None)
        path = tmp_path / "store" / "one" / str(newest) / "counters.json"
        return path.exists() and json.loads(path.read_text())["updates"] > 50

    wait_until(has_trained, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    newest = next(iter(stored.checkpoints()))
    saved = SimpleNamespace(**json.loads((tmp_path / "store" / "one" / newest / "counters.json").read_text()))

    total = saved.agent_steps + 400
    whole = go_on(f"{store}/one", tmp_path / "whole", f"total_agent_steps={total}")
    assert whole[-1]["agent_steps"] == total
    assert whole[-1]["updates"] == (total - 80) // 2  # As if it had never been killed.
    ids = stored_ids(tmp_path / "whole")
    assert len(ids) == len(set(ids)) == total // 20
    assert ids[: saved.agent_steps // 20] == stored_ids(tmp_path / "one")[: saved.agent_steps // 20]
    # "step_...820.2", where one was due just when training ended.
    assert next(iter(StoredRun(f"{store}/whole").checkpoints())).startswith(f"step_{total:09d}")
    assert next(iter(stored.checkpoints())) == newest  # The first run's own are left alone.

    bare = go_on(f"{store}/one", tmp_path / "bare", f"total_agent_steps={total}", "storage_replay=false")
    assert bare[-1]["agent_steps"] == total
    assert bare[-1]["updates"] == saved.updates + (400 - 80) // 2
    assert len(stored_ids(tmp_path / "bare")) == 400 // 20
    assert any("the replay is empty" in row["event"] for row in rows(tmp_path / "bare", "event"))

    assert "already exists" in refused("train", f"resume={store}/one", f"out={tmp_path}/bare")
    twice = refused("train", *SMALL, "reward=sparse", f"storage={store}", f"out={tmp_path}/other/one")
    assert "nothing is overwritten" in twice


def go_on(stored: str, out: Path, *overrides: str) -> list[dict]:
    """Resumes from a store; the rows of the training, those from before included."""
    run_verb("train", f"resume={stored}", f"out={out}", *overrides)
    train = rows(out, "train")
    assert (train[-1]["storage_failures"], train[-1]["storage_copies"] > 0) == (0, True)
    assert [row["agent_steps"] for row in train] == sorted(row["agent_steps"] for row in train)
    return train
