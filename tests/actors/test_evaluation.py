"""Evaluation: success, intervals, and the same scenes for every policy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from actors import evaluation
from actors.envs.registry import EnvConfig
from actors.evaluation import Evaluator, evaluate
from actors.seeding import indexed_seed
from models.videos import RenderSettings
from tests.actors.fakes import FakeEnv, FakePolicy


@pytest.fixture
def fake_evaluator(monkeypatch):
    def build(rewards, num_envs=1):
        envs = []

        def make_env(_):
            envs.append(FakeEnv(rewards[len(envs)]))
            return envs[-1]

        monkeypatch.setattr(evaluation, "make_env", make_env)
        return Evaluator(EnvConfig("reach"), num_envs), envs

    return build


def test_a_success_in_the_last_step_counts(fake_evaluator):
    evaluator, _ = fake_evaluator([[0, 0, 1], [0, 0, 0]], num_envs=2)
    result = evaluator.evaluate(FakePolicy(), 4, seed=0)
    assert result.successes == (True, False, True, False)
    assert result.success_rate == 0.5
    metrics = result.metrics()
    assert metrics["success_rate"] == 0.5 and metrics["episodes"] == 4
    assert metrics["success_low"] < 0.5 < metrics["success_high"]
    assert metrics["env_return"] == 0.5 and metrics["dense_return"] == 1.5 and metrics["length_steps"] == 3.0
    json.dumps(metrics, allow_nan=False)


def test_the_mean_action_is_used_and_scenes_are_those_of_the_seed(fake_evaluator):
    evaluator, envs = fake_evaluator([[0, 0]])
    policy = FakePolicy()
    policy.load({"value": np.array(0.5)})
    for _ in range(2):
        result = evaluator.evaluate(policy, 2, seed=4, weight_version=7)
    assert {call[1] for call in policy.calls} == {None} and not any(call[2] for call in policy.calls)
    expected = [indexed_seed("evaluation", 4, 0), indexed_seed("evaluation", 4, 1)]
    assert envs[0].seeds == expected * 2 and list(result.seeds) == expected
    assert result.metrics()["weight_version"] == 7
    np.testing.assert_array_equal(result.episodes[0].actions, np.full((2, 4), 0.5, np.float32))


def test_evaluation_does_not_depend_on_the_number_of_environments():
    config = EnvConfig("door-close", episode_steps=3, render=RenderSettings(height_px=32, width_px=32))
    policy = FakePolicy()
    policy.load({"value": np.array(0.5)})
    one, two = (evaluate(policy, config, 3, seed=0, num_envs=n) for n in (1, 2))
    for a, b in zip(one.episodes, two.episodes):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert len({e.frames[0].tobytes() for e in one.episodes}) == 3


def test_bad_counts_are_refused(fake_evaluator):
    evaluator, _ = fake_evaluator([[0]])
    with pytest.raises(ValueError, match="episodes"):
        evaluator.evaluate(FakePolicy(), 0, seed=0)
