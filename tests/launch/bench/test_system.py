"""The whole-system benchmark: both sides do the same work, and what is measured belongs to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.envs.gl import check_gl
from launch.bench import system
from launch.bench.curves import RewardJob, plot_curves, score_noise
from launch.bench.memory import peak_bytes
from launch.bench.reference_official import OfficialTraining
from launch.bench.reference_system import SequentialTraining
from launch.bench.settings import BenchSettings
from launch.bench.workload import make_workload
from reward_service.contract import episode_seed, reward_class

TINY = (
    "env.episode_steps=10",
    "limiter.min_steps=20",
    "limiter.tolerance_steps=20",
    "agent.num_expl_steps=10",
    "agent.hidden_dim=16",
    "agent.batch_size=8",
    "replay.capacity_transitions=1000",
    "updates_per_call=5",
)


@pytest.fixture
def sequential(tmp_path):
    torch.set_num_threads(1)
    check_gl()
    workload = make_workload(tmp_path, "laptop", TINY)
    training = SequentialTraining(workload.settings, tmp_path / "replay")
    yield training
    training.close()


def bench_settings(**changes) -> BenchSettings:
    settings = BenchSettings(
        rounds=1, threads=1, device="cpu", smoke=True, against=None, seed=0, report=lambda line: None
    )
    return replace(settings, **changes)


def test_sequential_training_runs_the_updates_between_the_steps(sequential):
    sequential.run(20, 0)
    assert (sequential.agent_steps, sequential.updates, sequential.episodes) == (20, 0, 2)

    done = []
    run_updates = sequential._learner.run_updates
    sequential._learner.run_updates = lambda number, steps: (
        done.append((steps, number)) or run_updates(number, steps)
    )
    sequential.run(10, 5)
    assert (sequential.agent_steps, sequential.updates, sequential.episodes) == (30, 5, 3)
    assert [steps for steps, number in done if number] == [22, 24, 26, 28, 30]
    assert set(sequential.seconds) == {"rollout", "update", "reward", "replay"}


def test_sequential_training_stores_the_rewards_of_the_reward_model(sequential):
    settings = sequential.settings
    kept = []
    insert = sequential._store.insert
    sequential._store.insert = lambda episode: kept.append(episode) or insert(episode)
    sequential.run(10, 0)
    reward = reward_class("diffusion").from_checkpoint(
        settings.reward.checkpoint, vars(settings.frame_reward), "cpu"
    )
    (episode,) = kept
    (expected,) = reward.score(
        [episode.frames], ["door-close"], [episode_seed(episode.episode_id, settings.seed)]
    )
    np.testing.assert_allclose(episode.learned_rewards, expected[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.ray
def test_race_against_ray_does_equal_work(monkeypatch):
    case = system.Case("tiny", "laptop", TINY, window_steps=40, rounds=1)
    monkeypatch.setattr(system, "cases", lambda settings: [case])
    results = system.measure(bench_settings(against=("sequential", "official")))
    comparison, official, ours, theirs, _ = results
    assert official.key == "system | tiny | official" and official.checks["updates_of_each_side"] == 20
    assert official.checks["scores_with_the_published_chain"] is False
    assert comparison.key == "system | tiny | sequential" and comparison.target == 1.7
    assert comparison.ratio.median == pytest.approx(comparison.ours_rate.median / comparison.peer_rate.median)
    assert comparison.checks == {
        "agent_steps_of_each_side": 40,
        "updates_of_each_side": 20,
        "episodes_rolled_out_and_scored_of_each_side": 4,
        "peer_threads": 1,
    }
    assert {"driver", "learner", "rollout-0", "reward-0", "replay-0"} <= set(ours.values)
    assert 0 < ours.values["learner"] < 4
    assert sum(theirs.values.values()) == pytest.approx(1, abs=0.1)


def test_official_loop_runs_its_updates_and_scores_with_ours_where_nothing_is_published(tmp_path):
    torch.set_num_threads(1)
    check_gl()
    laptop = OfficialTraining(
        make_workload(tmp_path / "laptop", "laptop", TINY).settings, tmp_path / "a", "cpu", cores=1
    )
    assert not laptop.has_official_reward
    laptop.run(10, 0)
    laptop.run(10, 4)
    assert (laptop.agent_steps, laptop.updates, laptop.episodes) == (20, 4, 2)
    laptop.close()


def test_sides_with_different_work_are_no_race():
    class Fake:
        def __init__(self, factor: int) -> None:
            self.factor = factor
            self.agent_steps = self.updates = self.episodes = 0
            self.seconds: dict[str, float] = {}

        def run(self, agent_steps: int, updates: int) -> None:
            self.agent_steps += agent_steps
            self.updates += self.factor * updates
            self.episodes += agent_steps // 10

    ours, peer = system.Side(Fake(1), 1), system.Side(Fake(2), 1)
    assert (ours.turn(20, 10), peer.turn(20, 10)) == (20, 20)
    with pytest.raises(RuntimeError, match=r"\(20, 10, 2\) on Ray and \(20, 20, 2\)"):
        system._checks(ours, peer)


def test_reward_job_scores_every_frame_of_its_batch(tmp_path):
    settings = make_workload(tmp_path, "laptop", TINY).settings
    point = score_noise(RewardJob(settings, (6, 4), 4, 1, "cpu", 1, 0))
    assert point["frames_per_s"] > 0 and point["peak_above_idle_mib"] >= 0


def test_peak_memory_sees_an_allocation():
    before = peak_bytes()
    block = np.ones(before // 4 + 2**28, np.uint8)  # More than the process ever had free.
    assert peak_bytes() > 2**28 and peak_bytes() >= before and len(block)


def test_every_curve_gets_its_picture(tmp_path):
    curves = [
        {"part": "horizon", "x": "steps", "points": [{"steps": 50, "ms": 1.0}, {"steps": 100, "ms": 1.1}]},
        {
            "part": "reward, preset=x",
            "x": "rows",
            "points": [{"rows": 8, "a": 1, "b": 2}, {"rows": 16, "a": 3}],
        },
    ]
    paths = plot_curves(curves, tmp_path / "pictures")
    assert [path.name for path in paths] == ["curve_horizon_steps.png", "curve_reward_preset_x_rows.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
