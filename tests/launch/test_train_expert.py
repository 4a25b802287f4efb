"""Experts from the dense reward as a user makes them: kill, resume, export, collect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from actors.envs.registry import EnvConfig
from actors.envs.state_env import StateEnv
from actors.experts import ScriptedExpert
from actors.policy_file import load_policy_file
from launch import train_expert
from launch.cli import UsageError, compose
from launch.collect import collect
from launch.run_folder import RunFolder
from launch.train_expert import ExpertTraining, TrainExpertSettings, run, with_overrides_of_the_run
from models.videos import read_videos
from tests.launch.conftest import ROOT, run_verb

SMALL = [
    "task=drawer-close",
    "env.episode_steps=25",
    "sac.hidden_size=16",
    "sac.batch_transitions=8",
    "sac.warmup_steps=50",
    "eval_every_agent_steps=100",
    "eval_episodes=2",
    "checkpoint_every_s=0",
]


def test_state_env_is_the_environment_without_pictures():
    env = StateEnv(EnvConfig("reach", episode_steps=4), seed=0, reward_scale=0.5)
    state, info = env.reset(seed=7)
    again, _ = env.reset(seed=7)
    np.testing.assert_array_equal(state, again)
    assert (
        state.shape == env.observation_space.shape == (39,)
        and state.dtype == np.float32
        and info["seed"] == 7
    )
    env.reset()
    assert not np.array_equal(env.reset()[0], state)
    steps = [env.step(np.ones(4, np.float32)) for _ in range(4)]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in steps] == [(False, False)] * 3 + [
        (False, True)
    ]
    for _, reward, _, _, info in steps:
        assert reward == pytest.approx(0.5 * info["dense_reward"]) and info["episode_success"] is False
    env.close()


def test_a_solved_episode_that_ends_terminates_without_pictures_as_well():
    env = StateEnv(EnvConfig("drawer-close", success_is_final=True, success_hold_steps=2), seed=0)
    expert = ScriptedExpert("drawer-close")
    env.reset(seed=1)
    ends, length = (False, False), 0
    while not any(ends):
        ends, length = env.step(expert.act(env._env.state))[2:4], length + 1
    assert ends == (True, False) and length < 100
    env.close()


def rows(folder, phase: str) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for line in lines if line.endswith("}") and (row := json.loads(line))["phase"] == phase]


@pytest.fixture
def start():
    """Starts the verb as a user would; what a failed test leaves behind is killed with its Ray processes."""
    started: list[subprocess.Popen] = []

    def launch(*overrides: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "launch/train_expert.py", *overrides],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition, process: subprocess.Popen, timeout_s: float = 300) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.1)


def test_a_policy_that_was_exported_after_the_last_checkpoint_is_not_replaced_by_a_worse_one(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(train_expert, "save_policy_file", lambda path, arrays: path.touch())
    made = ExpertTraining.__new__(ExpertTraining)
    made._folder = SimpleNamespace(path=tmp_path)
    made._settings = SimpleNamespace(env=SimpleNamespace(task="reach", action_repeat=3))
    made._steps = made._updates = 100
    before = {"best": [0.2, 0.2, 5.0]}
    assert made._best_so_far({}) is None and made._best_so_far(before) == [0.2, 0.2, 5.0]
    quality = {"success_rate": 0.6, "end_success_rate": 0.5, "dense_return": 9.0}
    made._export({}, quality)
    assert made._best_so_far(before) == [0.6, 0.5, 9.0]


def newest(out) -> tuple[dict, float, int]:
    """Counters, temperature and number of transitions of the newest checkpoint."""
    latest = out / "checkpoints" / (out / "checkpoints" / "LATEST").read_text()
    counters = json.loads((latest / "counters.json").read_text())
    log_temperature = json.loads((latest / "temperature.json").read_text())["log_temperature"]
    with np.load(latest / "replay.npz", allow_pickle=False) as replay:
        transitions = int(replay["lengths"].sum())
        assert len(replay["rewards"]) == len(replay["actions"]) == transitions
        assert len(replay["observations"]) == transitions + len(replay["lengths"])
    return counters, float(np.exp(log_temperature)), transitions


@pytest.mark.ray
def test_kill_resume_stop_finish_collect(tmp_path, start):
    out = tmp_path / "expert"
    process = start(*SMALL, "total_agent_steps=100000", f"out={out}")
    has_checkpoint = (out / "checkpoints" / "LATEST").exists
    wait_until(lambda: has_checkpoint() and any(r["updates"] > 60 for r in rows(out, "eval")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed, temperature, transitions = newest(out)
    assert transitions == killed["agent_steps"] > 0

    process = start(f"resume={out}")
    wait_until(
        lambda: (rows(out, "train") or [{"agent_steps": 0}])[-1]["agent_steps"] > killed["agent_steps"] + 200,
        process,
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resumed at {killed['agent_steps']:,} agent steps" in output and f"resume={out}" in output
    # Neither the replay nor the learned temperature begins anew, and the update ratio (0.5 at preset=laptop) holds.
    stopped, _, transitions = newest(out)
    assert transitions == stopped["agent_steps"] > killed["agent_steps"]
    new_steps = stopped["agent_steps"] - killed["agent_steps"]
    assert stopped["updates"] - killed["updates"] == new_steps // 2
    resumed = next(
        r for r in rows(out, "train") if r["agent_steps"] > killed["agent_steps"] and "temperature" in r
    )
    assert resumed["temperature"] < 1.0 and abs(resumed["temperature"] - temperature) < 0.1

    total = stopped["agent_steps"] + 20
    done = run_verb("train_expert", f"resume={out}", f"total_agent_steps={total}")
    assert "expert.npz" in done.stdout and rows(out, "eval")[-1]["agent_steps"] >= total
    about = json.loads((out / "expert.json").read_text())
    assert about["success_rate"] == max(r["success_rate"] for r in rows(out, "eval"))
    policy = load_policy_file(out / "expert.npz")
    assert (policy.state_size, policy.action_size, policy.nonlinearity, policy.output) == (
        39,
        4,
        "relu",
        "tanh",
    )
    check_videos(out, tmp_path)


def check_videos(out, tmp_path) -> None:
    """collect.py takes the exported policy, and the pickled checkpoint only with trust."""
    common = [
        "task=drawer-close",
        "env.episode_steps=3",
        "episodes=1",
        "behaviour=half",
        "validation_every=0",
    ]
    common += ["workers=1", "env.render.height_px=16", "env.render.width_px=16"]
    with pytest.raises(ValueError, match="trust_expert=true"):
        collect(compose("collect", [*common, f"expert={out}/checkpoint", f"out={tmp_path}/refused"]))
    collect(compose("collect", [*common, f"expert={out}/expert.npz", f"out={tmp_path}/plain"]))
    run_verb("collect", *common, f"expert={out}/checkpoint", "trust_expert=true", f"out={tmp_path}/pickled")
    for name in ("plain", "pickled"):
        assert len(read_videos(tmp_path / name).episodes[0]) == 3
        index = json.loads((tmp_path / name / "index.json").read_text())
        assert index["extra"]["expert"].startswith(str(out))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sac.batch_transitions=0"], "sac: batch_transitions must be at least 1, got 0"),
        (["sac.learning_rate=0"], "learning_rate must be above 0"),
        (["total_agent_steps=0"], "total_agent_steps must be at least 1, got 0"),
        (["num_env_runners=-1"], "num_env_runners must not be negative"),
        (["seed=20260101"], "seed is 20260101, expected 0 to 16777215"),
        (["seed=-1"], "seed is -1"),
        (["resume={tmp}"], "not a run folder"),
        (["out={tmp}"], "already exists"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(tmp_path, overrides, message):
    (tmp_path / "something").touch()
    with pytest.raises(UsageError, match=message):
        run(compose("train_expert", [o.format(tmp=tmp_path) for o in overrides]))


def test_only_trainings_of_experts_are_resumed(tmp_path):
    of_hopper = OmegaConf.create(
        {"task": "hopper", "seed": 0, "sac": {}}
    )  # as collect.py task=hopper writes it
    for name, config in (("hopper", of_hopper), ("run", compose("train", ["reward=sparse"]))):
        RunFolder.create(tmp_path / name, config)
        with pytest.raises(UsageError, match=f"{name} is not a training of train_expert.py"):
            with_overrides_of_the_run([f"resume={tmp_path}/{name}"])
    given = ["task=reach", "seed=3"]
    config = compose("train_expert", given)
    config.overrides = [*given, f"out={tmp_path}/expert"]
    RunFolder.create(tmp_path / "expert", config)
    again = [f"resume={tmp_path}/expert", "total_agent_steps=9"]
    assert with_overrides_of_the_run(again) == [*given, *again]


def test_a_training_that_never_began_leaves_its_folder_free(tmp_path, monkeypatch):
    def refused(*_):
        raise UsageError("num_env_runners=64 asks for as many CPUs")

    monkeypatch.setattr(train_expert, "train_on_ray", refused)
    given = ["task=reach", f"out={tmp_path}/reach"]
    with pytest.raises(UsageError, match="num_env_runners=64"):
        run(compose("train_expert", [*given, "num_env_runners=64"]))
    assert not (tmp_path / "reach").exists()
    # One that began is kept, whatever ends it.
    monkeypatch.setattr(train_expert, "train_on_ray", lambda *_: None)
    assert run(compose("train_expert", given)) == 0
    (tmp_path / "reach" / "metrics.jsonl").touch()
    monkeypatch.setattr(train_expert, "train_on_ray", refused)
    with pytest.raises(UsageError, match="num_env_runners=64"):
        run(compose("train_expert", [f"resume={tmp_path}/reach", "task=reach"]))
    assert (tmp_path / "reach" / "config.yaml").exists()


def test_presets_compose_for_every_domain():
    for task in ("reach", "adroit-pen"):
        for preset in ("laptop", "paper"):
            config = compose("train_expert", [f"task={task}", f"preset={preset}"])
            assert set(TrainExpertSettings.__dataclass_fields__) <= set(config)
    assert compose("train_expert", ["preset=paper"]).sac.hidden_size == 256
