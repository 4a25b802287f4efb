"""The outer classes that Ray runs, called as plain classes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from actors import evaluator_actor, rollout_actor
from actors.envs.registry import EnvConfig
from actors.evaluator_actor import EvaluatorActor
from actors.rollout_actor import RolloutActor
from models.videos import RenderSettings

ENV = EnvConfig("door-close", episode_steps=2, render=RenderSettings(height_px=16, width_px=16))


def make_policy(config):
    from tests.actors.fakes import FakePolicy

    policy = FakePolicy()
    policy.config = config
    return policy


@pytest.fixture
def publish(monkeypatch):
    """Replaces the weight store by a dictionary {version: value}."""
    published = {}

    def puller(name):
        assert name == "weights"

        def pull(version):
            newest = max(published, default=-1)
            return (newest, {"value": np.array(published[newest])}) if newest > version else None

        return pull

    monkeypatch.setattr(rollout_actor, "weight_puller", puller)
    monkeypatch.setattr(evaluator_actor, "weight_puller", puller)
    return published


def test_rollout_actor(publish):
    publish[3] = 0.5
    actor = RolloutActor(
        env=asdict(ENV),
        policy_factory="tests.actors.test_shells:make_policy",
        policy_config={"action_dim": 4},
        weight_store_name="weights",
        num_threads=1,
        num_envs=2,
        num_expl_steps=0,
        stddev_start=0.0,
        seed=1,
    )
    assert actor.ping()
    episodes, meta = actor.collect("b0000000", 2, 0)
    assert [e.episode_id for e in episodes] == ["b0000000-0", "b0000000-1"]
    assert meta["weight_version"] == 3 and meta["wall_s"] > 0
    assert actor.describe_gl()["renderer"]
    assert all((e.actions > 0.3).all() for e in episodes)


def test_rollout_actor_refuses_unknown_settings(publish):
    with pytest.raises(TypeError, match="num_env_"):
        RolloutActor(asdict(ENV), make_policy, None, "weights", num_env_=2)


def test_evaluator_actor_takes_the_newest_weights(publish):
    actor = EvaluatorActor(asdict(ENV), make_policy, None, "weights", seed=0)
    with pytest.raises(RuntimeError, match="no weights, but version 0"):
        actor.evaluate(0, 1)
    publish[0], publish[1] = 0.1, 0.2
    metrics, videos = actor.evaluate(0, 3, num_videos=2)
    assert metrics["weight_version"] == 1 and metrics["episodes"] == 3
    assert len(videos) == 2 and videos[0].actions == pytest.approx(np.full((2, 4), 0.2))
    assert actor.evaluate(5, 1)[0]["weight_version"] == 1  # what the store holds, stated truly


def test_actors_know_neither_ray_nor_the_learner():
    code = (
        "import sys, actors.rollout_actor, actors.evaluator_actor, actors.collecting, actors.overlay;"
        "import actors.envs.metaworld;"
        "print([m for m in ('ray', 'learner', 'reward_service', 'hydra') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
