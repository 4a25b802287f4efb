"""What a training loop tells the world: `metrics.jsonl`, TensorBoard and a progress callback."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.files import write_atomic

Progress = Callable[[int, int, dict[str, Any]], None]


class TrainingLog:
    """Writes the metrics of one training folder; used by codec and video-model training alike.

    Args:
        folder: Training folder; `metrics.jsonl` and `tensorboard/` are kept there. Made if missing.
        progress: Called with (step, total_steps, metrics) after every `scalars`, or None.
        total_steps: Planned number of optimiser steps, handed to `progress`.
        resume_step: Lines of later steps are removed, because these steps are about to be done again.
            None keeps all lines.
        tensorboard: Whether to write TensorBoard event files.

    Raises:
        ImportError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        progress: Progress | None = None,
        *,
        total_steps: int = 0,
        resume_step: int | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.jsonl"
        self.total_steps = total_steps
        self._progress = progress
        spent_s = self._rewind(resume_step) if resume_step is not None else 0.0
        self._file = self.path.open("a", buffering=1)
        self._writer = _tensorboard_writer(self.folder / "tensorboard", resume_step) if tensorboard else None
        self._started_s = time.monotonic() - spent_s

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self._started_s

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs one line of metrics.

        Args:
            step: Optimiser step that the values belong to.
            values: Metric name -> number (or short text, which goes to `metrics.jsonl` only). Numbers that
                are not finite are written as null, so that every line stays valid JSON.
        """
        wall_s = round(time.monotonic() - self._started_s, 3)
        line = {
            "step": int(step),
            "wall_s": wall_s,
            **{name: _plain(value) for name, value in values.items()},
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
                    self._writer.add_scalar(name, value, step)
        if self._progress is not None:
            self._progress(int(step), self.total_steps, line)

    def images(self, step: int, name: str, frames: np.ndarray) -> None:
        """Logs pictures to TensorBoard.

        Args:
            step: Optimiser step.
            name: Tag in TensorBoard.
            frames: (N, H, W, 3) uint8 [0, 255].

        Raises:
            ValueError: if `frames` has another shape or dtype.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"images {name!r} must be (N, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
        if self._writer is not None:
            self._writer.add_images(name, frames, step, dataformats="NHWC")

    def close(self) -> None:
        """Flushes and closes all files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewind(self, resume_step: int) -> float:
        """Drops lines after `resume_step` and returns the seconds of training already spent."""
        if not self.path.exists():
            return 0.0
        kept = [line for line in map(_parse, self.path.read_text().splitlines()) if line is not None]
        kept = [line for line in kept if line["step"] <= resume_step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self.path, lambda file: file.write(text.encode()))
        return kept[-1]["wall_s"] if kept else 0.0


def _parse(line: str) -> dict[str, Any] | None:
    """One line of `metrics.jsonl`, or None for the half-written last line of a killed process."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _plain(value: Any) -> Any:
    """A value that JSON can hold; numbers that are not finite become None."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard_writer(folder: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard is not installed: `pip install tensorboard`, or switch TensorBoard off"
        ) from error
    purge_step = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(folder), purge_step=purge_step)
