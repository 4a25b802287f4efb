"""Rollout actors without a simulator: the driver's work with a thousand of them, on a machine with a few cores."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from models.episode import Episode


class SimulatedRollouts:
    """Many rollout actors in one process: each takes as long as a real one for an episode, and computes nothing.

    Calls overlap; run it with a `max_concurrency` of twice as many actors as it stands for.

    Args:
        episode: What every call returns a copy of.
        episode_s: How long an episode takes.
    """

    def __init__(self, episode: Episode, episode_s: float) -> None:
        self._episode, self._episode_s = episode, episode_s
        self._free_at_s: dict[int, float] = {}

    async def collect(
        self, block_id: str, num_episodes: int, global_agent_steps: int, actor: int = 0
    ) -> tuple[list[Episode], dict[str, Any]]:
        """One block, as `RolloutActor.collect`; the calls of one actor take turns."""
        now_s = time.monotonic()
        end_s = max(now_s, self._free_at_s.get(actor, now_s)) + num_episodes * self._episode_s
        self._free_at_s[actor] = end_s
        await asyncio.sleep(end_s - now_s)
        episodes = [replace(self._episode, episode_id=f"{block_id}-{i}") for i in range(num_episodes)]
        return episodes, {"block_id": block_id, "episodes": [_facts(e) for e in episodes]}

    async def ping(self) -> bool:
        """Answers once the constructor is done."""
        return True


def _facts(episode: Episode) -> dict[str, Any]:
    return {
        "episode_id": episode.episode_id,
        "success": episode.is_success,
        "env_return": episode.env_return,
        "dense_return": 0.0,
        "weight_version": 0,
        "length_steps": len(episode),
    }


class SimulatedActor:
    """Handle of one of them, with the part of a Ray handle that the driver uses.

    Args:
        process: Handle of the `SimulatedRollouts` that it lives in.
        number: Its number.
    """

    def __init__(self, process: Any, number: int) -> None:
        self._process, self._number = process, number
        self.collect = self
        self.__ray_call__ = process.__ray_call__

    def options(self, num_returns: int) -> Any:
        """As of a Ray method."""
        self._num_returns = num_returns
        return self

    def remote(self, block_id: str, num_episodes: int, global_agent_steps: int) -> Any:
        """As of a Ray method."""
        method = self._process.collect.options(num_returns=self._num_returns)
        return method.remote(block_id, num_episodes, global_agent_steps, self._number)
