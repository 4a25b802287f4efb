"""`ray job submit` against a real local head with token authentication: submit, follow, stop, resume."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.launch.conftest import ROOT
from tests.launch.test_training import SMALL, rows, stored_ids

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
NEEDED = {"actors", "configs", "launch", "learner", "models", "reward_service"}


@dataclass(frozen=True)
class Head:
    """A head node of this test alone.

    Attributes:
        url: Of its dashboard, where jobs are submitted.
        folder: Its token and Ray's files.
        env: Environment of whoever may use it.
    """

    url: str
    folder: Path
    env: dict[str, str]

    def ray_job(self, *arguments: str) -> str:
        """Runs `ray job <arguments>` with the token and returns what it printed."""
        done = subprocess.run(
            [BIN / "ray", "job", *arguments],
            cwd=ROOT,
            env={**self.env, "RAY_API_SERVER_ADDRESS": self.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def status_of(url: str, token: str | None) -> int:
    """HTTP status of the list of jobs, asked for with a token or without one."""
    request = urllib.request.Request(f"{url}/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def start_head(folder: Path, env: dict[str, str]) -> tuple[subprocess.Popen, int]:
    """Starts a head on ports of its own and waits until it is up; returns it with the port of its dashboard.

    A raylet gives its agent 15 s to start and dies if they pass, which on a machine that is busy with other things
    they may: three tries.
    """
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    text = ""
    for attempt in range(3):
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        command = [
            BIN / "ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1",
            f"--temp-dir={folder}/ray{attempt}", "--num-cpus=2", "--object-store-memory=200000000",
            "--min-worker-port=0", "--max-worker-port=0", *(f"--{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        path = folder / f"head{attempt}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None:
            if "Ray runtime started" in path.read_text():
                return process, ports["dashboard-port"]
            time.sleep(0.2)
        text = path.read_text()
    raise AssertionError(f"the head does not start:\n{text}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head started as the README says, on ports and in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="drr", dir="/tmp"))  # Short: Ray's sockets are paths.
    token = folder / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # A job's `python` is the head's.
        "OMP_NUM_THREADS": "1",
    }
    try:
        process, port = start_head(folder, env)
        try:
            yield Head(f"http://127.0.0.1:{port}", folder, env)
        finally:
            stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop(process: subprocess.Popen) -> None:
    """Ends a head and what it started, and no other Ray of this machine."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=10)
    for one in alive:
        one.kill()


def submit(head: Head, *overrides: str) -> str:
    """Submits a training as the README says; returns the id of the job."""
    # What train.py gives to its actors as well: the job's own must not be in its way.
    variables = json.dumps({"env_vars": {"MUJOCO_GL": "egl", "PYTHONPATH": str(head.folder)}})
    text = head.ray_job(
        *("submit", "--working-dir", ".", "--runtime-env-json", variables, "--no-wait", "--"),
        *("python", "launch/train.py", *overrides),
    )
    return re.search(r"raysubmit_\w+", text).group()


def test_strangers_are_refused(head):
    token = (head.folder / "auth_token").read_text()
    assert status_of(head.url, None) == 401
    assert status_of(head.url, "0" * 64) == 403
    assert status_of(head.url, token) == 200
    without = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
    refused = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head.url, "--", "touch", f"{head.folder}/stranger"],
        env={**without, "HOME": str(head.folder)},  # Whoever runs the tests may have a token at home.
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0 and "Missing authentication token" in refused.stderr
    assert not (head.folder / "stranger").exists()


def test_submit_follow_stop_resume(head, tmp_path):
    run = tmp_path / "run"
    first = submit(
        head, *SMALL, "reward=sparse", "total_agent_steps=100000", "checkpoint_every_s=1000", f"out={run}"
    )
    follow = subprocess.Popen(
        [BIN / "ray", "job", "logs", "--follow", "--address", head.url, first],
        env=head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in follow.stdout:  # Ends when the job does.
        lines.append(line)
        if any(row["updates"] > 20 for row in rows(run, "train")):
            break
    assert follow.poll() is None, "".join(lines)

    assert "was stopped" in head.ray_job("stop", first)
    follow.communicate(timeout=60)  # On a busy machine Ray ends it before the last lines have come.
    rest = head.ray_job("logs", first)
    assert f"SIGTERM: run folder {run}" in rest
    assert f"go on with: python launch/train.py resume={run}" in rest
    latest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text()
    counters = json.loads((latest / "counters.json").read_text())
    last = rows(run, "train")[-1]
    assert last["updates"] > 20
    assert {key: counters[key] for key in ("agent_steps", "frames", "updates")} == {
        key: last[key] for key in ("agent_steps", "frames", "updates")
    }
    before = stored_ids(run)

    total = 20 * len(before) + 200
    second = submit(head, f"resume={run}", f"total_agent_steps={total}")
    log = head.ray_job("logs", "--follow", second)
    assert f"finished: run folder {run}" in log
    after = stored_ids(run)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    last = rows(run, "train")[-1]
    assert last["agent_steps"] == 20 * len(after) == total
    assert last["updates"] == (total - 80) // 2

    copies = list(head.folder.glob("ray*/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert copies
    for copy in copies:
        names = {path.name for path in copy.iterdir() if path.is_dir()}
        assert names >= NEEDED
        assert not names & {
            "data",
            "runs",
            "checkpoints",
            "experts",
            "benchmarks",
            "docs",
            "tests",
            ".venv",
            ".git",
        }
        assert sum(path.stat().st_size for path in copy.rglob("*.*") if path.is_file()) < 10e6
