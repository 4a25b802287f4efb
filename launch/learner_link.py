"""The driver's side of the learner: updates in flight, checkpoints, recovery after a death."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from launch.failures import MAX_ATTEMPTS, describe, is_process_failure
from launch.run_folder import RunFolder
from learner.learner_core import FILE_NAME

LOOK_EVERY_S = 1.0


class LearnerLink:
    """Calls of the learner actor, with its counters.

    Args:
        actor: Handle of the LearnerActor.
        folder: Run folder, for the checkpoint to come back to.
        on_recovery: Called with a sentence after each recovery.
        while_waiting: Called every second while a dead learner is waited for; it gives up by an exception.
        recovery_timeout_s: How long a dead learner may take to come back, the time in which it has no node included.
    """

    def __init__(
        self,
        actor: Any,
        folder: RunFolder,
        on_recovery: Callable[[str], None],
        while_waiting: Callable[[], None] = lambda: None,
        recovery_timeout_s: float = 120.0,
    ) -> None:
        self._actor = actor
        self._folder = folder
        self._on_recovery = on_recovery
        self._while_waiting = while_waiting
        self._recovery_timeout_s = recovery_timeout_s
        self.updates = 0
        self.in_flight: dict[Any, int] = {}
        self.batch_wait_s = 0.0
        self._metrics: dict[str, float] = {}
        self._deaths, self._updates_reached = 0, 0

    @property
    def updates_in_flight(self) -> int:
        """Updates submitted and not yet reported."""
        return sum(self.in_flight.values())

    def start(self, updates: int, agent_steps: int) -> None:
        """Submits one call of `updates` updates; `agent_steps` sets the stddev of the agent's noise."""
        expected = (
            self.updates + self.updates_in_flight
        )  # A learner that restarted in between would not know.
        self.in_flight[self._actor.run_updates.remote(updates, agent_steps, expected)] = updates

    def handle(self, ref: Any) -> None:
        """Takes the result of one call; brings a learner that died back from the last checkpoint.

        Raises:
            RuntimeError: if the learner failed for a reason that a restart cannot mend.
        """
        if ref not in self.in_flight:
            return  # Of a learner that died; its other call was handled first.
        updates = self.in_flight.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._recover(error)
            return
        # Counted, not copied from the answer: the answers of two calls in flight may be handled in either order.
        self.updates += updates
        self._metrics |= answer["metrics"]
        self.batch_wait_s = float(answer["batch_wait_s"])

    def take_metrics(self) -> dict[str, float]:
        """Means of the last finished call, by name."""
        return dict(self._metrics)

    def load(self, checkpoint: Path) -> None:
        """Loads a checkpoint; `updates` follows it."""
        self.updates = int(ray.get(self._actor.load.remote(str(checkpoint))))

    def save(self, folder: Path) -> None:
        """Saves into `folder` after the calls in flight, recovering a dead learner first.

        Raises:
            RuntimeError: if the learner cannot save.
        """
        self._settle()
        for attempt in range(3):
            try:
                answer = self._actor.save.remote(str(folder), self.updates)
                while not ray.wait([answer], timeout=LOOK_EVERY_S)[0]:  # A disk may be slow.
                    self._while_waiting()
                ray.get(answer)
                return
            except ray.exceptions.RayError as error:
                if attempt == 2:
                    raise RuntimeError(f"cannot save a checkpoint: {describe(error)}") from error
                self._recover(error)
                # It may have died, or been cut off, after writing: a file that is there would be refused.
                (folder / FILE_NAME).unlink(missing_ok=True)

    def _settle(self) -> None:
        """Takes the results of all calls in flight, however long they take: a learner may be slow, or wait for a replay
        shard that died. `while_waiting` gives up on one that Ray cannot run."""
        while self.in_flight:
            ready, _ = ray.wait(list(self.in_flight), num_returns=1, timeout=LOOK_EVERY_S)
            self._while_waiting()
            if ready:
                self.handle(ready[0])

    def publish(self) -> int:
        """Publishes the weights; returns their version."""
        return int(ray.get(self.publish_ref()))

    def publish_ref(self) -> Any:
        """Publishes the weights after the calls in flight; the reference resolves to their version."""
        return self._actor.publish.remote(self.updates + self.updates_in_flight)

    def recover_if_restarted(self) -> None:
        """Brings the learner back if it has died and nobody has noticed yet."""
        self._settle()  # Else `publish` waits for the calls in flight, and nobody looks whom they wait for.
        try:
            self.publish()
        except ray.exceptions.RayError as error:
            self._recover(error)

    def _recover(self, error: BaseException) -> None:
        if not is_process_failure(error):
            raise RuntimeError(f"the learner failed: {describe(error)}") from error
        text = self._bring_back(error, time.monotonic() + self._recovery_timeout_s)
        self._on_recovery(text)

    def _bring_back(self, error: BaseException, deadline_s: float) -> str:
        """Waits for the learner and brings it up to date; once more if it dies over that. Returns what happened."""
        answer = self._wait_until_it_answers(error, deadline_s)
        self.in_flight.clear()  # Everything queued on the dead process is lost or will be repeated.
        if answer["state"] != "fresh":
            # It lives, and its count is the truth: a call that failed half-way may have done some updates.
            self.updates = int(answer["updates"])
            return f"learner goes on at update {self.updates} after {describe(error)}"
        self._count_death(error)
        notes: list[str] = []
        checkpoint = self._folder.latest_checkpoint(tell=notes.append)
        if checkpoint is None:
            raise RuntimeError("the learner died before the first checkpoint") from error
        try:
            self.load(checkpoint)
        except ray.exceptions.RayError as again:
            if not is_process_failure(again):
                raise RuntimeError(f"the learner cannot load {checkpoint}: {describe(again)}") from again
            return self._bring_back(again, deadline_s)
        return ". ".join(
            [f"learner restarted after {describe(error)}; continues at update {self.updates}", *notes]
        )

    def _count_death(self, error: BaseException) -> None:
        """Gives up on a learner that never gets further: one that runs out of memory, say, does so every time."""
        if self.updates > self._updates_reached:
            self._deaths, self._updates_reached = 0, self.updates
        self._deaths += 1
        if self._deaths >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"the learner died {self._deaths} times without getting beyond update {self._updates_reached}, at last: "
                f"{describe(error)}. Mend that, then go on with resume="
            ) from error

    def _wait_until_it_answers(self, error: BaseException, deadline_s: float) -> dict[str, Any]:
        ping = self._actor.ping.remote()
        while time.monotonic() < deadline_s:
            self._while_waiting()
            if not ray.wait([ping], timeout=LOOK_EVERY_S)[0]:
                continue
            try:
                return dict(ray.get(ping))
            except ray.exceptions.RayError:
                time.sleep(0.2)
                ping = self._actor.ping.remote()
        raise RuntimeError(
            f"the learner did not come back within {self._recovery_timeout_s:.0f} s after {describe(error)}"
        ) from error
