"""The driver's side of the learner: updates in flight, checkpoints, recovery after a death."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from launch.failures import describe, is_process_failure
from launch.run_folder import RunFolder

RECOVERY_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0


class LearnerLink:
    """Calls of the learner actor, with its counters.

    Args:
        actor: Handle of the LearnerActor.
        folder: Run folder, for the checkpoint to come back to.
        on_recovery: Called with a sentence after each recovery.
    """

    def __init__(self, actor: Any, folder: RunFolder, on_recovery: Callable[[str], None]) -> None:
        self._actor = actor
        self._folder = folder
        self._on_recovery = on_recovery
        self.updates = 0
        self.in_flight: dict[Any, int] = {}
        self.batch_wait_s = 0.0
        self._metrics: dict[str, float] = {}

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
            RuntimeError: if the learner does not answer or cannot save.
        """
        while self.in_flight:
            ready, _ = ray.wait(list(self.in_flight), num_returns=1, timeout=ANSWER_TIMEOUT_S)
            if not ready:
                raise RuntimeError(
                    f"the learner did not answer within {ANSWER_TIMEOUT_S:.0f} s; is Ray still running?"
                )
            self.handle(ready[0])
        for attempt in range(3):
            try:
                ray.get(self._actor.save.remote(str(folder), self.updates), timeout=ANSWER_TIMEOUT_S)
                return
            except ray.exceptions.RayError as error:
                if attempt == 2:
                    raise RuntimeError(f"cannot save a checkpoint: {describe(error)}") from error
                self._recover(error)

    def publish(self) -> int:
        """Publishes the weights; returns their version."""
        return int(ray.get(self.publish_ref()))

    def publish_ref(self) -> Any:
        """Publishes the weights after the calls in flight; the reference resolves to their version."""
        return self._actor.publish.remote()

    def _recover(self, error: BaseException) -> None:
        is_untrained = self._wait_until_it_answers(error)["state"] == "fresh"
        # A call that reaches the restarted learner is refused by it; that too means that the process died.
        if not is_process_failure(error) and not (is_untrained and self.updates > 0):
            raise RuntimeError(f"the learner failed: {describe(error)}") from error
        self.in_flight.clear()  # Everything queued on the dead process is lost or will be repeated.
        notes: list[str] = []
        if is_untrained:
            checkpoint = self._folder.latest_checkpoint(tell=notes.append)
            if checkpoint is None:
                raise RuntimeError("the learner died before the first checkpoint") from error
            self.load(checkpoint)
        text = f"learner restarted after {describe(error)}; continues at update {self.updates}"
        self._on_recovery(". ".join([text, *notes]))

    def _wait_until_it_answers(self, error: BaseException) -> dict[str, Any]:
        deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while True:
            try:
                return ray.get(self._actor.ping.remote(), timeout=RECOVERY_TIMEOUT_S)
            except ray.exceptions.RayError:
                if time.monotonic() > deadline_s:
                    raise RuntimeError(
                        f"the learner did not come back within {RECOVERY_TIMEOUT_S:.0f} s after {describe(error)}"
                    ) from error
                time.sleep(0.2)
