"""Training on Ray as a user runs it: kill it, resume it, stop it, evaluate it, repeat it exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.run_folder import RunFolder
from tests.launch.conftest import ROOT, refused, run_verb

pytestmark = pytest.mark.ray

SMALL = [
    "task=door-close",
    "env.episode_steps=20",
    "eval_episodes=2",
    "eval_every_agent_steps=400",
    "agent.num_expl_steps=80",
    "agent.hidden_dim=32",
    "agent.batch_size=16",
    "limiter.min_steps=80",
    "limiter.tolerance_steps=80",
    "replay.capacity_transitions=5000",
    "rollout.episodes_per_block=1",
    "rollout.envs_per_actor=1",
    "updates_per_call=10",
    "checkpoint_every_s=2",
    "log_every_s=1",
    "console=lines",
]


def start(*overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "launch/train.py", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows(run: Path, phase: str) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def wait_until(condition, process: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.1)


def stored_ids(run: Path) -> list[str]:
    """Ids of all episodes that the shards of a run ever acknowledged, in order, from their journals."""
    lines = [line for shard in sorted((run / "replay").glob("shard_*")) for line in journal_lines(shard)]
    return [line["id"] for line in lines if line["op"] == "commit"]


def journal_lines(shard: Path) -> list[dict]:
    text = (shard / "journal.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_kill_resume_evaluate(tiny, tmp_path):
    run = tmp_path / "run"
    first = start(*SMALL, f"reward.checkpoint={tiny}/video", "total_agent_steps=4000", f"out={run}")
    wait_until(lambda: any(row["updates"] > 50 for row in rows(run, "train")), first)
    time.sleep(2.5)  # At least one checkpoint with updates.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = stored_ids(run)
    newest = RunFolder(run).latest_checkpoint() / "learner.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    done_steps = 20 * len(before)
    assert before and len(set(before)) == len(before)

    total = done_steps + 400
    run_verb("train", f"resume={run}", f"total_agent_steps={total}")
    after = stored_ids(run)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    last = rows(run, "train")[-1]
    assert last["agent_steps"] == 20 * len(after) == total
    assert last["updates"] == (total - 80) // 2
    assert last["frames"] == 3 * total
    assert rows(run, "eval")[-1]["agent_steps"] == total
    assert f"{newest.parent.name} is damaged: learner.pt has" in rows(run, "event")[0]["event"]
    assert {"critic_loss", "learned_return", "episode_success"} <= last.keys()

    out = tmp_path / "evaluation"
    run_verb("evaluate", f"run={run}", "episodes=2", "videos=1", f"out={out}")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["episodes"] == 2 and summary["agent_steps"] == total
    assert summary["success_low"] <= summary["success_rate"] <= summary["success_high"]
    assert [p.suffix for p in out.glob("*.mp4")] == [".mp4"]

    assert "agent.lr" in refused("train", f"resume={run}", "agent.lr=0.5")


def test_synchronous_runs_with_one_seed_are_identical(tiny, tmp_path):
    def run(name: str) -> list[dict]:
        folder = tmp_path / name
        run_verb(
            "train",
            *SMALL,
            f"reward.checkpoint={tiny}/video",
            "cluster=sync",
            "total_agent_steps=300",
            f"out={folder}",
        )
        timing = ("wall_s", "evaluation_wall_s")
        return [
            {k: v for k, v in row.items() if k not in timing}
            for row in rows(folder, "train") + rows(folder, "eval")
        ]

    one, two = run("one"), run("two")
    assert len(one) > 5 and one[-1]["agent_steps"] == 300
    assert {"critic_loss", "bonus_loss", "learned_return"} <= max(one, key=len).keys()
    assert one == two
