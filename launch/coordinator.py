"""The training loop of the driver: keeps blocks, updates, evaluations and checkpoints moving.

The driver never touches pixels: frames go from actor to actor by reference, it sees counts and metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from launch.blocks import Block, BlockPipeline, block_number
from launch.console import TrainingView
from launch.evaluating import EvaluationRun
from launch.interrupts import StopFlag
from launch.learner_link import LearnerLink
from launch.metrics import MetricsLog
from launch.run_folder import ReplayStart, RunFolder
from launch.settings import TrainSettings
from launch.supervisor import Supervisor
from launch.system import System
from launch.uploads import Uploads
from launch.watching import StoredEpisodes, Watch
from launch.windows import RateWindow, RecentEpisodes, update_ratio


class Coordinator:
    """Runs one training to its last agent step, or to a clean stop.

    Args:
        settings: Everything configurable.
        system: Actor handles.
        folder: Run folder.
        log: Metrics sink.
        view: Console.
        stop: Set when the user asks to stop.
        uploads: Copies checkpoints to a store, or None.
    """

    def __init__(
        self,
        settings: TrainSettings,
        system: System,
        folder: RunFolder,
        log: MetricsLog,
        view: TrainingView,
        stop: StopFlag,
        uploads: Uploads | None = None,
    ) -> None:
        self.settings, self.system, self.folder = settings, system, folder
        self.log, self.view, self.stop = log, view, stop
        self.uploads = uploads
        self.replay_start = folder.replay_start()
        self.recoveries = 0
        self.limiter = settings.limiter
        self.supervisor = Supervisor(settings, system, self._event)
        self.learner = LearnerLink(
            system.learner,
            folder,
            self._recovered,
            while_waiting=self.supervisor.look,
            # While it has no node, the supervisor's patience counts, who says what to do.
            recovery_timeout_s=settings.cluster.patience_s + settings.cluster.start_timeout_s,
        )
        self.evaluation: EvaluationRun | None = None
        self._evaluated_at_steps = -1
        self._checkpointed_s = time.monotonic()
        self._logged_s = 0.0
        self._recent = RecentEpisodes(window=20)
        self._rates = RateWindow()
        self._watch = Watch(system)

    # ---- start

    def restore(self) -> Path | None:
        """Brings counters and learner to where a resumed run stopped (a new run stays at zero).

        Returns:
            The checkpoint, or None if there is none yet.
        """
        shards = self.system.shards
        self._stored = StoredEpisodes(ray.get([shard.stats.remote() for shard in shards]))
        # Not the last ones alone: blocks may be stored in another order than they were started in.
        stored = [block_number(name) for ids in ray.get([s.ids.remote() for s in shards]) for name in ids]
        checkpoint = self.folder.latest_checkpoint(tell=self._event)
        saved: dict[str, Any] = {}
        if checkpoint is not None:
            saved = self.folder.counters(checkpoint)
            self.learner.load(checkpoint)
            self._keep_counting_if_the_replay_is_gone(saved)
            self._evaluated_at_steps = saved["evaluated_at_steps"]
            self.recoveries = saved["recoveries"]
        first_block = 1 + max(stored, default=-1)
        self.blocks = BlockPipeline(
            self.system,
            episodes_per_block=self.settings.rollout.episodes_per_block,
            episode_steps=self.settings.env.episode_steps,
            first_block=max(first_block, saved.get("next_block", 0)),
            on_done=self._block_done,
            on_event=self._block_lost,
        )
        self.learner.publish()
        return checkpoint

    def _keep_counting_if_the_replay_is_gone(self, saved: Mapping[str, Any]) -> None:
        """An empty replay is filled as at the start of a run; agent steps and updates go on from the checkpoint."""
        if self._stored.agent_steps or saved["agent_steps"] == 0:
            return
        self.replay_start = ReplayStart(saved["agent_steps"], saved["updates"])
        self.folder.begin_replay_again(self.replay_start)
        self._event(
            f"the replay is empty: it is filled again from agent step {self.replay_start.agent_steps} on, the first "
            f"{self.limiter.min_steps} agent steps without updates"
        )

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
        while not self.stop and not self._is_done():
            # The learner died over the last evaluation or the saving, and is back at an older checkpoint.
            self.advance()
            self._checkpoint()
        self._report(force=True)
        self._finish_uploads()
        return self.stop.reason or "finished"

    def start(self) -> None:
        """Restores the counters; makes sure that there is a checkpoint."""
        if self.restore() is None:
            self._checkpoint()  # A learner that dies early has something to come back to.

    def advance(self) -> None:
        """Trains until the last agent step and the updates that belong to it are done, or a stop is asked for."""
        while not self.stop and not self._is_done():
            self.turn()

    def turn(self) -> None:
        """One turn of the loop: starts what may start, takes what has come back, saves and reports what is due."""
        self.supervisor.look(self.blocks)
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
        return self.replay_start.agent_steps + self._stored.agent_steps

    def _is_done(self) -> bool:
        budget_is_spent = self.agent_steps >= self.settings.total_agent_steps
        is_learning = bool(self.learner.in_flight) or self._updates_due(self.learner.updates) > 0
        return budget_is_spent and not is_learning and self.evaluation is None

    def _updates_due(self, updates: int) -> int:
        """How many updates may start now, given how many were started."""
        return self.limiter.updates_due(*self._since_replay_began(self.agent_steps, updates))

    def _since_replay_began(self, agent_steps: int, updates: int) -> tuple[int, int]:
        """What the limiter counts: it holds the ratio, and waits for the first steps, of the replay that is there."""
        start = self.replay_start
        # An older checkpoint than the one at which the replay began is behind it: those updates are made up for.
        return agent_steps - start.agent_steps, max(0, updates - start.updates)

    @property
    def _is_sync(self) -> bool:
        return self.settings.cluster.sync

    def _start_blocks(self) -> None:
        self.blocks.repeat_lost()
        submitted = self.agent_steps + self.blocks.steps_in_flight
        left = self.settings.total_agent_steps - submitted
        if left <= 0:
            return
        block_steps = self.settings.block_steps
        if self._is_sync:
            # A lost block counts as well: the next one must not overtake it.
            busy = self.learner.in_flight or self.blocks.steps_in_flight or self.evaluation
            if not busy and self._updates_due(self.learner.updates) == 0:
                self.blocks.start(submitted, block_steps)
            return
        allowed = self.limiter.steps_allowed(*self._since_replay_began(submitted, self.learner.updates))
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
        if self.evaluation is not None and self.evaluation.is_lost:
            self._repeat_evaluation(self.evaluation)
        if self.agent_steps >= self.settings.total_agent_steps:
            return  # The last one waits for the updates that are still due: it is of the final weights.
        every = self.settings.eval_every_agent_steps
        is_due = self.agent_steps // every > self._evaluated_at_steps // every or self._evaluated_at_steps < 0
        if self.evaluation is not None or not is_due:
            return
        if self._is_sync and (self.blocks.in_flight or self.learner.in_flight):
            return
        self._evaluate_now()

    def _evaluate_now(self) -> None:
        self.evaluation = EvaluationRun(
            self.settings, self.system, self.folder, self.learner.publish_ref(), self.agent_steps
        )

    def _repeat_evaluation(self, evaluation: EvaluationRun) -> None:
        """Starts a failed evaluation again, once whoever failed is back."""
        self.supervisor.look(self.blocks, now=True)
        if "evaluator" not in self.supervisor.down.names:
            self.learner.recover_if_restarted()  # It may have been the learner that died, publishing its weights.
            evaluation.submit(self.learner.publish_ref())

    def _wait(self) -> None:
        """Waits for the next results and hands them to whoever asked for them."""
        handlers: dict[Any, Callable[[Any], None]] = {}
        handlers |= dict.fromkeys(self.blocks.in_flight, self.blocks.handle)
        handlers |= dict.fromkeys(self.learner.in_flight, self.learner.handle)
        if self.evaluation is not None and self.evaluation.ref is not None:
            handlers[self.evaluation.ref] = self._evaluation_step
        if not handlers:
            time.sleep(0.01)
            return
        for ref in _finished(list(handlers)):
            handlers[ref](ref)

    # ---- what comes back

    def _block_done(
        self,
        block: Block,
        acknowledgement: Mapping[str, Any],
        meta: Mapping[str, Any],
        learned_returns: Sequence[float],
    ) -> None:
        self._stored.add(block.shard, acknowledgement, meta)
        self._recent.add(meta, learned_returns, self.learner.updates)
        self._watch.block_done(block.started_s)

    def _block_lost(self, text: str) -> None:
        self._recovered(text)
        self.learner.publish_ref()  # It may have been the weight store that died, which forgets.

    def _recovered(self, text: str) -> None:
        self.recoveries += 1
        self._event(text)

    def _event(self, text: str) -> None:
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
        # Only now: one that a stop or a kill cuts off is made up for by the run that goes on.
        self._evaluated_at_steps = self.evaluation.agent_steps
        self.evaluation = None

    def _finish_evaluation(self) -> None:
        """Evaluates the final weights, unless an earlier part of the run has done so."""
        if self._evaluated_at_steps != self.agent_steps:
            self._evaluate_now()
        while self.evaluation is not None and not self.stop:
            self.supervisor.look(self.blocks)
            self._start_evaluation()
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
        self._tell_uploads()
        replay_steps, replay_updates = self._since_replay_began(self.agent_steps, self.learner.updates)
        metrics = {
            **self._recent.metrics(),
            **self._stored.metrics(),
            **update_ratio(replay_steps, replay_updates, self.limiter.min_steps),
            **self.learner.take_metrics(),
            "recoveries": self.recoveries,
        }
        if not self._is_sync:
            metrics |= self._rates.update(self.log.wall_s(), self.agent_steps, self.learner.updates)
            metrics |= {**self._watch.metrics(last=force), "batch_wait_s": self.learner.batch_wait_s}
            metrics |= self.uploads.metrics() if self.uploads is not None else {}
        self.log.row("train", self.counters(), metrics)
        shown = ("episode_success", "learned_return", "critic_loss", "agent_steps_per_s", "updates_per_s")
        view = {**self.counters(), **{k: metrics[k] for k in shown if k in metrics}}
        self.view.update(view, self.agent_steps / self.settings.total_agent_steps)

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
                for s in self._stored.shards
            ],
        }
        final = self.folder.commit_checkpoint(
            temporary, self.agent_steps, counters, self.settings.keep_checkpoints
        )
        self.log.flush()
        if self.uploads is not None:
            self.uploads.submit(final)
        self._checkpointed_s = time.monotonic()

    def _tell_uploads(self) -> None:
        for text in self.uploads.news() if self.uploads is not None else ():
            self._event(text)

    def _finish_uploads(self) -> None:
        if self.uploads is not None:
            self.view.event("waiting until the last checkpoint is copied")
            self.uploads.finish()
            self._tell_uploads()


def _finished(refs: Sequence[Any]) -> list[Any]:
    """Waits for one result, and returns all that are there: looking costs time for every reference that is waited for."""
    ready, waiting = ray.wait(refs, num_returns=1, timeout=0.5)
    if ready and waiting:
        ready += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
    return ready
