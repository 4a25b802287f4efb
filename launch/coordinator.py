"""The training loop of the driver: keeps blocks, updates, evaluations and checkpoints moving.

The driver never touches pixels: frames go from actor to actor by reference, it sees counts and metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from launch.blocks import Block, BlockPipeline, block_number
from launch.console import TrainingView
from launch.evaluating import EvaluationRun
from launch.interrupts import StopFlag
from launch.learner_link import LearnerLink
from launch.metrics import MetricsLog
from launch.run_folder import RunFolder
from launch.settings import TrainSettings
from launch.system import System
from launch.windows import RateWindow, RecentEpisodes


class Coordinator:
    """Runs one training to its last agent step, or to a clean stop.

    Args:
        settings: Everything configurable.
        system: Actor handles.
        folder: Run folder.
        log: Metrics sink.
        view: Console.
        stop: Set when the user asks to stop.
    """

    def __init__(
        self,
        settings: TrainSettings,
        system: System,
        folder: RunFolder,
        log: MetricsLog,
        view: TrainingView,
        stop: StopFlag,
    ) -> None:
        self.settings, self.system, self.folder = settings, system, folder
        self.log, self.view, self.stop = log, view, stop
        self._shard_steps = [0] * len(system.shards)
        self.recoveries = 0
        self.limiter = settings.limiter
        self.learner = LearnerLink(system.learner, folder, self._recovered)
        self.evaluation: EvaluationRun | None = None
        self._evaluated_at_steps = -1
        self._checkpointed_s = time.monotonic()
        self._logged_s = 0.0
        self._recent = RecentEpisodes(window=20)
        self._rates = RateWindow()
        self._reward_stats: dict[str, float] = {}

    # ---- start

    def restore(self) -> None:
        """Brings counters and learner to where a resumed run stopped (a new run stays at zero)."""
        shards = self.system.shards
        self._shard_steps = [s["total_inserted_steps"] for s in ray.get([s.stats.remote() for s in shards])]
        # Not the last ones alone: blocks may be stored in another order than they were started in.
        stored = [block_number(name) for ids in ray.get([s.ids.remote() for s in shards]) for name in ids]
        checkpoint = self.folder.latest_checkpoint()
        saved: dict[str, Any] = {}
        if checkpoint is not None:
            saved = self.folder.counters(checkpoint)
            self.learner.load(checkpoint)
            self._evaluated_at_steps = saved["evaluated_at_steps"]
            self.recoveries = saved["recoveries"]
        first_block = 1 + max(stored, default=-1)
        self.blocks = BlockPipeline(
            self.system,
            episodes_per_block=self.settings.rollout.episodes_per_block,
            episode_steps=self.settings.env.episode_steps,
            first_block=max(first_block, saved.get("next_block", 0)),
            on_done=self._block_done,
            on_event=self._recovered,
        )
        self.learner.publish()

    # ---- the loop

    def run(self) -> str:
        """Trains.

        Returns:
            "finished", or the name of the signal that stopped the run.
        """
        self.start()
        self.advance()
        if not self.stop:
            self._finish_evaluation()
        self._checkpoint()  # Before the report: saving waits for updates in flight, which then are in both.
        self._report(force=True)
        return self.stop.reason or "finished"

    def start(self) -> None:
        """Restores the counters; makes sure that there is a checkpoint."""
        self.restore()
        if self.folder.latest_checkpoint() is None:
            self._checkpoint()  # A learner that dies early has something to come back to.

    def advance(self) -> None:
        """Trains until the last agent step and the updates that belong to it are done, or a stop is asked for."""
        while not self.stop and not self._is_done():
            self._start_evaluation()
            self._start_blocks()
            self._start_updates()
            self._wait()
            # Before the report: saving waits for the learner, and a synchronous run has a row after every update.
            if time.monotonic() - self._checkpointed_s > self.settings.checkpoint_every_s:
                self._checkpoint()
            self._report()

    @property
    def agent_steps(self) -> int:
        """Agent steps acknowledged by the replay shards; theirs is the truth, over kills and resumes."""
        return sum(self._shard_steps)

    def _is_done(self) -> bool:
        budget_is_spent = self.agent_steps >= self.settings.total_agent_steps
        is_learning = bool(self.learner.in_flight) or self._updates_due(self.learner.updates) > 0
        return budget_is_spent and not is_learning and self.evaluation is None

    def _updates_due(self, updates: int) -> int:
        """How many updates may start now, given how many were started."""
        return self.limiter.updates_due(self.agent_steps, updates)

    @property
    def _is_sync(self) -> bool:
        return self.settings.cluster.sync

    def _start_blocks(self) -> None:
        submitted = self.agent_steps + self.blocks.steps_in_flight
        left = self.settings.total_agent_steps - submitted
        if left <= 0:
            return
        block_steps = self.settings.block_steps
        if self._is_sync:
            busy = self.learner.in_flight or self.blocks.in_flight or self.evaluation
            if not busy and self._updates_due(self.learner.updates) == 0:
                self.blocks.start(submitted, block_steps)
            return
        allowed = self.limiter.steps_allowed(submitted, self.learner.updates)
        # The last block may go over the budget by less than one block.
        whole_blocks_left = -(-left // block_steps) * block_steps
        self.blocks.start(submitted, min(allowed, whole_blocks_left))

    def _start_updates(self) -> None:
        if self._is_sync and (self.blocks.in_flight or self.evaluation):
            return
        per_call = self.settings.updates_per_call
        while len(self.learner.in_flight) < (1 if self._is_sync else 2):
            planned = self.learner.updates + self.learner.updates_in_flight
            due = self._updates_due(planned)
            if due <= 0:
                return
            self.learner.start(min(due, per_call), self.agent_steps)

    def _start_evaluation(self) -> None:
        every = self.settings.eval_every_agent_steps
        is_due = self.agent_steps // every > self._evaluated_at_steps // every or self._evaluated_at_steps < 0
        if self.evaluation is not None or not is_due:
            return
        if self._is_sync and (self.blocks.in_flight or self.learner.in_flight):
            return
        self._evaluated_at_steps = self.agent_steps
        self.evaluation = EvaluationRun(
            self.settings, self.system, self.folder, self.learner.publish_ref(), self.agent_steps
        )

    def _wait(self) -> None:
        """Waits for the next result and hands it to whoever asked for it."""
        handlers: dict[Any, Callable[[Any], None]] = {}
        handlers |= dict.fromkeys(self.blocks.in_flight, self.blocks.handle)
        handlers |= dict.fromkeys(self.learner.in_flight, self.learner.handle)
        if self.evaluation is not None:
            handlers[self.evaluation.ref] = self._evaluation_step
        if not handlers:
            time.sleep(0.01)
            return
        ready, _ = ray.wait(list(handlers), num_returns=1, timeout=0.5)
        for ref in ready:
            handlers[ref](ref)

    # ---- what comes back

    def _block_done(
        self,
        block: Block,
        acknowledgement: Mapping[str, Any],
        meta: Mapping[str, Any],
        learned_returns: Sequence[float],
    ) -> None:
        # Two acknowledgements of one shard may be handled in either order; its total only grows.
        total = max(self._shard_steps[block.shard], acknowledgement["total_inserted_steps"])
        self._shard_steps[block.shard] = total
        self._recent.add(meta, learned_returns)

    def _recovered(self, text: str) -> None:
        self.recoveries += 1
        self.view.event(text)
        self.log.row("event", self.counters(), {"event": text})

    def _evaluation_step(self, ref: Any) -> None:
        assert self.evaluation is not None
        done = self.evaluation.advance(ref, self._recovered)
        if done is None:
            return
        counters = {**self.counters(), "agent_steps": self.evaluation.agent_steps}
        counters["frames"] = self.evaluation.agent_steps * self.settings.env.action_repeat
        self.log.row("eval", counters, done.metrics)
        for name, frames in done.videos.items():
            self.log.video(name, frames, self.evaluation.agent_steps, self.settings.video_fps)
        self.view.event(done.summary)
        self.evaluation = None

    def _finish_evaluation(self) -> None:
        """Evaluates the final weights, unless that has just been done."""
        if self._evaluated_at_steps != self.agent_steps:
            self._evaluated_at_steps = self.agent_steps
            self.evaluation = EvaluationRun(
                self.settings, self.system, self.folder, self.learner.publish_ref(), self.agent_steps
            )
        while self.evaluation is not None and not self.stop:
            self._wait()

    # ---- reporting and checkpoints

    def counters(self) -> dict[str, int]:
        """agent_steps, frames (simulator steps) and updates so far."""
        return {
            "agent_steps": self.agent_steps,
            "frames": self.agent_steps * self.settings.env.action_repeat,
            "updates": self.learner.updates,
        }

    def _report(self, force: bool = False) -> None:
        """Writes a row every `log_every_s`; a synchronous run logs after each block, free of timing."""
        now_s = time.monotonic()
        if self._is_sync:
            is_quiet = not (self.blocks.in_flight or self.learner.in_flight or self.evaluation)
            due = self._updates_due(self.learner.updates)
            if not is_quiet or due or not self._recent.is_new():
                return
        elif not force and now_s - self._logged_s < self.settings.log_every_s:
            return
        self._logged_s = now_s
        metrics = {**self._recent.metrics(), **self.learner.take_metrics(), "recoveries": self.recoveries}
        rates = self._rates.update(self.log.wall_s(), self.agent_steps, self.learner.updates)
        if not self._is_sync:
            metrics |= {**rates, **self._reward_metrics(), "batch_wait_s": self.learner.batch_wait_s}
        self.log.row("train", self.counters(), metrics)
        shown = ("episode_success", "learned_return", "critic_loss", "agent_steps_per_s", "updates_per_s")
        view = {**self.counters(), **{k: metrics[k] for k in shown if k in metrics}}
        self.view.update(view, self.agent_steps / self.settings.total_agent_steps)

    def _reward_metrics(self) -> dict[str, float]:
        """Statistics of the reward actors, summed; the last known ones while an actor restarts."""
        if not self.system.rewards:
            return {}
        try:
            stats = ray.get([reward.stats.remote() for reward in self.system.rewards], timeout=5)
        except ray.exceptions.RayError:
            return self._reward_stats
        self._reward_stats = {f"reward_{name}": sum(s[name] for s in stats) / len(stats) for name in stats[0]}
        return self._reward_stats

    def _checkpoint(self) -> None:
        """Learner state, counters and limiter into a temporary folder, then one rename."""
        temporary = self.folder.new_checkpoint_folder(self.agent_steps)
        self.learner.save(temporary)
        counters = {
            **self.counters(),
            "wall_s": self.log.wall_s(),
            "next_block": self.blocks.next_block,
            "evaluated_at_steps": self._evaluated_at_steps,
            "recoveries": self.recoveries,
            "replay": [
                {
                    key: s[key]
                    for key in ("size_transitions", "total_inserted_episodes", "total_inserted_steps")
                }
                for s in ray.get([shard.stats.remote() for shard in self.system.shards])
            ],
        }
        self.folder.commit_checkpoint(temporary, self.agent_steps, counters, self.settings.keep_checkpoints)
        self.log.flush()
        self._checkpointed_s = time.monotonic()
