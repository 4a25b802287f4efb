"""The rows of a run as metrics of Ray, which every node offers to Prometheus at `/metrics`.

A number has one name everywhere: `success_rate` of an "eval" row in metrics.jsonl is `eval/success_rate` in TensorBoard
and `ray_drr_eval_success_rate` in Prometheus; what heads every row (`updates`) has no phase: `ray_drr_updates`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from typing import Any

from launch.metric_names import DESCRIPTIONS

# What only grows, and starts above zero: a counter of Ray cannot show a zero. Updates are none, a learner that comes back
# from a checkpoint has done fewer.
COUNTERS = frozenset({"agent_steps", "frames", "train/episodes"})
REPORT_INTERVAL_VARIABLE, DEFAULT_REPORT_INTERVAL_MS = "RAY_metrics_report_interval_ms", 10_000


def metric_name(key: str) -> str:
    """Name given to Ray for "phase/name", or for "name" of what heads every row."""
    return "drr_" + "".join(c if c.isalnum() else "_" for c in key)


def prometheus_name(key: str) -> str:
    """Name at the Prometheus endpoint for "phase/name", or for "name" of what heads every row."""
    return f"ray_{metric_name(key)}" + ("_total" if key in COUNTERS else "")


def endpoint() -> str:
    """Address at which this node offers its metrics to Prometheus; Ray must be running."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


class RayMetrics:
    """Counters and gauges of one run, set row by row. Ray must be running from the first row to `close`.

    Ray forgets a gauge that is not set again within two reports to its metrics agent, so a thread sets all of them
    once in half a report. Histograms are left out: Ray's sums are sums of bucket midpoints.

    Args:
        tags: Labels of every metric, such as run, task and reward.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._metrics: dict[str, Any] = {}
        self._counted: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        report_interval_ms = os.environ.get(REPORT_INTERVAL_VARIABLE, DEFAULT_REPORT_INTERVAL_MS)
        self._refresh_s = float(report_interval_ms) / 2000
        self._thread = threading.Thread(target=self._refresh, name="ray-metrics", daemon=True)
        self._thread.start()

    def row(self, phase: str, counters: Mapping[str, float], metrics: Mapping[str, Any]) -> None:
        """Takes one row.

        Args:
            phase: "train", "eval" or "event".
            counters: What heads the row.
            metrics: Names and values. Text is left out; what is not finite disappears from the endpoint.
        """
        values = {**counters, **{f"{phase}/{name}": value for name, value in metrics.items()}}
        with self._lock:
            for key, value in values.items():
                if value is None or (isinstance(value, float) and not math.isfinite(value)):
                    self._gauges.pop(key, None)
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._set(key, float(value))

    def _set(self, key: str, value: float) -> None:
        if key not in COUNTERS:
            self._gauges[key] = value
            self._metric(key).set(value)
            return
        # An evaluation's row stands where the evaluation began, behind the rows before it.
        more = value - self._counted.get(key, 0.0)
        if more > 0:
            self._counted[key] = value
            self._metric(key).inc(more)

    def _metric(self, key: str) -> Any:
        if key not in self._metrics:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if key in COUNTERS else Gauge
            description = DESCRIPTIONS.get(key, f"{key} of metrics.jsonl")
            metric = kind(metric_name(key), description=description, tag_keys=tuple(self._tags))
            self._metrics[key] = metric.set_default_tags(self._tags)
        return self._metrics[key]

    def _refresh(self) -> None:
        while not self._closed.wait(self._refresh_s):
            with self._lock:
                for key, value in self._gauges.items():
                    self._metric(key).set(value)

    def close(self) -> None:
        """Stops; the gauges disappear from the endpoint, the counters stay while Ray runs."""
        self._closed.set()
        self._thread.join()
