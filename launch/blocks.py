"""Blocks of episodes on their way: rollout.collect -> reward.score -> shard.insert, owned by the driver.

The driver submits all three calls and holds every reference, so frames survive the rollout actor that made
them, and a failed block is rolled out again under the same id (inserting it twice stores it once).
"""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from launch.failures import MAX_ATTEMPTS, describe, is_process_failure
from launch.system import System

# Of one rollout actor: while one is scored and stored, the next is rolled out.
MOST_BLOCKS_IN_FLIGHT = 2
RETRY_AFTER_S = 0.5


def block_number(name: str) -> int:
    """Number of a block, from its id ("b0000012") or from the id of one of its episodes ("b0000012-1")."""
    return int(name.partition("-")[0].removeprefix("b"))


@dataclass
class Block:
    """One block in flight.

    Attributes:
        block_id: Stable over retries; episode ids derive from it.
        slot: The rollout actor that has it; another one after a failure.
        shard: Index of the replay shard.
        global_agent_steps: Agent steps submitted before this block, for the exploration schedule.
        episodes: Number of episodes.
        attempts: How often it was submitted.
        started_s: When it was first submitted, by `time.monotonic()`.
    """

    block_id: str
    slot: int
    shard: int
    global_agent_steps: int
    episodes: int
    attempts: int = 0
    started_s: float = field(default_factory=time.monotonic)
    refs: tuple[Any, ...] = field(default=(), repr=False)


class BlockPipeline:
    """Keeps every rollout actor busy and reports what was acknowledged.

    Attributes:
        idle: Slots of rollout actors that get no blocks: they wait for a node, or have not started yet.

    Args:
        system: Actor handles.
        episodes_per_block: Episodes of one collect call.
        episode_steps: Agent steps of an episode.
        first_block: Number of the first block (a resumed run goes on counting).
        on_done: Called with (block, acknowledgement, meta, learned returns) for each acknowledged block.
        on_event: Called with a sentence when a block has to be rolled out again.
    """

    def __init__(
        self,
        system: System,
        *,
        episodes_per_block: int,
        episode_steps: int,
        first_block: int,
        on_done: Callable[[Block, Mapping[str, Any], Mapping[str, Any], Sequence[float]], None],
        on_event: Callable[[str], None],
    ) -> None:
        self._system = system
        self._episodes_per_block = episodes_per_block
        self._block_steps = episodes_per_block * episode_steps
        self._next_block = first_block
        self._on_done = on_done
        self._on_event = on_event
        self.idle: set[int] = set()
        self._load: Counter[int] = Counter()
        self._lost: list[tuple[float, Block]] = []
        self.in_flight: dict[Any, Block] = {}

    @property
    def steps_in_flight(self) -> int:
        """Agent steps submitted and not yet acknowledged."""
        return (len(self.in_flight) + len(self._lost)) * self._block_steps

    @property
    def next_block(self) -> int:
        """Number of the next block, for the checkpoint."""
        return self._next_block

    def start(self, submitted_steps: int, allowed_steps: int) -> None:
        """Gives the least busy rollout actors a block each while whole blocks fit into `allowed_steps`."""
        while allowed_steps >= self._block_steps and (slot := self._free_slot()) is not None:
            block = Block(
                block_id=f"b{self._next_block:07d}",
                slot=slot,
                shard=self._next_block % len(self._system.shards),
                global_agent_steps=submitted_steps,
                episodes=self._episodes_per_block,
            )
            self._next_block += 1
            self._submit(block)
            submitted_steps += self._block_steps
            allowed_steps -= self._block_steps

    def repeat_lost(self) -> None:
        """Has lost blocks rolled out again, by whoever has room for them."""
        while self._lost and self._lost[0][0] <= time.monotonic() and (slot := self._free_slot()) is not None:
            _, block = self._lost.pop(0)
            block.slot = slot
            self._submit(block)

    def _free_slot(self) -> int | None:
        """The least busy rollout actor that can take a block."""
        slots = [slot for slot in self._system.rollouts if slot not in self.idle]
        slot = min(slots, key=lambda slot: self._load[slot], default=None)
        return slot if slot is not None and self._load[slot] < MOST_BLOCKS_IN_FLIGHT else None

    def _submit(self, block: Block) -> None:
        block.attempts += 1
        self._load[block.slot] += 1
        number = block_number(block.block_id)
        system = self._system
        episodes, meta = (
            system.rollouts[block.slot]
            .collect.options(num_returns=2)
            .remote(block.block_id, block.episodes, block.global_agent_steps)
        )
        scores = None
        if system.rewards:
            scores = system.rewards[number % len(system.rewards)].score.remote(episodes)
        done = system.shards[block.shard].insert.remote(block.block_id, episodes, scores)
        block.refs = (episodes, meta, scores)
        self.in_flight[done] = block

    def handle(self, done: Any) -> None:
        """Takes the result of one finished insert.

        Raises:
            RuntimeError: if the block failed for a reason that a retry cannot mend.
        """
        block = self.in_flight.pop(done)
        self._load[block.slot] -= 1
        try:
            acknowledgement, meta = ray.get([done, block.refs[1]])
            scores = [] if block.refs[2] is None else ray.get(block.refs[2])
        except ray.exceptions.RayError as error:
            if not is_process_failure(error) or block.attempts >= MAX_ATTEMPTS:
                raise RuntimeError(f"block {block.block_id} failed: {describe(error)}") from error
            self._on_event(f"block {block.block_id} is rolled out again after {describe(error)}")
            # Not at once: a call of an actor that is still dead would fail as fast as it is made. And later each time:
            # where weight store and learner have died, there are weights again only when the learner is back.
            again_s = time.monotonic() + RETRY_AFTER_S * block.attempts
            insort(self._lost, (again_s, block), key=lambda lost: lost[0])
            return
        block.refs = ()
        self._on_done(block, acknowledgement, meta, [float(rewards[1:].sum()) for rewards in scores])
