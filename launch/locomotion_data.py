"""Trains SAC (RLlib) on a locomotion task and keeps the trajectories that relative reward functions learn from.

python launch/collect.py task=halfcheetah mode=base
python launch/collect.py task=halfcheetah mode=expert

experts/<task>_seed<seed>   the training; the same command goes on with it after a kill
data/<task>/base            all its transitions until a part of its final return
data/<task>/expert          rollouts of its best policy
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from actors.envs.locomotion import LOCOMOTION_TASKS, LocomotionConfig
from actors.policy_file import FilePolicy, load_policy_file
from actors.seeding import INDEX_BITS, indexed_seed
from actors.state_rollouts import StateEpisode, noisy, returns, roll_out, uniform
from launch import cli
from launch.cli import UsageError, build, suggest
from launch.paths import absolute_path
from launch.progress import Progress
from launch.run_folder import RunFolder
from launch.sac import SACConfig
from launch.train_expert import ExpertTraining, TrainExpertSettings, new_folder, reopen, train_on_ray
from models.files import read_json, write_json
from models.trajectories import TrajectoryWriter

VERB = "collect_locomotion"
DOMAIN = "locomotion"
MODES = ("base", "expert")
# Episodes of a rollout that run in lockstep.
LOCKSTEP = 20
REFERENCES_FILE = "references.json"
# Steps between the points of the references' curves, for rollouts shorter than an episode.
REFERENCE_EVERY_STEPS = 50
# Seeds of the episodes that give the references, beside those of the evaluations during the training.
REFERENCE_SEED_OFFSET = 1000


@dataclass(frozen=True)
class LocomotionDataConfig:
    """How much is trained and kept. Defaults: as many transitions as D4RL's sets have (arXiv 2004.07219).

    Attributes:
        total_agent_steps: Of the training, at least 1.
        eval_every_agent_steps: Agent steps between evaluations of the mean action, at least 1.
        eval_episodes: Episodes of an evaluation, at least 1.
        episode_steps: Time limit, at least 1.
        checkpoint_every_s: Seconds between checkpoints of the training.
        num_env_runners: Ray actors that step environments; 0: the process of the learner does.
        return_share: The base data ends where the return of an evaluation first has come so far from the random one
            to the best one, in (0, 1].
        expert_transitions: Of the expert data, at least 1; the last episode is whole.
        expert_noise: Standard deviation of Gaussian noise on the expert's actions, 0 or more: a recorded expert
            explores a little, so that its model has seen the neighbourhood of its path.
        reference_episodes: Episodes behind the random and the expert return of the normalised score, at least 1.
        sac: Hyperparameters.
    """

    total_agent_steps: int = 1_000_000
    eval_every_agent_steps: int = 10_000
    eval_episodes: int = 10
    episode_steps: int = 1000
    checkpoint_every_s: float = 300.0
    num_env_runners: int = 0
    return_share: float = 1 / 3
    expert_transitions: int = 1_000_000
    expert_noise: float = 0.1
    reference_episodes: int = 50
    sac: SACConfig = field(default_factory=lambda: SACConfig(reward_scale=1.0, warmup_steps=10_000))

    def __post_init__(self) -> None:
        for key in (
            *("total_agent_steps", "eval_every_agent_steps", "eval_episodes", "episode_steps"),
            *("expert_transitions", "reference_episodes"),
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("checkpoint_every_s", "num_env_runners", "expert_noise"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if not 0 < self.return_share <= 1:
            raise ValueError(f"return_share must be in (0, 1], got {self.return_share}")
        if self.sac.capacity_transitions < self.total_agent_steps:
            raise ValueError(
                f"sac.capacity_transitions={self.sac.capacity_transitions} is less than total_agent_steps="
                f"{self.total_agent_steps}: the base data is taken from the replay, which would have lost its beginning"
            )


@dataclass(frozen=True)
class LocomotionDataSettings:
    """Which data of which training.

    Attributes:
        task: "halfcheetah", "hopper" or "walker2d".
        mode: "base" or "expert".
        seed: Of networks and initial states, at least 0 and below 2^24 - 1000.
        address: Ray address, or None for RAY_ADDRESS, else a local Ray.
        data: Sizes.
    """

    task: str
    mode: str
    seed: int
    address: str | None
    data: LocomotionDataConfig

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}; {suggest(self.mode, MODES)}")
        most = 2**INDEX_BITS - REFERENCE_SEED_OFFSET
        if not 0 <= self.seed < most:
            raise ValueError(f"seed must be in [0, {most}), got {self.seed}")

    @property
    def env(self) -> LocomotionConfig:
        """The environment."""
        return LocomotionConfig(self.task, self.data.episode_steps)

    @property
    def training(self) -> TrainExpertSettings:
        """The training, on another kind of environment than that of `train_expert.py`."""
        names = ("sac", "total_agent_steps", "eval_every_agent_steps", "eval_episodes", "checkpoint_every_s")
        values = {name: getattr(self.data, name) for name in (*names, "num_env_runners")}
        return TrainExpertSettings(env=self.env, seed=self.seed, address=self.address, **values)  # type: ignore[arg-type]


def is_locomotion(overrides: list[str]) -> bool:
    """Whether `collect.py` is asked for a locomotion task."""
    tasks = [o.partition("=")[2] for o in overrides if o.startswith("task=")]
    return bool(tasks) and tasks[-1] in LOCOMOTION_TASKS


def main() -> None:
    """Entry point of `python launch/collect.py task=halfcheetah|hopper|walker2d`."""
    cli.main(VERB, __doc__ or "", collect_locomotion)


def collect_locomotion(config: DictConfig) -> int:
    """Trains, or goes on with a training, and writes the folder of trajectories.

    Raises:
        UsageError: if a setting is bad, the folder exists, or the training has other settings.
    """
    settings = data_settings(config)
    out = absolute_path(config.out or f"data/{settings.task}/{settings.mode}", "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    training = absolute_path(config.training or f"experts/{settings.task}_seed{settings.seed}", "training")
    folder = finished_training(settings, training)
    if folder is None:
        return 1
    write = write_base if settings.mode == "base" else write_expert
    write(settings, folder, out)
    return 0


def data_settings(config: DictConfig) -> LocomotionDataSettings:
    """The settings in a composed configuration.

    Raises:
        UsageError: naming key, value and what is allowed.
    """
    if config.task not in LOCOMOTION_TASKS:
        raise UsageError(f"unknown task {config.task!r}; {suggest(str(config.task), LOCOMOTION_TASKS)}")
    names = ("task", "mode", "seed", "address")
    values = {name: config[name] for name in names}
    return build(LocomotionDataSettings, {**values, "data": config.locomotion_data})


def finished_training(settings: LocomotionDataSettings, path: Path) -> RunFolder | None:
    """Trains in a new folder, or goes on with an old one, and measures the references.

    Returns:
        The folder, or None if a signal stopped the training before its end.

    Raises:
        UsageError: if the training was started with other settings.
    """
    names = ("sac", "episode_steps", *("total_agent_steps", "eval_every_agent_steps", "eval_episodes"))
    values = {"task": settings.task, "seed": settings.seed}
    values |= {name: asdict(settings.data)[name] for name in names}
    config = OmegaConf.create(values)
    is_old = (path / "config.yaml").is_file()
    folder, wall_offset_s = reopen(RunFolder.open(path), config) if is_old else new_folder(path, config)
    if _trained_steps(folder) < settings.data.total_agent_steps:
        train_on_ray(LocomotionTraining, settings.training, folder, wall_offset_s)
        if _trained_steps(folder) < settings.data.total_agent_steps:
            return None
    measure_references(settings, folder)
    return folder


def measure_references(settings: LocomotionDataSettings, folder: RunFolder) -> None:
    """Writes `references.json`, unless it is that of the expert that is there: a training that went on may have found a
    better one."""
    measured = folder.path / REFERENCES_FILE
    best = read_json(folder.path / "expert.json")["agent_steps"]
    if not measured.is_file() or read_json(measured).get("expert_agent_steps") != best:
        write_json(measured, {**references(settings, folder), "expert_agent_steps": best})


def _trained_steps(folder: RunFolder) -> int:
    checkpoint = folder.latest_checkpoint(read_files=False)
    return 0 if checkpoint is None else int(folder.counters(checkpoint)["agent_steps"])


class LocomotionTraining(ExpertTraining):
    """SAC of RLlib on a locomotion task."""

    verb = "collect"
    environment = "actors.envs.locomotion:make_state_env"
    quality_keys = ("dense_return",)

    def measure(self, policy: FilePolicy) -> dict[str, float]:
        """Mean return, its standard deviation, and mean length of the fixed evaluation episodes."""
        settings = self._settings
        seeds = [indexed_seed("evaluation", settings.seed, i) for i in range(settings.eval_episodes)]
        episodes = roll_out(settings.env, seeds, noisy(policy, 0.0, 0))
        found = returns(episodes)
        return {
            "dense_return": float(found.mean()),
            "return_std": float(found.std()),
            "episode_steps": float(np.mean([len(episode.rewards) for episode in episodes])),
            "episodes": len(episodes),
        }

    def describe(self, metrics: dict[str, float]) -> str:
        """An evaluation in words."""
        return f"return {metrics['dense_return']:,.0f} over {metrics['episodes']} episodes"

    def resume_command(self) -> str:
        """What goes on with a stopped run."""
        return "the same command"

    def report(self) -> None:
        """Says how the finished training went."""
        assert self._best is not None
        self._say(f"trained; best return {self._best[0]:,.0f}: {self._folder.path}/expert.npz")


def reference_steps(limit: int) -> list[int]:
    """Lengths of rollouts that have references: multiples of 50 below an episode's time limit, and that limit."""
    return sorted({*range(REFERENCE_EVERY_STEPS, limit, REFERENCE_EVERY_STEPS), limit})


def references(settings: LocomotionDataSettings, folder: RunFolder) -> dict[str, Any]:
    """Mean returns of random actions and of the best policy: 0 and 100 of the normalised score.

    Returns:
        `random_return` and `expert_return` with their standard errors, and `reference_curve`: the same returns of the
        first so many steps (`steps`, `random`, `expert`), for rollouts that are cut off there.
    """
    count, facts = settings.data.reference_episodes, settings.env.facts
    policy = load_policy_file(folder.path / "expert.npz")
    limit = settings.data.episode_steps
    steps = reference_steps(limit)
    found: dict[str, Any] = {}
    curve: dict[str, list[float]] = {"steps": steps}  # type: ignore[dict-item]
    for name, act in (
        ("random", uniform(facts.action_dim, settings.seed)),
        ("expert", noisy(policy, 0.0, 0)),
    ):
        episodes = list(_episodes(settings, act, REFERENCE_SEED_OFFSET, count))
        values = returns(episodes)
        found[f"{name}_return"] = float(values.mean())
        found[f"{name}_return_standard_error"] = float(values.std(ddof=1) / count**0.5) if count > 1 else 0.0
        curve[name] = [float(np.mean([e.rewards[:step].sum() for e in episodes])) for step in steps]
    if not found["expert_return"] > found["random_return"]:
        print(
            f"[collect] WARNING: the best policy of {folder.path} has return {found['expert_return']:,.1f}, random "
            f"actions have {found['random_return']:,.1f}: train for more steps (locomotion_data.total_agent_steps)",
            flush=True,
        )
    return {**found, "reference_curve": curve, "reference_episodes": count, "episode_steps": limit}


def _episodes(
    settings: LocomotionDataSettings, act: Any, seed_offset: int, count: int | None
) -> Iterator[StateEpisode]:
    """So many episodes, or no end of them, in batches that run in lockstep."""
    number = 0
    while count is None or number < count:
        stop = number + LOCKSTEP if count is None else min(number + LOCKSTEP, count)
        seeds = [indexed_seed("evaluation", settings.seed + seed_offset, i) for i in range(number, stop)]
        yield from roll_out(settings.env, seeds, act)
        number = stop


def write_base(settings: LocomotionDataSettings, folder: RunFolder, out: Path) -> None:
    """Writes the training's own episodes, from the first on, until `return_share` of the way to its best return."""
    facts = read_json(folder.path / REFERENCES_FILE)
    limit, reached = base_limit(folder, facts["random_return"], settings.data.return_share)
    checkpoint = folder.latest_checkpoint()
    assert checkpoint is not None
    with np.load(checkpoint / "replay.npz", allow_pickle=False) as file:
        replay = dict(file)
    extra = {**facts, "agent_steps": limit, "return_reached": reached, "training": asdict(settings.data)}
    with _writer(settings, out, extra) as writer:
        for episode in replay_prefix(replay, limit, settings.data.sac.reward_scale):
            writer.add(*episode)
        count, transitions = len(writer.ends), writer.transitions
    print(
        f"[collect] {count:,} episodes, {transitions:,} transitions of the training of {settings.task} until return "
        f"{reached:,.0f}: {out}",
        flush=True,
    )


def base_limit(folder: RunFolder, random_return: float, share: float) -> tuple[int, float]:
    """Agent steps at the first evaluation that came `share` of the way from the random return to the best one.

    Returns:
        These agent steps, and the return of that evaluation.
    """
    # Steps that a kill took back are taken again: the later evaluation is that of the replay which is kept.
    evaluated = {
        row["agent_steps"]: row["dense_return"] for row in folder.metric_lines() if row["phase"] == "eval"
    }
    rows = sorted(evaluated.items())
    best = max(evaluated.values())
    wanted = min(random_return + share * (best - random_return), best)
    return next((steps, found) for steps, found in rows if found >= wanted)


def replay_prefix(
    replay: dict[str, np.ndarray], limit_steps: int, reward_scale: float
) -> Iterator[StateEpisode]:
    """The first transitions of a replay (`launch.sac_replay.ArrayEpisodeReplayBuffer.plain_arrays`), by episode, with unscaled rewards.

    The last observation of an episode, in which no action was taken, is left out; an episode is cut at the limit.
    """
    start = 0
    for number, length in enumerate(int(n) for n in replay["lengths"]):
        taken = min(length, limit_steps - start)
        if taken <= 0:
            return
        first = start + number
        yield StateEpisode(
            replay["observations"][first : first + taken],
            replay["actions"][start : start + taken],
            replay["rewards"][start : start + taken] / np.float32(reward_scale),
        )
        start += length


def write_expert(settings: LocomotionDataSettings, folder: RunFolder, out: Path) -> None:
    """Writes rollouts of the best policy."""
    policy = load_policy_file(folder.path / "expert.npz")
    data = settings.data
    act = noisy(policy, data.expert_noise, settings.seed)
    progress = Progress("collect", "transitions")
    facts = read_json(folder.path / REFERENCES_FILE)
    extra = {**facts, **read_json(folder.path / "expert.json"), "training": asdict(data)}
    found = []
    with _writer(settings, out, extra) as writer:
        for episode in _episodes(settings, act, 0, None):
            writer.add(*episode)
            found.append(float(episode.rewards.sum()))
            progress(min(writer.transitions, data.expert_transitions), data.expert_transitions)
            if writer.transitions >= data.expert_transitions:
                break
        count, transitions = len(writer.ends), writer.transitions
        writer.index["extra"]["return_mean"] = float(np.mean(found))
    print(
        f"[collect] {count:,} episodes, {transitions:,} transitions of the expert of {settings.task}, mean return "
        f"{np.mean(found):,.0f}: {out}",
        flush=True,
    )


def _writer(settings: LocomotionDataSettings, out: Path, extra: dict[str, Any]) -> TrajectoryWriter:
    return TrajectoryWriter(
        out,
        domain=DOMAIN,
        task=settings.task,
        mode=settings.mode,
        observation_dim=settings.env.facts.observation_dim,
        action_dim=settings.env.facts.action_dim,
        seed=settings.seed,
        extra=extra,
    )
