"""Shards as Ray actors: read through their files or asked, the learner gets the same batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from learner import learner_actor, replay_actor
from learner.batch import Batch
from learner.local_reads import machine_id
from learner.replay import ReplayConfig
from learner.replay_actor import ReplayShard
from learner.sharding import ShardSampler
from tests.learner.helpers import make_episode

pytestmark = pytest.mark.ray

ray = pytest.importorskip("ray")
NAMES = ["shard-0", "shard-1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    ray.init("local", num_cpus=1, include_dashboard=False, namespace="test-shards", logging_level="error")
    folder = tmp_path_factory.mktemp("shards")
    config = ReplayConfig(capacity_transitions=30, episode_steps=5, n_step=2)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(ReplayShard)
    try:
        yield [actor.options(name=name, **options).remote(folder / name, config, 4, 2) for name in NAMES]
    finally:
        ray.shutdown()


def make_samplers(**kinds: bool) -> list[ShardSampler]:
    samplers = []
    for local_reads in kinds.values():
        source = learner_actor.RayShards(NAMES, local_reads=local_reads)
        samplers.append(ShardSampler(source.sample, source.sizes, batch_size=32, seed=4))
    return samplers


def assert_same(first: Batch, second: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def insert(shards, number: int) -> None:
    episode = make_episode(number, 3 + number % 3)
    ray.get(shards[number % 2].insert.remote(f"b{number}", [episode]))


def test_files_and_answers_give_the_same_batches(shards):
    local, asked = make_samplers(local=True, asked=False)
    for number in range(24):  # both rings go round
        insert(shards, number)
        if number >= 1:
            local.refresh()
            asked.refresh()
            for update in range(3):
                assert_same(local(update), asked(update))


@pytest.mark.skipif(machine_id() is None, reason="local reads need Linux on x86-64")
def test_rows_that_went_meanwhile_are_drawn_from_the_present_contents(shards, monkeypatch):
    """Without a refresh the local reader notices, takes the new index, and draws as the shard would."""
    for number in range(12):
        insert(shards, number)
    local, asked = make_samplers(local=True, asked=False)
    local.refresh()
    asked.refresh()
    for number in range(100, 112):  # everything is replaced
        insert(shards, number)
    assert_same(local(0), asked(0))
    monkeypatch.setattr(learner_actor, "LOCAL_ATTEMPTS", 0)
    assert_same(local(1), asked(1))


def test_a_killed_shard_is_read_on_and_comes_back(shards):
    for number in range(12):
        insert(shards, number)
    (local,) = make_samplers(local=True)
    local.refresh()
    before = local(5)
    os.kill(ray.get(shards[0].ping.remote())["pid"], signal.SIGKILL)
    assert_same(local(5), before)
    time.sleep(0.5)
    local.refresh()
    assert_same(local(5), before)
    insert(shards, 200)
    local.refresh()
    assert len(local(6).obs) == 32


def test_a_shard_that_is_started_again_waits_for_the_lock_of_a_node_that_died(shards, tmp_path):
    def waits() -> tuple[bool, int]:
        return replay_actor._is_restarted(), os.getpid()

    class Probe:
        def __init__(self) -> None:
            self.found = waits()

        def answer(self) -> tuple[bool, int]:
            return self.found

    probe = ray.remote(Probe).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    is_restarted, pid = ray.get(probe.answer.remote())
    assert not is_restarted and not replay_actor._is_restarted()
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.0)
    assert ray.get(probe.answer.remote())[0]


def test_a_replay_shard_needs_no_torch():
    code = "import sys, learner.replay_actor; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
