"""Looks after actors that Ray cannot place or start: says which, keeps work away from them, gives up when it is hopeless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set

from launch.blocks import BlockPipeline
from launch.failures import why_dead
from launch.placement import (
    EPSILON,
    NotRunning,
    cluster_text,
    free_resources,
    needs_of,
    not_running,
    rollout_name,
    rollout_need,
)
from launch.rollout_pool import RolloutPool
from launch.settings import TrainSettings
from launch.system import System, make_rollout

LOOK_EVERY_S = 2.0


class Supervisor:
    """Asks Ray every other second which actors are not running.

    Args:
        settings: Everything configurable.
        system: Actor handles; rollout actors are added and removed with `rollout.num_actors=auto`.
        on_event: Called with a sentence for the console and metrics.jsonl.
        look: What asks Ray.
        free: Free resources of each node.

    Attributes:
        down: The actors that are not running, at the last look.
    """

    def __init__(
        self,
        settings: TrainSettings,
        system: System,
        on_event: Callable[[str], None],
        look: Callable[[], NotRunning] = not_running,
        free: Callable[[], Sequence[dict[str, float]]] = free_resources,
    ) -> None:
        self._system, self._on_event, self._ask, self._free = system, on_event, look, free
        self._report_after_s = settings.cluster.report_unplaced_after_s
        self._patience_s = settings.cluster.patience_s
        self._needs = {need.name: need for need in needs_of(settings)}
        self._rollout_need = lambda slot: rollout_need(settings, slot)
        self._pool = RolloutPool(
            system.rollouts,
            settings.rollout,
            settings.cluster.rollout_cpus,
            lambda slot: make_rollout(settings, slot),
            free,
        )
        self.down = NotRunning()
        self._looked_s = 0.0
        self._since_s: dict[str, float] = {}
        self._reported: set[str] = set()

    def look(self, blocks: BlockPipeline | None = None, now: bool = False) -> None:
        """Looks, unless it has just done so.

        Args:
            blocks: Told which rollout actors can work.
            now: Look in any case.

        Raises:
            RuntimeError: if an actor that training cannot go on without has waited for its resources for too long, or
                cannot be started again; likewise if that is true of all rollout actors.
        """
        now_s = time.monotonic()
        if not now and now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        self.down = self._ask()
        self._retire_dead(now_s)
        slots = {rollout_name(slot): slot for slot in self._system.rollouts}
        waiting = self.down.without_node
        for event in self._pool.adjust(
            {slots[n] for n in waiting if n in slots}, now_s, self._cpus_lacking(waiting - slots.keys())
        ):
            self._on_event(event)
        if blocks is not None:
            started = self._system.rollouts.keys() - set(slots.values())
            blocks.idle = {slots[name] for name in self.down.names if name in slots} | started
        self._report(now_s)

    def _cpus_lacking(self, names: Set[str]) -> float:
        """CPUs that would give these actors a node: none for one that waits for a GPU which no node has free."""
        needs = [self._needs[name] for name in names if name in self._needs]
        if any(need.gpus > 0 for need in needs):
            gpus = max((node.get("GPU", 0.0) for node in self._free()), default=0.0)
            needs = [need for need in needs if need.gpus <= gpus + EPSILON]
        return sum(need.cpus for need in needs)

    def _retire_dead(self, now_s: float) -> None:
        """Goes on without rollout actors whose constructor fails, as on a node that lacks a library."""
        if not self.down.dead:
            return
        slots = {rollout_name(slot): slot for slot in self._system.rollouts}
        handles = self._system.by_name()
        for name in sorted(self.down.dead & handles.keys()):
            text = f"{name} cannot be started again: {why_dead(handles[name])}"
            if name not in slots or len(self._system.rollouts) == 1:
                raise RuntimeError(f"{text}. Mend that, then go on with resume=")
            self._pool.retire(slots[name], now_s)
            self._on_event(f"{text}. Training goes on with {len(self._system.rollouts)} rollout actors")

    def _report(self, now_s: float) -> None:
        """Names actors that wait, once each time, and says when they run again."""
        waiting = self.down.without_node
        self._since_s = {name: self._since_s.get(name, now_s) for name in waiting}
        for name in sorted(self._reported - waiting):
            self._on_event(f"{name} has a node again")
        self._reported &= waiting
        late = [n for n in sorted(waiting) if now_s - self._since_s[n] > self._report_after_s]
        for name in late:
            if name not in self._reported:
                self._on_event(self._text(name, now_s - self._since_s[name]))
                self._reported.add(name)
        hopeless = [n for n in late if now_s - self._since_s[n] > self._patience_s]
        rollouts = {rollout_name(slot) for slot in self._system.rollouts}
        for name in hopeless:
            if not name.startswith("rollout-") or rollouts <= set(hopeless):
                raise RuntimeError(
                    f"{self._text(name, self._patience_s)}. Add nodes or ask for less, then go on with resume="
                )

    def _text(self, name: str, waited_s: float) -> str:
        need = self._needs.get(name) or self._rollout_need(0)
        return (
            f"{name} has waited {waited_s:.0f} s for a node with {need.resources}; the cluster has {cluster_text()}. "
            f"{self._meanwhile(name)}"
        )

    def _meanwhile(self, name: str) -> str:
        running = sum(rollout_name(slot) not in self.down.names for slot in self._system.rollouts)
        if not name.startswith("rollout-") or running == 0:
            return f"Training waits for it, {self._patience_s:.0f} s at most"
        return f"Training goes on with {running} rollout actors"
