"""Trains an expert for a task that has none, on the simulator's dense reward: SAC of RLlib, from the state, undrawn.

python launch/train_expert.py task=drawer-close out=experts/drawer-close
python launch/train_expert.py resume=experts/drawer-close            # goes on after a kill; only your own folders
python launch/collect.py task=drawer-close expert=experts/drawer-close/expert.npz

<out>/expert.npz      the best policy so far as plain arrays (actors/policy_file.py), and expert.json about it
<out>/checkpoint      the newest checkpoint of RLlib, pickled: collect.py expert=<out>/checkpoint trust_expert=true
<out>/metrics.jsonl   phase, agent_steps, frames, updates, wall_s, success rates
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig

from actors.envs.registry import EnvConfig, make_env
from actors.policy_file import FilePolicy, save_policy_file
from actors.seeding import indexed_seed
from launch import cli
from launch.cli import UsageError, build
from launch.paths import absolute_path
from launch.ray_access import protect_local_ray
from launch.run_folder import RunFolder
from launch.sac import STATE_ENV, SACConfig
from models.files import hold_folder, read_json, write_json
from models.intervals import wilson_interval

# Share of an evaluation interval that one call of RLlib covers at most, and the most agent steps of a call.
CALLS_PER_EVALUATION = 5
MAX_CALL_STEPS = 500
OBJECT_STORE_BYTES = 200_000_000


@dataclass(frozen=True)
class TrainExpertSettings:
    """One training of an expert.

    Attributes:
        env: Task, action repeat and time limit; nothing is drawn.
        sac: Hyperparameters.
        seed: Of networks and scenes, at least 0 and below 2^24.
        total_agent_steps: Budget, at least 1.
        eval_every_agent_steps: Agent steps between evaluations of the mean action, at least 1.
        eval_episodes: Episodes of one evaluation, at least 1.
        checkpoint_every_s: Seconds between checkpoints; there is one at the end, too.
        num_env_runners: Ray actors that step environments; 0: the process of the learner does.
        address: Ray address, or None for RAY_ADDRESS, else a local Ray.
    """

    env: EnvConfig
    sac: SACConfig
    seed: int = 0
    total_agent_steps: int = 50_000
    eval_every_agent_steps: int = 2_500
    eval_episodes: int = 10
    checkpoint_every_s: float = 60.0
    num_env_runners: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("total_agent_steps", "eval_every_agent_steps", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_env_runners < 0:
            raise ValueError(f"num_env_runners must not be negative, got {self.num_env_runners}")
        if self.checkpoint_every_s < 0:
            raise ValueError(f"checkpoint_every_s must not be negative, got {self.checkpoint_every_s}")
        indexed_seed(
            "evaluation", self.seed, self.eval_episodes - 1
        )  # or the first evaluation would refuse it


def main() -> None:
    """Entry point of `python launch/train_expert.py`."""
    cli.main("train_expert", __doc__ or "", run, with_overrides_of_the_run)


def with_overrides_of_the_run(overrides: list[str]) -> list[str]:
    """Puts the resumed run's own overrides in front, so that only deliberate changes differ.

    Raises:
        UsageError: if the folder is none, or that of another kind of training.
    """
    resumed = [cli.read_value(o) for o in overrides if o.startswith("resume=")]
    if not resumed or resumed[-1] is None:
        return overrides
    folder = RunFolder.open(absolute_path(resumed[-1], "resume"))
    saved = folder.config()
    if "overrides" not in saved or "sac" not in saved:
        raise UsageError(
            f"{folder.path} is not a training of train_expert.py; go on with it by the command that began it"
        )
    return [o for o in saved.overrides if not o.startswith(("out=", "resume="))] + overrides


def run(config: DictConfig) -> int:
    """Checks everything cheap, then starts Ray and trains.

    Raises:
        UsageError: if a setting is bad, the folder exists, or there are too few CPUs.
    """
    names = TrainExpertSettings.__dataclass_fields__
    settings = build(TrainExpertSettings, {name: config[name] for name in names})
    make_env(settings.env).close()  # refuses a bad environment before Ray starts
    folder, wall_offset_s = _run_folder(config, settings)
    try:
        train_on_ray(ExpertTraining, settings, folder, wall_offset_s)
    except BaseException:
        if config.resume is None:
            folder.discard_if_unused()
        raise
    return 0


def train_on_ray(kind: type[ExpertTraining], settings: Any, folder: RunFolder, wall_offset_s: float) -> None:
    """Starts Ray, trains to the end or until a signal, and stops Ray.

    Args:
        kind: `ExpertTraining` or a subclass.
        settings: Of the training.
        folder: Of the run.
        wall_offset_s: Seconds that earlier parts of the run took.

    Raises:
        UsageError: if there are too few CPUs.
    """
    protect_local_ray(settings.address)
    import ray

    from launch.interrupts import StopFlag
    from launch.settings import ClusterSettings
    from launch.system import start_ray

    cluster = ClusterSettings(address=settings.address, object_store_bytes=OBJECT_STORE_BYTES)
    print(f"[{kind.verb}] starting Ray; run folder {folder.path}", flush=True)
    start_ray(cluster, namespace=f"drr-{folder.path.name}-{time.time_ns():x}")
    try:
        _require_cpus(settings, ray.cluster_resources().get("CPU", 0.0))
        training = kind(settings, folder, wall_offset_s)
        try:
            training.run(StopFlag())  # After Ray and RLlib, which put handlers of their own on SIGTERM.
        finally:
            training.close()
    finally:
        ray.shutdown()


def _run_folder(config: DictConfig, settings: TrainExpertSettings) -> tuple[RunFolder, float]:
    if config.resume is not None:
        folder = RunFolder.open(absolute_path(config.resume, "resume"))
        return reopen(folder, config)
    default = f"experts/{settings.env.task}_seed{settings.seed}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    return new_folder(out, config)


def new_folder(out: Path, config: DictConfig) -> tuple[RunFolder, float]:
    """A new run folder, and the 0 seconds its run has taken.

    Raises:
        UsageError: if the folder exists and is not empty.
    """
    folder = RunFolder.create(out, config)
    for unused in ("videos", "replay"):
        (folder.path / unused).rmdir()
    return folder, 0.0


def reopen(folder: RunFolder, config: DictConfig) -> tuple[RunFolder, float]:
    """A run folder to go on with, and the seconds its run has taken.

    Raises:
        UsageError: if it was started with another configuration.
    """
    folder.require_same_config(config)
    return folder, max((row["wall_s"] for row in folder.metric_lines()), default=0.0)


def _require_cpus(settings: Any, there: float) -> None:
    if settings.num_env_runners > there:
        raise UsageError(
            f"num_env_runners={settings.num_env_runners} asks for as many CPUs, the cluster has {there:g}; lower it "
            "(0 steps the environment in the learner's process)"
        )


class ExpertTraining:
    """Trains, evaluates, exports and checkpoints, from the start or from the newest checkpoint.

    Attributes:
        verb: Named in messages.
        environment: What makes an environment (`StateSAC`).
        quality_keys: Metrics of an evaluation that say which policy is better, the most important first.
    """

    verb = "train_expert"
    environment = STATE_ENV
    quality_keys: tuple[str, ...] = ("success_rate", "end_success_rate", "dense_return")

    def __init__(self, settings: Any, folder: RunFolder, wall_offset_s: float) -> None:
        """Builds the algorithm and restores it where there is a checkpoint; Ray must be running.

        Args:
            settings: `TrainExpertSettings`, or what has the same attributes.
            folder: Of the run.
            wall_offset_s: Seconds that earlier parts of the run took.
        """
        from launch.metrics import MetricsLog
        from launch.progress import Progress
        from launch.ray_metrics import RayMetrics
        from launch.sac import StateSAC

        hold_folder(folder.path)
        self._settings, self._folder = settings, folder
        checkpoint = folder.latest_checkpoint()
        counters = {} if checkpoint is None else folder.counters(checkpoint)
        self._steps = int(counters.get("agent_steps", 0))
        self._updates = int(counters.get("updates", 0))
        self._best = self._best_so_far(counters)
        self._shown: dict[str, float] = {}
        call_steps = max(1, settings.eval_every_agent_steps // CALLS_PER_EVALUATION)
        self._sac = StateSAC(
            settings.env,
            settings.sac,
            environment=self.environment,
            seed=settings.seed,
            num_env_runners=settings.num_env_runners,
            iteration_steps=min(MAX_CALL_STEPS, call_steps),
            first_step=self._steps,
        )
        if checkpoint is not None:
            self._sac.restore(checkpoint)
        tags = {"run": folder.path.name, "task": settings.env.task, "reward": "dense"}
        self._log = MetricsLog(folder.path, wall_offset_s, sink=RayMetrics(tags))
        self._progress = Progress(self.verb, "agent steps")
        if checkpoint is not None:
            self._say(f"resumed at {self._steps:,} agent steps from {checkpoint}")

    def _best_so_far(self, counters: Mapping[str, Any]) -> list[float] | None:
        """Quality of the exported policy, which is newer than the checkpoint if a kill came between the two."""
        about = self._folder.path / "expert.json"
        if about.exists():
            return [float(read_json(about)[key]) for key in self.quality_keys]
        return counters.get("best")

    def run(self, stop: Any) -> None:
        """Until the budget is spent or `stop` is true; leaves a checkpoint either way."""
        settings = self._settings
        self._progress(self._steps, settings.total_agent_steps)
        saved_s = time.monotonic()
        while self._steps < settings.total_agent_steps and not stop:
            before = self._steps
            self._train()
            every = settings.eval_every_agent_steps
            if self._steps // every > before // every or self._steps >= settings.total_agent_steps:
                self._evaluate()
            if time.monotonic() - saved_s >= settings.checkpoint_every_s:
                self._checkpoint()
                saved_s = time.monotonic()
        self._checkpoint()
        if stop and self._steps < settings.total_agent_steps:
            self._say(f"stopped; go on with: {self.resume_command()}")
        else:
            self.report()

    def _train(self) -> None:
        numbers = self._sac.train()
        self._steps, self._updates = int(numbers.pop("agent_steps")), round(numbers.pop("updates"))
        self._log.row("train", self._counters(), numbers)
        self._shown |= {k: v for k, v in numbers.items() if k in ("episode_success", "dense_return")}
        self._progress(self._steps, self._settings.total_agent_steps, self._shown)

    def _evaluate(self) -> None:
        arrays = self._sac.policy_arrays()
        metrics = self.measure(FilePolicy(arrays))
        self._log.row("eval", self._counters(), metrics)
        quality = [metrics[key] for key in self.quality_keys]
        is_best = self._best is None or quality > self._best
        if is_best:
            self._best = quality
            self._export(arrays, metrics)
        self._say(
            f"at {self._steps:,} agent steps: {self.describe(metrics)}"
            + (" (best so far: expert.npz)" if is_best else "")
        )

    def _export(self, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        """Puts a better policy in the place of the run's last one."""
        temporary = self._folder.path / f".expert-{os.getpid()}.npz"
        temporary.unlink(missing_ok=True)
        save_policy_file(temporary, arrays)
        os.replace(temporary, self._folder.path / "expert.npz")
        about = {"task": self._settings.env.task, **self._counters(), **metrics}
        about["action_repeat"] = self._settings.env.action_repeat
        write_json(self._folder.path / "expert.json", about)

    def _checkpoint(self) -> None:
        counters = {**self._counters(), "best": self._best}
        path = self._folder.save_checkpoint(self._steps, self._sac.save, counters, keep=2)
        link = self._folder.path / "checkpoint"
        temporary = link.with_name(f".checkpoint-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("checkpoints") / path.name / "rllib")
        os.replace(temporary, link)

    def measure(self, policy: FilePolicy) -> dict[str, float]:
        """Metrics of an evaluation; they have `quality_keys`."""
        settings = self._settings
        return evaluate(settings.env, policy, settings.eval_episodes, settings.seed)

    def describe(self, metrics: dict[str, float]) -> str:
        """An evaluation in words."""
        return (
            f"success {metrics['success_rate']:.0%} of {self._settings.eval_episodes} episodes, "
            f"dense return {metrics['dense_return']:,.1f}"
        )

    def resume_command(self) -> str:
        """What goes on with a stopped run."""
        return f"python launch/train_expert.py {shlex.quote(cli.path_override('resume', self._folder.path))}"

    def report(self) -> None:
        """Says how a finished run went."""
        path = self._folder.path
        if self._best is None or self._best[0] == 0.0:
            self._say(
                f"WARNING: no evaluation saw a success; {path}/expert.npz is the policy with the highest dense return. "
                "Go on with more steps (resume=, total_agent_steps=), or with another seed"
            )
        else:
            task = self._settings.env.task
            self._say(
                f"best success {self._best[0]:.0%}. Videos: collect.py task={task} expert={path}/expert.npz"
            )

    def _counters(self) -> dict[str, int]:
        frames = self._steps * self._settings.env.action_repeat
        return {"agent_steps": self._steps, "frames": frames, "updates": self._updates}

    def _say(self, text: str) -> None:
        print(f"[{self.verb}] {text}", flush=True)

    def close(self) -> None:
        """Stops the algorithm and closes the files."""
        self._log.close()
        self._sac.stop()


def evaluate(env_config: EnvConfig, policy: FilePolicy, episodes: int, seed: int) -> dict[str, float]:
    """Runs a state policy, without drawing, on the fixed evaluation scenes of a seed.

    Returns:
        `success_rate` (a success at any step), its 95 % interval, `end_success_rate` (at the last step), `dense_return`.
    """
    env = make_env(env_config)
    successes, ends, returns = [], [], []
    for episode in range(episodes):
        env.reset_state(indexed_seed("evaluation", seed, episode))
        is_success, dense_return, truncated = False, 0.0, False
        while not truncated:
            _, truncated, info = env.advance(policy(env.state))
            is_success |= info["success"]
            dense_return += info["dense_reward"]
        successes.append(is_success)
        ends.append(info["success"])
        returns.append(dense_return)
    env.close()
    low, high = wilson_interval(sum(successes), episodes)
    return {
        "success_rate": float(np.mean(successes)),
        "success_low": low,
        "success_high": high,
        "end_success_rate": float(np.mean(ends)),
        "dense_return": float(np.mean(returns)),
        "episodes": episodes,
    }


if __name__ == "__main__":
    main()
