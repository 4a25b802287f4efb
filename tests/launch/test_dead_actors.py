"""An actor whose constructor raises when Ray starts it again: Ray calls it dead, and says why."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from launch.failures import why_dead
from launch.placement import not_running

pytestmark = pytest.mark.ray


class StartsOnce:
    def __init__(self, marker: str) -> None:
        if os.path.exists(marker):
            raise OSError("no libEGL on this node")
        Path(marker).touch()

    def ping(self) -> int:
        return os.getpid()


def test_an_actor_that_ray_does_not_start_again_is_told_from_one_that_it_does(tmp_path):
    ray.init(
        "local", num_cpus=1, include_dashboard=False, namespace="test-dead-actors", logging_level="error"
    )
    try:
        actors = {
            name: ray.remote(StartsOnce)
            .options(name=name, num_cpus=0, max_restarts=-1)
            .remote(str(tmp_path / name))
            for name in ("again", "never")
        }
        pids = {name: ray.get(actor.ping.remote()) for name, actor in actors.items()}
        assert not_running().dead == frozenset()
        (tmp_path / "again").unlink()
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        while "never" not in not_running().dead or not_running().names:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert not_running().dead == {"never"}
        assert "no libEGL on this node" in why_dead(actors["never"])
        assert ray.get(actors["again"].ping.remote()) != pids["again"]
    finally:
        ray.shutdown()
