"""Collecting as a command: what it leaves behind where it is killed, and where it is run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.envs.registry import EnvConfig
from launch import collect
from launch.cli import compose
from launch.import_minari import MinariSettings
from tests.launch.conftest import ROOT

SMALL = ["task=reach", "env.render.height_px=16", "env.render.width_px=16"]


def running(number: int) -> bool:
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
@pytest.mark.parametrize(
    "given", [[*SMALL, "episodes=200"], ["task=pointmaze-umaze", "mode=base", "transitions=50000000"]]
)
def test_workers_end_with_a_command_that_is_killed(tmp_path, given):
    process = subprocess.Popen(
        [sys.executable, "launch/collect.py", *given, "workers=2", f"out={tmp_path}/out"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started: list[int] = []

    def have_begun() -> bool:
        assert process.poll() is None
        started[:] = [int(number) for number in children.read_text().split()]
        # Threads of their own say that they are at work: the watch, and those that send results.
        busy = [n for n in started if len(list(Path(f"/proc/{n}/task").iterdir())) > 1]
        return len(started) == 3 and len(busy) == 2  # and the tracker of their resources

    try:
        wait_until(have_begun)
        process.kill()
        process.wait()
        wait_until(lambda: not any(running(number) for number in started))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_task_set_is_collected_wherever_the_project_lies(tmp_path, monkeypatch):
    home = tmp_path / "Müller & Söhne (2), a=b"
    home.mkdir()
    monkeypatch.chdir(home)
    collected = []
    whole = collect.collect
    monkeypatch.setattr(collect, "collect", lambda config: collected.append(config) or 0)
    assert whole(compose("collect", ["task_set=adroit3", "episodes=2"])) == 0
    assert [config.env.task for config in collected] == ["adroit-door", "adroit-hammer", "adroit-pen"]
    assert collected[0].out == str(home / "data" / "adroit-door" / "expert")


def test_a_recorded_data_set_may_have_a_label_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imported = []

    def source(name):
        return lambda config, out: imported.append((name, config.behaviour, out)) or 0

    monkeypatch.setattr(collect, "_source", source)
    given = ["task=adroit-door", "source=minari:D4RL/door/human-v2", "behaviour=human"]
    assert collect.collect(compose("collect", given)) == 0
    assert imported == [("minari:D4RL/door/human-v2", "human", tmp_path / "data" / "adroit-door" / "human")]


def test_a_task_set_that_is_a_number_is_unknown():
    with pytest.raises(ValueError, match="task_set 3 is unknown; Known sets: metaworld7"):
        collect.collect(compose("collect", ["task_set=3"]))


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (collect.CollectSettings, {"env": EnvConfig("reach")}),
        (MinariSettings, {"source": "minari:D4RL/door/expert-v2", "env": EnvConfig("adroit-door")}),
    ],
)
def test_expert_videos_of_which_none_would_be_held_out_are_refused(settings, given):
    with pytest.raises(ValueError, match="4 videos and validation_every=5 hold none out"):
        settings(**given, episodes=4)
    for fine in ({"validation_every": 4}, {"validation_every": 0}, {"behaviour": "random"}):
        settings(**given, episodes=4, **fine)


def test_a_folder_may_have_a_number_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imported = []
    monkeypatch.setattr(collect, "_source", lambda _: lambda config, out: imported.append(out) or 0)
    collect.collect(compose("collect", ["source=videos", "name=tea", "out=2026"]))
    assert imported == [tmp_path / "2026"]
