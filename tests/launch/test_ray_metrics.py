"""The same numbers in metrics.jsonl, at the Prometheus endpoint of a real run, in the dashboard and in the README."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import ray.util.metrics
from prometheus_client.parser import text_string_to_metric_families

from launch.metric_names import DESCRIPTIONS, HEAD, STORAGE, TRAIN
from launch.metrics import MetricsLog
from launch.ray_metrics import RayMetrics, prometheus_name
from tests.launch.conftest import ROOT
from tests.launch.test_training import SMALL, rows, start

DASHBOARD = json.loads((ROOT / "launch/grafana/diffusion_reward.json").read_text())
LABELS = {"run": "watched", "task": "door-close", "reward": "diffusion_likelihood"}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def names_in_dashboard() -> set[str]:
    return set(re.findall(r"\bray_\w+", " ".join(expressions())))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_dashboard_asks_for_what_is_exported():
    exported = {prometheus_name(key) for key in DESCRIPTIONS}
    asked = {name for name in names_in_dashboard() if name.startswith("ray_drr_")}
    assert len(asked) > 30
    assert asked <= exported
    assert all('{run=~"$run"}' in expr for expr in expressions() if "ray_drr_" in expr)
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Progress", "Rates", "Reward service", "Learner", "Replay", "Health"]
    sources = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "targets" in panel}
    assert sources == {"${datasource}"}


def test_the_readme_explains_names_that_exist():
    section = (ROOT / "README.md").read_text().partition("## Watching a run")[2].partition("\n## ")[0]
    first_columns = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    explained = {name for column in first_columns for name in re.findall(r"`([a-z_0-9]+)`", column)}
    known = {key.partition("/")[2] or key for key in DESCRIPTIONS}
    assert len(explained) > 25
    assert explained <= known


@pytest.fixture
def told(monkeypatch):
    """What is told to Ray: (name, value, tags)."""
    calls = []

    class Metric:
        def __init__(self, name, description, tag_keys):
            self.name, self.description, self.tag_keys = name, description, tag_keys

        def set_default_tags(self, tags):
            assert tuple(tags) == self.tag_keys
            self.tags = tags
            return self

        def tell(self, value):
            calls.append((type(self).__name__, self.name, value, self.tags))

    monkeypatch.setattr(ray.util.metrics, "Counter", type("Counter", (Metric,), {"inc": Metric.tell}))
    monkeypatch.setattr(ray.util.metrics, "Gauge", type("Gauge", (Metric,), {"set": Metric.tell}))
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "100")
    return calls


def test_counters_grow_by_differences_and_gauges_are_repeated(told, tmp_path):
    log = MetricsLog(tmp_path, sink=RayMetrics({"run": "a"}))
    log.row(
        "train", {"agent_steps": 100, "updates": 40}, {"episodes": 5, "critic_loss": 0.5, "event": "text"}
    )
    log.row("eval", {"agent_steps": 80, "updates": 40}, {"episodes": 10})
    log.row("train", {"agent_steps": 150, "updates": 30}, {"episodes": 7, "critic_loss": float("nan")})
    counted = [(name, value) for kind, name, value, _ in told if kind == "Counter"]
    assert counted == [
        ("drr_agent_steps", 100),
        ("drr_train_episodes", 5),
        ("drr_agent_steps", 50),
        ("drr_train_episodes", 2),
    ]
    gauges = [(name, value) for kind, name, value, _ in told if kind == "Gauge"]
    assert [value for name, value in gauges if name == "drr_updates"] == [40, 40, 30]
    assert ("drr_eval_episodes", 10) in gauges and ("drr_train_critic_loss", 0.5) in gauges
    assert all(tags == {"run": "a"} for *_, tags in told)
    told.clear()
    deadline_s = time.monotonic() + 20
    while ("Gauge", "drr_updates", 30, {"run": "a"}) not in told:
        assert time.monotonic() < deadline_s, "a gauge that is not repeated disappears from the endpoint"
        time.sleep(0.02)
    assert "drr_train_critic_loss" not in {name for _, name, *_ in told}  # not finite: no value
    log.close()
    told.clear()
    time.sleep(0.2)
    assert told == []


def samples(port: int) -> dict[str, SimpleNamespace]:
    """Names, values and labels at the endpoint; empty while it is not up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return {}
    families = text_string_to_metric_families(text)
    return {s.name: SimpleNamespace(**s._asdict()) for family in families for s in family.samples}


@pytest.mark.ray
def test_a_run_shows_the_numbers_of_metrics_jsonl_at_its_endpoint(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    port, run = free_port(), tmp_path / "watched"
    process = start(
        *SMALL,
        f"reward.checkpoint={tiny}/video",
        "total_agent_steps=100000",
        f"cluster.metrics_port={port}",
        f"out={run}",
    )
    seen: dict[str, SimpleNamespace] = {}
    shown = {key for key in DESCRIPTIONS if key.removeprefix("train/") not in STORAGE}
    expected = {prometheus_name(key) for key in shown} | names_in_dashboard()
    try:
        deadline_s = time.monotonic() + 200
        while expected - set(seen):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline_s, f"never seen: {sorted(expected - set(seen))}"
            seen |= samples(port)
            time.sleep(0.5)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert re.search(rf"metrics for Prometheus at http://[\d.]+:{port}/metrics", output), output

    written = {phase: rows(run, phase) for phase in ("train", "eval", "event")}
    for key in shown:
        phase, _, name = key.rpartition("/")
        lines = written[phase] if phase else [row for lines in written.values() for row in lines]
        found = seen[prometheus_name(key)]
        assert found.value in {row[name] for row in lines if name in row}, key
        assert {label: found.labels[label] for label in LABELS} == LABELS
    check_numbers(written["train"])
    check_memory(written["train"][-1])


def check_numbers(train: list[dict]) -> None:
    """The numbers of a healthy run, and that none of its rows has a name that nobody described."""
    last = {name: value for row in train for name, value in row.items()}
    assert last["episodes"] == last["agent_steps"] / 20
    assert last["replay_transitions"] == min(5000, last["agent_steps"])
    assert (last["dropped_episodes"], last["duplicate_episodes"], last["recoveries"]) == (0, 0, 0)
    assert last["update_ratio"] == pytest.approx(last["updates"] / (last["agent_steps"] - 80))
    assert 0 <= last["weight_lag_updates"] <= last["updates"]
    assert last["reward_requests"] > 0 and 0 < last["reward_batch_fill"] <= 1
    assert 0 < last["reward_latency_s"] < last["block_latency_s"] + 1
    assert 0 <= last["object_store_share"] < 0.5
    described = {*TRAIN, *HEAD, "phase"}
    assert {name for row in train for name in row} <= described


def check_memory(last: dict) -> None:
    """Every kind of process has said what it uses."""
    kinds = [name.removesuffix("_rss_bytes") for name in TRAIN if name.endswith("_rss_bytes")]
    assert len(kinds) == 7
    for kind in kinds:
        assert 20e6 < last[f"{kind}_private_bytes"] < last[f"{kind}_rss_bytes"] < 3e9, kind
