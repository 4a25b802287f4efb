"""Trajectories of a training of SAC: the replay, where the base data ends, kill and resume, both folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import locomotion_data
from launch.cli import UsageError, compose
from launch.locomotion_data import base_limit, data_settings, is_locomotion, replay_prefix
from launch.run_folder import RunFolder
from models.files import read_json, write_json
from models.trajectories import read_trajectories
from tests.launch.conftest import ROOT, refused, run_verb


def episode(first: int, length: int, *, terminated: bool = False, id_: str = "", start: int = 0):
    """Steps `start` to `start + length` of an episode whose observations and rewards count up from `first`."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    numbers = np.arange(first + start, first + start + length + 1, dtype=np.float32)
    return SingleAgentEpisode(
        id_=id_ or f"e{first}",
        observations=list(numbers[:, None]),
        actions=list(-numbers[:-1, None]),
        rewards=[float(n) for n in numbers[:-1]],
        terminated=terminated,
        t_started=start,
        len_lookback_buffer=0,
    )


def test_replay_keeps_transitions_and_gives_them_back():
    from launch.sac_replay import ArrayEpisodeReplayBuffer

    replay = ArrayEpisodeReplayBuffer(100, seed=0)
    # Chunks of two environments alternate; the first falls.
    replay.add([episode(10, 2, id_="a"), episode(50, 3, id_="b")])
    replay.add([episode(10, 2, id_="a", start=2, terminated=True), episode(50, 1, id_="b", start=3)])
    assert replay.get_num_timesteps() == 8
    (batch,) = replay.sample(num_items=400)
    state, following = batch["obs"][:, 0], batch["new_obs"][:, 0]
    np.testing.assert_array_equal(following, state + 1)
    np.testing.assert_array_equal(batch["rewards"], state)
    np.testing.assert_array_equal(batch["actions"][:, 0], -state)
    np.testing.assert_array_equal(batch["terminateds"], state == 13)
    assert set(state.tolist()) == {10, 11, 12, 13, 50, 51, 52, 53}

    arrays = replay.plain_arrays()
    assert arrays["lengths"].tolist() == [4, 4] and arrays["terminated"].tolist() == [True, False]
    assert arrays["observations"][:, 0].tolist() == [10, 11, 12, 13, 14, 50, 51, 52, 53, 54]
    again = ArrayEpisodeReplayBuffer(100, seed=0)
    again.add_plain(arrays)
    for name, values in again.plain_arrays().items():
        np.testing.assert_array_equal(values, arrays[name])
    old = {name: values for name, values in arrays.items() if name != "terminated"}
    older = ArrayEpisodeReplayBuffer(100, seed=0)
    older.add_plain(old)
    assert not older.plain_arrays()["terminated"].any()


def test_replay_forgets_the_oldest():
    from launch.sac_replay import ArrayEpisodeReplayBuffer

    replay = ArrayEpisodeReplayBuffer(5, seed=0)
    replay.add([episode(0, 4), episode(100, 3)])
    arrays = replay.plain_arrays()
    assert arrays["lengths"].tolist() == [2, 3]
    assert arrays["observations"][:, 0].tolist() == [2, 3, 4, 100, 101, 102, 103]
    assert set(replay.sample(num_items=200)[0]["rewards"].tolist()) == {2, 3, 100, 101, 102}


def test_references_are_those_of_the_expert_that_is_there(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        locomotion_data, "references", lambda *_: measured.append(1) or {"expert_return": 1.0}
    )
    for best, times in (
        (2000, 1),
        (2000, 1),
        (6000, 2),
    ):  # the training went on in between and found a better one
        write_json(tmp_path / "expert.json", {"agent_steps": best})
        locomotion_data.measure_references(None, RunFolder(tmp_path))
        assert len(measured) == times
    assert read_json(tmp_path / "references.json") == {"expert_return": 1.0, "expert_agent_steps": 6000}


def test_base_data_ends_where_a_third_of_the_way_is_done(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [(500, -20.0), (1000, 5.0), (1500, 12.0), (2000, 8.0), (2500, 40.0), (1500, 11.0)]
    lines = [json.dumps({"phase": "eval", "agent_steps": s, "dense_return": r}) for s, r in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"phase": "train"}), ""]))
    assert base_limit(folder, -5.0, 1 / 3) == (1500, 11.0)  # -5 + 45 / 3 = 10
    assert base_limit(folder, -5.0, 1.0) == base_limit(folder, 90.0, 1 / 3) == (2500, 40.0)


def test_an_evaluation_that_a_kill_took_back_ends_no_base_data(tmp_path):
    rows = [(500, -20.0), (1000, 30.0), (1000, 5.0), (1500, 40.0)]
    lines = [json.dumps({"phase": "eval", "agent_steps": s, "dense_return": r}) for s, r in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert base_limit(RunFolder(tmp_path), -5.0, 1 / 3) == (1500, 40.0)


def test_base_data_is_a_prefix_with_unscaled_rewards():
    replay = {
        "lengths": np.array([2, 3, 4]),
        "observations": np.arange(12, dtype=np.float32)[:, None],
        "actions": np.arange(9, dtype=np.float32)[:, None],
        "rewards": np.arange(9, dtype=np.float32),
    }
    found = list(replay_prefix(replay, 4, 0.5))
    assert [e.observations[:, 0].tolist() for e in found] == [[0, 1], [3, 4]]
    assert [e.actions[:, 0].tolist() for e in found] == [[0, 1], [2, 3]]
    assert [e.rewards.tolist() for e in found] == [[0, 2], [4, 6]]


def test_which_tasks_and_bad_settings():
    assert is_locomotion(["task=door-close", "task=hopper"]) and not is_locomotion(["task=door-close"])
    with pytest.raises(UsageError, match="unknown mode 'random'"):
        data_settings(compose("collect_locomotion", ["mode=random"]))
    with pytest.raises(UsageError, match=r"seed must be in \[0, 16776216\), got 16777000"):
        data_settings(compose("collect_locomotion", ["seed=16777000"]))
    with pytest.raises(UsageError, match="return_share must be in"):
        data_settings(compose("collect_locomotion", ["locomotion_data.return_share=0"]))
    with pytest.raises(UsageError, match="capacity_transitions=50 is less than total_agent_steps"):
        data_settings(compose("collect_locomotion", ["locomotion_data.sac.capacity_transitions=50"]))
    with pytest.raises(UsageError, match="'hopper' has states instead of pictures"):
        compose("train", ["task=hopper"])
    paper = data_settings(compose("collect_locomotion", ["preset=paper", "task=hopper"])).data
    assert paper.total_agent_steps == paper.expert_transitions == 1_000_000
    assert (paper.sac.batch_transitions, paper.sac.learning_rate, paper.sac.reward_scale) == (256, 3e-4, 1.0)


SMALL = [
    "locomotion_data.total_agent_steps=1200",
    "locomotion_data.eval_every_agent_steps=200",
    "locomotion_data.eval_episodes=2",
    "locomotion_data.episode_steps=50",
    "locomotion_data.checkpoint_every_s=0",
    "locomotion_data.reference_episodes=3",
    "locomotion_data.expert_transitions=100",
    "locomotion_data.sac.hidden_size=16",
    "locomotion_data.sac.batch_transitions=16",
    "locomotion_data.sac.warmup_steps=300",
]


@pytest.mark.ray
def test_kill_resume_base_expert(tmp_path):
    training, base, expert = tmp_path / "sac", tmp_path / "base", tmp_path / "expert"
    command = ["task=hopper", f"training={training}", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "launch/collect.py", *command, "mode=base", f"out={base}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline_s = time.monotonic() + 300
    while not (training / "checkpoints" / "LATEST").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not base.exists()

    done = run_verb("collect", *command, "mode=base", f"out={base}")
    assert "resumed at" in done.stdout
    run_verb("collect", *command, "mode=expert", f"out={expert}")
    sets = [read_trajectories(folder) for folder in (base, expert)]
    for mode, data in zip(("base", "expert"), sets):
        assert (data.index["domain"], data.index["task"], data.index["mode"]) == (
            "locomotion",
            "hopper",
            mode,
        )
        assert data.observations.shape[1:] == (11,) and data.actions.shape[1:] == (3,)
        assert np.abs(data.actions).max() <= 1
        assert {"expert_return", "random_return"} <= set(data.index["extra"])
    assert 0 < sets[0].index["transitions"] <= sets[0].index["extra"]["agent_steps"] <= 1300
    assert 100 <= sets[1].index["transitions"] < 150 * 20
    assert "already exists" in refused("collect", *command, "mode=base", f"out={base}")
    other = [*command, "mode=base", f"out={tmp_path / 'other'}", "locomotion_data.sac.hidden_size=8"]
    assert "sac.hidden_size: run has 16, given 8" in refused("collect", *other)
