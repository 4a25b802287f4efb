"""The rollout actors of a run, whose number may follow the cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from launch.placement import EPSILON
from launch.settings import RolloutSettings

GIVE_UP_AFTER_S = 15.0
GROW_AFTER_FAILURE_S = 600.0  # The free CPUs may be those of a node on which no rollout actor can start.
GROW_EVERY_S = 5.0  # Free resources are reported with a delay: what was just asked for must be counted.


class RolloutPool:
    """Adds and removes rollout actors with `rollout.num_actors=auto`; else leaves them alone.

    It grows into CPUs that are free, node by node, and gives up actors that have waited for a node for a while: their
    node is gone, or somebody else was faster. It makes room for other actors of the run that wait for a node.

    Args:
        handles: Rollout actors by slot, changed in place.
        settings: Number of actors.
        cpus: CPUs of one actor, above 0.
        make: Creates the actor of a slot.
        free: Free resources of each node.
    """

    def __init__(
        self,
        handles: dict[int, Any],
        settings: RolloutSettings,
        cpus: float,
        make: Callable[[int], Any],
        free: Callable[[], Sequence[dict[str, float]]],
    ) -> None:
        self._handles, self._settings, self._cpus = handles, settings, cpus
        self._make, self._free = make, free
        self._next_slot = 1 + max(handles, default=-1)
        self._waiting_since_s: dict[int, float] = {}
        self._grown_s = time.monotonic()
        self._grow_after_s = 0.0

    def adjust(self, without_node: set[int], now_s: float, others_need_cpus: float = 0.0) -> list[str]:
        """Shrinks and grows.

        Args:
            without_node: Slots whose actor has no node.
            now_s: Monotonic time.
            others_need_cpus: CPUs of other actors of the run that wait for a node.

        Returns:
            What happened, a sentence each.
        """
        if not self._settings.is_auto:
            return []
        events = self._shrink(without_node, now_s)
        if others_need_cpus > 0:
            return events + self._make_room(without_node, others_need_cpus, now_s)
        if now_s - self._grown_s >= GROW_EVERY_S and now_s >= self._grow_after_s:
            self._grown_s = now_s
            events += self._grow(len(without_node & self._handles.keys()))
        return events

    def retire(self, slot: int, now_s: float) -> None:
        """Takes out an actor that cannot be started again; no new one is tried for a while.

        Args:
            slot: Of the actor.
            now_s: Monotonic time.
        """
        del self._handles[slot]
        self._grow_after_s = now_s + GROW_AFTER_FAILURE_S

    def _shrink(self, without_node: set[int], now_s: float) -> list[str]:
        self._waiting_since_s = {
            slot: self._waiting_since_s.get(slot, now_s) for slot in without_node if slot in self._handles
        }
        too_long = [slot for slot, since in self._waiting_since_s.items() if now_s - since > GIVE_UP_AFTER_S]
        too_long = too_long[: len(self._handles) - 1]  # The last one waits for the next node.
        for slot in too_long:
            ray.kill(self._handles.pop(slot), no_restart=True)
        if not too_long:
            return []
        return [f"{len(too_long)} rollout actors without a node given up: {len(self._handles)} left"]

    def _make_room(self, without_node: set[int], cpus: float, now_s: float) -> list[str]:
        """Gives up as many actors as hold the CPUs that others wait for; again after a while, if that was on a wrong node."""
        if now_s - self._grown_s < GROW_EVERY_S:
            return []
        self._grown_s = now_s
        most = len(self._handles) - 1
        slots = sorted(self._handles, key=lambda slot: (slot not in without_node, -slot))
        chosen = slots[: min(most, len(without_node & set(slots)) + math.ceil(cpus / self._cpus))]
        for slot in chosen:
            ray.kill(self._handles.pop(slot), no_restart=True)
        if not chosen:
            return []
        return [
            f"{len(chosen)} rollout actors given up for other actors that wait: {len(self._handles)} left"
        ]

    def _grow(self, waiting: int) -> list[str]:
        room = sum(int((node.get("CPU", 0.0) + EPSILON) / self._cpus) for node in self._free()) - waiting
        if self._settings.max_actors is not None:
            room = min(room, self._settings.max_actors - len(self._handles))
        for _ in range(room):
            self._handles[self._next_slot] = self._make(self._next_slot)
            self._next_slot += 1
        return [f"{room} more rollout actors for free CPUs: {len(self._handles)} now"] if room > 0 else []
