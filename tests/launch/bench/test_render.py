"""The environment parts of the benchmark: the same simulation and nearly the same picture on both sides."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from launch.bench import env, render
from launch.bench.env_process import GYMNASIUM, OURS, EnvProcess, open_pair
from launch.bench.render import check_device, task_config
from launch.bench.settings import BenchSettings


def settings(**changes):
    values = {"rounds": 1, "threads": 1, "device": "cpu", "smoke": True, "against": None, "seed": 3}
    return BenchSettings(**{**values, "report": lambda line: None, **changes})


@pytest.fixture(scope="module")
def pair():
    started = EnvProcess(OURS, cores=1), EnvProcess(GYMNASIUM, cores=1)
    yield started
    for process in started:
        process.close()


@pytest.mark.parametrize("task", ["door-close", "assembly", "adroit-door", "adroit-pen"])
def test_both_simulate_the_same_bit_for_bit(pair, task):
    ours, peer = pair
    open_pair(ours, [peer], task_config(task, "fast"), seed=5)
    mine, theirs = ours.call("trace", 4), peer.call("trace", 4)
    for name in ("qpos", "qvel", "rewards"):
        np.testing.assert_array_equal(mine[name], theirs[name])
    assert np.ptp(mine["qpos"], axis=0).max() > 1e-3  # something moved


@pytest.mark.parametrize("task", ["door-close", "adroit-door", "adroit-pen"])
def test_full_quality_is_the_picture_of_gymnasium(pair, task):
    ours, peer = pair
    open_pair(ours, [peer], task_config(task, "full"), seed=5)
    states = ours.call("record", 2)
    for process in pair:
        process.call("load", states)
    mine, theirs = (process.call("pictures").astype(int) for process in pair)
    assert mine.shape == theirs.shape == (2, 64, 64, 3)
    assert np.abs(mine - theirs).mean() < 0.5
    assert not np.array_equal(mine[0], mine[1])


def test_parts_of_a_smoke_run(monkeypatch):
    for part in (render, env):
        monkeypatch.setattr(part, "SMOKE_TASKS", ("adroit-door",))
        monkeypatch.setattr(part, "SMOKE_TURN_S", 0.1)
    (frames,) = render.measure(settings())
    assert frames.key == "render | adroit-door, fast | gymnasium" and frames.target == 10
    assert 0 < frames.checks["mean_abs_pixel_difference_of_255"] < 25
    (steps,) = env.measure(settings())
    assert steps.key == "env | adroit-door, action repeat 2 | gymnasium" and steps.target == 10
    assert steps.checks["max_position_difference"] == 0


def test_a_peer_that_is_not_wanted_starts_nothing():
    assert render.measure(settings(against=("torchrl",))) == env.measure(settings(against=("torchrl",))) == []


def test_configs_are_those_of_the_presets():
    assert task_config("door-close", "fast").action_repeat == 3
    assert task_config("adroit-pen", "full").episode_steps == 50
    for task in ("lever-pull", "adroit-hammer"):
        qualities = [asdict(task_config(task, quality))["render"]["quality"] for quality in ("fast", "full")]
        assert qualities == ["fast", "full"]


def test_figures_of_the_wrong_device_are_refused():
    mesa = {"renderer": "llvmpipe", "vendor": "Mesa"}
    card = {"renderer": "NVIDIA H100", "vendor": "NVIDIA Corporation"}
    check_device(mesa, "cpu")
    check_device(card, "cuda")
    with pytest.raises(RuntimeError, match=r"llvmpipe.*MUJOCO_GL=egl"):
        check_device(mesa, "cuda")
    with pytest.raises(RuntimeError, match=r"H100.*device=cuda"):
        check_device(card, "cpu")


def test_an_error_in_the_process_reaches_the_caller(pair):
    with pytest.raises(RuntimeError, match="camera9"):
        config = asdict(task_config("door-close", "fast"))
        pair[0].call("open", {**config, "render": {**config["render"], "camera": "camera9"}})
