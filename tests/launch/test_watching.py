"""The numbers a run is watched by: what is lost is counted, what is slow does not hold the driver up."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from launch import watching
from launch.watching import Memory, Questions, RewardService, StoredEpisodes
from launch.windows import RateWindow, RecentEpisodes, update_ratio
from tests.launch.conftest import ROOT

EMPTY = {"total_inserted_episodes": 0, "size_transitions": 0}


def acknowledged(inserted=(), duplicates=(), total=0, transitions=0):
    return {
        "inserted": list(inserted),
        "duplicates": list(duplicates),
        "total_inserted_episodes": total,
        "size_transitions": transitions,
    }


def rolled_out(*ids):
    return {"episodes": [{"episode_id": name} for name in ids]}


def test_an_episode_that_its_shard_did_not_store_is_counted_as_dropped():
    stored = StoredEpisodes([EMPTY, EMPTY])
    stored.add(0, acknowledged(["b0-0", "b0-1"], total=2, transitions=40), rolled_out("b0-0", "b0-1"))
    stored.add(1, acknowledged(["b1-0"], total=1, transitions=20), rolled_out("b1-0", "b1-1"))
    assert stored.metrics() == {
        "episodes": 3,
        "replay_transitions": 60,
        "dropped_episodes": 1,
        "duplicate_episodes": 0,
    }


def test_an_episode_that_came_twice_is_a_duplicate_and_not_dropped():
    stored = StoredEpisodes([{"total_inserted_episodes": 5, "size_transitions": 100}])
    stored.add(0, acknowledged(duplicates=["b4-0"], total=5, transitions=100), rolled_out("b4-0"))
    metrics = stored.metrics()
    assert (metrics["episodes"], metrics["dropped_episodes"], metrics["duplicate_episodes"]) == (5, 0, 1)


def test_the_newest_account_of_a_shard_counts_in_whichever_order_they_come():
    stored = StoredEpisodes([EMPTY])
    stored.add(0, acknowledged(["b1-0"], total=2, transitions=40), rolled_out("b1-0"))
    stored.add(0, acknowledged(["b0-0"], total=1, transitions=20), rolled_out("b0-0"))
    assert stored.metrics()["replay_transitions"] == 40


def batcher(requests, batches, frames, busy_s, latency_s, fill, queue=0):
    return {
        "requests": requests,
        "batches": batches,
        "frames": frames,
        "failed_batches": 0,
        "busy_s": busy_s,
        "latency_s": latency_s,
        "batch_fill": fill,
        "queue_requests": queue,
        "frames_per_s": 0.0,
    }


def test_reward_numbers_are_means_since_the_last_row_over_all_actors():
    service = RewardService()
    assert service.metrics() == {}
    service.add("reward-0", batcher(10, 10, 100, busy_s=1.0, latency_s=0.1, fill=0.5, queue=1))
    service.add("reward-1", batcher(30, 10, 300, busy_s=1.0, latency_s=0.3, fill=1.0, queue=2))
    first = service.metrics()
    assert (first["reward_queue_requests"], first["reward_requests"], first["reward_frames"]) == (3, 40, 400)
    assert first["reward_batch_fill"] == pytest.approx(0.75)
    assert first["reward_latency_s"] == pytest.approx((10 * 0.1 + 30 * 0.3) / 40)
    assert first["reward_frames_per_s"] == pytest.approx(200.0)
    service.add("reward-0", batcher(20, 20, 200, busy_s=3.0, latency_s=0.2, fill=0.5))
    second = service.metrics()
    assert second["reward_latency_s"] == pytest.approx(0.3)  # ten new ones; 20 * 0.2 - 10 * 0.1 seconds
    assert second["reward_frames_per_s"] == pytest.approx(50.0)
    assert "reward_latency_s" not in service.metrics()  # nothing was scored since


def test_a_restarted_reward_actor_goes_on_counting():
    service = RewardService()
    service.add("reward-0", batcher(10, 10, 100, busy_s=1.0, latency_s=0.1, fill=0.5))
    service.metrics()
    service.add("reward-0", batcher(2, 1, 20, busy_s=0.5, latency_s=0.4, fill=0.2))
    after = service.metrics()
    assert (after["reward_requests"], after["reward_frames"]) == (12, 120)
    assert after["reward_latency_s"] == pytest.approx(0.4)


def test_a_restarted_reward_actor_with_as_many_requests_and_more_batches_is_no_division_by_zero():
    service = RewardService()
    service.add("reward-0", batcher(10, 4, 100, busy_s=1.0, latency_s=0.1, fill=0.5))
    service.metrics()
    service.add("reward-0", batcher(10, 6, 100, busy_s=1.0, latency_s=0.1, fill=0.5))
    assert service.metrics()["reward_requests"] == 10


def test_a_learner_that_goes_back_to_a_checkpoint_has_no_negative_rate():
    rates = RateWindow()
    assert rates.update(0.0, 0, 0) == {}
    assert rates.update(2.0, 100, 50) == {"agent_steps_per_s": 50.0, "updates_per_s": 25.0}
    assert rates.update(4.0, 120, 10) == {"agent_steps_per_s": 10.0, "updates_per_s": 0.0}
    assert rates.update(6.0, 120, 30) == {"agent_steps_per_s": 0.0, "updates_per_s": 10.0}


def test_memory_is_that_of_the_largest_process_that_answered():
    memory = Memory()
    memory.add("rollout", {"rss_bytes": 300, "private_bytes": 100})
    memory.add("rollout", {"rss_bytes": 200, "private_bytes": 150})
    memory.add("learner", {"rss_bytes": 500, "private_bytes": 400})
    both = {"rollout_rss_bytes": 300, "rollout_private_bytes": 150}
    assert memory.metrics() == {**both, "learner_rss_bytes": 500, "learner_private_bytes": 400}
    memory.add("rollout", {"rss_bytes": 250, "private_bytes": 90})
    after = memory.metrics()
    assert (after["rollout_rss_bytes"], after["learner_rss_bytes"]) == (250, 500)


TAKE_AND_GIVE_BACK = """
from models.memory import memory_use
before = memory_use()
block = bytearray(64_000_000)
with_block = memory_use()
assert with_block["private_bytes"] - before["private_bytes"] > 50_000_000
assert with_block["rss_bytes"] >= with_block["private_bytes"] > 0
del block
assert memory_use()["private_bytes"] < with_block["private_bytes"] - 50_000_000
"""


def test_memory_use_sees_what_a_process_takes_and_gives_back():
    # In a process of its own: what ran before in this one may keep freed memory (`models.memory.keep_freed_memory`).
    subprocess.run([sys.executable, "-c", TAKE_AND_GIVE_BACK], check=True, cwd=ROOT)


@pytest.fixture
def calls(monkeypatch):
    """Calls whose results are put into `.results` by hand; whatever is not there is still on its way."""
    made = SimpleNamespace(results={}, started=[])

    def get(ref):
        if isinstance(made.results[ref], Exception):
            raise made.results[ref]
        return made.results[ref]

    def wait(refs, num_returns, timeout):
        assert timeout == 0.0, "the driver must not wait for an actor"
        return [ref for ref in refs if ref in made.results], []

    def call(name):
        def start():
            made.started.append(f"{name}{len(made.started)}")
            return made.started[-1]

        return start

    monkeypatch.setattr(watching.ray, "wait", wait)
    monkeypatch.setattr(watching.ray, "get", get)
    made.some = {"busy": call("busy"), "quick": call("quick")}
    return made


def test_a_busy_actor_is_asked_once_and_answers_later(calls):
    questions = Questions()
    questions.ask(calls.some)
    calls.results["quick1"] = 1
    assert questions.answers() == {"quick": 1}
    questions.ask(calls.some)
    assert calls.started == ["busy0", "quick1", "quick2"]
    calls.results |= {"busy0": 5, "quick2": 2}
    assert questions.answers() == {"busy": 5, "quick": 2}


def test_a_dead_actor_has_no_answer_and_is_asked_again_but_a_fault_of_the_program_is_told(calls):
    questions = Questions()
    questions.ask(calls.some)
    calls.results |= {"busy0": ray.exceptions.ActorUnavailableError("gone", None), "quick1": 1}
    assert questions.answers() == {"quick": 1}
    questions.ask(calls.some)
    assert calls.started[2:] == ["busy2", "quick3"]
    calls.results["busy2"] = ray.exceptions.RayTaskError(
        "stats", "trace\nValueError: broken", ValueError("broken")
    )
    with pytest.raises(RuntimeError, match="busy failed"):
        questions.answers()


def test_weight_lag_and_update_ratio():
    recent = RecentEpisodes(window=2)
    facts = {"success": True, "env_return": 0.0, "dense_return": 0.0}
    for version, updates in ((0, 0), (100, 130), (150, 200)):
        recent.add({"episodes": [{**facts, "weight_version": version}]}, [], updates)
    assert recent.metrics()["weight_lag_updates"] == (30 + 50) / 2
    assert update_ratio(agent_steps=2000, updates=0, min_steps=2000) == {}
    assert update_ratio(agent_steps=4000, updates=990, min_steps=2000) == {"update_ratio": 0.495}
