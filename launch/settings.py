"""Everything configurable about a training run, as validated dataclasses (the Hydra YAML merges into them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from actors.envs.registry import EnvConfig
from actors.seeding import INDEX_BITS
from launch.cli import UsageError, build
from launch.sections import section_class
from learner.bonus import BonusConfig
from learner.drqv2_config import DrQV2Config
from learner.learner_core import LearnerConfig
from learner.limiter import UpdateRatioLimiter
from learner.replay import ReplayConfig
from reward_service.config import FrameRewardConfig

# evaluate.py: added to the run's seed, it keeps its scenes apart from the ones that the run itself was evaluated on.
FINAL_SEED_OFFSET = 1_000_000


@dataclass(frozen=True)
class RewardSettings:
    """Composition of the total reward: r = (1 - alpha) learned_scale r_ce + alpha r_bonus + sparse_weight r_sparse.

    Attributes:
        name: Name shown in logs.
        frozen: Frozen reward (`reward_service.contract.reward_names()`), or None to train without one.
        checkpoint: Folder of the reward model; needed if `frozen` is set. "{task}" stands for the task's name.
        num_actors: Reward actors, one process each, which share the blocks of episodes; used only with a frozen reward.
        alpha: Weight of the bonus (RND, AMP), in [0, 1].
        learned_scale: Factor on the standardised and clipped learned reward; 1 in the paper.
        environment: "sparse": the environment's reward counts the simulator steps that are a success; "dense": it is the
            simulator's own shaped reward, which nobody has for a real task: an upper reference.
        sparse_weight: Weight of the environment's reward.
    """

    name: str
    frozen: str | None = None
    checkpoint: str | None = None
    num_actors: int = 1
    alpha: float = 0.95
    learned_scale: float = 1.0
    environment: str = "sparse"
    sparse_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.num_actors < 1:
            raise ValueError(f"num_actors must be at least 1, got {self.num_actors}")
        if self.environment not in ("sparse", "dense"):
            raise ValueError(f"environment must be sparse or dense, got {self.environment!r}")
        if self.frozen is not None and self.checkpoint is None:
            raise ValueError(
                f"reward={self.name} needs a trained reward model: give reward.checkpoint=<folder>, made by "
                "`python launch/pretrain.py stage=codec` and `stage=video`"
            )

    @property
    def learned_weight(self) -> float:
        """Weight of the frozen, learned reward: (1 - alpha) learned_scale."""
        return (1.0 - self.alpha) * self.learned_scale


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are rolled out.

    Attributes:
        num_actors: Rollout actors, one process each; "auto": as many as the cluster's free CPUs hold, looked at again
            and again while training.
        max_actors: Most that "auto" starts; None: no limit.
        envs_per_actor: Environments stepped in lockstep by one actor.
        episodes_per_block: Episodes returned by one call; at least envs_per_actor makes sense.
        weight_refresh_steps: Agent steps between two looks for newer weights, per environment.
    """

    num_actors: int | str = 4
    max_actors: int | None = None
    envs_per_actor: int = 1
    episodes_per_block: int = 1
    weight_refresh_steps: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.num_actors, str) and self.num_actors != "auto":
            raise ValueError(f"num_actors must be a whole number or auto, got {self.num_actors!r}")
        for name in (
            "num_actors",
            "max_actors",
            "envs_per_actor",
            "episodes_per_block",
            "weight_refresh_steps",
        ):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def is_auto(self) -> bool:
        """Whether the number of actors follows the cluster."""
        return self.num_actors == "auto"

    @property
    def first_actors(self) -> int:
        """Rollout actors that a run starts with."""
        return 1 if isinstance(self.num_actors, str) else self.num_actors


@dataclass(frozen=True)
class ReplaySettings(ReplayConfig):
    """The replay as a whole; `capacity_transitions` is that of all shards together.

    Attributes:
        num_shards: Replay shards, one process each, which take the blocks of episodes in turn.
    """

    num_shards: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_shards < 1:
            raise ValueError(f"num_shards must be at least 1, got {self.num_shards}")


@dataclass(frozen=True)
class ClusterSettings:
    """Processes and the resources each of them asks Ray for.

    Attributes:
        address: Ray address; None attaches to the cluster of a submitted job (RAY_ADDRESS), else starts a
            local Ray.
        sync: One rollout and no overlap: two runs with one seed give identical metrics.
        egl_devices: GPUs that rollout actors and the evaluator render on, by index and in turn; None leaves
            the choice to EGL.
        *_cpus, *_gpus: Resources of one actor of that kind (fractions allowed).
        *_threads: Torch threads of one actor of that kind.
        spread: Rollout actors and replay shards go to as many nodes as there are, instead of filling one after the other.
        start_timeout_s: How long an actor may take to start, once it has its resources, before the run gives up.
        wait_for_resources_s: How long to wait for resources that the cluster does not have (yet), at the start and after the
            loss of a node. 0 refuses at the start what cannot be placed at once.
        report_unplaced_after_s: When an actor that waits for resources is named on the console and in metrics.jsonl.
        object_store_bytes: Size of a local Ray's object store, or None for Ray's default.
        include_dashboard: Whether a local Ray starts its dashboard.
        metrics_port: Where a local Ray offers its metrics to Prometheus, or None for any free port.
    """

    address: str | None = None
    sync: bool = False
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    rollout_cpus: float = 1.0
    rollout_threads: int = 1
    reward_cpus: float = 1.0
    reward_gpus: float = 0.0
    reward_threads: int = 1
    evaluator_cpus: float = 1.0
    shard_cpus: float = 0.0
    egl_devices: tuple[int, ...] | None = None
    spread: bool = False
    start_timeout_s: float = 120.0
    wait_for_resources_s: float = 0.0
    report_unplaced_after_s: float = 20.0
    object_store_bytes: int | None = None
    include_dashboard: bool = False
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        for name in ("rollout_threads", "reward_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("wait_for_resources_s", "report_unplaced_after_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.metrics_port is not None and not 1024 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port must be in [1024, 65535] or null, got {self.metrics_port}")

    @property
    def patience_s(self) -> float:
        """How long to wait for an actor that training cannot go on without, at the start and after a death."""
        return max(self.start_timeout_s, self.wait_for_resources_s)


@dataclass(frozen=True)
class TrainSettings:
    """One training run.

    Attributes:
        seed: Seed of everything random, at least 0 and below 2^24 - 1,000,000.
        total_agent_steps: Budget.
        eval_every_agent_steps: Agent steps between evaluations.
        eval_episodes: Episodes per evaluation.
        eval_videos: How many of them become videos.
        video_fps: Frames per second of the videos.
        updates_per_call: Updates of one learner call.
        checkpoint_every_s: Seconds between checkpoints.
        keep_checkpoints: How many are kept.
        storage: URL of a store (s3://, gs://, file://, whatever pyarrow or fsspec knows) that gets a copy of every
            checkpoint, or None.
        storage_replay: Whether the store gets the replay as well, and whether a resume from it takes the replay from
            there. Otherwise such a resume fills it again.
        log_every_s: Seconds between rows of metrics.jsonl.
        console: "auto", "live", "lines" or "off".
    """

    env: EnvConfig
    reward: RewardSettings
    frame_reward: FrameRewardConfig
    agent: DrQV2Config
    bonus: BonusConfig
    replay: ReplaySettings
    learner: LearnerConfig
    limiter: UpdateRatioLimiter
    rollout: RolloutSettings
    cluster: ClusterSettings
    seed: int = 0
    total_agent_steps: int = 1_000_000
    eval_every_agent_steps: int = 10_000
    eval_episodes: int = 10
    eval_videos: int = 1
    video_fps: int = 15
    updates_per_call: int = 50
    checkpoint_every_s: float = 300.0
    keep_checkpoints: int = 2
    storage: str | None = None
    storage_replay: bool = False
    log_every_s: float = 10.0
    console: str = "auto"

    def __post_init__(self) -> None:
        if self.console not in ("auto", "live", "lines", "off"):
            raise ValueError(f"console must be auto, live, lines or off, got {self.console!r}")
        most = 2**INDEX_BITS - FINAL_SEED_OFFSET
        if not 0 <= self.seed < most:
            raise ValueError(f"seed must be in [0, {most}), got {self.seed}")
        counts = ("total_agent_steps", "eval_every_agent_steps", "eval_episodes", "keep_checkpoints")
        for name in (*counts, "updates_per_call", "video_fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("checkpoint_every_s", "log_every_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.eval_videos > self.eval_episodes or self.eval_videos < 0:
            raise ValueError(
                f"eval_videos must be in [0, eval_episodes={self.eval_episodes}], got {self.eval_videos}"
            )
        if self.cluster.sync and self.rollout.num_actors != 1:
            raise ValueError(f"cluster.sync needs rollout.num_actors=1, got {self.rollout.num_actors}")
        if self.rollout.is_auto and self.cluster.rollout_cpus <= 0:
            raise ValueError(
                "rollout.num_actors=auto needs cluster.rollout_cpus above 0: it counts free CPUs"
            )
        hold_steps, n_step = self.env.success_hold_steps, self.replay.n_step
        if hold_steps is not None and hold_steps < n_step - 1:
            raise ValueError(
                f"env.success_hold_steps={hold_steps} is too short for replay.n_step={n_step}: the last "
                f"{n_step - 1} frames of an episode start no return, so a success would never be learned from; give at "
                f"least {n_step - 1}"
            )
        least = self.limiter.least_tolerance_steps(self.block_steps)
        if self.limiter.tolerance_steps < least:
            raise ValueError(
                f"limiter.tolerance_steps={self.limiter.tolerance_steps} is smaller than one block of "
                f"{self.block_steps} agent steps and what updates leave over, {least}: rollouts and learner would wait for "
                "each other for ever; raise it, or lower rollout.episodes_per_block"
            )

    @property
    def replay_config(self) -> ReplayConfig:
        """The settings of one shard, with the weights of the reward composition in them."""
        shard = {field.name: getattr(self.replay, field.name) for field in fields(ReplayConfig)}
        return replace(
            ReplayConfig(**shard),
            capacity_transitions=-(-self.replay.capacity_transitions // self.replay.num_shards),
            env_weight=self.reward.sparse_weight,
            learned_weight=self.reward.learned_weight if self.reward.frozen else 0.0,
            episode_steps=self.env.episode_steps,
            absorbing_ends=self.env.success_hold_steps is not None,
        )

    @property
    def bonus_config(self) -> BonusConfig:
        """The bonus's settings with alpha in them."""
        return replace(self.bonus, weight=self.reward.alpha)

    @property
    def block_steps(self) -> int:
        """Agent steps of one block."""
        return self.rollout.episodes_per_block * self.env.episode_steps


SETTINGS_KEYS = tuple(TrainSettings.__dataclass_fields__)


def train_settings(config: Mapping[str, Any]) -> TrainSettings:
    """Builds the settings of a run from the composed configuration.

    Raises:
        UsageError: naming the key, the value and what is allowed.
    """
    absent = [section for section in ("reward", "frame_reward", "bonus") if section not in config]
    if absent:
        raise UsageError(
            f"the configuration has no section {', '.join(absent)}: it is none of train.py; give the folder of one of its "
            "runs"
        )
    values = {key: config[key] for key in SETTINGS_KEYS if key in config}
    for section, choice in (("frame_reward", config["reward"]["frozen"]), ("bonus", config["bonus"]["name"])):
        try:
            cls = section_class(section, choice)
        except ValueError as error:
            raise UsageError(str(error)) from error
        values[section] = build(cls, config[section], f"{section}.")
    return build(TrainSettings, values)
