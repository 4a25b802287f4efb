"""A replay that is begun again: what a run counts, and how many updates it owes."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from launch.coordinator import Coordinator
from launch.run_folder import ReplayStart, RunFolder
from launch.watching import StoredEpisodes
from learner.limiter import UpdateRatioLimiter


def simulate(limiter, start, total, block, updates=None, per_call=10):
    """Blocks and updates by turns until nothing more may start; yields (agent steps of the replay, updates) of each call."""
    made = Coordinator.__new__(Coordinator)
    made.limiter, made.replay_start = limiter, start
    made._stored = StoredEpisodes([{"total_inserted_steps": 0}])
    (shard,) = made._stored.shards
    updates = start.updates if updates is None else updates
    calls = []
    while True:
        allowed = limiter.steps_allowed(*made._since_replay_began(made.agent_steps, updates))
        due = made._updates_due(updates)
        if made.agent_steps < total and allowed >= block:
            shard["total_inserted_steps"] += block
        elif due > 0:
            calls.append((shard["total_inserted_steps"], min(due, per_call)))
            updates += min(due, per_call)
        else:
            return made.agent_steps, updates, calls


@pytest.mark.parametrize("lag", [0, 500])
def test_an_empty_replay_is_filled_first_and_the_ratio_holds_from_there(lag):
    """Whatever the learner still owed when the old replay was lost: no burst on a small replay, no standstill."""
    limiter = UpdateRatioLimiter(updates_per_step=0.5, min_steps=2000, tolerance_steps=1000)
    begun = ReplayStart(agent_steps=50_000, updates=24_000 - lag)
    steps, updates, calls = simulate(limiter, begun, total=60_000, block=100)
    assert (steps, updates) == (60_000, begun.updates + (10_000 - 2000) // 2)
    assert min(size for size, _ in calls) >= 2000
    done = 0
    for size, count in calls:
        done += count
        assert done <= (size - 2000) / 2


def test_an_older_checkpoint_than_the_replay_makes_up_for_its_updates():
    limiter = UpdateRatioLimiter(updates_per_step=0.5, min_steps=200, tolerance_steps=100)
    begun = ReplayStart(agent_steps=5000, updates=2400)
    assert simulate(limiter, begun, total=6000, block=100, updates=2000)[:2] == (6000, 2400 + 800 // 2)


def test_a_lost_replay_is_recorded_before_the_first_episode(tmp_path):
    folder, said = RunFolder.create(tmp_path / "run", OmegaConf.create({"total_agent_steps": 10})), []
    made = Coordinator.__new__(Coordinator)
    made.folder, made.limiter, made._event = folder, UpdateRatioLimiter(), said.append
    made.replay_start = folder.replay_start()
    made._stored = StoredEpisodes([{"total_inserted_steps": 0}, {"total_inserted_steps": 0}])
    made._keep_counting_if_the_replay_is_gone({"agent_steps": 700, "updates": 300})
    assert made.agent_steps == 700 and RunFolder.open(folder.path).replay_start() == ReplayStart(700, 300)
    assert "the replay is empty" in said[0]
    made._stored.shards[0]["total_inserted_steps"] = 20
    made._keep_counting_if_the_replay_is_gone({"agent_steps": 710, "updates": 300})
    assert made.agent_steps == 720 and folder.replay_start() == ReplayStart(700, 300)
