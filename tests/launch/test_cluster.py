"""Training on several nodes: raylets of one machine that come and go, actors that die, exact counts afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.launch.conftest import ROOT
from tests.launch.test_training import SMALL, rows, start, stored_ids, wait_until

pytestmark = pytest.mark.ray

NODE = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
SHARES = [
    *(f"cluster.{who}_cpus=0.125" for who in ("learner", "rollout", "evaluator", "reward", "shard")),
    "cluster.report_unplaced_after_s=2",
]


@pytest.fixture(scope="module")
def cluster():
    """A head that nothing is placed on, so that every other node may die."""
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    yield made
    made.shutdown()


def worker(cluster: Cluster, run: Path, kind: str) -> psutil.Process:
    """The process of an actor of this cluster; raylets of tests have no driver as their parent."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    for raylet in raylets:
        for child in psutil.Process(raylet).children(recursive=True):
            title = " ".join(child.cmdline())
            if title.startswith("ray::") and kind in title:
                return child
    raise AssertionError(f"no process of {kind}")


def events(run: Path) -> list[str]:
    return [row["event"] for row in rows(run, "event")]


def test_nodes_and_actors_die_and_come_and_nothing_is_lost(cluster, tiny, tmp_path):
    run = tmp_path / "run"
    first, second = (cluster.add_node(**NODE) for _ in range(2))
    total = 3000
    process = start(
        *SMALL,
        *SHARES,
        f"reward.checkpoint={tiny}/video",
        f"cluster.address={cluster.address}",
        "cluster.spread=true",
        "rollout.num_actors=auto",
        "rollout.max_actors=4",
        "replay.num_shards=2",
        f"total_agent_steps={total}",
        f"out={run}",
    )
    try:
        wait_until(lambda: any(row["updates"] > 20 for row in rows(run, "train")), process)
        wait_until(
            lambda: any("more rollout actors for free CPUs" in event for event in events(run)), process
        )
        cluster.remove_node(second, allow_graceful=False)
        goes_on(run, process)
        for kind in ("RolloutActor", "EvaluatorActor", "RewardActor", "ReplayShard", "LearnerActor"):
            os.kill(worker(cluster, run, kind).pid, signal.SIGKILL)
            goes_on(run, process)
        cluster.add_node(**NODE)
        goes_on(run, process)
        cluster.remove_node(first, allow_graceful=False)
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    ids = stored_ids(run)
    assert len(set(ids)) == len(ids)
    last = rows(run, "train")[-1]
    assert last["agent_steps"] == 20 * len(ids) >= total
    assert last["updates"] == (last["agent_steps"] - 80) // 2
    assert rows(run, "eval")[-1]["agent_steps"] == last["agent_steps"]


def goes_on(run: Path, process: subprocess.Popen, updates: int = 40) -> None:
    """Waits until the learner has done more updates than it ever had."""
    most = max(row["updates"] for row in rows(run, "train"))
    wait_until(
        lambda: rows(run, "train")[-1]["updates"] > most + updates or process.poll() is not None, process
    )


def test_what_cannot_be_placed_is_named(cluster, tmp_path):
    node = cluster.add_node(**NODE)
    common = [*SMALL, *SHARES, "reward=sparse", f"cluster.address={cluster.address}"]
    command = [sys.executable, "launch/train.py", *common, "cluster.learner_gpus=1"]
    refused = subprocess.run(
        [*command, f"out={tmp_path / 'a'}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 2
    assert "there is no room for learner (0.125 CPU, 1 GPU); the cluster has" in refused.stderr
    assert not (tmp_path / "a").exists()  # The command that asks for less may use the name.
    waited = subprocess.run(
        [*command, f"out={tmp_path / 'b'}", "cluster.wait_for_resources_s=4", "cluster.start_timeout_s=4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert waited.returncode == 2
    named = r"no node for learner \(0\.125 CPU, 1 GPU\).* after [2-9] s; the cluster has \d nodes: "
    assert re.search(named, waited.stdout), waited.stdout  # said while it waits
    assert re.search(named, waited.stderr), waited.stderr  # and when it gives up
    stopped = start(
        *common, "cluster.learner_gpus=1", "cluster.wait_for_resources_s=600", f"out={tmp_path / 'c'}"
    )
    assert any("no node for learner" in line for line in stopped.stdout)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert (stopped.returncode, "interrupted" in output, (tmp_path / "c").exists()) == (130, True, False), (
        output
    )
    cluster.remove_node(node)
