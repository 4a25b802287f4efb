"""The cluster files: valid by their schemas, protected, and with training commands that compose and fit."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from launch import placement
from launch.cli import compose
from launch.cluster.wait_for_nodes import wait_for_nodes
from launch.settings import train_settings
from tests.launch.conftest import ROOT

FOLDER = ROOT / "launch" / "cluster"
KUBERAY_SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
RUN = re.compile(
    r"(?:launch/train\.py|train_or_resume\.sh \S+|sbatch launch/cluster/slurm\.sh \S+)((?: [a-z_.]+=\S+)+)"
)


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def training_commands(text: str) -> list[list[str]]:
    """Overrides of each training command in a text, comments and continued lines included."""
    text = re.sub(r"^#", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\s+", " ", text.replace("\\\n", " "))
    return [shlex.split(found) for found in RUN.findall(text)]


def readme_section() -> str:
    return (ROOT / "README.md").read_text().split("\n## On a cluster\n")[1].split("\n## ")[0]


# What the nodes of each file have when it is started as it is.
SIZES = {
    "aws.yaml": [{"CPU": 16, "GPU": 1}, {"CPU": 16}],
    "raycluster.yaml": [{"CPU": 8, "GPU": 1}, {"CPU": 16}],
    "rayjob.yaml": [{"CPU": 8, "GPU": 1}, {"CPU": 16}],
    "slurm.sh": 2 * [{"CPU": 16, "GPU": 1}],
}


@pytest.mark.parametrize("name", SIZES)
def test_training_commands_compose_and_fit_the_cluster(name, monkeypatch):
    monkeypatch.setattr(placement, "node_resources", lambda: SIZES[name])
    commands = training_commands((FOLDER / name).read_text())
    assert commands
    for overrides in commands:
        placement.require_resources(
            train_settings(compose("train", [*overrides, "cluster.wait_for_resources_s=0"]))
        )


def test_training_commands_of_image_and_readme_compose():
    for text in ((FOLDER / "Dockerfile").read_text(), readme_section()):
        commands = training_commands(text)
        assert commands
        for overrides in commands:
            compose("train", overrides)


def test_files_name_one_another():
    section = readme_section()
    for path in FOLDER.iterdir():
        if path.suffix in (".yaml", ".sh") or path.name == "Dockerfile":
            assert path.name in section, f"the README does not mention launch/cluster/{path.name}"


# ---- AWS


def test_aws_is_valid_for_ray_up():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = load("aws.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    workers = [
        kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]
    ]
    assert sum(kind["max_workers"] for kind in workers) <= config["max_workers"]
    misspelt = {**config, "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)


def test_aws_ships_the_token_and_existing_files():
    mounts = load("aws.yaml")["file_mounts"]
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    for there, here in mounts.items():
        assert there == f"/home/ubuntu/diffusion-reward-ray/{here}"
        assert (ROOT / here).exists()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(mounts.values())


def test_aws_starts_ray_with_a_token_and_the_dashboard_on_loopback():
    config = load("aws.yaml")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1] and "ray start" in commands[-1]
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "RAY_JOB_STOP_WAIT_TIME_S=60" in head


# ---- Kubernetes


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_manifests_are_valid(name):
    manifest = load(name)
    jsonschema.validate(manifest, KUBERAY_SCHEMA)
    for broken in ("dashboardHost", "rayVersions"):
        wrong = copy.deepcopy(manifest)
        spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
        spec["headGroupSpec" if broken == "dashboardHost" else "authOptions"][broken] = "x"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, KUBERAY_SCHEMA)


def pods(spec: dict) -> list[dict]:
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def test_kuberay_clusters_are_the_same_and_protected():
    cluster, job = load("raycluster.yaml")["spec"], load("rayjob.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    policy = load("network_policy.yaml")["spec"]["podSelector"]["matchLabels"]
    for pod in [*pods(cluster), job["submitterPodTemplate"]]:
        assert pod["metadata"]["labels"] == policy
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_rayjob_runs_what_the_image_has():
    script = load("rayjob.yaml")["spec"]["entrypoint"].split()[1]
    image = (FOLDER / "Dockerfile").read_text()
    root = re.search(r"^WORKDIR (\S+)$", image, re.MULTILINE).group(1)
    assert (ROOT / Path(script).relative_to(root)).is_file()
    copied = set(re.findall(r"^COPY (\w+) \1$", image, re.MULTILINE))
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == copied


def test_image_has_the_gl_libraries_of_the_set_up():
    packages = re.search(r'packages="(.*)"', (ROOT / "launch" / "setup.sh").read_text()).group(1)
    assert f"--no-install-recommends {packages} " in (FOLDER / "Dockerfile").read_text()
    assert packages in (FOLDER / "aws.yaml").read_text()
    image = (FOLDER / "Dockerfile").read_text()
    assert image.index("\nUSER ") > image.rindex("\nRUN ")


# ---- Slurm


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


# Slurm and Ray are played by these; the script, its signals and the command line of train.py are real.
ACTORS = {
    "srun": 'echo "srun $*" >>"$LOG"; exec sleep 1000',
    "scontrol": 'echo "scontrol $*" >>"$LOG"; [ "$1" = requeue ] || printf "node1\\nnode2\\n"',
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "python": f"""
if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi
echo "python $*" >>"$LOG"
if [ "$1" = launch/train.py ]; then
    stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >>"$LOG"
    trap 'echo "train.py stopped" >>"$LOG"; exit 0' TERM
    touch "$LOG.training"
    while :; do sleep 0.05; done
fi""",
}


class Slurm:
    """A job of slurm.sh with Slurm and Ray played by small scripts."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.log = folder / "log"
        binaries = folder / "venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text(f'export PATH="{binaries}:$PATH"\n')
        for name, text in ACTORS.items():
            (binaries / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (binaries / name).chmod(0o755)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")},
            "HOME": str(folder),
            "LOG": str(self.log),
            "VENV": str(binaries.parent),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "16",
        }
        self.token = folder / ".ray" / "slurm_42"
        self.command = ["bash", FOLDER / "slurm.sh", run, "task=door-close", "reward=sparse"]

    def run_until(self, number: signal.Signals) -> list[str]:
        """Starts the job, sends a signal once it trains, and returns the lines that the played programs wrote."""
        process = subprocess.Popen(self.command, env=self.env, start_new_session=True)
        deadline_s = time.monotonic() + 30
        try:
            while not Path(f"{self.log}.training").exists():
                assert process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.05)
            assert stat.S_IMODE(self.token.stat().st_mode) == 0o600
            process.send_signal(number)
            assert process.wait(timeout=30) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert not self.token.exists()
        return self.log.read_text().splitlines()


def overrides_of_train(lines: list[str]) -> list[str]:
    (line,) = (line for line in lines if line.startswith("python launch/train.py"))
    return line.split()[2:]


def test_slurm_job_goes_back_into_the_queue_before_its_time_is_over(tmp_path):
    lines = Slurm(tmp_path, tmp_path / "run").run_until(signal.SIGUSR1)
    # Both are started in the background: either may come first.
    head, workers = sorted(
        (line for line in lines if line.startswith("srun")), key=lambda line: "--head" not in line
    )
    assert "--nodelist=node1" in head and "--head" in head and "--dashboard-host=127.0.0.1" in head
    assert "--nodelist=node2" in workers and "--address=10.0.0.1:6379" in workers
    overrides = overrides_of_train(lines)
    assert compose("train", overrides).cluster.address == "10.0.0.1:6379"
    assert f"out={tmp_path}/run" in overrides
    assert lines[-2:] == ["train.py stopped", "scontrol requeue 42"]


def test_slurm_job_resumes_and_can_be_stopped_for_good(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    lines = Slurm(tmp_path, run).run_until(signal.SIGTERM)
    overrides = overrides_of_train(lines)
    assert f"resume={run}" in overrides and not any(text.startswith("out=") for text in overrides)
    assert lines[-1] == "train.py stopped"


def test_waiting_for_nodes_that_do_not_come_says_how_many_there_are():
    with pytest.raises(TimeoutError, match="0 of 2 Ray nodes are up"):
        wait_for_nodes("127.0.0.1:1", 2, timeout_s=-1.0)
