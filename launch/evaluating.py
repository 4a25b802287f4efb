"""One evaluation in the course of training: weights out, episodes back, learned reward, videos."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from launch.blocks import RETRY_AFTER_S
from launch.failures import MAX_ATTEMPTS, describe, is_process_failure
from launch.run_folder import RunFolder
from launch.settings import TrainSettings
from launch.system import System


@dataclass(frozen=True)
class EvaluationResult:
    """What one evaluation found.

    Attributes:
        metrics: Numbers for metrics.jsonl.
        videos: Frames with the reward drawn under them, (T, H, W, 3) uint8, by name.
        summary: One line for the console.
    """

    metrics: dict[str, float]
    videos: dict[str, np.ndarray]
    summary: str


class EvaluationRun:
    """Two asynchronous steps: roll out with the newest weights, then score the episodes for the videos.

    Args:
        settings: Everything configurable.
        system: Actor handles.
        folder: Run folder, for `videos/`.
        version_ref: Resolves to the weight version to evaluate.
        agent_steps: When, for the log.

    Attributes:
        ref: The step in flight, or None after a failure, until `submit`.
    """

    def __init__(
        self, settings: TrainSettings, system: System, folder: RunFolder, version_ref: Any, agent_steps: int
    ) -> None:
        self._settings, self._system, self._folder = settings, system, folder
        self.agent_steps = agent_steps
        self._summary: dict[str, Any] | None = None
        self._episodes: Any = None
        self._not_before_s = 0.0
        self._attempts = 0
        self.submit(version_ref)

    @property
    def is_lost(self) -> bool:
        """Whether it failed, long enough ago to be tried again."""
        return self.ref is None and time.monotonic() >= self._not_before_s

    def submit(self, version_ref: Any) -> None:
        """Starts, or starts again after a failure."""
        settings = self._settings
        self._summary = None
        self._attempts += 1
        self.ref, self._episodes = self._system.evaluator.evaluate.options(num_returns=2).remote(
            version_ref, settings.eval_episodes, settings.eval_videos
        )

    def advance(self, ref: Any, on_recovery: Callable[[str], None]) -> EvaluationResult | None:
        """Takes the result of the step in flight and starts the next one.

        Returns:
            The result after the last step, else None.

        Raises:
            RuntimeError: if evaluation failed for a reason that a retry cannot mend, or over and over again.
        """
        try:
            value = ray.get(ref)
            # The node that holds the episodes may have died since they were rolled out.
            episodes = [] if self._summary is None else ray.get(self._episodes)
        except ray.exceptions.RayError as error:
            if not is_process_failure(error):
                raise RuntimeError(f"evaluation failed: {describe(error)}") from error
            if self._attempts >= MAX_ATTEMPTS:
                raise RuntimeError(
                    f"evaluation at {self.agent_steps:,} agent steps failed {self._attempts} times, at last: "
                    f"{describe(error)}. Mend that, then go on with resume="
                ) from error
            on_recovery(f"evaluation starts again after {describe(error)}")
            # Not at once: a call of an actor that is still dead would fail as fast as it is made.
            self.ref, self._not_before_s = None, time.monotonic() + RETRY_AFTER_S * self._attempts
            return None
        if self._summary is None:
            self._summary = value
            if self._settings.eval_videos == 0:
                return self._result([], None)
            rewards = self._system.rewards
            self.ref = rewards[0].score.remote(self._episodes) if rewards else self._episodes
            return None
        return self._result(episodes, value if self._system.rewards else None)

    def _result(self, episodes: list[Any], frame_rewards: list[np.ndarray] | None) -> EvaluationResult:
        from actors.overlay import draw_rewards, write_video

        assert self._summary is not None
        metrics = dict(self._summary)
        videos: dict[str, np.ndarray] = {}
        for number, episode in enumerate(episodes):
            rewards = None if frame_rewards is None else frame_rewards[number]
            frames = draw_rewards(episode, rewards)
            write_video(self._new_path(number), frames, self._settings.video_fps)
            videos[f"eval/episode_{number}"] = frames
        if frame_rewards:
            metrics["learned_return"] = float(np.mean([r[1:].sum() for r in frame_rewards]))
        summary = (
            f"evaluation at {self.agent_steps:,} agent steps: success {metrics['success_rate']:.0%} "
            f"[{metrics['success_low']:.0%}, {metrics['success_high']:.0%}] of {metrics['episodes']} episodes, "
            f"weights of update {metrics['weight_version']}"
        )
        return EvaluationResult(metrics, videos, summary)

    def _new_path(self, number: int) -> Path:
        """File of a video; an evaluation that a kill took back and that is made again gets another one, `..._0.2.mp4`."""
        first = self._folder.path / "videos" / f"eval_{self.agent_steps:09d}_{number}.mp4"
        path, attempt = first, 1
        while path.exists():
            attempt += 1
            path = first.with_suffix(f".{attempt}.mp4")
        return path
