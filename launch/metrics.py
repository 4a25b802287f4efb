"""Where numbers go: metrics.jsonl (the truth), TensorBoard, and one more sink, such as Ray's metrics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Sink(Protocol):
    """Takes the same rows; `launch.ray_metrics.RayMetrics` is one."""

    def row(self, phase: str, counters: Mapping[str, float], metrics: Mapping[str, Any]) -> None:
        """Takes one row; `counters` has `wall_s` too."""

    def close(self) -> None:
        """No row follows."""


class MetricsLog:
    """Appends rows to metrics.jsonl, mirrors numbers to TensorBoard and to a sink.

    Args:
        folder: Run folder.
        wall_offset_s: Wall time of earlier parts of a resumed run, so that `wall_s` goes on.
        sink: Takes every row too; closed with the log.
    """

    def __init__(self, folder: Path, wall_offset_s: float = 0.0, sink: Sink | None = None) -> None:
        self._start_s = time.monotonic() - wall_offset_s
        self._file = (folder / "metrics.jsonl").open("a", buffering=1)
        if self._file.tell() > 0 and not (folder / "metrics.jsonl").read_bytes().endswith(b"\n"):
            self._file.write("\n")  # A kill cut the last line; keep the next one whole.
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._sink = sink

    def wall_s(self) -> float:
        """Seconds since the run began, earlier parts of a resumed run included."""
        return time.monotonic() - self._start_s

    def row(self, phase: str, counters: Mapping[str, int], metrics: Mapping[str, float | int | str]) -> None:
        """Writes one row.

        Args:
            phase: "train", "eval" or "event".
            counters: agent_steps, frames, updates.
            metrics: Names and values; numbers that are not finite are written as null.
        """
        clean = {
            k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()
        }
        head = {**counters, "wall_s": round(self.wall_s(), 3)}
        self._file.write(json.dumps({"phase": phase, **head, **clean}) + "\n")
        for name, value in clean.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(f"{phase}/{name}", value, counters["agent_steps"])
        if self._sink is not None:
            self._sink.row(phase, head, clean)

    def video(self, name: str, frames: np.ndarray, agent_steps: int, fps: int) -> None:
        """Adds a video, (T, H, W, 3) uint8, to TensorBoard as an animated GIF."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        from actors.overlay import gif_bytes

        height_px, width_px = frames.shape[1:3]
        image = Summary.Image(
            height=height_px, width=width_px, colorspace=3, encoded_image_string=gif_bytes(frames, fps)
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._writer._get_file_writer().add_summary(summary, agent_steps)

    def flush(self) -> None:
        """Writes buffered TensorBoard events to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes both files and the sink."""
        if self._sink is not None:
            self._sink.close()
        self._writer.close()
        self._file.close()
