"""Small running statistics of the training loop: recent episodes and rates."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any


class RecentEpisodes:
    """Means over the last episodes.

    Args:
        window: How many episodes.
    """

    def __init__(self, window: int) -> None:
        self._successes: deque[float] = deque(maxlen=window)
        self._env_returns: deque[float] = deque(maxlen=window)
        self._dense_returns: deque[float] = deque(maxlen=window)
        self._learned_returns: deque[float] = deque(maxlen=window)
        self._weight_lags: deque[int] = deque(maxlen=window)
        self._weight_version = 0
        self._episodes = 0
        self._reported = 0

    def add(self, meta: Mapping[str, Any], learned_returns: Sequence[float], updates: int) -> None:
        """Takes one block that was acknowledged.

        Args:
            meta: What its rollout actor says about it.
            learned_returns: Sums of its episodes' learned rewards.
            updates: Of the learner by now.
        """
        for episode in meta["episodes"]:
            self._episodes += 1
            self._successes.append(float(episode["success"]))
            self._env_returns.append(episode["env_return"])
            self._dense_returns.append(episode["dense_return"])
            self._weight_version = episode["weight_version"]
            self._weight_lags.append(updates - episode["weight_version"])
        self._learned_returns.extend(learned_returns)

    def is_new(self) -> bool:
        """Whether episodes came in since the last call of `metrics`."""
        return self._episodes > self._reported

    def metrics(self) -> dict[str, float]:
        """Means by metric name; empty before the first episode."""
        self._reported = self._episodes
        if not self._successes:
            return {}
        metrics = {
            "episode_success": sum(self._successes) / len(self._successes),
            "env_return": sum(self._env_returns) / len(self._env_returns),
            "dense_return": sum(self._dense_returns) / len(self._dense_returns),
            "rollout_weight_version": self._weight_version,
            "weight_lag_updates": sum(self._weight_lags) / len(self._weight_lags),
        }
        if self._learned_returns:
            metrics["learned_return"] = sum(self._learned_returns) / len(self._learned_returns)
        return metrics


class RateWindow:
    """Agent steps and updates per second since the last report."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def update(self, wall_s: float, agent_steps: int, updates: int) -> dict[str, float]:
        """Rates since the last call; empty at the first one."""
        last, self._last = self._last, (wall_s, agent_steps, updates)
        if last is None or wall_s <= last[0]:
            return {}
        seconds = wall_s - last[0]
        return {
            "agent_steps_per_s": (agent_steps - last[1]) / seconds,
            # A learner that died goes on at an older count.
            "updates_per_s": max(0, updates - last[2]) / seconds,
        }


def update_ratio(agent_steps: int, updates: int, min_steps: int) -> dict[str, float]:
    """The "update_ratio", updates per agent step after the first `min_steps`; empty before them."""
    return {} if agent_steps <= min_steps else {"update_ratio": updates / (agent_steps - min_steps)}
